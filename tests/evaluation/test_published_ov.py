"""AVSBench-OV's `official` figures against a reference of the published evaluation that shares no code with openavs."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.datasets.mask_io import interpolate_nearest
from openavs.evaluation.datasets.tables import BASE, CLASSES, NOVEL
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.scorer import score
from openavs.synthetic.datasets import write_layout

Array = np.ndarray[Any, Any]
SIDE = 224


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Test clips of 320 x 240 pixels, with base and novel classes."""
    path = tmp_path_factory.mktemp("ov") / "data"
    write_layout("ov", path, {"test": 4}, seed=7)
    return path


# --------------------------------------------------------------------------------------------------------- reference


def color_of(index: int) -> list[int]:
    """Bit 3i + c of a class is bit 7 - i of its channel c."""
    return [sum((index >> 3 * i + channel & 1) << 7 - i for i in range(3)) for channel in range(3)]


@cache
def published_truth(path: Path, named: str) -> Array:
    """Resized by Pillow, decoded by its colors, and cleaned of classes that the metadata does not name."""
    colors = np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST))
    labels = np.zeros((SIDE, SIDE), dtype=int)
    for name in named.split("_"):
        if name in CLASSES:
            index = CLASSES.index(name)
            labels[(colors == color_of(index)).all(axis=-1)] = index
    return labels


def published_figures(root: Path, predictions: Path) -> dict[str, float]:
    """One matrix over all frames; the prediction is resized by torch."""
    upsample = torch.nn.Upsample(size=(SIDE, SIDE), mode="nearest")
    matrix = np.zeros((71, 71))
    with (root / "AVSBench-semantic/metadata.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["split"] == "test"]
    for row in rows:
        place = f"{row['label']}/{row['uid']}"
        for path in sorted((root / "AVSBench-semantic" / place / "labels_rgb").glob("*.png")):
            truth = published_truth(path, row["a_obj"])
            indices = np.asarray(Image.open(predictions / place / "labels_semantic" / path.name))
            predicted = upsample(torch.from_numpy(indices.copy()).float()[None, None])[0, 0].int().numpy()
            np.add.at(matrix, (truth.ravel(), predicted.ravel()), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = np.diag(matrix) / (matrix.sum(axis=1) + matrix.sum(axis=0) - np.diag(matrix))
        base, novel = np.nanmean(iou[list(BASE)]), np.nanmean(iou[list(NOVEL)])
        harmonic = 2.0 / (1.0 / base + 1.0 / novel)
    harmonic = 0.0 if np.isnan(harmonic) else harmonic
    return {"miou": np.nanmean(iou), "base": base, "novel": novel, "harmonic": harmonic}


# ------------------------------------------------------------------------------------------------------- predictions


def native_truth(dataset: Dataset, folder: Path, noise: float, side: int | None = None) -> None:
    """Write the truth at its own size, or a square, with a share of the pixels in other classes of the clip's."""
    rng = np.random.default_rng(1)
    assert dataset.read_native is not None
    for clip in dataset.clips:
        for place, labels in zip(clip.predictions, dataset.read_native(clip), strict=True):
            image = Image.fromarray(labels)
            labels = np.asarray(image if side is None else image.resize((side, side), Image.Resampling.NEAREST)).copy()
            wrong = rng.random(labels.shape) < noise
            labels[wrong] = rng.choice([0, 17, 24, 60], size=int(wrong.sum()))
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(folder / place)


@pytest.mark.parametrize(
    ("noise", "side"), [(0.0, None), (0.3, None), (0.3, SIDE)], ids=["truth", "noisy", "noisy 224"]
)
def test_official_equals_the_published_evaluation(root: Path, tmp_path: Path, noise: float, side: int | None) -> None:
    dataset = open_dataset("ov", root)
    native_truth(dataset, tmp_path, noise, side)
    scores = score(dataset, tmp_path)
    expected = published_figures(root, tmp_path)
    assert scores.figures["official"] == pytest.approx(expected, rel=1e-14)
    if side is None:  # `fixed` samples truth and prediction alike, so it differs
        assert scores.figures["fixed"]["miou"] != pytest.approx(expected["miou"], rel=1e-4)
    if not noise:
        assert expected["miou"] < 0.99
        assert scores.figures["fixed"]["miou"] == 1.0


def test_official_equals_the_published_evaluation_for_tiny(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ov", root)
    recipe = load_recipe("tiny")
    done = evaluate(recipe_predictor(recipe, dataset, load_benchmark("ov")), dataset, tmp_path)
    assert done.report is not None
    assert Image.open(tmp_path / "predictions" / dataset.clips[0].predictions[0]).size == (320, 240)
    expected = published_figures(root, tmp_path / "predictions")
    assert done.report["figures"]["official"] == pytest.approx(expected, rel=1e-14)


def test_without_a_novel_class_the_official_harmonic_mean_is_0(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset("ov", root)
    for clip in dataset.clips:
        for place, labels in zip(clip.predictions, dataset.read_truth(clip), strict=True):
            (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(np.isin(labels, NOVEL), 0, labels).astype(np.uint8)).save(tmp_path / place)

    def base_only(clip: Any) -> Array:
        truth = dataset.read_truth(clip)
        return np.where(np.isin(truth, NOVEL), 0, truth)

    scores = score(replace(dataset, read_truth=base_only), tmp_path)
    assert (scores.figures["official"]["novel"], scores.figures["official"]["harmonic"]) == (None, 0.0)
    assert scores.figures["fixed"]["harmonic"] is None


@pytest.mark.parametrize(
    "size", [(240, 320), (360, 640), (720, 1280), (448, 448), (224, 224), (100, 37), (223, 225), (1080, 1919), (1, 2)]
)
def test_sampling_equals_torch_upsample(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    for new in ((SIDE, SIDE), (7, 500)):
        expected = torch.nn.Upsample(size=new, mode="nearest")(torch.from_numpy(pixels)[None, None].float())[0, 0]
        assert np.array_equal(interpolate_nearest(pixels, new), expected.numpy().astype(np.uint8))
