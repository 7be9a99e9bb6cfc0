"""Linear layers for inference: the library's fastest exact kernel on this processor, and a fixed precision per layer.

In float32 torch multiplies with Intel's MKL, which uses slower instructions on other vendors' processors; oneDNN, which
is part of every build of torch, does not, and adds in another order (about twice as fast on an AMD EPYC;
eval/bench/optimized_modules.py). The choice depends on the processor only, so results are reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"none": lambda x: x, "relu": relu, "gelu": gelu}
_MIN_ROWS = 16  # of inputs; with fewer, oneDNN is not faster


class OneDnnLinear(nn.Module):
    """Replaces an `nn.Linear` and shares its parameters; computes in the dtype of its weights, whatever the input's.

    Args:
        library: the layer.
        dtype: dtype of weights, computation and output.
        activation: of the output: `none`, `relu` or `gelu`.
    """

    def __init__(self, library: nn.Linear, dtype: torch.dtype = torch.float32, activation: str = "none") -> None:
        super().__init__()
        self.weight, self.bias = library.weight, library.bias
        self.to(dtype)
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Transform `[..., in]` to `[..., out]`."""
        return onednn_linear(inputs, self.weight, self.bias, self.activation)


def onednn_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str = "none"
) -> torch.Tensor:
    """Multiply `inputs [..., in]` with `weight [out, in]` transposed and add `bias [out]`, in the weight's dtype."""
    inputs = inputs.to(weight.dtype)
    if _uses_onednn(inputs, weight):
        algorithm = "none" if activation == "gelu" else ""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, activation, [], algorithm)
        return output
    return _ACTIVATIONS[activation](linear(inputs, weight, bias))


def _uses_onednn(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    if (
        torch.compiler.is_compiling()  # the compiler selects kernels itself, with weights in its own layout
        or weight.device.type != "cpu"
        or torch.is_grad_enabled()
        or inputs.numel() < _MIN_ROWS * weight.shape[1]
    ):
        return False
    return _ONEDNN.get(weight.dtype, False)


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies float32 matrices faster than MKL: on processors that are not Intel's."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return _processor("vendor_id") not in ("", "GenuineIntel")


def native_bfloat16() -> bool:
    """Return whether the processor has bfloat16 products (AVX512-BF16 or AMX), four times as fast as float32."""
    flags = _processor("flags").split()
    return ("avx512_bf16" in flags or "amx_bf16" in flags) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _processor(field: str) -> str:
    """Return a field of the first processor in /proc/cpuinfo; empty if unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


_ONEDNN = {torch.float32: prefers_onednn(), torch.bfloat16: native_bfloat16()}  # evaluated before anything is compiled


def replace_modules(module: nn.Module, choose: Callable[[str, nn.Module], nn.Module | None], prefix: str = "") -> None:
    """Replace the submodules for which `choose(name, submodule)` returns a module, outermost first."""
    for child_name, child in list(module.named_children()):
        name = prefix + child_name
        if (replacement := choose(name, child)) is not None:
            setattr(module, child_name, replacement)
        else:
            replace_modules(child, choose, f"{name}.")
