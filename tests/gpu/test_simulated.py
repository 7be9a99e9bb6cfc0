"""Adapters and the `tiny` pipeline on a simulated CUDA device: no mixed devices, few copies and synchronizations."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.gpu.adapters import ADAPTERS, difference
from tests.gpu.simulated import compile_guard

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++ for the simulated device's guard"),
]

# Maximum per frame or window, without those of a whole batch: (copies to the device, copies from it, other
# synchronizations). docs/performance.md has the counts.
PER_ITEM = {
    "clap": (0, 0, 0), "clap-fused": (0, 0, 0), "ast": (0, 0, 0), "qwen2-audio": (0, 0, 0), "llm": (0, 0, 0),
    "vlm": (0, 0, 0),
    "grounding-dino": (1, 0, 0), "grounding-dino-per-phrase": (1, 0, 0), "mm-grounding-dino": (1, 0, 0),
    "omdet-turbo": (1, 0, 0), "sam-hq": (2, 1, 1), "sam3-lite-text": (2, 3, 5),
    "owlv2": (1, 0, 0), "sam": (2, 1, 1), "sam-multimask": (2, 1, 1), "sam2": (2, 1, 1), "sam2-of-video": (2, 1, 1),
    "sam3": (2, 3, 5), "sam3-of-video": (2, 3, 5), "sam2-video": (2, 1, 1), "sam3-video": (2, 1, 1), "clip": (1, 0, 0),
    "pipeline": (3, 1, 1),
}  # fmt: skip
# Additional maximum per batch: operations of the libraries in a forward pass, and the text of an output.
PER_BATCH = {
    "clap": (1, 1, 0), "clap-fused": (1, 1, 1), "ast": (1, 1, 0), "qwen2-audio": (9, 0, 15), "llm": (8, 0, 13),
    "vlm": (9, 0, 11),
    "grounding-dino": (3, 1, 1), "grounding-dino-per-phrase": (6, 2, 2), "mm-grounding-dino": (3, 1, 1),
    "omdet-turbo": (2, 1, 1), "sam-hq": (0, 0, 0), "sam3-lite-text": (0, 0, 0),
    "owlv2": (2, 1, 2), "sam": (0, 0, 0), "sam-multimask": (0, 0, 0), "sam2": (0, 0, 0), "sam2-of-video": (0, 0, 0),
    "sam3": (0, 0, 0), "sam3-of-video": (0, 0, 0), "sam2-video": (0, 0, 0), "sam3-video": (0, 0, 0), "clip": (0, 1, 0),
    "pipeline": (26, 4, 25),
}  # fmt: skip
EXACT = 2e-3  # in float32: a near tie of random boxes may change places


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`run(dtype)`: the operations of all adapters and the pipeline on the simulated device."""
    folder = tmp_path_factory.mktemp("simulated")
    guard = compile_guard(folder)

    @cache
    def found(dtype: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "tests.gpu.simulated_run", str(guard), str(folder / dtype), dtype]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-4000:]
        answers: dict[str, Any] = json.loads(done.stdout)
        return answers

    return found


@pytest.mark.parametrize("name", [*ADAPTERS, "pipeline"])
def test_a_frame_costs_few_copies_and_synchronizations(run: Any, name: str) -> None:
    found = run("auto")[name]
    counted = found["counts"].values()
    allowed = [each * found["items"] + once for each, once in zip(PER_ITEM[name], PER_BATCH[name], strict=True)]
    assert all(number <= most for number, most in zip(counted, allowed, strict=True)), found["lines"]


@pytest.mark.parametrize("name", list(ADAPTERS))
def test_bfloat16_answers_are_near_those_of_the_cpu(run: Any, name: str) -> None:
    found = run("auto")[name]
    assert difference(found["answer"], found["device_answer"]) < 0.05


@pytest.mark.parametrize("name", ["grounding-dino", "mm-grounding-dino"])
def test_a_detector_receives_the_same_pixels_as_on_the_cpu(run: Any, name: str) -> None:
    assert run("auto")[name]["same_images"]


def test_the_pipeline_finds_the_same_things(run: Any) -> None:
    found = run("auto")["pipeline"]
    # In a frame, scores that are close may change the order.
    answers = [sorted(found[name], key=itemgetter(0)) for name in ("answer", "device_answer")]
    assert answers[0] and [row[0] for row in answers[0]] == [row[0] for row in answers[1]]
    assert all(difference(one[1:], other[1:]) < 0.02 for one, other in zip(*answers, strict=True))


def test_frames_go_through_the_networks_in_batches_by_default(run: Any) -> None:
    assert run("auto")["pipeline"]["batch_sizes"] == [8, 8]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "most"), [("float32", EXACT), ("float16", 0.05)])
def test_other_dtypes_give_the_answers_of_the_cpu(run: Any, dtype: str, most: float) -> None:
    found = run(dtype)
    differences = {name: difference(found[name]["answer"], found[name]["device_answer"]) for name in ADAPTERS}
    assert max(differences.values()) < most, differences


def test_mixed_devices_are_refused(run: Any, tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from tests.gpu.simulated import COUNTS, DeviceMismatch, simulate_cuda, without_inference_mode
without_inference_mode()
import torch
simulate_cuda(Path(sys.argv[1]))
there, here = torch.ones(3, device="cuda"), torch.ones(3)
for wrong in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there @ here):
    try:
        wrong()
    except DeviceMismatch:
        continue
    raise SystemExit("CPU and device tensors were mixed")
try:
    there.numpy()
except TypeError:
    pass
else:
    raise SystemExit("numpy was given a device tensor")
before = sum(COUNTS.values())
assert (there.cpu() + here).tolist() == [2.0, 2.0, 2.0] and bool((there > 0).all())
assert sum(COUNTS.values()) == before + 2, COUNTS
"""
    guard = compile_guard(tmp_path)
    done = subprocess.run([sys.executable, "-c", script, str(guard)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
