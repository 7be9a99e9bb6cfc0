"""Self-training with the tiny pipeline as the teacher: label, filter, train, evaluate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from openavs.benchmarks.cards import open_dataset
from openavs.students.self_training import UNSURE, frame_confidence
from openavs.types import FrameResult, Segment, mask_to_rle

SMALL = ("model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4}", "init={}", "batch=2")


def segment(score: float) -> Segment:
    return Segment(mask_to_rle(np.ones((2, 2), dtype=bool)), (0, 0, 2, 2), "dog", score)


def test_a_frame_is_as_sure_as_its_segments_and_half_sure_without_any() -> None:
    assert frame_confidence(FrameResult(0, 0.5, segments=(segment(0.9), segment(0.5)))) == pytest.approx(0.7)
    assert frame_confidence(FrameResult(0, 0.5)) == UNSURE == 0.5


@pytest.mark.slow
def test_a_student_learns_from_the_tiny_pipeline_and_goes_on_where_it_stopped(
    openavs: Any, s4: Path, vggish: Path, tmp_path: Path
) -> None:
    command = ["self-train", "tpavi", "--root", s4, "--benchmark", "s4", "--pipeline", "tiny", "--out", tmp_path]
    command += ["--max-steps", "2", "--device", "cpu", "--rounds", "2", "--truth", "--weighted", "--json", "-q"]
    done = openavs(*command, *SMALL, f"audio={vggish}")
    assert done.code == 0, done.err
    report = done.json()
    assert list(report["figures"]) == ["teacher", "round 1", "round 2", "truth"]
    assert report["kept"] == [4, 4] and report["clips"] == 4
    assert report["figures"]["teacher"]["miou"] > 0.2
    assert report["pipeline"] == f"student:{tmp_path / 'round-2' / 'student'}"
    recipe = json.loads((tmp_path / "round-1" / "student" / "train.json").read_text())
    assert recipe["data"]["labels"] == str(tmp_path / "round-1" / "labels") and recipe["recipe"]["labels"]["weighted"]
    assert json.loads((tmp_path / "truth" / "train.json").read_text())["data"]["labels"] is None
    before = (tmp_path / "round-1" / "student" / "model.safetensors").stat().st_mtime_ns
    assert openavs(*command, *SMALL, f"audio={vggish}").json() == report
    assert (tmp_path / "round-1" / "student" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_filter_that_leaves_nothing_says_so_and_the_truth_is_never_read(
    openavs: Any, s4: Path, vggish: Path, tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "s4"
    shutil.copytree(s4, root)
    for clip in open_dataset("s4", root, "train").clips:  # the training masks are all wrong: nobody may notice
        for path in clip.truth:
            if path is not None:
                Pillow.fromarray(np.zeros((224, 224), dtype=np.uint8)).save(path)
    command = ["self-train", "tpavi", "--root", root, "--benchmark", "s4", "--pipeline", "tiny", "--device", "cpu"]
    command += ["--max-steps", "1", "--json", "-q", *SMALL, f"audio={vggish}"]
    with_wrong = openavs(*command, "--out", tmp_path / "wrong")
    assert with_wrong.code == 0, with_wrong.err
    labels = tmp_path / "wrong" / "round-1" / "labels" / "predictions"
    assert any(np.asarray(Pillow.open(path)).any() for path in labels.rglob("*_1.png"))
    done = openavs(*command, "--out", tmp_path / "sure", "--min-score", "1.0")
    assert done.code == 2 and "the filter leaves none of the 4 clips" in done.err
