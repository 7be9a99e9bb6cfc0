"""A simulated CUDA device: tensors report cuda:0, are computed on the CPU, and refuse CPU tensors.

It reveals device mismatches and counts copies and synchronizations, but not speed, memory or missing kernels. It
patches torch for the whole process, so it runs in a separate one (`simulated_run.py`).
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA = torch.device("cuda:0")
_TO, _FROM, _WAIT = "copies_to_device", "copies_from_device", "synchronizations"
KINDS = (_TO, _FROM, _WAIT)
"""A copy from the device waits for it, too; `synchronizations` counts what waits without being a copy of a tensor."""

COUNTS: Counter[tuple[str, str]] = Counter()
"""Number of occurrences of each kind at each line."""

_WAITING = {
    "aten::_local_scalar_dense", "aten::item", "aten::nonzero", "aten::is_nonzero", "aten::equal",
    "aten::masked_select", "aten::_unique2", "aten::unique_consecutive", "aten::unique_dim",
    "aten::repeat_interleave.Tensor",
}  # fmt: skip
_INDEXING = {
    "aten::index.Tensor", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index.Tensor"
}  # fmt: skip
_MIXING = _INDEXING | {"aten::copy_", "aten::_to_copy"}  # CUDA itself accepts CPU tensors here


class DeviceMismatch(RuntimeError):
    """An operation has tensors of both devices."""


class SimulatedTensor(torch.Tensor):
    """A tensor on the simulated device; `held` is the CPU tensor that it represents."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> SimulatedTensor:
        made: SimulatedTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset() if held.layout == torch.strided else 0,
            dtype=held.dtype,
            layout=held.layout,
            device=CUDA,
            requires_grad=False,
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")

    __array__ = numpy

    def tolist(self) -> Any:
        _count(_WAIT)
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({self.held})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU tensors; the result is on the device that CUDA would use."""
    flat = tree_flatten((args, kwargs))[0]
    simulated = [leaf for leaf in flat if isinstance(leaf, SimulatedTensor)]
    plain = [leaf for leaf in flat if isinstance(leaf, torch.Tensor) and not isinstance(leaf, SimulatedTensor)]
    name = func._schema.name + ("." + func._overloadname if func._overloadname != "default" else "")
    if simulated:
        if name not in _MIXING and any(tensor.dim() for tensor in plain):
            shapes = [tuple(tensor.shape) for tensor in plain if tensor.dim()]
            raise DeviceMismatch(f"{name} was given tensors on cuda:0 and on the CPU {shapes} at {_line()}")
        if name in _WAITING or (name in _INDEXING and _by_mask(args)):
            _count(_WAIT)
        if name in _INDEXING:
            for _ in (i for i in args[1] or () if isinstance(i, torch.Tensor) and not isinstance(i, SimulatedTensor)):
                _count(_TO)
    if name == "aten::_fused_sdp_choice":
        return 0
    if name in ("aten::_softmax", "aten::_log_softmax") and args[2]:  # half to float, which only CUDA does
        args = (_held(args[0]).float(), args[1], False)
        return SimulatedTensor(func(*args))

    wanted = kwargs.get("device")
    on_device = bool(simulated) if wanted is None else torch.device(wanted).type == "cuda"
    if wanted is not None:
        kwargs = kwargs | {"device": torch.device("cpu") if on_device else wanted, "pin_memory": None}
        kwargs = {key: value for key, value in kwargs.items() if key != "pin_memory"}
    if name == "aten::copy_":
        on_device = isinstance(args[0], SimulatedTensor)
        _count_copy(on_device, isinstance(args[1], SimulatedTensor))
    elif name == "aten::_to_copy":
        _count_copy(on_device, isinstance(args[0], SimulatedTensor))

    for tensor in simulated:
        if tensor.held.dtype != tensor.dtype:  # an assignment to `.data` changed it
            tensor.held = tensor.held.to(tensor.dtype)
    known = {id(tensor.held): tensor for tensor in simulated}
    made = func(*tree_map(_held, args), **tree_map(_held, kwargs))

    def wrap(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or isinstance(leaf, SimulatedTensor):
            return leaf
        if id(leaf) in known:
            return known[id(leaf)]
        return SimulatedTensor(leaf) if on_device else leaf

    return tree_map(wrap, made)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, SimulatedTensor) else leaf


def _by_mask(args: Any) -> bool:
    return any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in args[1] or ())


def _count_copy(to_device: bool, from_device: bool) -> None:
    if to_device != from_device:
        _count(_TO if to_device else _FROM)


def _count(kind: str) -> None:
    COUNTS[kind, _line()] += 1


def _line() -> str:
    """Return the innermost line of the package, or else of transformers, on the stack."""
    library, frame = "?", sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if "/openavs/" in path:
            inner = f"openavs/{path.rsplit('/openavs/', 1)[1]}:{frame.f_lineno}"
            return inner if library == "?" else f"{inner} ({library})"
        if library == "?" and "/transformers/" in path:
            library = f"transformers/{path.rsplit('/transformers/', 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return library


def compile_guard(folder: Path) -> Path:
    """Compile the device guard with g++ against torch's headers."""
    torch_folder, made = Path(torch.__file__).parent, folder / "guard.so"
    command = ["g++", "-shared", "-fPIC", "-std=c++17", "-O0", f"-I{torch_folder / 'include'}"]
    command += [str(Path(__file__).with_name("guard.cpp")), "-o", str(made), f"-L{torch_folder / 'lib'}", "-lc10"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return made


def without_inference_mode() -> None:
    """Replace inference mode, in which wrapped tensors are read-only; call it before other imports."""
    torch.inference_mode = torch.no_grad  # type: ignore[assignment,misc]


def simulate_cuda(guard: Path) -> None:
    """Enable the simulated device for the rest of this process."""
    import transformers

    ctypes.CDLL(str(guard))
    mode = _Mode()
    replaced: dict[str, Any] = {
        "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: 1, "current_device": lambda: 0, "get_device_name": lambda *_: "simulated",
        "get_device_capability": lambda *_: (9, 0), "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "empty_cache": lambda: None, "synchronize": lambda *_: None,
    }  # fmt: skip
    for name, value in replaced.items():
        setattr(torch.cuda, name, value)
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    def on_cpu_first(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            tensor = make(data, *args, **kwargs)
            return tensor if device is None else tensor.to(device)

        return made

    makers = {name: getattr(torch, name) for name in ("tensor", "as_tensor")}
    for name, make in makers.items():
        setattr(torch, name, on_cpu_first(make))

    library = transformers.PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        """Load on the CPU, without the simulated device; the adapter then moves the model."""
        mode.__exit__(None, None, None)
        changed = {name: getattr(torch, name) for name in makers}
        for name, make in makers.items():
            setattr(torch, name, make)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        torch.cuda.is_available = torch.cuda.is_initialized = lambda: False
        kwargs.pop("device_map", None)
        try:
            with torch.enable_grad():
                return library(cls, *args, **kwargs)
        finally:
            torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
            torch.__future__.set_overwrite_module_params_on_conversion(True)
            for name, make in changed.items():
                setattr(torch, name, make)
            mode.__enter__()

    transformers.PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    mode.__enter__()
