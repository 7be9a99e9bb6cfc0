"""Scoring of PNG files end to end, against the slow references."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.tables import BASE, CLASSES, NOVEL
from openavs.evaluation.scorer import BenchmarkScores, score, write_scores
from openavs.media.audio import write_wav
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import write_layout
from tests.slow_metrics import slow_curve, slow_j, slow_official, slow_open_vocabulary, slow_semantic_figures

Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test splits of the synthetic world in three layouts."""
    root = tmp_path_factory.mktemp("benchmarks")
    for layout in ("s4", "avss", "ov"):
        write_layout(layout, root / layout, {"test": 3})
    return root


def save(path: Path, mask: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def noisy(truth: Array, rng: np.random.Generator) -> Array:
    """A prediction with some truth in it: probabilities of binary masks, class indices of label maps."""
    if truth.dtype == np.bool_:
        return np.clip(255 * (0.6 * truth + 0.5 * rng.random(truth.shape)), 0, 255).astype(np.uint8)
    return np.where(rng.random(truth.shape) < 0.8, truth, rng.integers(0, 71, (*truth.shape[:-1], 1))).astype(np.uint8)


def predict(dataset: Dataset, folder: Path) -> list[tuple[Array, Array]]:
    """Writes a noisy prediction of every clip and returns what was written beside the truth."""
    rng, pairs = np.random.default_rng(0), []
    for clip in dataset.clips:
        truth = dataset.read_truth(clip)
        masks = noisy(truth, rng)
        for frame, mask in zip(clip.annotated, masks, strict=True):
            save(folder / clip.predictions[frame], mask)
        pairs.append((masks, truth))
    return pairs


def scored(dataset: Dataset, folder: Path, **options: Any) -> BenchmarkScores:
    scores = score(dataset, folder, **options)
    json.dumps(scores.to_dict(), allow_nan=False)  # plain data, whatever is undefined
    for protocol, found in scores.intervals.items():
        for name, (low, high) in found.items():
            value = scores.figures[protocol][name]
            assert value is not None and 0 <= low <= high <= 1
    return scores


# ------------------------------------------------------------------------------------------------- end to end, exact


@pytest.mark.parametrize("clips_per_batch", [1, 2])
def test_s4_from_png_files_equals_the_published_formulas(world: Path, tmp_path: Path, clips_per_batch: int) -> None:
    dataset = open_dataset("s4", world / "s4")
    pairs = [(p.astype(np.float32) / np.float32(255), y) for p, y in predict(dataset, tmp_path)]
    scores = scored(dataset, tmp_path, clips_per_batch=clips_per_batch)
    j, f = slow_official(pairs, clips_per_batch)
    assert scores.figures["official"]["miou"] == pytest.approx(j, abs=1e-6)
    assert scores.figures["official"]["f"] == f
    frames = [(p, y) for pair in pairs for p, y in zip(*pair, strict=True)]
    curves = [slow_curve(p, y).double().numpy() for p, y in frames if y.any()]
    assert scores.figures["fixed"]["f"] == pytest.approx(np.mean(curves, axis=0).max(), abs=1e-9)
    assert (scores.clips, scores.frames, scores.task) == (3, 15, "binary")
    assert scores.to_dict()["metrics"] == scores.figures["official"]
    for row, clip, (p, y) in zip(scores.per_clip, dataset.clips, pairs, strict=True):
        assert (row["id"], row["group"], row["frames"]) == (clip.id, clip.group, 5)
        assert row["score"] == pytest.approx(slow_j(p, y), abs=1e-6)
    assert [row["name"] for row in scores.per_class] == sorted({str(clip.group) for clip in dataset.clips})
    assert sum(row["frames"] * row["j"] for row in scores.per_class) / 15 == pytest.approx(j, abs=1e-6)


def test_the_curve_is_the_mean_precision_and_recall(world: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", world / "s4")
    pairs = predict(dataset, tmp_path)
    curve = scored(dataset, tmp_path).curve
    assert curve is not None
    for k in (0, 100, 254):
        points = []
        for p, y in ((p, y) for pair in pairs for p, y in zip(*pair, strict=True) if y.any()):
            selected = p.astype(np.float32) / np.float32(255) >= np.float32(curve["threshold"][k])
            hit = (selected & y).sum()
            points.append((hit / max(selected.sum(), 1), hit / y.sum()))
        assert (curve["precision"][k], curve["recall"][k]) == pytest.approx(np.mean(points, axis=0), abs=1e-6)


def test_avss_from_png_files_equals_the_published_formulas(world: Path, tmp_path: Path) -> None:
    dataset = open_dataset("avss", world / "avss")
    pairs = predict(dataset, tmp_path)
    scores = scored(dataset, tmp_path, protocol="fixed")
    for protocol in ("official", "fixed"):
        slow = slow_semantic_figures(pairs, 71, protocol)
        assert {name: scores.figures[protocol][name] for name in slow} == pytest.approx(slow, abs=1e-9)
    assert scores.to_dict()["metrics"] == scores.figures["fixed"]
    assert [row["name"] for row in scores.per_class] == list(CLASSES)
    shown = {c: sum(bool((y == c).any()) for _, truth in pairs for y in truth) for c in range(71)}
    for c, row in enumerate(scores.per_class):
        assert (row["frames"], row["clips"]) == (shown[c], sum(bool((y == c).any()) for _, y in pairs))
    assert scores.curve is None
    assert all(0 < row["score"] < 1 for row in scores.per_clip)


def test_ov_from_png_files_equals_one_matrix(world: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ov", world / "ov")
    pairs = predict(dataset, tmp_path)
    scores = scored(dataset, tmp_path)
    for protocol in ("official", "fixed"):
        slow = slow_open_vocabulary(pairs, BASE, NOVEL, 71, protocol)
        assert scores.figures[protocol] == pytest.approx(slow, abs=1e-12)
    assert {row["part"] for row in scores.per_class} == {"background", "base", "novel"}
    assert scores.per_clip[0]["f"] is None


def test_v3_has_table_rows_by_sounding_class(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((2, 4, 4), bool), np.zeros((2, 4, 4), bool)])
    named = [("girl", "boy"), ("boy",)]
    clips = [replace(clip, classes=names) for clip, names in zip(dataset.clips, named, strict=True)]
    save_all(tmp_path / "out", dataset, 255)
    rows = scored(replace(dataset, clips=tuple(clips)), tmp_path / "out").per_class
    assert rows == (
        {"name": "boy", "clips": 2, "frames": 4, "j": pytest.approx(0.5), "f": pytest.approx(1.0)},
        {"name": "girl", "clips": 1, "frames": 2, "j": pytest.approx(1.0), "f": pytest.approx(1.0)},
    )


# ------------------------------------------------------------------------------------------------ a data set by hand


def by_hand(folder: Path, truths: list[Array]) -> Dataset:
    """Binary clips without image files, with truth in memory and predictions in `<id>/<k>.png`."""
    masks = {f"clip{n}": truth for n, truth in enumerate(truths)}
    clips = tuple(
        BenchmarkClip(
            id=name,
            split="test",
            frames=(),
            audio=folder / f"{name}.wav",
            truth=tuple(Path(f"{k}.png") for k in range(len(truth))),
            predictions=tuple(f"{name}/{k}.png" for k in range(len(truth))),
        )
        for name, truth in masks.items()
    )

    def read_truth(clip: BenchmarkClip) -> Array:
        return masks[clip.id][list(clip.annotated)]

    def read_prediction(clip: BenchmarkClip, where: Path) -> Array | None:
        return np.stack([np.asarray(Image.open(where / clip.predictions[i])) for i in clip.annotated])

    return Dataset("hand", "binary", folder, "test", clips, read_truth, read_prediction)


def save_all(folder: Path, dataset: Dataset, value: int) -> None:
    for clip in dataset.clips:
        for path in clip.predictions:
            save(folder / path, np.full((4, 4), value, np.uint8))


def test_frames_without_truth_are_silent_or_off_screen(tmp_path: Path) -> None:
    """Three seconds: silence, a tone below and one above -60 dBFS; the fourth frame has a true mask."""
    truth = np.zeros((4, 4, 4), bool)
    truth[3] = True
    dataset = by_hand(tmp_path, [truth, np.zeros((1, 4, 4), bool)])  # of the second clip there is no wav
    tone = np.sin(np.arange(1600, dtype=np.float32))
    levels = (0.0, 0.0003, 0.1, 0.1)
    write_wav(tmp_path / "clip0.wav", Waveform(np.concatenate([level * tone for level in levels]), 1600))
    out = tmp_path / "out"
    half = np.repeat(np.array([[0], [127], [128], [255]], np.uint8), 4, axis=1)  # two rows of four are above 0.5
    for k, mask in enumerate([np.full((4, 4), 127, np.uint8), half, half, half]):
        save(out / f"clip0/{k}.png", mask)
    save(out / "clip1/0.png", np.zeros((4, 4), np.uint8))
    assert scored(dataset, out).silence == {
        "empty_frames": 4,
        "empty_accuracy": pytest.approx(2 / 4),
        "empty_area": pytest.approx(0.25),
        "silent_frames": 2,
        "silent_accuracy": pytest.approx(1 / 2),
        "silent_area": pytest.approx(0.25),
        "offscreen_frames": 1,
        "offscreen_accuracy": 0.0,
        "offscreen_area": pytest.approx(0.5),
        "unheard_frames": 1,
    }


def test_clips_without_any_truth_have_no_f_and_no_curve(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.zeros((2, 4, 4), bool)])
    save_all(tmp_path / "out", dataset, 0)
    scores = scored(dataset, tmp_path / "out")
    assert scores.figures["official"] == {"miou": 1.0, "f": 0.0}
    assert scores.figures["fixed"] == {"miou": 1.0, "f": None, "miou_sounding": None}
    assert "f" not in scores.intervals["fixed"]
    assert scores.curve is None
    assert scores.per_clip[0]["f"] is None


def test_missing_predictions_raise_or_count_as_empty(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((2, 4, 4), bool) for _ in range(3)])
    out = tmp_path / "out"
    save_all(out, dataset, 255)
    shutil.rmtree(out / "clip1")
    (out / "clip2/1.png").unlink()
    with pytest.raises(InputError, match=r"3 of 6 .* in 2 of 3 clips \(first: .*clip1/0\.png\)"):
        score(dataset, out)
    scores = scored(dataset, out, allow_missing=True)
    assert (scores.missing, scores.missing_masks) == (("clip1", "clip2"), 3)
    assert [row["score"] for row in scores.per_clip] == pytest.approx([1.0, 0.0, 0.5])
    for path in ("clip1/0.png", "clip1/1.png", "clip2/1.png"):
        save(out / path, np.zeros((4, 4), np.uint8))
    assert score(dataset, out).figures == scores.figures


