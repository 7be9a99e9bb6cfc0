"""Streams that run beside their consumer, and batches that are bounded in number and in weight."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from openavs.utils.concurrency import batched, prefetch


def test_items_arrive_in_order_and_all_of_them() -> None:
    assert list(prefetch(range(100), depth=3)) == list(range(100))


def test_never_more_than_depth_items_wait() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    for taken, _ in enumerate(prefetch(source(), depth=2), start=1):
        time.sleep(0.002)
        assert len(made) <= taken + 2 + 1  # those taken, those waiting, and the one in the producer's hand


def test_an_error_of_the_source_is_raised_where_its_item_would_have_come() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    stream = prefetch(source())
    assert next(stream) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)


def test_a_source_that_cannot_even_begin_is_an_error_and_no_endless_wait() -> None:
    class Gone:
        def __iter__(self) -> Iterator[int]:
            raise OSError("the folder is gone")

    with pytest.raises(OSError, match="the folder is gone"):
        list(prefetch(Gone()))


def test_stopping_early_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    stream = prefetch(source())
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert closed.wait(timeout=5)
    assert not any(thread.name == "openavs-prefetch" for thread in threading.enumerate())


def test_batches_are_cut_by_number_and_by_weight() -> None:
    assert list(batched([1, 1, 1, 1, 1], 2, weight=lambda x: x, limit=100)) == [[1, 1], [1, 1], [1]]
    assert list(batched([3, 3, 3], 10, weight=lambda x: x, limit=6)) == [[3, 3], [3]]


def test_an_item_over_the_limit_goes_alone() -> None:
    assert list(batched([1, 50, 1], 10, weight=lambda x: x, limit=10)) == [[1], [50], [1]]


def test_nothing_makes_no_batch() -> None:
    assert list(batched([], 4, weight=lambda x: 1, limit=1)) == []


def test_a_full_batch_does_not_wait_for_the_next_item() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for i in range(6):
            made.append(i)
            yield i

    batches = batched(source(), 2, weight=lambda x: 1, limit=100)
    assert next(batches) == [0, 1]
    assert made == [0, 1]
