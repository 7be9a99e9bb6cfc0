"""AVIS: reader, prediction files, score and evaluate, on synthetic clips of twins and musicians."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.evaluation import track_predictions
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import Dataset, InstanceTrack
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.scorer import score
from openavs.evaluation.track_predictions import TrackPredictions, result_to_tracks, write_tracks
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import ClipResult, FrameResult, Segment
from openavs.synthetic.datasets import SEMANTIC_SIZE, write_layout
from tests.conftest import Outcome

FRAMES = 6
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of six seconds."""
    folder = tmp_path_factory.mktemp("avis") / "datasets"
    write_layout("avis", folder, {"test": 2}, seconds=FRAMES)
    return folder


@pytest.fixture(scope="module")
def dataset(root: Path) -> Dataset:
    return open_dataset("avis", root.parent)


@pytest.fixture
def perfect(dataset: Dataset, tmp_path: Path) -> Path:
    """The truth as predictions, with empty masks as the published code writes them."""
    assert dataset.read_tracks and dataset.track_layout
    write_tracks(
        tmp_path / "results.json", ((c.id, dataset.read_tracks(c)) for c in dataset.clips), dataset.track_layout
    )
    return tmp_path / "results.json"


def edited(path: Path, edit: Edit) -> Path:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return path


# -------------------------------------------------------------------------------------------------------------- reader


def test_a_clip_has_frames_audio_and_tracks_with_masks_only_while_they_sound(dataset: Dataset) -> None:
    assert [clip.id for clip in dataset.clips] == ["te000w00000", "te000w00001"]
    assert dataset.classes == tuple(load_benchmark("avis").classes)
    for clip in dataset.clips:
        assert len(clip.frames) == FRAMES and all(path.is_file() for path in (*clip.frames, clip.audio))
        assert dataset.read_tracks is not None
        tracks = dataset.read_tracks(clip)
        assert len(tracks) >= 2 and {dataset.classes[track.category] for track in tracks} == set(clip.classes)
        silent = [all(track.masks[t] is None for track in tracks) for t in range(FRAMES)]
        assert any(silent) and not all(silent)
        labels = dataset.read_truth(clip)
        assert labels.shape == (FRAMES, *SEMANTIC_SIZE)
        assert [not frame.any() for frame in labels] == silent


def test_polygons_and_stated_areas_are_read(root: Path, tmp_path: Path) -> None:
    data = json.loads((root / "test.json").read_text())
    own = data["annotations"][0]
    own["segmentations"] = [[[10, 20, 30, 20, 30, 50, 10, 50]], *[None] * (FRAMES - 1)]
    own["areas"] = [700, *[None] * (FRAMES - 1)]
    (tmp_path / "test.json").write_text(json.dumps(data))
    opened = open_dataset("avis", tmp_path)
    assert opened.read_tracks is not None
    track = opened.read_tracks(opened.clips[0])[0]
    assert track.masks[0] is not None and track.masks[0].area == 600 and track.mean_area == 700


BAD_LAYOUTS: list[tuple[Edit, str]] = [
    (lambda d: d.pop("categories"), r"test.json is not in the layout of YouTube-VIS .*: KeyError 'categories'"),
    (lambda d: d["videos"].clear(), "KeyError|lists no videos"),
    (lambda d: d["videos"].append(d["videos"][0]), "lists a video twice"),
    (lambda d: d["annotations"][0].update(category_id=99), "the annotation 1 has no category of the file"),
    (lambda d: d["annotations"][0]["segmentations"].pop(), "has 6 frames and the annotation 1 5 masks"),
    (lambda d: d["videos"][0].update(file_names=["../a/0.jpg"] * 6), r"'../a/0.jpg' is not named <video>/<frame>.jpg"),
    (lambda d: d["videos"][0].update(height=0), "gives the clip 'te000w00000' 320 x 0 pixels"),
]


@pytest.mark.parametrize(("edit", "sentence"), BAD_LAYOUTS, ids=[sentence[:30] for _, sentence in BAD_LAYOUTS])
def test_annotations_that_do_not_match_the_layout_are_refused(
    edit: Edit, sentence: str, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "test.json").write_bytes((root / "test.json").read_bytes())
    edited(tmp_path / "test.json", edit)
    with pytest.raises(InputError, match=sentence):
        open_dataset("avis", tmp_path)


