"""Self-training with the tiny pipeline as the teacher: label, filter, train, evaluate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.corrections.store import replace_segments
from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.compare import read_report
from openavs.evaluation.predictor import Predictor
from openavs.results.serialization import read_result
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Clip, ClipResult, Correction, FrameResult, Prompt, Segment
from openavs.synthetic.datasets import write_layout
from openavs.training.config import load_training_recipe
from openavs.training.labels import PseudoLabels
from openavs.training.self_training import SelfTrainingConfig, Splits, agreement, confidences, label, self_train

SMALL = ("model={backbone: pvt_v2_tiny, side: 32, channels: 8, inner: 4}", "init={}", "batch=2")


def segment(score: float) -> Segment:
    return Segment(mask_to_rle(np.ones((2, 2), dtype=bool)), (0, 0, 2, 2), "dog", score)


def result(*frames: tuple[float, ...]) -> ClipResult:
    """A result with frames of segments with these scores."""
    shown = (FrameResult(i, i + 0.5, segments=tuple(map(segment, scores))) for i, scores in enumerate(frames))
    return ClipResult("clip", (2, 2), tuple(shown))


def test_confidence_is_the_mean_score_or_the_mean_of_other_frames() -> None:
    """The scale of the scores does not matter: a frame without segments gets the mean of the others."""
    found = confidences({"a": result((0.3, 0.1), ()), "b": result((0.1,))})
    assert found == {"a": [pytest.approx(0.2), pytest.approx(0.15)], "b": [pytest.approx(0.1)]}
    assert confidences({"a": result((), ())}) == {"a": [1.0, 1.0]}


def test_min_score_excludes_clips_of_low_confidence(s4: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    scores = dict(zip((clip.id for clip in dataset.clips), [(0.1,), (0.2,), (0.3,), ()], strict=True))

    def look(clip: Clip) -> ClipResult:
        return replace(result(*[scores[clip.id]] * len(clip.times)), clip=clip.id)

    kept = label(
        Predictor({"name": "by hand"}, lambda: look), dataset, tmp_path, SelfTrainingConfig(min_score=0.15), None
    )
    assert kept == 3, "the one in which nothing was found counts 0.2"
    assert json.loads((tmp_path / "left_out.json").read_text()) == [dataset.clips[0].id]


def test_agreement_is_the_share_of_prompts_that_were_found() -> None:
    """Captioner and detector agree about a prompt that has a segment of its phrase in the same frame."""
    found, missing = Prompt("dog"), Prompt("bell")
    frames = [FrameResult(0, 0.5, prompts=(found, missing), segments=(segment(0.3),)), FrameResult(1, 1.5)]
    frames += [FrameResult(2, 2.5, prompts=(found,), segments=(segment(0.3),)), FrameResult(3, 3.5, prompts=(found,))]
    assert agreement(ClipResult("clip", (2, 2), tuple(frames))) == 0.5
    assert agreement(result((0.3,), ())) == 1.0  # a student's results have no prompts


def test_min_agreement_excludes_clips(s4: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    disputed = dataset.clips[1].id

    def look(clip: Clip) -> ClipResult:
        phrases = (Prompt("dog"), Prompt("bell")) if clip.id == disputed else (Prompt("dog"),)
        frames = (FrameResult(i, t, prompts=phrases, segments=(segment(0.3),)) for i, t in enumerate(clip.times))
        return ClipResult(clip.id, (2, 2), tuple(frames))

    predictor = Predictor({"name": "by hand"}, lambda: look)
    assert label(predictor, dataset, tmp_path, SelfTrainingConfig(min_agreement=0.6), None) == 3
    assert json.loads((tmp_path / "left_out.json").read_text()) == [disputed]


def teacher(found_in: set[str], broken: str = "") -> Predictor:
    """Finds one object in all frames of some clips and none in the others; fails for a broken clip."""
    masks = segment(0.9)

    def look(clip: Clip) -> ClipResult:
        if clip.id == broken:
            raise InputError("its frames cannot be read")
        found = (masks,) if clip.id in found_in else ()
        return ClipResult(clip.id, (2, 2), tuple(FrameResult(i, t, segments=found) for i, t in enumerate(clip.times)))

    return Predictor({"name": "by hand"}, lambda: look, (), soft=False)


def test_drop_empty_excludes_clips_without_masks(s4: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    first = dataset.clips[0].id
    kept = label(teacher({first}), dataset, tmp_path / "some", SelfTrainingConfig(drop_empty=True), None)
    assert kept == 1
    assert len(json.loads((tmp_path / "some" / "left_out.json").read_text())) == 3
    assert [clip.id for clip in dataset.clips if PseudoLabels(dataset, tmp_path / "some").has(clip)] == [first]
    assert label(teacher({first}), dataset, tmp_path / "all", SelfTrainingConfig(), None) == 4
    with pytest.raises(
        InputError, match="the filters exclude all 4 clips; lower --min-score and --min-agreement or leave"
    ):
        label(teacher(set()), dataset, tmp_path / "none", SelfTrainingConfig(drop_empty=True), None)


def test_error_names_a_clip_that_cannot_be_labeled_or_evaluated(s4: Path, vggish: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    bad = dataset.clips[2].id
    with pytest.raises(InputError, match=f"1 clip could not be labeled, such as {bad}: its frames cannot be read"):
        label(teacher(set(), bad), dataset, tmp_path, SelfTrainingConfig(), None)
    root = tmp_path / "ms3"
    write_layout("ms3", root, {"train": 1, "test": 1})
    splits = Splits(load_benchmark("ms3"), open_dataset("ms3", root, "train"), None, open_dataset("ms3", root, "test"))
    dumb = load_recipe("tiny", ["captioner={use: oracle}", "translator={use: none}"])  # MS3's clips have no names
    with pytest.raises(InputError, match="1 clip could not be evaluated, such as "):
        self_train(
            load_training_recipe("tpavi-tiny"), dumb, splits, tmp_path / "out", SelfTrainingConfig(weighted=True)
        )


@pytest.mark.slow
def test_self_training_with_tiny_as_teacher_resumes(openavs: Any, s4: Path, vggish: Path, tmp_path: Path) -> None:
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


@pytest.mark.long
def test_the_gain_by_corrections_is_in_the_report(openavs: Any, s4: Path, vggish: Path, tmp_path: Path) -> None:
    """The student of the corrected labels is compared with the one before, clip by clip."""
    command = ["self-train", "tpavi", "--root", s4, "--benchmark", "s4", "--pipeline", "tiny", "--out", tmp_path]
    command += ["--max-steps", "1", "--device", "cpu", *SMALL, f"audio={vggish}"]
    first = openavs(*command, "--json", "-q")
    assert first.code == 0, first.err
    assert (first.json()["person"], first.json()["corrections_gain"]) == (0, None)
    clip = next((tmp_path / "round-1" / "labels" / "clips").iterdir())
    size = read_result(clip.parents[1], clip.name).size
    drawn = mask_to_rle(np.ones(size, dtype=bool))
    mask = Segment(drawn, drawn.box, "object", 1.0, track=0, author="person")
    replace_segments(clip, {0: [mask]}, [Correction("mask", 0, 0, "object", at="2026-12-01T12:00:00Z")])
    again = openavs(*command)
    assert again.code == 0, again.err
    assert "1 training clip corrected or reviewed by a person" in again.out
    assert "last student with them minus without: " in again.out
    report = json.loads((tmp_path / "self_training.json").read_text())
    scores = [
        read_report(folder)["figures"]["official"]["miou"] for folder in sorted((tmp_path / "round-1").glob("test*"))
    ]
    assert report["corrections_gain"]["mean"] == pytest.approx(scores[1] - scores[0])
    (tmp_path / "round-1" / "test" / "report.json").unlink()  # as after an interruption
    assert openavs(*command, "--json", "-q").json()["corrections_gain"] is None
    low, high = report["corrections_gain"]["interval"]
    assert low <= report["corrections_gain"]["mean"] <= high


@pytest.mark.slow
def test_filters_without_a_clip_left_fail_and_truth_is_not_read(
    openavs: Any, s4: Path, vggish: Path, tmp_path: Path
) -> None:
    import shutil

    root = tmp_path / "s4"
    shutil.copytree(s4, root)
    for clip in open_dataset("s4", root, "train").clips:  # wrong training masks, which must not be read
        for path in clip.truth:
            if path is not None:
                Image.fromarray(np.zeros((224, 224), dtype=np.uint8)).save(path)
    command = ["self-train", "tpavi", "--root", root, "--benchmark", "s4", "--pipeline", "tiny", "--device", "cpu"]
    command += ["--max-steps", "1", "--json", "-q", *SMALL, f"audio={vggish}"]
    with_wrong = openavs(*command, "--out", tmp_path / "wrong")
    assert with_wrong.code == 0, with_wrong.err
    labels = tmp_path / "wrong" / "round-1" / "labels" / "predictions"
    assert any(np.asarray(Image.open(path)).any() for path in labels.rglob("*_1.png"))
    done = openavs(*command, "--out", tmp_path / "sure", "--min-score", "1.0")
    assert done.code == 2 and "the filters exclude all 4 clips" in done.err
