"""Training examples: what is labeled, how clips are cut and batched, and in which order they come."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import Dataset
from openavs.training.base import TransformConfig, resize_to_original
from openavs.training.data import dataset as data
from openavs.training.data.dataset import (
    StepSampler,
    TrainingDataset,
    TrainingExample,
    batches_to_predict,
    collate,
    loader,
)
from openavs.training.data.labels import GroundTruthLabels, PseudoLabels
from openavs.training.data.transforms import choose_frames, runs_of_frames, scale_mask, scale_picture, scaled_size


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


def write_grey(path: Path, value: int, size: tuple[int, int] = (224, 224)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(np.full(size, value, dtype=np.uint8)).save(path)


# -------------------------------------------------------------------------------------------------------------- labels


def test_frames_without_a_mask_are_not_labeled_and_never_background(train_set: Dataset) -> None:
    batch = collate([stream(train_set)[0]])
    assert batch.labeled.tolist() == [[True, False, False, False, False]]
    assert batch.present.all() and batch.masks[0, 0].max() == 1
    assert batch.weight.tolist() == [[1.0, 0.0, 0.0, 0.0, 0.0]]


def test_examples_are_read_once_as_long_as_there_is_room(
    s4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (data.KEPT, 0):
        monkeypatch.setattr(data, "KEPT", room)
        root = shutil.copytree(s4, tmp_path / str(room))
        clips = stream(open_dataset("s4", root, "train"), TransformConfig((64,), flip=True))
        epochs = [[clips[position] for position in range(start, start + 4)] for start in (0, 4)]
        by_side = {example.id: np.sort(example.pictures, axis=2).sum() for example in epochs[0]}
        assert all(np.sort(e.pictures, axis=2).sum() == by_side[e.id] for e in epochs[1])
        shutil.rmtree(root)
        if room:
            assert {clips[position].id for position in range(8, 12)} == set(by_side)
        else:
            with pytest.raises(InputError):
                clips[8]


def test_pseudo_labels_stand_where_the_benchmark_has_masks_or_wherever_there_is_one(
    train_set: Dataset, tmp_path: Path
) -> None:
    clip = train_set.clips[1]
    write_grey(tmp_path / clip.predictions[0], 200)  # a probability above one half
    write_grey(tmp_path / clip.predictions[3], 100)  # and one below
    labels = PseudoLabels(train_set, tmp_path)
    assert [labels.has(c) for c in train_set.clips] == [False, True, False, False]
    assert labels.frames(clip) == (0,)
    everywhere = PseudoLabels(train_set, tmp_path, "all")
    assert everywhere.frames(clip) == (0, 3)
    masks = everywhere.read(clip, range(5))
    assert masks[0].all() and not masks[3].any() and set(masks) == {0, 3}


def test_an_evaluation_is_a_folder_of_labels_with_weights_and_clips_to_pass_over(
    train_set: Dataset, tmp_path: Path
) -> None:
    first, second = train_set.clips[:2]
    for clip in (first, second):
        write_grey(tmp_path / "predictions" / clip.predictions[0], 255)
    (tmp_path / "confidence.json").write_text(json.dumps({first.id: [0.25] * 5}))
    (tmp_path / "left_out.json").write_text(json.dumps([second.id]))
    labels = PseudoLabels(train_set, tmp_path, weighted=True)
    assert (labels.has(first), labels.has(second)) == (True, False)
    assert labels.weight(first, 0) == 0.25
    with pytest.raises(InputError, match=f"no confidence for frame 0 of {second.id}"):
        labels.weight(second, 0)
    for text in ('{"clips": []}', '["cut sho'):
        (tmp_path / "left_out.json").write_text(text)
        with pytest.raises(InputError, match=r"left_out\.json is no list of clip ids; mend it or delete it"):
            PseudoLabels(train_set, tmp_path)
    (tmp_path / "left_out.json").unlink()
    (tmp_path / "confidence.json").write_text(json.dumps({first.id: [1.5]}))
    with pytest.raises(InputError, match="holds a confidence outside of 0 to 1"):
        PseudoLabels(train_set, tmp_path, weighted=True)


def test_a_label_jobs_folder_is_a_folder_of_labels(train_set: Dataset, tmp_path: Path) -> None:
    clip = train_set.clips[2]
    write_grey(tmp_path / "labels" / clip.predictions[0], 255)
    (tmp_path / "clips").mkdir()
    labels = PseudoLabels(train_set, tmp_path)
    assert labels.frames(clip) == (0,) and labels.read(clip, [0])[0].all()


def test_a_folder_without_labels_says_where_one_would_be(train_set: Dataset, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=f"holds no label of s4 train; one of them would be {train_set.clips[0].predictions[0]}"
    ):
        PseudoLabels(train_set, tmp_path)
    with pytest.raises(InputError, match="does not exist; check --labels"):
        PseudoLabels(train_set, tmp_path / "nowhere")


def test_a_class_out_of_range_is_named_with_its_clip(avss: Path, tmp_path: Path) -> None:
    dataset = open_dataset("avss", avss, "train")
    clip = dataset.clips[0]
    write_grey(tmp_path / clip.predictions[0], 9)
    labels = PseudoLabels(dataset, tmp_path)
    few = TrainingDataset((clip,), labels, silence(dataset), TransformConfig((64,)), classes=5, seed=0)
    with pytest.raises(InputError, match=f"frame 1 of {clip.id} holds the class 9; this student's classes go"):
        few[0]
    write_grey(tmp_path / clip.predictions[0], 200)
    with pytest.raises(InputError, match="holds the value 200; class indices go from 0 to 70"):
        few[0]


def test_a_mask_keeps_the_size_it_is_stored_in_for_training(avss: Path) -> None:
    dataset = open_dataset("avss", avss, "train")
    clip = dataset.clips[0]
    native = GroundTruthLabels(dataset).read(clip, range(10))[0]
    assert native.shape == Pillow.open(clip.frames[0]).size[::-1] != dataset.read_truth(clip)[0].shape


# ------------------------------------------------------------------------------------------------------------- batches


def example(name: str, frames: int, size: tuple[int, int], labeled: tuple[int, ...]) -> TrainingExample:
    pictures = np.full((frames, *size, 3), 7, dtype=np.uint8)
    masks = {i: np.ones(size, dtype=np.uint8) for i in labeled}
    return TrainingExample(
        name, pictures, np.ones((frames, 128), np.float32), masks, dict.fromkeys(labeled, 0.5), (90, 60)
    )


def test_clips_of_different_lengths_and_sizes_make_one_batch() -> None:
    batch = collate([example("a", 5, (48, 40), (0, 4)), example("b", 2, (30, 64), ())], multiple=32)
    assert batch.frames.shape == (2, 5, 3, 64, 64)
    assert batch.lengths == (5, 2)
    assert batch.inner == ((48, 40), (30, 64)) and batch.sizes == ((90, 60), (90, 60))
    assert batch.labeled.tolist() == [[True, False, False, False, True], [False] * 5]
    assert batch.weight[0].tolist() == [0.5, 0.0, 0.0, 0.0, 0.5]
    assert batch.frames[0, :, :, :48, :40].eq(7).all() and batch.frames[0].sum() == 5 * 3 * 48 * 40 * 7
    assert not batch.frames[1, 2:].any() and not batch.audio[1, 2:].any()
    assert batch.masks[0].sum() == 2 * 48 * 40 and not batch.masks[1].any()


def test_frames_of_different_sizes_in_one_clip_are_named(s4: Path, tmp_path: Path) -> None:
    dataset = open_dataset("s4", s4, "train")
    clip = dataset.clips[0]
    write_grey(tmp_path / "odd.png", 3, (100, 100))
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
def test_pictures_and_masks_are_scaled_alike(
    view: TransformConfig, scaled: tuple[int, int], cut: tuple[int, int]
) -> None:
    picture = np.zeros((100, 200, 3), dtype=np.uint8)
    picture[:, 100:] = 255  # the right half is marked
    mask = np.zeros((50, 50), dtype=np.uint8)  # stored at another size
    mask[:, 25:] = 1
    assert scaled_size((100, 200), 64, view) == scaled
    small, small_mask = scale_picture(picture, 64, view), scale_mask(mask, (100, 200), 64, view)
    assert small.shape[:2] == small_mask.shape == cut
    assert ((small[..., 0] > 127) == (small_mask == 1)).mean() > 0.98


def test_a_picture_of_the_right_size_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(scale_picture(picture, 64, TransformConfig((64,))), picture)
    maps = torch.from_numpy(picture).permute(2, 0, 1)[None].float()
    assert torch.equal(resize_to_original(maps, (64, 64), (64, 64), (64, 64)), maps)


def published_crop(image: Pillow.Image, side: int, how: Pillow.Resampling) -> Pillow.Image:
    """AVSS's training crop, as its loader describes it: the short side to `side`, then the middle of the other."""
    wide, high = image.size
    new = (int(1.0 * wide * side / high), side) if wide > high else (side, int(1.0 * high * side / wide))
    left, top = (round((length - side) / 2.0) for length in new)
    return image.resize(new, how).crop((left, top, left + side, top + side))


