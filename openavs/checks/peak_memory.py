"""Peak memory of a part of a run: of the GPU's allocator, or of this process."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from openavs.models.device import DeviceConfig

_PROCESS = Path("/proc/self")


class PeakMemory:
    """Measures peak memory from its construction on.

    On a GPU that of torch's allocator. On a CPU the resident memory of this process, libraries included; where the
    system cannot reset its peak (other systems than Linux) that since the start of the process.
    """

    def __init__(self, place: DeviceConfig) -> None:
        self._device = place.device
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                (_PROCESS / "clear_refs").write_text("5")  # resets VmHWM (man 5 proc)

    def gb(self) -> float:
        """Peak in GB (10^9 bytes)."""
        if self._device.type == "cuda":
            import torch

            return round(torch.cuda.max_memory_allocated(self._device) / 1e9, 3)
        return round(_resident_peak() / 1e9, 3)


def _resident_peak() -> int:
    with suppress(OSError):
        for line in (_PROCESS / "status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
