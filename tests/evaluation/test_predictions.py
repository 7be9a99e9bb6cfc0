"""Predictions in the layouts of the published scripts: folders, names, numbers, sizes and colors."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.scorer import BenchmarkScores, score
from openavs.structures.masks import voc_palette
from openavs.synthetic.datasets import write_layout

Array = np.ndarray[Any, Any]
Name = Callable[[BenchmarkClip, int], str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    for layout in ("s4", "ms3", "avss", "ov"):
        write_layout(layout, root / layout, {"test": 2}, seed=11)
    return root


def predictions_of(dataset: Dataset) -> dict[str, Array]:
    """The truth moved by some pixels and changing from frame to frame, so that no frame passes for its neighbor."""
    made = {}
    for clip in dataset.clips:
        truth = (dataset.read_native or dataset.read_truth)(clip)
        made[clip.id] = np.stack([np.roll(frame, (4 * i, 8), axis=(0, 1)) for i, frame in enumerate(truth)])
    return made


def write(dataset: Dataset, folder: Path, name: Name, encode: Callable[[Array], Image.Image]) -> None:
    for clip in dataset.clips:
        for i, mask in enumerate(predictions_of(dataset)[clip.id]):
            path = folder / name(clip, i)
            path.parent.mkdir(parents=True, exist_ok=True)
            encode(mask).save(path)


def hard(mask: Array) -> Image.Image:
    """As AVSBench's `save_mask`."""
    return Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).convert("P")


def indices(mask: Array) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8))


def colors(mask: Array) -> Image.Image:
    """As AVSBench's `save_color_mask`."""
    return Image.fromarray(voc_palette()[mask])


def figures(scores: BenchmarkScores) -> Any:
    return scores.figures, scores.intervals, scores.per_clip


def in_order(dataset: Dataset, folder: Path) -> Any:
    """The scores of the same masks in the benchmark's own layout."""
    encode = hard if dataset.task == "binary" else indices
    write(dataset, folder, lambda clip, i: clip.predictions[i], encode)
    return figures(score(dataset, folder))


