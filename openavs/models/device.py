"""Device, dtype and threads of the models, and memory: where it runs out, a batch is halved."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openavs.errors import InputError, OutOfMemoryError

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


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of torch, if it is imported."""
    if threads is not None and "torch" in sys.modules:
        import torch

        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Set the CPU threads of torch, if it is imported, inside the block."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.get_num_threads()
    set_threads(threads)
    try:
        yield
    finally:
        set_threads(before)


WORKER_MEMORY = 4 << 30
"""Bytes of free memory that a worker on a CPU is assumed to need: an audio model, a detector and a segmenter."""


def default_threads(workers: int = 1) -> int:
    """Return the CPU threads of each of some workers that share this machine; of one worker those of torch."""
    if "torch" in sys.modules:
        import torch

        cores = torch.get_num_threads()
    else:
        named = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(named) if named.isdigit() and int(named) else (os.cpu_count() or 1)
    return max(1, cores // workers)


def visible_gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs to spread workers over, as `CUDA_VISIBLE_DEVICES` names them; none if the recipe names one.

    torch is imported only on machines that may have a GPU.
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
    """Return one worker for each GPU; on a CPU one for two cores, as far as the free memory allows."""
    memory = available_memory() or WORKER_MEMORY
    return len(devices) or max(1, min((os.cpu_count() or 1) // 2, memory // WORKER_MEMORY))


def memory_share(workers: int, devices: tuple[str, ...]) -> float:
    """Return the part of its device's memory that each of some workers can use."""
    return 1 / -(-workers // max(len(devices), 1))
