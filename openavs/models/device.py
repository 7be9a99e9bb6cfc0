"""Device and dtype are resolved once, in one place, with the reason logged."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from openavs.errors import InputError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_DTYPES = {"float32": "float32", "fp32": "float32", "bfloat16": "bfloat16", "bf16": "bfloat16"}
_DTYPES |= {"float16": "float16", "fp16": "float16"}
_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, ROCm, WSL
_LARGE = 20_000_000  # parameters: smaller networks win nothing by bfloat16 on a CPU


@dataclass(frozen=True)
class DeviceConfig:
    """Where a model runs and in which floating-point type; `reason` is a sentence for the log."""

    device: torch.device
    dtype: torch.dtype
    reason: str


@cache  # one answer, one line in the log, however many models ask
def resolve_device(device: str = "auto", dtype: str = "auto") -> DeviceConfig:
    """Chooses where to run.

    `device` is `auto` (CUDA, else the CPU) or a torch device such as `cuda:1` or `mps`; `dtype` is `auto` (bfloat16 on
    a CUDA GPU of compute capability 8 or more, else float32; but see `settle_dtype` and `language_dtype`), `float32`,
    `bfloat16` or `float16`.
    Raises InputError when this machine cannot do what is asked.
    """
    import torch

    chosen, why_device = _device(device)
    name, why_dtype = _dtype(dtype, chosen)
    placement = DeviceConfig(
        chosen, getattr(torch, name), f"Models run on {chosen} in {name}: {why_device}; {why_dtype}."
    )
    logger.info(placement.reason)
    return placement


@cache
def resolve_matmul_dtype(placement: DeviceConfig, asked: str, parameters: int, who: str) -> torch.dtype:
    """The dtype of the large products of matrices of a network that keeps float32 wherever it matters.

    As resolved, but for `auto` on a CPU: there a network of so many parameters takes bfloat16 if the processor
    multiplies it itself, which is up to four times as fast. `who` names the network in the log.
    """
    import torch

    if asked != "auto" or not is_bfloat16_fast(placement, parameters):
        return placement.dtype
    logger.info(
        "%s multiplies in bfloat16, which this processor has, and keeps float32 between; dtype=float32 is exact.",
        who,
    )
    return torch.bfloat16


def is_bfloat16_fast(placement: DeviceConfig, parameters: int) -> bool:
    """Return whether a network of so many parameters is faster in bfloat16 on this CPU."""
    from openavs.models.ops.linear import native_bfloat16

    return placement.device.type == "cpu" and parameters >= _LARGE and native_bfloat16()


def resolve_language_dtype(placement: DeviceConfig, asked: str, stored: str) -> torch.dtype:
    """Return the dtype of a language model's weights, which are most of a recipe's memory.

    As resolved, except where `auto` would be float32 and the checkpoint is `stored` in 16 bits: then bfloat16 on a CPU,
    and float16 on a GPU that has no bfloat16 of its own (compute capability below 8, MPS).
    """
    import torch

    if asked != "auto" or placement.dtype != torch.float32 or stored not in ("bfloat16", "float16"):
        return placement.dtype
    return torch.bfloat16 if placement.device.type == "cpu" else torch.float16


def frames_per_batch(asked: int | None, device: torch.device) -> int:
    """Return how many frames go through a network together: as asked, or 8 on a GPU and 1 elsewhere.

    One frame of a large network keeps all cores of a CPU busy, and each further one takes as much memory as the first.
    """
    return asked if asked is not None else 8 if device.type == "cuda" else 1


def has_gpu() -> bool:
    """Return whether torch sees a CUDA GPU; torch is not imported for this on Linux without a driver."""
    if "torch" not in sys.modules and sys.platform == "linux" and not any(map(os.path.exists, _DRIVERS)):
        return False
    import torch

    return bool(torch.cuda.is_available())


def empty_cuda_cache() -> None:
    """Gives back to the GPU what torch keeps for later; unused blocks of the wrong size are often all that is missing.

    Does nothing where no GPU is in use, and does not import torch.
    """
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def _device(name: str) -> tuple[torch.device, str]:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"the GPU {torch.cuda.get_device_name()} is there"
        if torch.backends.mps.is_available():
            return torch.device("cpu"), "torch sees no CUDA GPU, and Apple's MPS is used only if device=mps asks for it"
        return torch.device("cpu"), "torch sees no GPU"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"'{name}' is not a device; write auto, cpu, cuda, cuda:N or mps") from None
    _check_present(device, name)
    return device, "it was asked for"


def _check_present(device: torch.device, name: str) -> None:
    import torch

    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"device '{name}' was asked for but torch {torch.__version__} sees no CUDA GPU; "
                "use device auto or cpu, or install a CUDA build of torch and its driver"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device '{name}' does not exist; there are {torch.cuda.device_count()} CUDA GPUs from 0")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device '{name}' was asked for but this machine has no MPS; use device auto or cpu")
    elif device.type not in ("cpu", "mps"):
        raise InputError(f"device '{name}' is not supported; write auto, cpu, cuda, cuda:N or mps")


def _dtype(name: str, device: torch.device) -> tuple[str, str]:
    import torch

    from openavs.models.ops.linear import native_bfloat16

    if name == "auto":
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
            return "bfloat16", "this GPU computes bfloat16 natively"
        if device.type == "cpu" and native_bfloat16():
            return "float32", "large networks multiply in bfloat16, which this processor has"
        return "float32", "float32 is the exact choice where bfloat16 is not native"
    if name not in _DTYPES:
        raise InputError(f"'{name}' is not a dtype; write auto, float32, bfloat16 or float16")
    if _DTYPES[name] == "float16" and device.type == "cpu":
        raise InputError("dtype float16 needs a GPU; use float32 or bfloat16 on the CPU")
    return _DTYPES[name], "that dtype was asked for"