PUBLISHED: dict[str, tuple[str, Name, Callable[[Array], Image.Image], int | None]] = {
    "AVSBench and AVSegFormer, S4": ("s4", lambda c, i: f"{c.group}/{c.id}/{c.id}_{i}.png", hard, 0),
    "AVSBench and AVSegFormer, MS3": ("ms3", lambda c, i: f"{c.id}/{c.id}_{i}.png", hard, 0),
    "AVSBench and AVSegFormer, AVSS": ("avss", lambda c, i: f"{c.id}/{c.id}_{i}.png", colors, None),
    "OV-AVSS": ("ov", lambda c, i: f"{c.id}/{i}.png", colors, None),
    "numbers alone": ("s4", lambda c, i: f"test/{c.group}/{c.id}/{i + 1}.png", hard, None),
    "ids before the numbers": ("avss", lambda c, i: f"{c.group}/{c.id}/{c.id}_{i}.png", indices, None),
    "AVSS numbered from 1": ("avss", lambda c, i: f"{c.group}/{c.id}/{i + 1}.png", indices, 1),
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_masks_of_published_scripts_have_the_same_scores(
    root: Path, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    layout, name, encode, numbering = PUBLISHED[case]
    dataset = open_dataset(layout, root / layout)
    expected = in_order(dataset, tmp_path / "own")
    write(dataset, tmp_path / "theirs", name, encode)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert figures(score(dataset, tmp_path / "theirs", numbering=numbering)) == expected
    assert not caplog.records, "no mask is taken for one of another clip or frame"


@pytest.mark.parametrize(("allow_missing", "limit"), [(False, None), (True, None), (True, 1)])
@pytest.mark.parametrize("case", [case for case, (*_, numbering) in PUBLISHED.items() if numbering is not None])
def test_another_numbering_must_be_given(
    root: Path, tmp_path: Path, case: str, allow_missing: bool, limit: int | None
) -> None:
    layout, name, encode, numbering = PUBLISHED[case]
    dataset = open_dataset(layout, root / layout)
    write(dataset, tmp_path, name, encode)
    with pytest.raises(InputError, match=rf"numbered from {numbering}\? .*--numbering {numbering}, or --numbering "):
        score(dataset, tmp_path, allow_missing=allow_missing, limit=limit)
    # It may be right after all: a mask before the first is extra, and the last is missing.
    insisted = score(dataset, tmp_path, allow_missing=True, numbering=1 - (numbering or 0))
    assert insisted.missing_masks == len(dataset.clips)


def test_numbering_is_checked_on_frames_without_labels_too(root: Path, tmp_path: Path) -> None:
    """In training S4 has one true mask a clip, and the prediction of its neighbor is at its place."""
    write_layout("s4", tmp_path / "data", {"train": 1, "test": 1}, seed=3)
    dataset = open_dataset("s4", tmp_path / "data", "train")
    for i in range(5):
        path = tmp_path / "masks" / dataset.clips[0].predictions[0].replace("_1.png", f"_{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (224, 224)).save(path)
    with pytest.raises(InputError, match="numbered from 0"):
        score(dataset, tmp_path / "masks")


def test_padded_frames_are_extra_and_shift_nothing(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """AVSS's script writes ten masks for clips of five frames."""
    dataset = open_dataset("avss", root / "avss")
    expected = in_order(dataset, tmp_path / "own")
    write(dataset, tmp_path / "theirs", lambda c, i: f"{c.id}/{c.id}_{i}.png", colors)
    short = next(clip for clip in dataset.clips if len(clip.frames) == 5)
    for i in range(5, 10):
        Image.new("RGB", (224, 224)).save(tmp_path / "theirs" / short.id / f"{short.id}_{i}.png")
    with caplog.at_level(logging.WARNING):
        assert figures(score(dataset, tmp_path / "theirs")) == expected
    assert f"{short.id}_5.png (5 in total)" in caplog.text


def test_an_unknown_clip_is_extra_in_a_published_layout(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = open_dataset("ms3", root / "ms3")
    _, name, encode, numbering = PUBLISHED["AVSBench and AVSegFormer, MS3"]
    write(dataset, tmp_path, name, encode)
    shutil.move(tmp_path / dataset.clips[0].id, tmp_path / "misspelt")
    with caplog.at_level(logging.WARNING):
        missing = score(dataset, tmp_path, numbering=numbering, allow_missing=True).missing
    assert missing == (dataset.clips[0].id,)
    assert "misspelt (1 in total)" in caplog.text


@pytest.mark.parametrize("layout", ["s4", "avss", "ov"])
def test_masks_of_another_size_need_resize(root: Path, tmp_path: Path, layout: str) -> None:
    dataset = open_dataset(layout, root / layout)
    expected = in_order(dataset, tmp_path / "own")
    encode = hard if dataset.task == "binary" else indices

    def larger(mask: Array) -> Image.Image:
        return encode(np.kron(mask, np.ones((3, 3), dtype=mask.dtype)).astype(mask.dtype))

    write(dataset, tmp_path / "large", lambda clip, i: clip.predictions[i], larger)
    with pytest.raises(InputError, match=r"pixels where .*; write masks of that size, or resize them .* --resize"):
        score(dataset, tmp_path / "large")
    resized = figures(score(dataset, tmp_path / "large", resize=True))
    if layout == "s4":  # the middle of three equal pixels is one of them
        assert resized == expected
    else:
        assert resized[0]["fixed"]["miou"] == pytest.approx(expected[0]["fixed"]["miou"], abs=0.05)


def test_names_without_numbers_have_no_numbering(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", root / "s4")
    clips = [
        BenchmarkClip(**{**vars(clip), "predictions": tuple(f"{clip.id}/{k}.png" for k in "abcde")})
        for clip in dataset.clips
    ]
    odd = Dataset("mine", "binary", dataset.root, "test", clips, dataset.read_truth, dataset.read_prediction)
    assert in_order(odd, tmp_path) == in_order(dataset, tmp_path / "own")
    with pytest.raises(InputError, match="the masks of mine are not named by numbers"):
        score(odd, tmp_path, numbering=0)
