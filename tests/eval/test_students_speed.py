"""The students' benches, small: both orders of the attention give the same, every variant has its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from openavs.training.models.tpavi.layers import FrameGroups
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The script as a module."""
    folder = str(ROOT / "eval" / "speed")
    sys.path.insert(0, folder)
    import students

    yield students
    sys.path.remove(folder)


def test_both_orders_of_the_attention_give_the_same(bench: Any) -> None:
    torch.manual_seed(0)
    layer = bench.Quadratic(12, 6, 128)
    maps, heard = torch.randn(5, 12, 4, 4), torch.randn(5, 12)
    clips = FrameGroups.of(torch.tensor([[True, True, False], [True, True, True]]))
    slow = layer.attend(maps, heard, clips)
    assert torch.allclose(slow, super(bench.Quadratic, layer).attend(maps, heard, clips), atol=1e-6)


def test_the_first_step_of_all_variants_has_the_same_loss(bench: Any) -> None:
    options = Namespace(small=True, device="cpu")
    steps = bench.tpavi("resnet_tiny", options, ["ours", "quadratic", "all frames"])
    found = [step() for step in steps.values()]
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)


@pytest.mark.slow
def test_the_bench_prints_seconds_peaks_and_ratios() -> None:
    command = [sys.executable, "eval/speed/students.py", "--small", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["tpavi-resnet_tiny"].keys() >= {"ours_cpu_s", "quadratic_peak_mb", "all frames_over_ours"}
    assert answer["naming"]["all queries_over_surest tenth"] > 1


@pytest.mark.slow
def test_the_measurement_of_self_training_runs_and_goes_on(tmp_path: Any) -> None:
    command = [sys.executable, "eval/self_training.py", "--out", str(tmp_path), "--layouts", "s4", "ms3"]
    command += ["--seeds", "1", "2", "--train", "4", "--clips", "2", "--json", "--set", "max_steps=2", "model.side=32"]
    first, second = (
        json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout)
        for _ in range(2)
    )
    for layout in ("s4", "ms3"):
        bound = {"one answer a clip"} if layout == "ms3" else set()
        assert set(first["figures"][layout]["1"]) == {"teacher", "student", "on truth", "cpu_s"} | bound
        assert " +- " in first["means"][layout]["teacher miou"]
    assert first["means"] == second["means"]
