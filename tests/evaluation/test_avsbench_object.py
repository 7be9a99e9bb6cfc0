"""S4 and MS3: synthetic data, copies that differ, and broken data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_object import read_ms3, read_prediction, read_s4
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.datasets.tables import S4_CATEGORIES
from openavs.evaluation.predictions import extra_predictions
from openavs.synthetic.datasets import write_layout


@pytest.fixture(scope="module")
def s4_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("s4") / "Single-source"
    write_layout("s4", root, {"train": 1, "test": 2}, seed=3)
    return root


@pytest.fixture(scope="module")
def ms3_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ms3") / "Multi-sources"
    write_layout("ms3", root, {"val": 1, "test": 1}, seed=3)
    return root


@pytest.fixture
def s4(s4_data: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(s4_data, tmp_path / "s4"))


@pytest.fixture
def ms3(ms3_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ms3_data, tmp_path / "ms3"))


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def predict(dataset: Dataset, folder: Path, values: np.ndarray | None = None) -> None:
    """Writes the ground truth as a prediction, or one map for all frames."""
    for clip in dataset.clips:
        for i, mask in zip(clip.annotated, dataset.read_truth(clip), strict=True):
            path = folder / clip.predictions[i]
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255 if values is None else values).save(path)


def test_s4_test_split(s4_data: Path) -> None:
    dataset = read_s4(s4_data)
    assert (dataset.benchmark, dataset.task, dataset.split, len(dataset.clips)) == ("s4", "binary", "test", 2)
    for clip in dataset.clips:
        assert clip.group in S4_CATEGORIES
        assert clip.classes == (S4_CATEGORIES[clip.group],)
        assert clip.predictions[4] == f"test/{clip.group}/{clip.id}/{clip.id}_5.png"
        assert all(path.is_file() for path in (*clip.frames, clip.audio, *filter(None, clip.truth)))
        truth = dataset.read_truth(clip)
        assert (truth.shape, truth.dtype) == ((5, 224, 224), np.bool_)
        for path, mask in zip(clip.truth, truth, strict=True):
            assert path is not None
            assert np.array_equal(np.asarray(Image.open(path)) > 0, mask)


def test_s4_trains_on_one_mask_per_clip(s4_data: Path) -> None:
    (clip,) = read_s4(s4_data, "train").clips
    assert clip.annotated == (0,)
    assert len(clip.frames) == len(clip.predictions) == 5


def test_raw_videos_belong_to_their_clips(s4: Path, ms3: Path) -> None:
    for dataset, place in ((read_s4(s4), "s4_data/raw_videos/test/{group}"), (read_ms3(ms3), "ms3_data/raw_videos")):
        clip = dataset.clips[0]
        assert clip.video is None
        video = dataset.root / place.format(group=clip.group) / f"{clip.id}.mp4"
        video.parent.mkdir(parents=True)
        video.touch()
        assert dataset.clips[0].video == video


@pytest.mark.parametrize("above", ["", ".."])
def test_the_parent_folder_is_accepted(s4_data: Path, above: str) -> None:
    assert len(read_s4(s4_data / above).clips) == 2


def test_copies_with_jpg_frames_another_header_and_masks_of_ones(s4: Path) -> None:
    expected = [read_s4(s4).read_truth(clip) for clip in read_s4(s4).clips]
    for path in (s4 / "s4_data" / "visual_frames").rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    for path in (s4 / "s4_data" / "gt_masks").rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8)).save(path)
    rewrite(s4 / "s4_meta_data.csv", lambda text: text.replace("name,start", "vid,s_sec").replace("\n", "\r\n"))
    dataset = read_s4(s4)
    assert all(path.is_file() for clip in dataset.clips for path in clip.frames)
    for clip, truth in zip(dataset.clips, expected, strict=True):
        assert np.array_equal(dataset.read_truth(clip), truth)


def test_scoring_needs_masks_only(s4: Path) -> None:
    shutil.rmtree(s4 / "s4_data" / "visual_frames")
    shutil.rmtree(s4 / "s4_data" / "audio_wav")
    dataset = read_s4(s4)
    assert dataset.read_truth(dataset.clips[0]).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text + text.splitlines()[-1] + "\n", "lists the clip .* twice"),
        (lambda text: text + "../../x,0,cat_meowing,test\n", "line 5: the name '../../x' is not the name of a folder"),
        (lambda text: text + "x,0,/etc,test\n", "line 5: the category '/etc' is not"),
        (lambda text: text + "x\0y,0,dog_barking,test\n", "is not the name of a folder"),
        (lambda text: text.replace("test", "val"), "no clip of the split 'test'; it holds 'train'.*'val'"),
        (lambda text: text + "gone,0,dog_barking,test\n", "1 of the 3 clips of 'test' .*first: .*dog_barking/gone"),
    ],
)
def test_an_invalid_table_raises(s4: Path, change: Callable[[str], str], says: str) -> None:
    rewrite(s4 / "s4_meta_data.csv", change)
    with pytest.raises(InputError, match=says):
        read_s4(s4)


def test_masks_of_two_sizes_in_a_clip_raise(s4: Path) -> None:
    dataset = read_s4(s4)
    path = dataset.clips[0].truth[2]
    assert path is not None
    Image.new("L", (100, 50)).save(path)
    with pytest.raises(InputError, match=r"_3\.png has 100 x 50 pixels where the first mask of the clip has 224 x 224"):
        dataset.read_truth(dataset.clips[0])


def test_ms3(ms3_data: Path) -> None:
    dataset = read_ms3(ms3_data.parent, "val")
    (clip,) = dataset.clips
    assert clip.predictions[0] == f"val/{clip.id}/{clip.id}_1.png"
    assert clip.frames[0].name == f"{clip.id}.mp4_1.png"
    assert all(path.is_file() for path in (*clip.frames, clip.audio))
    assert dataset.read_truth(clip).shape == (5, 224, 224)


def test_ms3_frames_without_mp4_in_their_names(ms3: Path) -> None:
    for path in (ms3 / "ms3_data" / "visual_frames").rglob("*.png"):
        path.rename(path.with_name(path.name.replace(".mp4", "")))
    rewrite(ms3 / "ms3_meta_data.csv", lambda text: text.replace("video_id", "whatever"))
    assert all(path.is_file() for clip in read_ms3(ms3).clips for path in clip.frames)


def test_ms3_frames_may_be_in_split_folders_or_missing(ms3: Path) -> None:
    frames = ms3 / "ms3_data" / "visual_frames"
    for clip in read_ms3(ms3).clips:
        (frames / "test").mkdir()
        (frames / clip.id).rename(frames / "test" / clip.id)
    assert all(path.is_file() for clip in read_ms3(ms3).clips for path in clip.frames)
    shutil.rmtree(frames)
    dataset = read_ms3(ms3)
    assert dataset.read_truth(dataset.clips[0]).any(), "scoring needs masks alone"


# --------------------------------------------------------------------------------------------------- predictions


def test_the_truth_as_a_prediction(s4_data: Path, tmp_path: Path) -> None:
    dataset = read_s4(s4_data)
    predict(dataset, tmp_path)
    for clip in dataset.clips:
        predicted = dataset.read_prediction(clip, tmp_path)
        assert predicted is not None
        assert predicted.dtype == np.uint8
        assert np.array_equal(predicted, dataset.read_truth(clip) * np.uint8(255))


def test_training_predictions_are_read_for_annotated_frames(s4_data: Path, tmp_path: Path) -> None:
    dataset = read_s4(s4_data, "train")
    values = np.arange(224, dtype=np.uint8)[None].repeat(224, axis=0)
    predict(dataset, tmp_path, values)
    predicted = dataset.read_prediction(dataset.clips[0], tmp_path)
    assert predicted is not None
    assert np.array_equal(predicted, values[None])


def test_a_clip_without_predictions_and_one_with_half_of_them(s4_data: Path, tmp_path: Path) -> None:
    dataset = read_s4(s4_data)
    assert dataset.read_prediction(dataset.clips[0], tmp_path) is None
    predict(dataset, tmp_path)
    (tmp_path / dataset.clips[0].predictions[3]).unlink()
    with pytest.raises(InputError, match=r"the prediction .*_4\.png is missing"):
        dataset.read_prediction(dataset.clips[0], tmp_path)
    with pytest.raises(InputError, match="not a folder of predictions"):
        dataset.read_prediction(dataset.clips[0], tmp_path / "nowhere")


def test_a_prediction_of_another_size_raises(s4_data: Path, tmp_path: Path) -> None:
    dataset = read_s4(s4_data)
    predict(dataset, tmp_path, np.zeros((384, 384), dtype=np.uint8))
    with pytest.raises(InputError, match=r"_1\.png has 384 x 384 pixels where its ground truth has 224 x 224"):
        read_prediction(dataset.clips[0], tmp_path)


def test_extra_predictions_are_listed(s4_data: Path, tmp_path: Path) -> None:
    dataset = read_s4(s4_data)
    predict(dataset, tmp_path)
    assert extra_predictions(dataset, tmp_path) == []
    (tmp_path / "test" / "dog_barking" / "misspelt").mkdir(parents=True)
    (tmp_path / "test" / "stray.png").touch()
    (tmp_path / "report.json").touch()
    assert extra_predictions(dataset, tmp_path) == ["test/dog_barking/misspelt", "test/stray.png"]
    assert extra_predictions(dataset, tmp_path / "nowhere") == []
