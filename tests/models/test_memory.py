"""Batches that do not fit are halved, down to one item."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
import torch

from openavs.errors import OutOfMemoryError
from openavs.models.memory import is_out_of_memory, run_with_oom_backoff

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
]


class Stage:
    """Adds up pairs as long as no more than `room` of them come at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, ones: Sequence[int], twos: Sequence[int]) -> list[int]:
        self.sizes.append(len(ones))
        if len(ones) > self.room:
            raise self.error
        return [one + two for one, two in zip(ones, twos, strict=True)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_in_order(error: Exception) -> None:
    stage = Stage(2, error)
    assert run_with_oom_backoff(stage, list(range(7)), list(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert stage.sizes == [7, 3, 1, 2, 4, 2, 2]


def test_the_cuda_cache_is_emptied_before_the_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    stage = Stage(1, ERRORS[1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(len(stage.sizes)))
    assert run_with_oom_backoff(stage, [1, 2], [3, 4]) == [4, 6]
    assert given == [1], "after the batch that did not fit, and before its halves"


def test_stages_without_torch_are_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert run_with_oom_backoff(Stage(1, MemoryError()), [1, 2], [3, 4]) == [4, 6]
    assert "torch" not in sys.modules


def test_one_item_that_does_not_fit_is_an_error() -> None:
    stage = Stage(0, ERRORS[1])
    with pytest.raises(
        OutOfMemoryError, match=r"not even one frame .* fits into memory .*; use a smaller model"
    ) as caught:
        run_with_oom_backoff(stage, [1, 2, 3, 4], [1, 2, 3, 4])
    assert stage.sizes == [4, 2, 1]
    assert caught.value.__cause__ is ERRORS[1]
    assert is_out_of_memory(caught.value)


def test_other_errors_are_raised_at_once() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")):
        stage = Stage(1, error)
        with pytest.raises(type(error)):
            run_with_oom_backoff(stage, [1, 2], [1, 2])
        assert stage.sizes == [2]
        with pytest.raises(type(error)):
            run_with_oom_backoff(Stage(0, error), [1], [1])


def test_torchs_out_of_memory_errors_are_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
