"""The bench beside the peers, small: what is asked of the models is counted, ratios are of paired runs; no seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

FRAMES, PHRASES, BOXES = 2, 3, 2


@pytest.fixture(scope="module")
def speed() -> Iterator[Path]:
    """The bench's folder, from which its modules can be imported as when it runs as a script."""
    folder = ROOT / "eval" / "speed"
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def found(speed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One repeat of the standard load and its variants, on small networks in float32."""
    import peers

    words = ["--frames", str(FRAMES), "--repeats", "1", "--only", "ratios", "--peers", "naive", "lang_sam"]
    words += ["grounded_sam2_fp32"]
    figures: dict[str, Any] = peers.measured(peers.parsed(words), tmp_path_factory.mktemp("models"))
    return figures


def work(found: dict[str, Any], way: str) -> tuple[int, int, int]:
    """Pictures through the detector, pictures through the image encoder, calls of the decoder."""
    kinds = ("detections", "encodings", "decodings.calls")
    detections, encodings, decodings = (found[f"work.{way}.{kind}"] for kind in kinds)
    return detections, encodings, decodings


def test_we_ask_each_model_once_a_frame(found: dict[str, Any]) -> None:
    assert work(found, "ours") == (FRAMES, FRAMES, FRAMES)
    assert found["work.ours.decodings"] == FRAMES * PHRASES * BOXES


@pytest.mark.parametrize("load", ["silent_half", "static"])
def test_what_is_silent_or_stands_still_costs_nothing(found: dict[str, Any], load: str) -> None:
    """Of two frames one is silent, or is the same picture once more."""
    assert work(found, f"{load}.ours") == (1, 1, 1)


def test_the_imitations_ask_what_their_originals_ask(found: dict[str, Any]) -> None:
    asked = FRAMES * PHRASES
    assert work(found, "naive") == (asked, asked * BOXES, asked * BOXES)
    assert work(found, "lang_sam") == (asked, asked, asked)
    assert work(found, "grounded_sam2_fp32") == (FRAMES, FRAMES, FRAMES)


def test_less_work_is_less_time(found: dict[str, Any]) -> None:
    """CPU seconds of runs beside each other; floors well under what is measured (about 3.3, 2.5 and 1)."""
    assert found["ratio.naive"] > 1.8
    assert found["ratio.lang_sam"] > 1.4
    assert found["ratio.grounded_sam2_fp32"] > 0.6  # the same passes: small networks show what is around them


def test_the_embedded_models_are_asked_once_a_clip_and_once_a_frame(speed: Path, tiny: Any) -> None:
    from bench import models_of
    from standard_load import world_clips
    from watching import watch

    clip = world_clips(1)[0]
    run = watch(lambda notes: tiny.stream(clip, context=notes), models_of(tiny), lambda frame: frame)
    asked = [frame for frame in run.answers if frame.prompts]
    found = [frame for frame in asked if frame.segments]
    assert asked and found
    assert run.work["hearings.calls"] == run.work["questions"] == 1
    assert run.work["detections"] == len(asked)
    assert len(found) <= run.work["encodings"] <= len(asked)
    assert run.work["decodings.calls"] == run.work["encodings"]


def test_masks_are_paired_within_a_frame_and_phrase(speed: Path) -> None:
    import numpy as np
    from agreement import mean_iou

    from openavs.structures.types import mask_to_rle

    box = (0.0, 0.0, 4.0, 4.0)
    left, whole = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    left[:, :2] = True
    one, two = ("dog", box, mask_to_rle(left)), ("dog", box, mask_to_rle(whole))
    cat = ("cat", box, mask_to_rle(whole))
    assert mean_iou([[one, two]], [[two, one]]) == 1
    assert mean_iou([[two]], [[cat]]) == 0
    assert mean_iou([[one]], [[two]]) == 0.5
    assert mean_iou([[one, two], []], [[one], []]) == 0.5  # the second dog has no partner


@pytest.mark.slow
def test_the_script_prints_what_its_contract_names() -> None:
    command = [sys.executable, str(ROOT / "eval/speed/peers.py"), "--json", "--frames", "2", "--repeats", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    peers = ("naive", "lang_sam", "grounded_sam2_fp32", "grounded_sam2_bf16")
    assert {"agreement", "overhead", *(f"ratio.{peer}" for peer in peers)} <= found.keys()
    assert found["agreement.tiny"] > 0.98
    assert found["agreement.same_boxes"] > 0.98
    assert all(found[f"agreement.{peer}"] > 0.999 for peer in peers[:3])  # the imitations compute what we compute
    assert work(found, "hf_pipeline") == (2 * PHRASES, 2, 2 * PHRASES * BOXES)  # the library's own
    assert found["overhead.tiny"] < 0.5