def test_missing_files_come_with_the_place_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no test\.json, nor do datasets/ below it; .*'openavs synth avis'"):
        open_dataset("avis", tmp_path)
    (tmp_path / "test.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*test\.json as JSON"):
        open_dataset("avis", tmp_path)


# --------------------------------------------------------------------------------------------------------- predictions


def test_the_truth_scores_1_in_fixed_and_less_in_official(dataset: Dataset, perfect: Path) -> None:
    scores = score(dataset, perfect.parent)  # the folder, too
    fixed = scores.figures["fixed"]
    assert fixed["map"] == fixed["hota"] == fixed["fsla"] == fixed["fsla_n"] == fixed["fsla_s"] == 1
    assert scores.figures["official"]["fsla_n"] == 0
    assert scores.intervals["fixed"]["hota"] == (1, 1)
    assert [row["score"] for row in scores.per_clip] == [1, 1]
    assert scores.frames == 2 * FRAMES


def test_null_in_place_of_empty_masks_changes_fixed_in_nothing(
    dataset: Dataset, perfect: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def nulls(data: Any) -> None:
        for track in data:
            codes = [RLE(tuple(code["size"]), code["counts"]) for code in track["segmentations"]]
            track["segmentations"] = [
                code if rle.area else None for code, rle in zip(track["segmentations"], codes, strict=True)
            ]
        data.reverse()

    with_empty = score(dataset, perfect).figures["fixed"]
    scores = score(dataset, edited(perfect, nulls))
    assert scores.figures["fixed"] == with_empty
    assert scores.figures["official"]["fsla"] is None
    assert "the published FSLA ends in an IndexError for 1 clip," in caplog.text


def test_clips_without_tracks_are_predicted_to_be_silent(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(" [ ] \n")
    fixed = score(dataset, tmp_path / "mine.json").figures["fixed"]
    assert (fixed["map"], fixed["hota"], fixed["fsla_n"], fixed["fsla_s"]) == (0, 0, 1, 0)


BAD_FILES: list[tuple[Edit, str]] = [
    (lambda d: d[1].update(video_id=99), r"results.json, track 1: the split has no video 99$"),
    (lambda d: d[0].update(category_id=0), "track 0: the category 0 is not one of 1 to 26"),
    (lambda d: d[0].pop("score"), "track 0: video_id, score, category_id and segmentations .* were expected"),
    (lambda d: d.append(3), "video_id, score, category_id and segmentations .* were expected"),
    (lambda d: d[0]["segmentations"].pop(), "'te000w00000' has 6 frames and the track 5 masks"),
    (lambda d: d[0]["segmentations"][0].update(size=[9, 7]), "frame 0 has 7 x 9 pixels, 'te000w00000' 320 x 240"),
    (lambda d: d[0]["segmentations"][0].update(counts=[1, 2]), "frame 0 is not a compressed run-length code"),
    (lambda d: d[0]["segmentations"][0].update(counts="0"), "frame 0 of the clip 'te000w00000': .* does not fill"),
]


@pytest.mark.parametrize(("edit", "sentence"), BAD_FILES, ids=[sentence[:30] for _, sentence in BAD_FILES])
def test_predictions_that_do_not_match_the_layout_are_refused(
    edit: Edit, sentence: str, dataset: Dataset, perfect: Path
) -> None:
    with pytest.raises(InputError, match=sentence):
        score(dataset, edited(perfect, edit))


@pytest.mark.parametrize("text", ["{}", "[", "[3 4]", "[] []", '[{"score": NaN}]'])
def test_a_file_without_a_list_of_tracks_is_refused(text: str, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"is not a (list of tracks|JSON file)|track 0: video_id, score, category_id"):
        score(dataset, tmp_path)


def test_a_file_is_read_in_pieces(dataset: Dataset, perfect: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset.track_layout is not None
    whole = TrackPredictions(perfect, dataset.track_layout)
    monkeypatch.setattr(track_predictions, "_WINDOW", 7)
    pieces = TrackPredictions(perfect, dataset.track_layout)
    for clip in dataset.clips:
        read = [[(track.category, track.score, track.masks) for track in p.tracks(clip.id)] for p in (whole, pieces)]
        assert read[0] == read[1] != []


def test_options_of_mask_files_and_ambiguous_folders_are_refused(dataset: Dataset, perfect: Path) -> None:
    with pytest.raises(InputError, match="are one file; leave --numbering and --resize out"):
        score(dataset, perfect, numbering=0)
    perfect.rename(perfect.with_name("a.json")).with_name("b.json").write_text("[]")
    with pytest.raises(InputError, match="holds 2 JSON files; give the file of predictions"):
        score(dataset, perfect.parent)


def test_score_prints_the_figures_as_json(root: Path, perfect: Path, openavs: Callable[..., Outcome]) -> None:
    options = ("--root", root, "--predictions", perfect)
    metrics = openavs("score", "avis", *options, "--protocol", "fixed", "--json").json()["metrics"]
    assert all(metrics[name] == 1 for name in ("map", "hota", "fsla", "fsla_n", "fsla_s"))
    assert metrics["fsla_m"] in (1, None)
    text = openavs("score", "avis", *options).out
    assert "FSLAn, frames without a sounding instance" in text and "HOTA" in text


# ---------------------------------------------------------------------------------------------- tracks of our results


def segment(x: int, score: float, label: str | None, track: int | None) -> Segment:
    mask = np.zeros((4, 9), dtype=bool)
    mask[:, x] = True
    return Segment(mask_to_rle(mask), (x, 0, x + 1, 4), label or "thing", score, label=label, track=track)


def test_every_instance_of_a_result_is_in_a_track() -> None:
    frames = (
        FrameResult(0, 0.0, segments=(segment(0, 0.4, "cat", 1), segment(1, 0.6, "cat", 1), segment(2, 0.5, "dog", 2))),
        FrameResult(1, 1.0),
        FrameResult(2, 2.0, segments=(segment(3, 0.9, "dog", 1), segment(4, 0.7, "dog", None), segment(5, 1, None, 9))),
    )
    first, second, third = result_to_tracks(ClipResult("a", (4, 9), frames), ("background", "cat", "dog"))
    assert (first.category, first.score) == (1, pytest.approx(1.9 / 3))  # cat: 1.0 of 1.9
    assert first.masks[0] is not None and rle_to_mask(first.masks[0])[0].nonzero()[0].tolist() == [0, 1]
    assert first.masks[1] is None and first.masks[2] is not None
    assert (second.category, third.category, third.masks[:2]) == (2, 2, (None, None))


def test_a_recipe_with_a_tracker_is_run_and_scored(dataset: Dataset, tmp_path: Path) -> None:
    card = load_benchmark("avis")
    with pytest.raises(InputError, match=r"avis scores tracks, and the recipe has no tracker; add tracker\.use=iou"):
        recipe_predictor(load_recipe("tiny"), dataset, card)
    system = recipe_predictor(load_recipe("tiny", ["tracker.use=iou"]), dataset, card)
    done = evaluate(system, dataset, tmp_path, protocol="fixed", limit=1)
    assert done.report is not None and 0 < done.report["metrics"]["fsla"] <= 1
    assert dataset.track_layout is not None
    [own, none] = [TrackPredictions(tmp_path / "predictions", dataset.track_layout).tracks(c.id) for c in dataset.clips]
    assert own and not none and all(len(track.masks) == FRAMES for track in own)
    page = (tmp_path / "report.html").read_text()
    assert "HOTA per class" in page and 'alt="Frame' in page
    curve = done.report["curve"]
    assert len(curve["threshold"]) == 19 and np.mean(curve["hota"]) == pytest.approx(done.report["metrics"]["hota"])
    assert "HOTA against the IoU" in page
    idle = replace(system, build=lambda: pytest.fail("the clip was run again"))
    again = evaluate(idle, dataset, tmp_path, protocol="fixed", limit=1)
    assert again.report is not None and again.report["metrics"] == done.report["metrics"]


def test_students_are_not_trained_on_tracks(tmp_path: Path, openavs: Callable[..., Outcome]) -> None:
    write_layout("avis", tmp_path / "data", {"train": 1}, seconds=2)
    options = ("--benchmark", "avis", "--root", tmp_path / "data", "--out", tmp_path / "out")
    answer = openavs("train", "tpavi", *options)
    assert answer.code != 0 and "students learn masks, and avis has tracks" in answer.err


def test_results_of_another_size_than_the_annotations_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    assert dataset.track_layout is not None
    small = InstanceTrack(1, (mask_to_rle(np.ones((4, 9), dtype=bool)),) * FRAMES)
    with pytest.raises(InputError, match=r"has 6 frames of 320 x 240 pixels in its annotations and 6 of 9 x 4"):
        write_tracks(tmp_path / "results.json", [("te000w00000", [small])], dataset.track_layout)
    assert not list(tmp_path.iterdir())