def test_a_reader_without_result_raises(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((2, 4, 4), bool)])
    save_all(tmp_path / "out", dataset, 255)
    with pytest.raises(InputError, match=r"the reader of hand finds no prediction of clip clip0 below .*out"):
        score(replace(dataset, read_prediction=lambda clip, folder: None), tmp_path / "out")


def test_missing_label_maps_are_found_in_either_folder(world: Path, tmp_path: Path) -> None:
    dataset = open_dataset("avss", world / "avss")
    predict(dataset, tmp_path)
    whole = score(dataset, tmp_path).figures
    first = tmp_path / str(dataset.clips[0].group) / dataset.clips[0].id
    for path in (first / "labels_semantic").iterdir():
        path.rename(first / path.name)
    assert score(dataset, tmp_path).figures == whole
    (first / "0.png").unlink()
    with pytest.raises(InputError, match=r"1 of .* predicted masks"):
        score(dataset, tmp_path)
    assert score(dataset, tmp_path, allow_missing=True).missing == (dataset.clips[0].id,)


def test_extra_predictions_cause_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = by_hand(tmp_path, [np.ones((1, 4, 4), bool)])
    layout = replace(dataset.clips[0], predictions=("test/clip0/0.png",))
    dataset = replace(dataset, clips=(layout,))
    save_all(tmp_path / "out", dataset, 255)
    with caplog.at_level(logging.WARNING):
        save(tmp_path / "out/train/other/0.png", np.zeros((4, 4), np.uint8))  # another split's
        score(dataset, tmp_path / "out")
        assert not caplog.records
        save(tmp_path / "out/test/clipO/0.png", np.zeros((4, 4), np.uint8))
        score(dataset, tmp_path / "out")
        assert "no clip or frame of the split 'test'" in caplog.text and "test/clipO (1 in total)" in caplog.text
        save(tmp_path / "out/test/clip0/1.png", np.zeros((4, 4), np.uint8))  # the clip has but one frame
        score(dataset, tmp_path / "out")
    assert "test/clip0/1.png (2 in total)" in caplog.text


