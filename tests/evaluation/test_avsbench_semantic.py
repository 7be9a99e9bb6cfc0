"""AVSBench-semantic: synthetic data, copies that differ, and broken data."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_semantic import read_avss
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.predictions import extra_predictions
from openavs.structures.masks import voc_palette
from openavs.synthetic.datasets import write_layout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("avss") / "AVSBench-semantic"
    write_layout("avss", root, {"train": 2, "test": 4}, seed=3)  # v2, v1s; v2, v1s, v2, v1m
    return root


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(data, tmp_path / "avss"))


def of(dataset: Dataset, subset: str) -> BenchmarkClip:
    return next(clip for clip in dataset.clips if clip.group == subset)


def small(path: Path) -> np.ndarray:
    """The mask of indices as the published loader reads it."""
    return np.asarray(Image.open(path).resize((224, 224), Image.Resampling.NEAREST))


def test_test_split(data: Path) -> None:
    dataset = read_avss(data)
    assert (dataset.task, dataset.classes, len(dataset.clips)) == ("semantic", CLASSES, 4)
    for subset, frames in (("v1s", 5), ("v1m", 5), ("v2", 10)):
        clip = of(dataset, subset)
        assert clip.predictions[-1] == f"{subset}/{clip.id}/labels_semantic/{frames - 1}.png"
        assert clip.frames[0].name == "0.jpg"
        assert all(path.is_file() for path in (*clip.frames, clip.audio))
        truth = dataset.read_truth(clip)
        assert (truth.shape, truth.dtype) == ((frames, 224, 224), np.uint8)
        assert {CLASSES[i] for i in np.unique(truth) if i} <= set(clip.classes)
        for path, labels in zip(clip.truth, truth, strict=True):
            assert path is not None
            assert np.array_equal(small(path), labels)


def test_training_clips_of_v1s_have_one_mask(data: Path) -> None:
    dataset = read_avss(data.parent, "train")
    assert of(dataset, "v1s").annotated == (0,)
    assert dataset.read_truth(of(dataset, "v1s")).shape == (1, 224, 224)
    assert of(dataset, "v2").annotated == tuple(range(10))


def test_colors_replace_missing_indices(copy: Path) -> None:
    expected = [read_avss(copy).read_truth(clip) for clip in read_avss(copy).clips]
    folders = sorted(copy.rglob("labels_semantic"))
    shutil.rmtree(folders[0])  # of one clip, then of all
    for clip, truth in zip(read_avss(copy).clips, expected, strict=True):
        assert np.array_equal(read_avss(copy).read_truth(clip), truth)
    for folder in folders[1:]:
        shutil.rmtree(folder)
    dataset = read_avss(copy)
    assert dataset.clips[0].truth[0] == copy / "v2" / dataset.clips[0].id / "labels_rgb" / "0.png"
    for clip, truth in zip(dataset.clips, expected, strict=True):
        assert np.array_equal(dataset.read_truth(clip), truth)


def test_a_missing_mask_is_named(copy: Path) -> None:
    dataset = read_avss(copy)
    clip = dataset.clips[0]
    for kind in ("labels_rgb", "labels_semantic"):
        (copy / "v2" / clip.id / kind / "3.png").unlink()
    with pytest.raises(InputError, match=r"3\.png is missing, and labels_rgb/ has none either"):
        dataset.read_truth(clip)
    shutil.rmtree(copy / "v2" / clip.id / "labels_rgb")
    shutil.rmtree(copy / "v2" / clip.id / "labels_semantic")
    with pytest.raises(InputError, match=r"holds no masks; labels_semantic/0.png"):
        read_avss(copy)


def test_dirty_metadata(copy: Path) -> None:
    table = copy / "metadata.csv"
    lines = table.read_text().splitlines()
    cells = [line.split(",") for line in lines]
    for row, objects in zip(cells[3:], ("off-the-screen", "background", "h orse", "man_woman"), strict=True):
        row[4] = objects
    table.write_text("\n".join(",".join(row) for row in cells))
    assert [clip.classes for clip in read_avss(copy).clips] == [(), (), ("horse",), ("man", "woman")]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("x,../../x,0,0,dog,test,v2", r"line 8: the uid '\.\./\.\./x' is not the name of a folder"),
        ("x,x,0,0,dog,test,v1", "line 8: there is no subset 'v1' in AVSBench-semantic; did you mean"),
        ("x,x,0,0,dogg,test,v2", "1 of the 5 clips of 'test'"),
        ("x,x,0,0", "line 8: 4 columns where at least 7"),
    ],
)
def test_an_invalid_table_raises(copy: Path, row: str, says: str) -> None:
    with (copy / "metadata.csv").open("a") as file:
        file.write(row + "\n")
    with pytest.raises(InputError, match=says):
        read_avss(copy)


# --------------------------------------------------------------------------------------------------- predictions


@pytest.fixture
def predicted(data: Path, tmp_path: Path) -> Path:
    """The truth as predictions: palettes in labels_semantic/ at 224 x 224, but v1m gray, beside it, at full size."""
    dataset = read_avss(data)
    for clip in dataset.clips:
        for path, name, labels in zip(clip.truth, clip.predictions, dataset.read_truth(clip), strict=True):
            assert path is not None
            if clip.group == "v1m":
                target = tmp_path / name.replace("labels_semantic/", "")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
                continue
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            image = Image.frombytes("P", (224, 224), labels.tobytes())
            image.putpalette(voc_palette().tobytes())
            image.save(tmp_path / name)
    return tmp_path


def test_predictions_in_both_layouts_sizes_and_modes(data: Path, predicted: Path) -> None:
    dataset = read_avss(data)
    for clip in dataset.clips:
        labels = dataset.read_prediction(clip, predicted)
        assert labels is not None
        assert np.array_equal(labels, dataset.read_truth(clip))
    assert extra_predictions(dataset, predicted) == []
    (predicted / "v2" / "other").mkdir()
    (predicted / "v2" / "0.png").touch()
    assert extra_predictions(dataset, predicted) == ["v2/0.png", "v2/other"]


def test_predictions_in_the_colors_of_labels_rgb(data: Path, predicted: Path) -> None:
    dataset = read_avss(data)
    clip = of(dataset, "v2")
    for path, place in zip(clip.truth, clip.predictions, strict=True):
        assert path is not None
        Image.fromarray(voc_palette()[np.asarray(Image.open(path))]).save(predicted / place)  # native size
        assert Image.open(predicted / place).mode == "RGB"
    labels = dataset.read_prediction(clip, predicted)
    assert labels is not None
    assert np.array_equal(labels, dataset.read_truth(clip)) and labels.any()


def test_invalid_predictions_raise(data: Path, predicted: Path) -> None:
    dataset = read_avss(data)
    clip = of(dataset, "v1s")
    path = predicted / clip.predictions[2]
    for image, says in (
        (Image.new("L", (100, 100)), r"2\.png has 100 x 100 pixels where 224 x 224 was expected or .* 320 x 240"),
        (Image.new("RGBA", (224, 224)), "8-bit RGB with alpha PNG; a label map is"),
        (Image.new("RGB", (224, 224), (128, 64, 1)), r"the color \(128, 64, 1\), which is not in .* palette of 71"),
        (Image.new("L", (224, 224), 255), "holds the value 255"),
    ):
        image.save(path)
        with pytest.raises(InputError, match=says):
            dataset.read_prediction(clip, predicted)
    path.unlink()
    with pytest.raises(InputError, match=r"labels_semantic/2\.png is missing"):
        dataset.read_prediction(clip, predicted)
    shutil.rmtree(path.parent)
    assert dataset.read_prediction(clip, predicted) is None