@pytest.mark.parametrize("size", [(240, 320), (320, 240), (360, 640), (480, 854), (225, 300), (224, 227), (300, 300)])
def test_the_training_crop_of_avss_is_the_published_one(size: tuple[int, int]) -> None:
    random = np.random.default_rng(size[1])
    picture = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = random.integers(0, 71, size, dtype=np.uint8)
    view = TransformConfig((224,), "crop")
    expected = published_crop(Pillow.fromarray(picture), 224, Pillow.Resampling.BILINEAR)
    assert np.array_equal(scale_picture(picture, 224, view), np.asarray(expected))
    expected = published_crop(Pillow.fromarray(mask), 224, Pillow.Resampling.NEAREST)
    assert np.array_equal(scale_mask(mask, size, 224, view), np.asarray(expected))


def test_the_padding_is_cut_off_coarse_maps_too() -> None:
    coarse = torch.zeros(1, 1, 16, 16)
    coarse[..., :12, :] = 1.0  # the picture fills 48 of 64 rows
    whole = resize_to_original(coarse, (48, 64), (64, 64), (96, 128))
    assert whole.shape == (1, 1, 96, 128)
    assert whole[..., :90, :].eq(1).all() and whole.min() >= 0.5, "what is seen goes down to the picture's edge"


def test_frames_are_drawn_with_a_labeled_one_among_them_and_in_order() -> None:
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