def test_a_limit_scores_the_first_clips(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = by_hand(tmp_path, [np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool)])
    save_all(tmp_path / "out", dataset, 255)
    told: list[tuple[str, int, int]] = []
    scores = score(dataset, tmp_path / "out", limit=1, progress=lambda *what: told.append(what))
    assert (scores.clips, scores.figures["official"]["miou"]) == (1, pytest.approx(1.0))
    assert told == [("score", 1, 1)]
    assert not caplog.records


def test_errors_name_the_clip(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((1, 4, 4), bool)])
    save(tmp_path / "out/clip0/0.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(InputError, match=r"clip clip0: .* does not fit"):
        score(dataset, tmp_path / "out")
    with pytest.raises(InputError, match="nothing to score"):
        score(replace(dataset, clips=()), tmp_path / "out")


def test_predictions_of_zero_and_one_raise(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((2, 4, 4), bool)])
    save_all(tmp_path, dataset, 1)
    with pytest.raises(InputError, match="write masks with 0 and 255"):
        scored(dataset, tmp_path)
    save_all(tmp_path, dataset, 0)  # nothing found is an answer
    assert scored(dataset, tmp_path).figures["fixed"]["miou"] == 0


def test_reports_are_written_whole(tmp_path: Path) -> None:
    dataset = by_hand(tmp_path, [np.ones((1, 4, 4), bool), np.zeros((1, 4, 4), bool)])
    save_all(tmp_path / "masks", dataset, 0)
    report = score(dataset, tmp_path / "masks").to_dict()
    report |= {"root": "/data/caf\udce9"}  # the name of a folder in another encoding
    write_scores(tmp_path / "new" / "out", report)
    assert json.loads((tmp_path / "new/out/report.json").read_text()) == report
    lines = (tmp_path / "new/out/per_clip.csv").read_text().splitlines()
    assert lines[0] == "id,group,frames,score,f"
    assert len(lines) == 3


