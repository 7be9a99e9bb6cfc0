"""Batches that do not fit into memory are halved, down to one item, before a clip is given up for it.

Answers do not depend on batch mates beyond float rounding, so a result is the same but for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from openavs.errors import OutOfMemoryError
from openavs.models.device import empty_cuda_cache

R = TypeVar("R")

log = logging.getLogger(__name__)

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # torch raises a plain RuntimeError for the CPU; its text names who raised it


def run_with_oom_backoff(work: Callable[..., Sequence[R]], first: Sequence[Any], *rest: Sequence[Any]) -> list[R]:
    """`work(first, *rest)` for parallel sequences; where memory runs out, for each half of them, and so on.

    Raises:
        What `work` raises; OutOfMemory only when there was one item left.
    """
    if len(first) < 2:
        with translate_oom_errors():
            return list(work(first, *rest))
    try:
        return list(work(first, *rest))
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
    # Outside of the handler: the error holds the failed call, and that the tensors which filled the memory.
    empty_cuda_cache()
    middle = len(first) // 2
    log.warning("a batch of %d did not fit into memory; it is done in halves", len(first))
    lower = run_with_oom_backoff(work, first[:middle], *(part[:middle] for part in rest))
    return lower + run_with_oom_backoff(work, first[middle:], *(part[middle:] for part in rest))


@contextmanager
def translate_oom_errors() -> Iterator[None]:
    """Around work that cannot be halved: an error for want of memory becomes OutOfMemory, which is a sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem):
            raise
        raise OutOfMemoryError(
            "not even one frame of this clip fits into memory beside the models; take a smaller model, dtype=bfloat16 "
            "or device=cpu"
        ) from problem


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that memory ran out: ours, Python's own, a device's, or torch's on the CPU."""
    if isinstance(problem, MemoryError | OutOfMemoryError) or type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and _CPU_ALLOCATOR in str(problem)
