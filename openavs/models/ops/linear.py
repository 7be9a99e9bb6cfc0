"""Linear layers for inference: the library's fastest exact kernel on this processor, and a fixed precision per layer.

In float32 torch multiplies with Intel's MKL, which uses slower instructions on other vendors' processors; oneDNN, which
is part of every build of torch, does not, and adds in another order (about twice as fast on an AMD EPYC;
eval/bench/optimized_modules.py). The choice depends on the processor only, so results are reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, nan
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"none": lambda x: x, "relu": relu, "gelu": gelu}
FUSED_ACTIVATIONS = {"ReLU": "relu", "GELUActivation": "gelu"}  # by the name of their class
_TINY = 1e-30  # least scale, of constant inputs and weights
_CACHED_INPUTS = 1 << 18  # values that are quantized together: 1 MB of float32, the second-level cache
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


class Int8Linear(nn.Module):
    """Replaces an `nn.Linear`: 8-bit weights with a scale per output channel, 8-bit inputs, sums in 32 bits.

    The scale and zero of the inputs are those of their range at each call (dynamic quantization; Krishnamoorthi 2018,
    arXiv:1806.08342), so inputs of one batch share them. The kernel is oneDNN's, as in torch's quantized export.
    `compile_backend` leaves these layers uncompiled, because they read the range as numbers.

    Args:
        library: the layer, which is not kept.
        activation: of the output: `none`, `relu` or `gelu`.
    """

    def __init__(self, library: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        weight = library.weight.detach().float()
        self.scales = (weight.abs().amax(dim=1) / 127).clamp_min(_TINY)
        rounded = (weight / self.scales[:, None]).round_().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(rounded, None)  # in the kernel's own layout
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.bias = None if library.bias is None else library.bias.detach().float()
        self.activation = activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Transform `[..., in]` to `[..., out]` in float32."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        low, high = (float(bound) for bound in torch.aminmax(rows))
        if not (isfinite(low) and isfinite(high)):  # callers check for it
            return inputs.new_full((*inputs.shape[:-1], len(self.scales)), nan, dtype=torch.float32)
        quantized, scale, zero = _quantize(rows, min(low, 0.0), max(high, 0.0))
        algorithm = "none" if self.activation == "gelu" else ""
        output: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
            quantized, scale, zero, self.weight, self.scales, self.zeros, self.bias,
            1.0, 0, torch.float32, self.activation, [], algorithm,
        )  # fmt: skip
        return output.view(*inputs.shape[:-1], -1)


def _quantize(rows: torch.Tensor, low: float, high: float) -> tuple[torch.Tensor, float, int]:
    """Return uint8 values of `rows [N, C]` with a range, and scale and zero: `rows = scale * (values - zero)`."""
    scale = max((high - low) / _INPUT_LEVELS, _TINY)
    zero = round(-low / scale)
    values = torch.empty(rows.shape, dtype=torch.uint8)
    step = max(_CACHED_INPUTS // rows.shape[1], 1)
    for start in range(0, len(rows), step):
        part = rows[start : start + step].float()
        values[start : start + step] = torch.mul(part, 1 / scale).round_().add_(zero).clamp_(0, _INPUT_LEVELS)
    return values, scale, zero


class FeedForward(nn.Module):
    """Two linear layers with an activation between them, which is fused with the first if its kernel has it."""

    def __init__(self, first: nn.Linear, last: nn.Linear, activation: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        fused = FUSED_ACTIVATIONS.get(type(activation).__name__)
        self.first, self.last = inference_linear(first, dtype, fused or "none"), inference_linear(last, dtype)
        self.activation = nn.Identity() if fused else activation

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Transform `[..., C]`."""
        output: torch.Tensor = self.last(self.activation(self.first(inputs)))
        return output


def inference_linear(
    library: nn.Linear, dtype: torch.dtype = torch.float32, activation: str = "none"
) -> OneDnnLinear | Int8Linear:
    """Return the replacement of a layer for a dtype of its products: `torch.qint8`, or a floating-point one."""
    return Int8Linear(library, activation) if dtype == torch.qint8 else OneDnnLinear(library, dtype, activation)


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


def supports_int8() -> bool:
    """Return whether torch has the kernel of `Int8Linear` on this processor: oneDNN's, on x86."""
    return hasattr(torch.ops.onednn, "qlinear_pointwise") and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def _input_levels() -> int:
    """Return the largest quantized input; without VNNI, products are added in 16 bits, and 8-bit inputs overflow."""
    return 255 if "avx512_vnni" in _processor("flags").split() else 127


_INPUT_LEVELS = _input_levels()
_ONEDNN = {torch.float32: prefers_onednn(), torch.bfloat16: native_bfloat16()}  # evaluated before anything is compiled


def replace_modules(module: nn.Module, choose: Callable[[str, nn.Module], nn.Module | None], prefix: str = "") -> None:
    """Replace the submodules for which `choose(name, submodule)` returns a module, outermost first."""
    for child_name, child in list(module.named_children()):
        name = prefix + child_name
        if (replacement := choose(name, child)) is not None:
            setattr(module, child_name, replacement)
        else:
            replace_modules(child, choose, f"{name}.")
