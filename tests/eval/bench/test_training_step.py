"""The training benchmark on small networks: all variants agree and have figures."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch

from openavs.training.models.tpavi import FrameGroups
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("training_step")


def test_both_orders_of_the_attention_agree(script: Any) -> None:
    torch.manual_seed(0)
    layer = script.QuadraticInteraction(12, 6, 128)
    maps, audio = torch.randn(5, 12, 4, 4), torch.randn(5, 12)
    clips = FrameGroups.of(torch.tensor([[True, True, False], [True, True, True]]))
    slow = layer.attend(maps, audio, clips)
    assert torch.allclose(slow, super(script.QuadraticInteraction, layer).attend(maps, audio, clips), atol=1e-6)


def test_the_first_step_of_all_variants_has_the_same_loss(script: Any) -> None:
    options = Namespace(small=True, device="cpu", published=[])
    steps = script.tpavi("resnet_tiny", options, ["ours", "quadratic", "all frames"])
    found = [step() for step in steps.values()]
    assert found == pytest.approx([found[0]] * 3, abs=1e-5)
    both = script.avsegformer("resnet_tiny", options, ["ours", "all frames"])
    assert both["ours"]() == pytest.approx(both["all frames"](), abs=1e-5)
    three = script.sama_avs("base", options, None)
    assert [step() for step in three.values()] == pytest.approx([three["ours"]()] * 3, abs=0.1)


@pytest.mark.parametrize(("kind", "base"), [("AllFramesTpavi", "Tpavi"), ("AllFramesAvSegFormer", "AvSegFormer")])
def test_variant_of_all_frames_computes_all_frames(script: Any, kind: str, base: str) -> None:
    sizes = {"channels": 32, "queries": 4} if base == "AvSegFormer" else {"channels": 16, "inner": 8}
    config = getattr(script, f"{base}Config")(backbone="pvt_v2_tiny", side=64, **sizes)
    batch = script.random_clip(64)
    lengths = [len(getattr(script, name)(config).train()(batch).logits) for name in (base, kind)]
    assert lengths == [1, 5]


@pytest.mark.slow
def test_script_prints_seconds_peaks_and_ratios() -> None:
    command = [sys.executable, "eval/bench/training_step.py", "--small", "--repeats", "1", "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    answer = json.loads(done.stdout)
    assert answer["tpavi-resnet_tiny"].keys() >= {"ours_cpu_s", "quadratic_peak_mb", "all frames_over_ours"}
    assert answer["naming"]["all queries_over_surest tenth"] > 1
