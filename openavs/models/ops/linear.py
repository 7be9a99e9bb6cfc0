"""Linear layers for inference: the library's fastest exact kernel on this processor, and the precision each one keeps.

In float32 torch multiplies with Intel's MKL, which takes its slower instructions on other makers' processors; oneDNN,
which comes with every build of torch, does not, and computes the same sums in another order (about twice as fast on
an AMD EPYC; `eval/bench/optimized_modules.py`). Which of the two runs depends on the processor alone: results are
reproducible.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import gelu, linear, relu

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"none": lambda x: x, "relu": relu, "gelu": gelu}
_ROWS = 16  # fewer are not worth the way through oneDNN


class OneDnnLinear(nn.Module):
    """What an `nn.Linear` answers, in the precision of its own weights whatever the input's; shares its parameters.

    Args:
        library: the layer.
        dtype: the precision to compute and to answer in.
        then: an activation to follow: `none`, `relu` or `gelu`.
    """

    def __init__(self, library: nn.Linear, dtype: torch.dtype = torch.float32, then: str = "none") -> None:
        super().__init__()
        self.weight, self.bias = library.weight, library.bias
        self.to(dtype)
        self.then = then

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return onednn_linear(inputs, self.weight, self.bias, self.then)


def onednn_linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, then: str = "none"
) -> torch.Tensor:
    """`inputs [..., in]` times `weight [out, in]` transposed, plus `bias [out]`, in the weight's dtype."""
    inputs = inputs.to(weight.dtype)
    if _through_onednn(inputs, weight):
        algorithm = "none" if then == "gelu" else ""
        answer: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, then, [], algorithm)
        return answer
    return _ACTIVATIONS[then](linear(inputs, weight, bias))


def _through_onednn(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    if (
        torch.compiler.is_compiling()  # it chooses kernels itself, and takes this one only with weights of its layout
        or weight.device.type != "cpu"
        or torch.is_grad_enabled()
        or inputs.numel() < _ROWS * weight.shape[1]
    ):
        return False
    return _ONEDNN.get(weight.dtype, False)


def prefers_onednn() -> bool:
    """Whether oneDNN multiplies float32 matrices faster than MKL here: on processors that are not Intel's."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return _processor("vendor_id") not in ("", "GenuineIntel")


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 itself (AVX512-BF16 or AMX), four times as fast as float32."""
    flags = _processor("flags").split()
    return ("avx512_bf16" in flags or "amx_bf16" in flags) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _processor(field: str) -> str:
    """What Linux says of the first processor in a field of /proc/cpuinfo, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


_ONEDNN = {torch.float32: prefers_onednn(), torch.bfloat16: native_bfloat16()}  # settled before anything is compiled


def replace_modules(module: nn.Module, choose: Callable[[str, nn.Module], nn.Module | None], prefix: str = "") -> None:
    """Replaces submodules by what `choose(name, submodule)` gives for them, on this instance alone, outermost first."""
    for child_name, child in list(module.named_children()):
        name = prefix + child_name
        if (other := choose(name, child)) is not None:
            setattr(module, child_name, other)
        else:
            replace_modules(child, choose, f"{name}.")
