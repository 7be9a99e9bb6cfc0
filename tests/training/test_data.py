"""Training data: labels, transforms, batches and the order of examples."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openavs.corrections.review import accept
from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import Dataset
from openavs.results.serialization import write_result
from openavs.structures.types import ClipResult, Correction, FrameResult
from openavs.training import dataset as data
from openavs.training.base import TransformConfig, resize_to_original
from openavs.training.dataset import (
    StepSampler,
    TrainingDataset,
    TrainingExample,
    batches_to_predict,
    choose_frames,
    collate,
    loader,
    runs_of_frames,
    scale_image,
    scale_mask,
    scaled_size,
)
from openavs.training.labels import GroundTruthLabels, PseudoLabels


@pytest.fixture(scope="module")
def train_set(s4: Path) -> Dataset:
    return open_dataset("s4", s4, "train")


def silence(dataset: Dataset) -> dict[str, Any]:
    return {clip.id: np.zeros((len(clip.frames), 128), dtype=np.float32) for clip in dataset.clips}


def stream(dataset: Dataset, view: TransformConfig | None = None, seed: int = 0) -> TrainingDataset:
    return TrainingDataset(
        dataset.clips,
        GroundTruthLabels(dataset),
        silence(dataset),
        view or TransformConfig((64,)),
        classes=2,
        seed=seed,
    )


def write_gray(path: Path, value: int, size: tuple[int, int] = (224, 224)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, dtype=np.uint8)).save(path)


# -------------------------------------------------------------------------------------------------------------- labels


def test_frames_without_a_mask_are_not_labeled_and_never_background(train_set: Dataset) -> None:
    batch = collate([stream(train_set)[0]])
    assert batch.labeled.tolist() == [[True, False, False, False, False]]
    assert batch.present.all() and batch.masks[0, 0].max() == 1
    assert batch.weight.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_examples_are_cached_up_to_a_size(s4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in (data.CACHE_BYTES, 0):
        monkeypatch.setattr(data, "CACHE_BYTES", room)
        root = shutil.copytree(s4, tmp_path / str(room))
        clips = stream(open_dataset("s4", root, "train"), TransformConfig((64,), flip=True))
        epochs = [[clips[position] for position in range(start, start + 4)] for start in (0, 4)]
        by_side = {example.id: np.sort(example.images, axis=2).sum() for example in epochs[0]}
        assert all(np.sort(e.images, axis=2).sum() == by_side[e.id] for e in epochs[1])
        shutil.rmtree(root)
        if room:
            assert {clips[position].id for position in range(8, 12)} == set(by_side)
        else:
            with pytest.raises(InputError):
                clips[8]


def test_pseudo_labels_of_benchmark_frames_or_of_all_frames(train_set: Dataset, tmp_path: Path) -> None:
    clip = train_set.clips[1]
    write_gray(tmp_path / clip.predictions[0], 200)  # a probability above one half
    write_gray(tmp_path / clip.predictions[3], 100)  # and one below
    labels = PseudoLabels(train_set, tmp_path)
    assert [labels.has(c) for c in train_set.clips] == [False, True, False, False]
    assert labels.frames(clip) == (0,)
    everywhere = PseudoLabels(train_set, tmp_path, "all")
    assert everywhere.frames(clip) == (0, 3)
    masks = everywhere.read(clip, range(5))
    assert masks[0].all() and not masks[3].any() and set(masks) == {0, 3}


def test_evaluation_folder_gives_labels_weights_and_excluded_clips(train_set: Dataset, tmp_path: Path) -> None:
    first, second = train_set.clips[:2]
    for clip in (first, second):
        write_gray(tmp_path / "predictions" / clip.predictions[0], 255)
    (tmp_path / "confidence.json").write_text(json.dumps({first.id: [0.25] * 5}))
    (tmp_path / "left_out.json").write_text(json.dumps([second.id]))
    labels = PseudoLabels(train_set, tmp_path, weighted=True)
    assert (labels.has(first), labels.has(second)) == (True, False)
    assert labels.weight(first, 0) == 0.25
    with pytest.raises(InputError, match=f"no confidence for frame 0 of {second.id}"):
        labels.weight(second, 0)
    for text in ('{"clips": []}', '["cut sho'):
        (tmp_path / "left_out.json").write_text(text)
        with pytest.raises(InputError, match=r"left_out\.json is not a list of clip ids; fix or delete it"):
            PseudoLabels(train_set, tmp_path)
    (tmp_path / "left_out.json").unlink()
    (tmp_path / "confidence.json").write_text(json.dumps({first.id: [1.5]}))
    with pytest.raises(InputError, match="holds a confidence outside of 0 to 1"):
        PseudoLabels(train_set, tmp_path, weighted=True)


def test_label_job_folder_gives_labels(train_set: Dataset, tmp_path: Path) -> None:
    clip = train_set.clips[2]
    write_gray(tmp_path / "labels" / clip.predictions[0], 255)
    (tmp_path / "clips").mkdir()
    labels = PseudoLabels(train_set, tmp_path)
    assert labels.frames(clip) == (0,) and labels.read(clip, [0])[0].all()


def test_clips_of_a_person_weigh_more(train_set: Dataset, tmp_path: Path) -> None:
    first, second, third = train_set.clips[:3]
    for clip in (first, second, third):
        write_gray(tmp_path / "predictions" / clip.predictions[0], 255)
    frame = FrameResult(0, 0.5)
    for clip, records in ((first, (Correction("reject", 0, 1),)), (second, ()), (third, ())):
        write_result(tmp_path, ClipResult(clip.id, (8, 8), (frame,), corrections=records))
    accept(tmp_path, second.id, "Ada")
    labels = PseudoLabels(train_set, tmp_path, person_weight=4.0)
    assert set(labels.person) == {first.id, second.id}
    assert [labels.weight(clip, 0) for clip in (first, second, third)] == [1.0, 1.0, 0.25]
    (tmp_path / "confidence.json").write_text(json.dumps({third.id: [0.5] * 5}))
    assert PseudoLabels(train_set, tmp_path, weighted=True, person_weight=2.0).weight(third, 0) == 0.25


def test_error_for_a_folder_without_labels_names_the_expected_path(train_set: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"holds no label of s4 train; one of them would be {train_set.clips[0].predictions[0]}"
    ):
        PseudoLabels(train_set, tmp_path)
    with pytest.raises(InputError, match="does not exist; check --labels"):
        PseudoLabels(train_set, tmp_path / "nowhere")


def test_error_for_a_class_out_of_range_names_the_clip(avss: Path, tmp_path: Path) -> None:
    dataset = open_dataset("avss", avss, "train")
    clip = dataset.clips[0]
    write_gray(tmp_path / clip.predictions[0], 9)
    labels = PseudoLabels(dataset, tmp_path)
    few = TrainingDataset((clip,), labels, silence(dataset), TransformConfig((64,)), classes=5, seed=0)
    with pytest.raises(InputError, match=f"frame 1 of {clip.id} holds the class 9; this student's classes go"):
        few[0]
    write_gray(tmp_path / clip.predictions[0], 200)
    with pytest.raises(InputError, match="holds the value 200; class indices go from 0 to 70"):
        few[0]


def test_training_masks_keep_their_stored_size(avss: Path) -> None:
    dataset = open_dataset("avss", avss, "train")
    clip = dataset.clips[0]
    native = GroundTruthLabels(dataset).read(clip, range(10))[0]
    assert native.shape == Image.open(clip.frames[0]).size[::-1] != dataset.read_truth(clip)[0].shape


# ------------------------------------------------------------------------------------------------------------- batches


def example(name: str, frames: int, size: tuple[int, int], labeled: tuple[int, ...]) -> TrainingExample:
    images = np.full((frames, *size, 3), 7, dtype=np.uint8)
    masks = {i: np.ones(size, dtype=np.uint8) for i in labeled}
    return TrainingExample(
        name, images, np.ones((frames, 128), np.float32), masks, dict.fromkeys(labeled, 0.5), (90, 60)
    )


def test_clips_of_different_lengths_and_sizes_are_collated() -> None:
    batch = collate([example("a", 5, (48, 40), (0, 4)), example("b", 2, (30, 64), ())], multiple=32)
    assert batch.frames.shape == (2, 5, 3, 64, 64)
    assert batch.lengths == (5, 2)
    assert batch.inner == ((48, 40), (30, 64)) and batch.sizes == ((90, 60), (90, 60))
    assert batch.labeled.tolist() == [[True, False, False, False, True], [False] * 5]
    assert batch.weight[0].tolist() == [0.5, 0.0, 0.0, 0.0, 0.5]
    assert batch.frames[0, :, :, :48, :40].eq(7).all() and batch.frames[0].sum() == 5 * 3 * 48 * 40 * 7
    assert not batch.frames[1, 2:].any() and not batch.audio[1, 2:].any()
    assert batch.masks[0].sum() == 2 * 48 * 40 and not batch.masks[1].any()


def test_error_for_frames_of_different_sizes_names_the_clip(s4: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    clip = dataset.clips[0]
    write_gray(tmp_path / "odd.png", 3, (100, 100))
    odd = replace(clip, frames=(*clip.frames[:4], tmp_path / "odd.png"))
    with pytest.raises(InputError, match=f"the frames of {clip.id} differ in size"):
        stream(replace(dataset, clips=(odd,)))[0]


@pytest.mark.parametrize(
    ("view", "scaled", "cut"),
    [
        (TransformConfig((64,)), (64, 64), (64, 64)),
        (TransformConfig((64,), "crop"), (64, 128), (64, 64)),
        (TransformConfig((64,), "keep"), (64, 128), (64, 128)),
        (TransformConfig((64,), "keep", longest=96), (48, 96), (48, 96)),
    ],
)
def test_images_and_masks_are_scaled_equally(
    view: TransformConfig, scaled: tuple[int, int], cut: tuple[int, int]
) -> None:
    image = np.zeros((100, 200, 3), dtype=np.uint8)
    image[:, 100:] = 255  # the right half is white
    mask = np.zeros((50, 50), dtype=np.uint8)  # stored at another size
    mask[:, 25:] = 1
    assert scaled_size((100, 200), 64, view) == scaled
    small, small_mask = scale_image(image, 64, view), scale_mask(mask, (100, 200), 64, view)
    assert small.shape[:2] == small_mask.shape == cut
    assert ((small[..., 0] > 127) == (small_mask == 1)).mean() > 0.98


def test_image_of_the_target_size_is_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(scale_image(image, 64, TransformConfig((64,))), image)
    maps = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    assert torch.equal(resize_to_original(maps, (64, 64), (64, 64), (64, 64)), maps)


def published_crop(image: Image.Image, side: int, how: Image.Resampling) -> Image.Image:
    """The training crop of the published AVSS loader: short side to `side`, then a center crop."""
    wide, high = image.size
    new = (int(1.0 * wide * side / high), side) if wide > high else (side, int(1.0 * high * side / wide))
    left, top = (round((length - side) / 2.0) for length in new)
    return image.resize(new, how).crop((left, top, left + side, top + side))


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (360, 640), (480, 854), (225, 300), (224, 227), (300, 300)])
def test_training_crop_of_avss_equals_the_published_one(size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[1])
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = random.integers(0, 71, size, dtype=np.uint8)
    view = TransformConfig((224,), "crop")
    expected = published_crop(Image.fromarray(image), 224, Image.Resampling.BILINEAR)
    assert np.array_equal(scale_image(image, 224, view), np.asarray(expected))
    expected = published_crop(Image.fromarray(mask), 224, Image.Resampling.NEAREST)
    assert np.array_equal(scale_mask(mask, size, 224, view), np.asarray(expected))


def test_padding_is_removed_from_coarse_maps() -> None:
    coarse = torch.zeros(1, 1, 16, 16)
    coarse[..., :12, :] = 1.0  # the image fills 48 of 64 rows
    whole = resize_to_original(coarse, (48, 64), (64, 64), (96, 128))
    assert whole.shape == (1, 1, 96, 128)
    assert whole[..., :90, :].eq(1).all() and whole.min() >= 0.5, "the content extends to the image's edge"


def test_sampled_frames_are_ordered_and_include_a_label() -> None:
    random = np.random.default_rng(0)
    drawn = [choose_frames(10, (3,), 4, random) for _ in range(50)]
    assert all(3 in frames and len(set(frames)) == 4 and list(frames) == sorted(frames) for frames in drawn)
    assert {i for frames in drawn for i in frames} == set(range(10))
    assert choose_frames(5, (0,), None, random) == choose_frames(5, (0,), 9, random) == (0, 1, 2, 3, 4)


def test_prediction_covers_every_frame_once() -> None:
    assert [list(run) for run in runs_of_frames(12, 5)] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    assert [list(run) for run in runs_of_frames(7, None)] == [list(range(7))]
    images = [np.full((20, 30, 3), i, dtype=np.uint8) for i in range(7)]
    audio = np.arange(7, dtype=np.float32)[:, None].repeat(128, axis=1)
    batches = list(batches_to_predict("clip", images, audio, TransformConfig((32,), frames=5)))
    assert [batch.frames.shape[1] for batch in batches] == [5, 2]
    assert [float(x) for batch in batches for x in batch.audio[0, :, 0]] == list(range(7))
    assert batches[0].sizes == ((20, 30),)


# --------------------------------------------------------------------------------------------------------------- order


def test_each_epoch_has_every_clip_once_in_a_new_order(train_set: Dataset) -> None:
    clips = stream(train_set, seed=3)
    epochs = [[clips.clip_at(4 * epoch + place).id for place in range(4)] for epoch in range(6)]
    assert all(sorted(epoch) == sorted(clip.id for clip in train_set.clips) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[0] != [stream(train_set, seed=4).clip_at(place).id for place in range(4)]


def test_example_depends_only_on_its_position(train_set: Dataset) -> None:
    view = TransformConfig((32, 48, 64), "keep", flip=True, frames=3)
    one, other = stream(train_set, view=view), stream(train_set, view=view)
    seen = [one[position] for position in range(12)]
    assert all(np.array_equal(other[p].images, seen[p].images) for p in reversed(range(12)))
    assert len({example.images.shape for example in seen}) == 3


def test_mirrored_example_has_a_mirrored_mask(train_set: Dataset) -> None:
    plain = stream(train_set)
    mirrored = stream(train_set, view=TransformConfig((64,), flip=True))
    turned = 0
    for position in range(8):
        a, b = plain[position], mirrored[position]
        if not np.array_equal(a.images, b.images):
            turned += 1
            assert np.array_equal(a.images[:, :, ::-1], b.images)
            assert np.array_equal(a.masks[0][:, ::-1], b.masks[0])
    assert 0 < turned < 8


def test_step_has_the_same_clips_for_any_devices_and_accumulation() -> None:
    whole = [sorted(batch) for batch in StepSampler(8, start=2, steps=4)]
    assert whole == [list(range(16, 24)), list(range(24, 32))]
    for devices, parts in ((2, 1), (2, 2), (4, 2), (1, 8)):
        spread = [list(StepSampler(8, 2, 4, parts, rank, devices)) for rank in range(devices)]
        steps = [[p for own in spread for batch in own[s * parts : (s + 1) * parts] for p in batch] for s in (0, 1)]
        assert [sorted(step) for step in steps] == whole
    with pytest.raises(InputError, match="a batch of 8 clips cannot be split evenly over 3 devices and 1 parts"):
        StepSampler(8, 0, 1, devices=3)


def test_worker_processes_load_the_same_batches(train_set: Dataset) -> None:
    positions = StepSampler(2, 0, 3)
    here, there = (list(loader(stream(train_set), positions, workers)) for workers in (0, 2))
    assert [batch.ids for batch in here] == [batch.ids for batch in there]
    assert all(a.frames.equal(b.frames) and a.masks.equal(b.masks) for a, b in zip(here, there, strict=True))