# ------------------------------------------------------------------------------------------------------------ memory

PEAK = """
import sys
from pathlib import Path
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.scorer import score
root = Path(sys.argv[1])
assert score(open_dataset("s4", root), root / "s4_data/gt_masks").clips == int(sys.argv[2])
assert "torch" not in sys.modules
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def peak_of(root: Path, clips: int) -> int:
    """Peak memory in kB; VmHWM is that of the process itself, unlike ru_maxrss."""
    command = [sys.executable, "-c", PEAK, str(root), str(clips)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_times_the_clips_take_the_same_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for clips in (30, 300):
        root = tmp_path / str(clips)
        rows = [f"v{n},0,dog_barking,test" for n in range(clips)]
        first = root / "s4_data/gt_masks/test/dog_barking/v0"
        for k in range(1, 6):
            save(first / f"v0_{k}.png", (rng.random((96, 96)) < 0.3).astype(np.uint8) * np.uint8(255))
        for n in range(1, clips):
            folder = first.parent / f"v{n}"
            folder.mkdir()
            for k in range(1, 6):
                (folder / f"v{n}_{k}.png").hardlink_to(first / f"v0_{k}.png")
        (root / "s4_meta_data.csv").write_text("\n".join(["name,start,category,split", *rows]) + "\n")
    assert peak_of(tmp_path / "300", 300) < 1.2 * peak_of(tmp_path / "30", 30)
