"""Device and dtype: the choice, its reason, and errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest
import torch

from openavs.errors import InputError, OutOfMemoryError
from openavs.models import device
from openavs.models.device import (
    DeviceConfig,
    frames_per_batch,
    has_gpu,
    is_out_of_memory,
    resolve_device,
    resolve_language_dtype,
    resolve_matmul_dtype,
    run_with_oom_backoff,
)
from openavs.models.ops.linear import native_bfloat16

no_gpu = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has a GPU")


@no_gpu
def test_auto_is_the_cpu_in_float32_where_there_is_no_gpu() -> None:
    placement = resolve_device("auto", "auto")
    assert (placement.device, placement.dtype) == (torch.device("cpu"), torch.float32)
    assert "cpu in float32" in placement.reason and "no GPU" in placement.reason


def test_the_default_batch_size_is_8_on_a_gpu_and_1_on_a_cpu() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [frames_per_batch(None, place) for place in (cpu, gpu)] == [1, 8]
    assert [frames_per_batch(3, place) for place in (cpu, gpu)] == [3, 3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_auto_is_cuda_where_there_is_one() -> None:
    placement = resolve_device("auto", "auto")
    native = torch.cuda.get_device_capability()[0] >= 8
    assert placement.device.type == "cuda"
    assert placement.dtype == (torch.bfloat16 if native else torch.float32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, int]]]:
    """Simulate one GPU of a given generation."""
    capability = {"is": (9, 0)}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a fine GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability["is"])
    resolve_device.cache_clear()
    yield capability
    resolve_device.cache_clear()


def test_auto_is_the_gpu_in_bfloat16_if_it_is_not_old(gpu: dict[str, tuple[int, int]]) -> None:
    new = resolve_device("auto", "auto")
    assert (new.device, new.dtype) == (torch.device("cuda"), torch.bfloat16)
    assert "a fine GPU" in new.reason
    assert resolve_matmul_dtype(new, "auto", 94_000_000, "SAM") == torch.bfloat16
    resolve_device.cache_clear()
    gpu["is"] = (7, 5)
    old = resolve_device("cuda:0", "auto")
    assert (old.device, old.dtype) == (torch.device("cuda:0"), torch.float32)
    assert "where bfloat16 is not native" in old.reason


@pytest.mark.usefixtures("gpu")
def test_a_second_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="device 'cuda:1' does not exist; there are 1 CUDA GPUs from 0"):
        resolve_device("cuda:1", "auto")


def test_mps_is_used_only_if_requested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    resolve_device.cache_clear()
    placement, asked = resolve_device("auto", "auto"), resolve_device("mps", "auto")
    resolve_device.cache_clear()
    assert placement.device.type == "cpu"
    assert "MPS is used only with device=mps" in placement.reason
    assert (asked.device.type, asked.dtype) == ("mps", torch.float32)


@pytest.mark.parametrize(
    ("device", "resolved", "asked", "stored", "expected"),
    [
        ("cpu", torch.float32, "auto", "bfloat16", torch.bfloat16),
        ("cpu", torch.float32, "auto", "float16", torch.bfloat16),
        ("cpu", torch.float32, "auto", "float32", torch.float32),
        ("cpu", torch.float32, "float32", "bfloat16", torch.float32),
        ("cuda", torch.bfloat16, "auto", "bfloat16", torch.bfloat16),  # compute capability 8 or more
        ("cuda", torch.float32, "auto", "bfloat16", torch.float16),  # below
        ("cuda", torch.float32, "float32", "bfloat16", torch.float32),
    ],
)
def test_language_models_keep_16_bits(
    device: str, resolved: torch.dtype, asked: str, stored: str, expected: torch.dtype
) -> None:
    assert resolve_language_dtype(DeviceConfig(torch.device(device), resolved, ""), asked, stored) == expected


def test_a_gpu_needs_a_driver_and_torchs_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not has_gpu()
    monkeypatch.setattr(device.os.path, "exists", lambda path: False)
    monkeypatch.setattr(device, "sys", SimpleNamespace(modules={}, platform="linux"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("torch was asked"))
    assert not has_gpu()


def test_requested_device_and_dtype_are_used() -> None:
    assert resolve_device("cpu", "bf16").dtype == resolve_device("cpu", "bfloat16").dtype == torch.bfloat16
    assert resolve_device("cpu", "float32").dtype == torch.float32


def test_the_reason_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    resolve_device.cache_clear()
    with caplog.at_level(logging.INFO, "openavs.models.device"):
        resolve_device("cpu", "auto")
        resolve_device("cpu", "auto")
    assert [record.message for record in caplog.records] == [resolve_device("cpu", "auto").reason]


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("gpu", "auto", "is not a device"),
        ("meta", "auto", "is not supported"),
        ("cpu", "int8", "is not a dtype"),
        ("cpu", "float16", "needs a GPU"),
        pytest.param("cuda", "auto", "finds no CUDA GPU", marks=no_gpu),
        pytest.param("mps", "auto", "has no MPS", marks=no_gpu),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(device: str, dtype: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        resolve_device(device, dtype)
    assert "\n" not in str(caught.value)


def test_auto_is_bfloat16_for_a_large_network_on_a_processor_that_has_it() -> None:
    place = resolve_device("cpu", "auto")
    native = torch.bfloat16 if native_bfloat16() else torch.float32
    assert resolve_matmul_dtype(place, "auto", 94_000_000, "SAM") == native
    assert resolve_matmul_dtype(place, "auto", 3_000_000, "a small one") == torch.float32
    assert resolve_matmul_dtype(place, "float32", 94_000_000, "SAM") == torch.float32
    exact = resolve_device("cpu", "bfloat16")
    assert resolve_matmul_dtype(exact, "bfloat16", 3_000_000, "a small one") == torch.bfloat16


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"),
]


class Stage:
    """Adds up pairs as long as no more than `room` of them come at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, ones: Sequence[int], twos: Sequence[int]) -> list[int]:
        self.sizes.append(len(ones))
        if len(ones) > self.room:
            raise self.error
        return [one + two for one, two in zip(ones, twos, strict=True)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_halved_in_order(error: Exception) -> None:
    stage = Stage(2, error)
    assert run_with_oom_backoff(stage, list(range(7)), list(range(7))) == [0, 2, 4, 6, 8, 10, 12]
    assert stage.sizes == [7, 3, 1, 2, 4, 2, 2]


def test_the_cuda_cache_is_emptied_before_the_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    stage = Stage(1, ERRORS[1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given.append(len(stage.sizes)))
    assert run_with_oom_backoff(stage, [1, 2], [3, 4]) == [4, 6]
    assert given == [1], "after the batch that did not fit, and before its halves"


def test_stages_without_torch_are_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert run_with_oom_backoff(Stage(1, MemoryError()), [1, 2], [3, 4]) == [4, 6]
    assert "torch" not in sys.modules


def test_one_item_that_does_not_fit_is_an_error() -> None:
    stage = Stage(0, ERRORS[1])
    with pytest.raises(
        OutOfMemoryError, match=r"not even one frame .* fits into memory .*; use a smaller model"
    ) as caught:
        run_with_oom_backoff(stage, [1, 2, 3, 4], [1, 2, 3, 4])
    assert stage.sizes == [4, 2, 1]
    assert caught.value.__cause__ is ERRORS[1]
    assert is_out_of_memory(caught.value)


def test_other_errors_are_raised_at_once() -> None:
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no")):
        stage = Stage(1, error)
        with pytest.raises(type(error)):
            run_with_oom_backoff(stage, [1, 2], [1, 2])
        assert stage.sizes == [2]
        with pytest.raises(type(error)):
            run_with_oom_backoff(Stage(0, error), [1], [1])


def test_torchs_out_of_memory_errors_are_recognized() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 58, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
