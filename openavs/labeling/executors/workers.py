"""How many workers a machine is good for."""

from __future__ import annotations

import os

from openavs.models.device import has_gpu
from openavs.models.memory import available_memory

MEMORY_EACH = 4 << 30
"""Bytes of free memory that a worker on the CPU is reckoned with: an audio model, a detector and a segmenter."""


def gpus(device: str) -> tuple[str, ...]:
    """The GPUs to spread workers over, as `CUDA_VISIBLE_DEVICES` names them; none if the recipe says where to run.

    torch is imported only where there may be one.
    """
    if device not in ("auto", "cuda"):
        return ()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    if not has_gpu():
        return ()
    import torch

    return tuple(map(str, range(torch.cuda.device_count())))


def default_workers(devices: tuple[str, ...]) -> int:
    """One for each GPU; on a CPU one for two cores, as far as the free memory goes."""
    return len(devices) or max(1, min((os.cpu_count() or 1) // 2, (available_memory() or MEMORY_EACH) // MEMORY_EACH))


def share_of_memory(workers: int, devices: tuple[str, ...]) -> float:
    """The part of its device's memory that each of so many workers can count on."""
    return 1 / -(-workers // max(len(devices), 1))
