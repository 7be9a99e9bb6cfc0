"""Layout twins: reader and metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import Instances
from openavs.evaluation.datasets.synthetic_twins import read_twins
from openavs.evaluation.job_io import to_sample
from openavs.evaluation.metrics.twins import TwinsMetrics
from openavs.evaluation.report import write_benchmark_report
from openavs.evaluation.scorer import score
from openavs.jobs.loader import ClipLoader
from openavs.media.audio import write_wav
from openavs.structures.types import Waveform

PICTURE = np.array([[1, 1, 1, 1, 0, 0, 2, 2, 2, 2], [3, 3, 0, 0, 0, 0, 0, 0, 0, 0]], dtype=np.uint8)
"""Two twins of four pixels, and an object of another kind."""


def clip(*sounding: Sequence[int], twins: Sequence[bool] = (True, True, False)) -> Instances:
    """One frame for each set of sounding instances."""
    on = np.array([[number in held for number in range(1, len(twins) + 1)] for held in sounding])
    return Instances(np.stack([PICTURE] * len(sounding)), np.array(twins), on)


def mark(**pixels: int) -> np.ndarray:
    """One frame in which the first pixels of twins `a` and `b` and of the other object `c` are marked."""
    mask = np.zeros((1, *PICTURE.shape), dtype=np.uint8)
    for name, number in (("a", 1), ("b", 2), ("c", 3)):
        mask[0].flat[np.flatnonzero(number == PICTURE)[: pixels.get(name, 0)]] = 255
    return mask


def figures(*clips: tuple[np.ndarray, Instances]) -> dict[str, float | None]:
    metric = TwinsMetrics()
    for predicted, instances in clips:
        metric.update(predicted, instances)
    return metric.compute()


def test_the_right_twin_is_decided_and_right() -> None:
    assert figures((mark(a=4), clip([1]))) == {
        "miou": 1.0,
        "decided": 1.0,
        "right": 1.0,
        "silent_area": 0.0,
        "offscreen_marked": None,
    }


def test_the_other_twin_is_decided_and_wrong() -> None:
    found = figures((mark(b=4), clip([1])))
    assert (found["miou"], found["decided"], found["right"], found["silent_area"]) == (0.0, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("predicted", [mark(), mark(a=4, b=3), mark(a=2)])
def test_all_or_none_of_the_twins_are_undecided(predicted: np.ndarray) -> None:
    found = figures((predicted, clip([1])))
    assert (found["decided"], found["right"]) == (0.0, None)


def test_half_of_the_pixels_are_not_enough_and_count_as_area() -> None:
    found = figures((mark(a=3, b=2), clip([1])))
    assert (found["decided"], found["right"], found["silent_area"]) == (1.0, 1.0, 0.5)


def test_objects_of_another_kind_do_not_count_as_twins() -> None:
    found = figures((mark(a=4, c=2), clip([1])))
    assert (found["decided"], found["right"], found["silent_area"]) == (1.0, 1.0, 0.0)
    assert found["miou"] == pytest.approx(4 / 6)


def test_shares_are_of_the_frames_that_show_a_sounding_and_a_silent_twin() -> None:
    predicted = np.concatenate([mark(a=4), mark(a=4), mark(b=4), mark()])
    found = figures((predicted, clip([1], [2], [], [1, 2])))
    assert (found["decided"], found["right"], found["silent_area"]) == (1.0, 0.5, 0.5)
    assert found["miou"] == pytest.approx((1 + 0 + 0) / 3)


def test_a_clip_with_the_source_outside_the_picture_is_marked_by_a_single_frame() -> None:
    twins = (True, True, False, False)
    offscreen = clip([4], [4], [], twins=twins)
    silent = np.concatenate([mark(), mark(), mark(a=4)])
    marked = np.concatenate([mark(), mark(b=1), mark()])
    found = figures((silent, offscreen), (marked, offscreen))
    assert found == {"miou": None, "decided": None, "right": None, "silent_area": None, "offscreen_marked": 0.5}


def test_groups_and_intervals_follow_from_the_clips() -> None:
    metric = TwinsMetrics()
    for right, group in ((True, "static"), (False, "static"), (True, "shaking")):
        metric.update(mark(a=4) if right else mark(b=4), clip([1]), group)
    shaking, static = metric.groups()
    assert (shaking["name"], shaking["clips"], shaking["frames"]) == ("shaking", 1, 1)
    assert shaking["figures"]["right"] == 1.0
    assert (static["figures"]["right"], static["intervals"]["right"]) == (0.5, [0.0, 1.0])
    assert metric.sample().figures(np.array([[0.0, 1.0, 1.0]]))["right"] == [0.5]


def test_nothing_to_score_and_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="no clip"):
        TwinsMetrics().compute()
    with pytest.raises(InputError, match=r"\[2, 2, 10\] do not fit instances of \[1, 2, 10\]"):
        TwinsMetrics().update(np.zeros((2, 2, 10), dtype=np.uint8), clip([1]))


# ------------------------------------------------------------------------------------------------------------ reader


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two clips of two frames; the source of the second is outside the picture."""
    (tmp_path / "clips.csv").write_text(
        "name,split,camera,off_screen,kind\none,test,shaking,no,dog\ntwo,test,static,yes,dog\n"
    )
    for name, sounding in (("one", {1: [0], 2: [1]}), ("two", {4: [0, 1]})):
        kinds = ["dog", "dog", "bell", *["dog"] * (name == "two")]
        instances = [
            {"instance": i, "kind": kind, "visible": i < 4, "sounding": sounding.get(i, []), "events": []}
            for i, kind in enumerate(kinds, start=1)
        ]
        write_json(tmp_path / "scenes" / f"{name}.json", {"instances": instances})
        for k in range(2):
            save(tmp_path / "instances" / name / f"{k}.png", PICTURE)
            save(tmp_path / "frames" / name / f"{k}.png", np.zeros((*PICTURE.shape, 3), dtype=np.uint8))
        (tmp_path / "audio").mkdir(exist_ok=True)
        write_wav(tmp_path / "audio" / f"{name}.wav", Waveform(np.full(32000, 0.1, dtype=np.float32), 16000))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "one.mp4").touch()
    return tmp_path


