"""Main memory: total, available, and release of unused memory."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

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
