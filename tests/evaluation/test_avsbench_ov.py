"""AVSBench-OV: truth filtered by metadata, truth from annotations, missing and broken data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_ov import read_ov
from openavs.evaluation.datasets.avsbench_semantic import read_avss
from openavs.evaluation.datasets.tables import BASE, CLASSES
from openavs.labeling.open import read_benchmark
from openavs.structures.masks import mask_to_rle, voc_palette
from openavs.structures.types import ClipResult, FrameResult, Segment
from openavs.synthetic.datasets import SEMANTIC_SIZE, write_layout
from tests.benchmark_clips import write_predictions

JSON = "AVSBench-openvoc/avsbench_ov_{}.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ov")
    write_layout("ov", root, {"train": 2, "val": 1, "test": 2}, seed=3)  # v2, v1s; v2; v2, v1s
    return root


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(data, tmp_path / "ov"))


def test_test_split(data: Path) -> None:
    dataset = read_ov(data)
    assert (dataset.task, dataset.classes) == ("open-vocabulary", CLASSES)
    assert [clip.group for clip in dataset.clips] == ["v2", "v1s"]
    for clip in dataset.clips:
        assert all(path.is_file() for path in (*clip.frames, clip.audio, *filter(None, clip.truth)))
        assert clip.predictions[1] == f"{clip.group}/{clip.id}/labels_semantic/1.png"
        truth = dataset.read_truth(clip)
        assert (truth.shape, truth.dtype) == ((len(clip.frames), 224, 224), np.uint8)
        same = read_avss(data / "AVSBench-semantic")
        assert np.array_equal(truth, same.read_truth(next(other for other in same.clips if other.id == clip.id)))


def test_without_annotations_clips_are_those_in_the_image_folder(copy: Path) -> None:
    (copy / JSON.format("test_base_novel")).unlink()
    (copy / "AVSBench-openvoc" / "test" / "JPEGImages" / ".DS_Store").touch()
    assert {clip.id for clip in read_ov(copy).clips} == {clip.id for clip in read_ov(copy, "test").clips}
    assert len(read_ov(copy).clips) == 2
    with pytest.raises(InputError, match=r"holds neither avsbench_ov_nosuch.*json nor clips in nosuch/JPEGImages"):
        read_ov(copy, "nosuch")


@pytest.mark.parametrize("part", ["AVSBench-openvoc", "AVSBench-semantic"])
def test_root_may_be_one_of_the_two_folders(data: Path, part: str) -> None:
    assert [clip.id for clip in read_ov(data / part).clips] == [clip.id for clip in read_ov(data).clips]


def test_classes_outside_the_metadata_become_background(copy: Path) -> None:
    before = read_ov(copy)
    clip = before.clips[1]
    path = clip.truth[0]
    assert path is not None
    colors = np.asarray(Image.open(path)).copy()
    colors[:50, :50] = voc_palette()[CLASSES.index("tuba")]
    Image.fromarray(colors).save(path)
    truth = read_ov(copy).read_truth(clip)
    assert CLASSES.index("tuba") not in truth
    assert {CLASSES[i] for i in np.unique(truth) if i} <= set(clip.classes)


def test_training_masks_come_from_the_annotations(data: Path) -> None:
    dataset = read_ov(data, "train")
    long, short = dataset.clips
    assert (long.annotated, short.annotated) == (tuple(range(10)), (0,))
    semantic = read_avss(data / "AVSBench-semantic", "train")
    for clip, same in zip((long, short), semantic.clips, strict=True):
        truth = dataset.read_truth(clip)
        assert set(np.unique(truth)) <= {0, *BASE}
        assert np.array_equal(truth, semantic.read_truth(same))  # the world's training clips are of base kinds alone


def test_annotations_replace_missing_masks(copy: Path) -> None:
    expected = read_ov(copy, "val").read_truth(read_ov(copy, "val").clips[0])
    for folder in copy.rglob("labels_*"):
        shutil.rmtree(folder)
    dataset = read_ov(copy, "val")
    assert np.array_equal(dataset.read_truth(dataset.clips[0]), expected)
    (copy / JSON.format("test_base_novel")).unlink()
    with pytest.raises(InputError, match=r"has no masks: neither in .*AVSBench-semantic/v"):
        read_ov(copy)


@pytest.mark.parametrize("split", ["test", "train"])  # truth from masks, truth from annotations
def test_predictions_in_the_frame_size_or_small(data: Path, tmp_path: Path, split: str) -> None:
    dataset = read_ov(data, split)
    for clip in dataset.clips:
        for size in ((320, 240), (224, 224)):
            for i in clip.annotated:
                path = tmp_path / clip.predictions[i]
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", size, 17).save(path)
            predicted = dataset.read_prediction(clip, tmp_path)
            assert predicted is not None
            assert np.array_equal(predicted, np.full_like(dataset.read_truth(clip), 17))
        Image.new("L", (100, 100), 17).save(tmp_path / clip.predictions[0])
        with pytest.raises(InputError, match=r"100 x 100 pixels where 224 x 224 was expected or .* 320 x 240"):
            dataset.read_prediction(clip, tmp_path)


def test_a_clip_without_predictions_and_truth_of_its_own_size(data: Path, tmp_path: Path) -> None:
    dataset = read_ov(data, "train")
    clip = dataset.clips[0]
    assert dataset.read_prediction(clip, tmp_path) is None
    assert dataset.read_native is not None
    native, truth = dataset.read_native(clip), dataset.read_truth(clip)
    assert (native.shape[1:], truth.shape[1:]) == (SEMANTIC_SIZE, (224, 224))
    assert set(np.unique(native)) >= set(np.unique(truth)) > {0}


def test_predictions_are_written_if_the_truth_is_an_annotation_file(data: Path, tmp_path: Path) -> None:
    """Pseudo-labels of the training split: no PNG says their size, so it is the frames'."""
    dataset = read_ov(data, "train")
    clip = dataset.clips[0]
    segment = Segment(mask_to_rle(np.ones(SEMANTIC_SIZE, dtype=bool)), (0, 0, 1, 1), "dog", 0.9, label="dog")
    frames = tuple(FrameResult(i, i + 0.5, segments=(segment,)) for i in range(len(clip.frames)))
    write_predictions(dataset, CLASSES, clip, tmp_path, ClipResult(clip.id, SEMANTIC_SIZE, frames))
    predicted = dataset.read_prediction(clip, tmp_path / "predictions")
    assert predicted is not None and (predicted == CLASSES.index("dog")).all()
    assert all(item.like is None for item in read_benchmark("ov", data, "train").samples)


def test_inconsistent_folders_raise(copy: Path) -> None:
    (copy / "AVSBench-openvoc" / "test" / "JPEGImages" / "unlisted").mkdir()
    (copy / JSON.format("test_base_novel")).unlink()
    with pytest.raises(InputError, match=r"metadata\.csv does not list 1 clip of 'test', such as 'unlisted'"):
        read_ov(copy)
    shutil.copy(copy / JSON.format("val_base_novel"), copy / JSON.format("val_old"))
    with pytest.raises(InputError, match="several files for the split 'val'"):
        read_ov(copy, "val")
    with pytest.raises(InputError, match="does not hold AVSBench-openvoc/ and AVSBench-semantic/"):
        read_ov(copy / "AVSBench-openvoc" / "test")


def test_annotations_of_another_length_raise(copy: Path) -> None:
    path = copy / JSON.format("train_base")
    data = json.loads(path.read_text())
    data["videos"][0]["file_names"].pop()
    for annotation in data["annotations"]:
        if annotation["video_id"] == data["videos"][0]["id"]:
            annotation["segmentations"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match="9 frames where v2 has 10"):
        read_ov(copy, "train")
