"""Device and dtype of the models, resolved in one place, with the reason in the log."""

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
_LARGE = 20_000_000  # parameters; smaller networks are not faster in bfloat16 on a CPU


@dataclass(frozen=True)
class DeviceConfig:
    """Device and floating-point type of a model; `reason` is a sentence for the log."""

    device: torch.device
    dtype: torch.dtype
    reason: str


@cache  # one line in the log for all models
def resolve_device(device: str = "auto", dtype: str = "auto") -> DeviceConfig:
    """Choose device and dtype.

    Args:
        device: `auto` (CUDA, else the CPU) or a torch device such as `cuda:1` or `mps`.
        dtype: `float32`, `bfloat16`, `float16` or `auto` (bfloat16 on a CUDA GPU of compute capability 8 or more, else
            float32; see also `resolve_matmul_dtype` and `resolve_language_dtype`).

    Raises:
        InputError: this machine does not have the device or does not support the dtype.
    """
    import torch

    chosen, device_reason = _device(device)
    name, dtype_reason = _dtype(dtype, chosen)
    placement = DeviceConfig(
        chosen, getattr(torch, name), f"Models run on {chosen} in {name}: {device_reason}; {dtype_reason}."
    )
    logger.info(placement.reason)
    return placement


@cache
def resolve_matmul_dtype(
    placement: DeviceConfig, requested: str, parameters: int, name: str, quantize: str | None = None
) -> torch.dtype:
    """Return the dtype of the large matrix products of a network that is float32 elsewhere.

    It is the placement's dtype, except on a CPU: there `quantize` gives `torch.qint8`, and for `auto` a large network
    uses bfloat16 if the processor has instructions for it, which are up to four times as fast.

    Args:
        placement: resolved device and dtype.
        requested: the dtype option.
        parameters: size of the network.
        name: of the network, for the log.
        quantize: `int8` or None.

    Raises:
        InputError: `quantize` is another value.
    """
    import torch

    if quantize not in (None, "int8"):
        raise InputError(f"quantize is 'int8' or null, not {quantize!r}")
    if quantize and placement.device.type == "cpu":
        from openavs.models.ops.linear import supports_int8

        if supports_int8():
            return torch.qint8
        logger.warning("%s is not quantized: this build of torch has no 8-bit product for this processor.", name)
    if requested != "auto" or not is_bfloat16_fast(placement, parameters):
        return placement.dtype
    logger.info(
        "%s multiplies in bfloat16, which this processor supports, and is float32 between; dtype=float32 is exact.",
        name,
    )
    return torch.bfloat16


def is_bfloat16_fast(placement: DeviceConfig, parameters: int) -> bool:
    """Return whether a network with this number of parameters is faster in bfloat16 on this CPU."""
    from openavs.models.ops.linear import native_bfloat16

    return placement.device.type == "cpu" and parameters >= _LARGE and native_bfloat16()


def resolve_language_dtype(placement: DeviceConfig, requested: str, stored: str) -> torch.dtype:
    """Return the dtype of a language model's weights, which are most of a recipe's memory.

    It is the placement's dtype, except if `auto` would be float32 and the checkpoint is `stored` in 16 bits: then it is
    bfloat16 on a CPU, and float16 on a GPU without native bfloat16 (compute capability below 8, MPS).
    """
    import torch

    if requested != "auto" or placement.dtype != torch.float32 or stored not in ("bfloat16", "float16"):
        return placement.dtype
    return torch.bfloat16 if placement.device.type == "cpu" else torch.float16


def frames_per_batch(requested: int | None, device: torch.device) -> int:
    """Return the batch size of frames: as requested, or 8 on a GPU and 1 elsewhere.

    On a CPU one frame of a large network already uses all cores, and each further one takes as much memory.
    """
    return requested if requested is not None else 8 if device.type == "cuda" else 1


def has_gpu() -> bool:
    """Return whether torch finds a CUDA GPU; on Linux without a driver, torch is not imported."""
    if "torch" not in sys.modules and sys.platform == "linux" and not any(map(os.path.exists, _DRIVERS)):
        return False
    import torch

    return bool(torch.cuda.is_available())


def empty_cuda_cache() -> None:
    """Release the unused memory of torch's CUDA cache, which is often enough for an allocation that failed.

    Does nothing without a GPU, and does not import torch.
    """
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


def _device(name: str) -> tuple[torch.device, str]:
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"the GPU {torch.cuda.get_device_name()} is available"
        if torch.backends.mps.is_available():
            return torch.device("cpu"), "torch finds no CUDA GPU, and Apple's MPS is used only with device=mps"
        return torch.device("cpu"), "torch finds no GPU"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"'{name}' is not a device; write auto, cpu, cuda, cuda:N or mps") from None
    _check_present(device, name)
    return device, "as requested"


def _check_present(device: torch.device, name: str) -> None:
    import torch

    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InputError(
                f"device '{name}' was requested but torch {torch.__version__} finds no CUDA GPU; "
                "use device auto or cpu, or install a CUDA build of torch and its driver"
            )
        if (device.index or 0) >= torch.cuda.device_count():
            raise InputError(f"device '{name}' does not exist; there are {torch.cuda.device_count()} CUDA GPUs from 0")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device '{name}' was requested but this machine has no MPS; use device auto or cpu")
    elif device.type not in ("cpu", "mps"):
        raise InputError(f"device '{name}' is not supported; write auto, cpu, cuda, cuda:N or mps")


def _dtype(name: str, device: torch.device) -> tuple[str, str]:
    import torch

    from openavs.models.ops.linear import native_bfloat16

    if name == "auto":
        if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8:
            return "bfloat16", "this GPU computes bfloat16 natively"
        if device.type == "cpu" and native_bfloat16():
            return "float32", "large networks multiply in bfloat16, which this processor supports"
        return "float32", "float32 is the exact choice where bfloat16 is not native"
    if name not in _DTYPES:
        raise InputError(f"'{name}' is not a dtype; write auto, float32, bfloat16 or float16")
    if _DTYPES[name] == "float16" and device.type == "cpu":
        raise InputError("dtype float16 needs a GPU; use float32 or bfloat16 on the CPU")
    return _DTYPES[name], "as requested"