def test_every_epoch_holds_every_clip_once_in_an_order_of_its_own(train_set: Dataset) -> None:
    clips = stream(train_set, seed=3)
    epochs = [[clips.clip_at(4 * epoch + place).id for place in range(4)] for epoch in range(6)]
    assert all(sorted(epoch) == sorted(clip.id for clip in train_set.clips) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epochs[0] != [stream(train_set, seed=4).clip_at(place).id for place in range(4)]


def test_an_example_depends_on_its_position_alone(train_set: Dataset) -> None:
    view = TransformConfig((32, 48, 64), "keep", flip=True, frames=3)
    one, other = stream(train_set, view=view), stream(train_set, view=view)
    seen = [one[position] for position in range(12)]
    assert all(np.array_equal(other[p].pictures, seen[p].pictures) for p in reversed(range(12)))
    assert len({example.pictures.shape for example in seen}) == 3


def test_a_mirrored_example_has_a_mirrored_mask(train_set: Dataset) -> None:
    plain = stream(train_set)
    mirrored = stream(train_set, view=TransformConfig((64,), flip=True))
    turned = 0
    for position in range(8):
        a, b = plain[position], mirrored[position]
        if not np.array_equal(a.pictures, b.pictures):
            turned += 1
            assert np.array_equal(a.pictures[:, :, ::-1], b.pictures)
            assert np.array_equal(a.masks[0][:, ::-1], b.masks[0])
    assert 0 < turned < 8


def test_a_step_has_the_same_clips_on_any_number_of_devices_and_parts() -> None:
    whole = [sorted(batch) for batch in StepSampler(8, start=2, steps=4)]
    assert whole == [list(range(16, 24)), list(range(24, 32))]
    for devices, parts in ((2, 1), (2, 2), (4, 2), (1, 8)):
        spread = [list(StepSampler(8, 2, 4, parts, rank, devices)) for rank in range(devices)]
        steps = [[p for own in spread for batch in own[s * parts : (s + 1) * parts] for p in batch] for s in (0, 1)]
        assert [sorted(step) for step in steps] == whole
    with pytest.raises(InputError, match="a batch of 8 clips cannot be split evenly over 3 devices and 1 parts"):
        StepSampler(8, 0, 1, devices=3)


def test_loaders_in_processes_of_their_own_give_the_same_batches(train_set: Dataset) -> None:
    positions = StepSampler(2, 0, 3)
    here, there = (list(loader(stream(train_set), positions, workers)) for workers in (0, 2))
    assert [batch.ids for batch in here] == [batch.ids for batch in there]
    assert all(a.frames.equal(b.frames) and a.masks.equal(b.masks) for a, b in zip(here, there, strict=True))
