"""Linear layers for inference against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, relu

from openavs.models.ops.linear import (
    Int8Linear,
    OneDnnLinear,
    native_bfloat16,
    onednn_linear,
    prefers_onednn,
    replace_modules,
    supports_int8,
)

ACTIVATIONS = {"none": lambda x: x, "relu": relu, "gelu": gelu}


def layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 40, bias=bias)


@torch.inference_mode()
@pytest.mark.parametrize("then", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (3, 48), (2, 70, 48)])
def test_it_answers_as_the_library(then: str, bias: bool, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = ACTIVATIONS[then](layer(bias)(inputs))
    assert torch.allclose(OneDnnLinear(layer(bias), torch.float32, then)(inputs), expected, atol=2e-6)


@torch.inference_mode()
def test_inputs_that_are_views_give_the_same() -> None:
    weight, bias = layer().weight, layer().bias
    wide = torch.randn(64, 96)
    assert torch.equal(
        onednn_linear(wide[:, ::2], weight, bias), onednn_linear(wide[:, ::2].contiguous(), weight, bias)
    )


@torch.inference_mode()
@pytest.mark.parametrize("then", sorted(ACTIVATIONS))
def test_it_answers_in_the_precision_of_its_weights(then: str) -> None:
    half = OneDnnLinear(layer(), torch.bfloat16, then)
    inputs = torch.randn(64, 48)
    answer = half(inputs)
    assert answer.dtype == half.weight.dtype == torch.bfloat16
    assert torch.allclose(answer.float(), ACTIVATIONS[then](layer()(inputs)), atol=3e-2)


def test_gradients_flow_where_they_are_wanted() -> None:
    lean = OneDnnLinear(layer())
    lean(torch.randn(64, 48)).sum().backward()
    assert lean.weight.grad is not None and lean.weight.grad.abs().sum() > 0


def test_replacement_is_of_the_outermost_match_of_one_instance() -> None:
    first, second = (nn.Sequential(nn.Sequential(layer()), layer()) for _ in range(2))
    seen: list[str] = []

    def choose(name: str, module: nn.Module) -> nn.Module | None:
        seen.append(name)
        return OneDnnLinear(module) if isinstance(module, nn.Linear) else None

    replace_modules(first, choose)
    assert seen == ["0", "0.0", "1"]
    assert isinstance(first[0][0], OneDnnLinear) and isinstance(first[1], OneDnnLinear) and type(second[1]) is nn.Linear


def test_the_kernel_depends_on_the_processor_alone() -> None:
    assert prefers_onednn() is prefers_onednn() and native_bfloat16() in (True, False)


def test_processors_without_wide_registers_keep_torchs_own_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not prefers_onednn()


needs_int8 = pytest.mark.skipif(not supports_int8(), reason="this build of torch has no 8-bit product")


@needs_int8
@torch.inference_mode()
@pytest.mark.parametrize("then", sorted(ACTIVATIONS))
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (3, 48), (2, 7, 5, 48)])
def test_eight_bits_are_within_two_percent(then: str, bias: bool, shape: tuple[int, ...]) -> None:
    inputs = 3 + torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = ACTIVATIONS[then](layer(bias)(inputs))
    found = Int8Linear(layer(bias), then)(inputs)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).norm() < 0.02 * expected.norm()


@needs_int8
@torch.inference_mode()
def test_eight_bits_of_many_rows_and_of_constants() -> None:
    many = torch.randn(9000, 48, generator=torch.Generator().manual_seed(2)).bfloat16()  # more than one step
    assert (Int8Linear(layer())(many) - layer()(many.float())).norm() < 0.02 * layer()(many.float()).norm()
    assert torch.allclose(Int8Linear(layer())(torch.zeros(3, 48)), layer()(torch.zeros(3, 48)))
    empty = nn.Linear(48, 40)
    nn.init.zeros_(empty.weight)
    assert torch.allclose(Int8Linear(empty)(torch.randn(3, 48)), empty.bias.expand(3, -1))


@needs_int8
@torch.inference_mode()
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_eight_bits_pass_on_that_an_input_is_not_finite(value: float) -> None:
    assert Int8Linear(layer())(torch.full((2, 48), value)).isnan().all()
