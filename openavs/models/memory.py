"""Memory: total, available, released; where it runs out, a batch is halved, down to one item."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from openavs.errors import OutOfMemoryError
from openavs.models.device import empty_cuda_cache

CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def total_memory() -> int | None:
    """Return the bytes of the machine, at most the container's limit; None if unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = _number(read_cgroup("memory.max"))
    return total if limit is None else min(total, limit)


def available_memory() -> int | None:
    """Return the bytes that can be allocated without swapping; None if unknown.

    Cached files count as available, on Linux by the kernel's estimate. macOS has no estimate; the total is returned.
    """
    total = total_memory()
    if total is None or not sys.platform.startswith("linux"):
        return total
    free = _fields(_MEMINFO).get("MemAvailable")
    limit, used = _number(read_cgroup("memory.max")), _number(read_cgroup("memory.current"))
    if limit is not None and used is not None:
        cached = _fields(CGROUP / "memory.stat").get("inactive_file", 0)
        free = min(total if free is None else free, limit - used + cached)
    return total if free is None else max(free, 0)


def release_memory() -> None:
    """Collect garbage and return freed memory to the system.

    Open media files and networks contain reference cycles, and glibc keeps unused memory in the heaps of threads.
    """
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # only glibc has it
        if trim is not None:
            trim(0)


def read_cgroup(name: str) -> str | None:
    """Return a file of the container's control group, such as `memory.max`; None if missing."""
    try:
        return (CGROUP / name).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _fields(path: Path) -> dict[str, int]:
    """Parse the lines `name: number [kB]` or `name number` of a file, in bytes."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text("ascii").splitlines()]
    except (OSError, UnicodeDecodeError):
        return {}
    return {line[0]: int(line[1]) * (1024 if line[2:] == ["kB"] else 1) for line in lines if len(line) > 1}


R = TypeVar("R")

logger = logging.getLogger(__name__)

_CPU_ALLOCATOR = "DefaultCPUAllocator"  # named in the plain RuntimeError that torch raises on a CPU


def run_with_oom_backoff(call: Callable[..., Sequence[R]], batch: Sequence[Any], *parallel: Sequence[Any]) -> list[R]:
    """Return `call(batch, *parallel)`, splitting all sequences in two where memory runs out, recursively.

    Results do not depend on the rest of the batch beyond float rounding.

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