def write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_clips_have_their_files_group_and_kind(root: Path) -> None:
    one, two = read_twins(root).clips
    assert (one.id, one.group, one.classes, one.video) == ("one", "shaking", ("dog",), root / "videos" / "one.mp4")
    assert (two.group, two.video) == ("off-screen", None)
    assert one.predictions == ("one/0.png", "one/1.png")
    assert one.frames == (root / "frames" / "one" / "0.png", root / "frames" / "one" / "1.png")


def test_the_truth_is_what_is_visible_and_sounds_in_the_frames_second(root: Path) -> None:
    dataset = read_twins(root)
    one, two = dataset.clips
    assert np.array_equal(dataset.read_truth(one), np.stack([PICTURE == 1, PICTURE == 2]))
    assert not dataset.read_truth(two).any()
    assert dataset.read_instances is not None
    instances = dataset.read_instances(two)
    assert instances.twins.tolist() == [True, True, False, False]
    assert instances.sounding.tolist() == [[False, False, False, True]] * 2


def test_the_truth_as_a_prediction_scores_one(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("twins", root)
    for clip in dataset.clips:
        for path, mask in zip(clip.predictions, dataset.read_truth(clip), strict=True):
            save(tmp_path / "masks" / path, mask.astype(np.uint8) * 255)
    report = score(dataset, tmp_path / "masks").to_dict()
    assert {name: report["metrics"][name] for name in ("miou", "decided", "right", "silent_area")} == {
        "miou": 1.0,
        "decided": 1.0,
        "right": 1.0,
        "silent_area": 0.0,
    }
    assert report["metrics"]["offscreen_marked"] == 0.0
    assert report["figures"]["fixed"]["right"] == 1.0
    assert report["intervals"]["official"]["right"] == [1.0, 1.0]
    assert [(row["name"], row["clips"]) for row in report["groups"]] == [("off-screen", 1), ("shaking", 1)]
    write_benchmark_report(tmp_path / "report.html", report, dataset, tmp_path / "masks")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '<th scope="row">shaking</th><td>1</td><td>100.00 [100.00, 100.00]</td>' in page


@pytest.mark.parametrize(
    ("scene", "says"),
    [
        ("{", "is not a scene file"),
        ('{"objects": []}', "is not a scene file"),
        ('{"instances": [{"instance": 2, "kind": "dog", "visible": true, "sounding": []}]}', "numbered from 1"),
        ('{"instances": [{"instance": 1, "kind": "dog", "visible": true, "sounding": []}]}', "has the instance 3"),
    ],
)
def test_broken_scene_files_are_refused(root: Path, scene: str, says: str) -> None:
    (root / "scenes" / "one.json").write_text(scene)
    dataset = read_twins(root)
    with pytest.raises(InputError, match=says):
        dataset.read_truth(dataset.clips[0])


def test_missing_files_are_named(root: Path) -> None:
    (root / "scenes" / "one.json").unlink()
    dataset = read_twins(root)
    with pytest.raises(InputError, match=r"cannot read the scene file .*one\.json"):
        dataset.read_truth(dataset.clips[0])
    for path in (root / "instances" / "one").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="has no instance maps"):
        dataset.clips[0]


def test_the_clip_that_is_run_has_the_frames_in_between(root: Path) -> None:
    loader = ClipLoader(root, Path(), 1.0)
    one, two = (loader.open(to_sample(clip, clip.id, root)) for clip in read_twins(root).clips)
    assert one.dense_frames is not None
    assert two.dense_frames is None
    with pytest.raises(InputError, match=r"one\.mp4"):  # an empty file
        next(iter(one.dense_frames(25.0, 224)))
