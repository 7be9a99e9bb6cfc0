"""Out-of-memory handling: a batch that does not fit is halved, down to one item, before the clip fails.

Results do not depend on the rest of the batch beyond float rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from openavs.errors import OutOfMemoryError
from openavs.models.device import empty_cuda_cache

R = TypeVar("R")

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # named in the plain RuntimeError that torch raises on a CPU


def run_with_oom_backoff(call: Callable[..., Sequence[R]], batch: Sequence[Any], *parallel: Sequence[Any]) -> list[R]:
    """Return `call(batch, *parallel)`, splitting all sequences in two where memory runs out, recursively.

    Raises:
        OutOfMemoryError: a single item does not fit. Other errors of `call` are passed on.
    """
    if len(batch) < 2:
        with translate_oom_errors():
            return list(call(batch, *parallel))
    try:
        return list(call(batch, *parallel))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Outside of the handler, because the error references the tensors of the failed call, which fill the memory.
    empty_cuda_cache()
    middle = len(batch) // 2
    logger.warning("a batch of %d did not fit into memory; it is processed in halves", len(batch))
    lower = run_with_oom_backoff(call, batch[:middle], *(part[:middle] for part in parallel))
    return lower + run_with_oom_backoff(call, batch[middle:], *(part[middle:] for part in parallel))


@contextmanager
def translate_oom_errors() -> Iterator[None]:
    """Convert out-of-memory errors of the block, which cannot be halved, to OutOfMemoryError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(
            "not even one frame of this clip fits into memory beside the models; use a smaller model, dtype=bfloat16 "
            "or device=cpu"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: ours, Python's, a device's, or torch's on a CPU."""
    if isinstance(error, MemoryError | OutOfMemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and _CPU_ALLOCATOR in str(error)
