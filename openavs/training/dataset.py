"""Training examples and batches.

The order of training is a function of the seed alone: position p of the endless stream of clips is in epoch p // n, at
place p % n of that epoch's permutation, and its random choices (size, frames, mirroring) come from its own generator. A
resumed run therefore sees the same examples, on any number of devices and loaders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset as TorchDataset

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.media.images import read_image
from openavs.media.log_mel import Floats
from openavs.structures.types import ImageArray
from openavs.training.base import Size, StudentBatch, TransformConfig
from openavs.training.labels import ClipLabels

CACHE_BYTES = 512 * 2**20
"""Bytes of scaled examples that a loader process caches."""


class LabelSource(Protocol):
    """Source of masks; see `labels.py`."""

    def has(self, clip: BenchmarkClip) -> bool:
        """Return True if a clip has a label."""
        ...

    def frames(self, clip: BenchmarkClip) -> tuple[int, ...]:
        """Return the indices of the labeled frames."""
        ...

    def read(self, clip: BenchmarkClip, frames: Sequence[int]) -> ClipLabels:
        """Read the masks of labeled frames."""
        ...

    def weight(self, clip: BenchmarkClip, frame: int) -> float:
        """Return the weight of a labeled frame in [0, 1]."""
        ...


@dataclass(frozen=True, eq=False)
class TrainingExample:
    """One training example: images uint8 `[T, h, w, 3]`, features `[T, 128]`, masks by position, weights."""

    id: str
    images: npt.NDArray[np.uint8]
    audio: Floats
    masks: Mapping[int, npt.NDArray[np.uint8]]
    weights: Mapping[int, float]
    size: Size

    @property
    def nbytes(self) -> int:
        """Bytes of its images and masks."""
        return self.images.nbytes + sum(mask.nbytes for mask in self.masks.values())

    def mirrored(self) -> TrainingExample:
        """Return the example mirrored horizontally."""
        masks = {place: mask[:, ::-1] for place, mask in self.masks.items()}
        return replace(self, images=self.images[:, :, ::-1], masks=masks)


class TrainingDataset(TorchDataset[TrainingExample]):
    """The stream of training examples, by position.

    Scaled examples are cached in memory, up to `CACHE_BYTES` per loader process, because decoding takes a large part
    of a small student's step.
    """

    def __init__(
        self,
        clips: Sequence[BenchmarkClip],
        labels: LabelSource,
        features: Mapping[str, Floats],
        view: TransformConfig,
        classes: int,
        seed: int,
    ) -> None:
        self.clips, self.labels, self.features = tuple(clips), labels, features
        self.view, self.classes, self.seed = view, classes, seed
        self._kept: dict[tuple[str, tuple[int, ...], int], TrainingExample] = {}
        self._held = 0

    def clip_at(self, position: int) -> BenchmarkClip:
        """Return the clip of a position."""
        epoch, place = divmod(position, len(self.clips))
        return self.clips[shuffled(len(self.clips), self.seed, epoch)[place]]

    def __getitem__(self, position: int) -> TrainingExample:
        random = np.random.default_rng([self.seed, 1, position])
        clip, view = self.clip_at(position), self.view
        side = int(random.choice(view.sides))
        mirrored = view.flip and bool(random.integers(2))
        frames = choose_frames(len(clip.frames), self.labels.frames(clip), view.frames, random)
        example = self._kept.get((clip.id, frames, side)) or self._keep(self._example(clip, frames, side), frames, side)
        return example.mirrored() if mirrored else example

    def _keep(self, example: TrainingExample, frames: tuple[int, ...], side: int) -> TrainingExample:
        if self._held + example.nbytes <= CACHE_BYTES:
            self._held += example.nbytes
            self._kept[example.id, frames, side] = example
        return example

    def _example(self, clip: BenchmarkClip, frames: Sequence[int], side: int) -> TrainingExample:
        images = read_frames(clip, frames)
        size = (images[0].shape[0], images[0].shape[1])
        read = self.labels.read(clip, frames)
        self._check(clip, read)
        masks = {place: scale_mask(read[i], size, side, self.view) for place, i in enumerate(frames) if i in read}
        return TrainingExample(
            id=clip.id,
            images=np.stack([scale_image(image, side, self.view) for image in images]),
            audio=self.features[clip.id][list(frames)],
            masks=masks,
            weights={place: self.labels.weight(clip, frames[place]) for place in masks},
            size=size,
        )

    def _check(self, clip: BenchmarkClip, masks: ClipLabels) -> None:
        for frame, mask in masks.items():
            if (top := int(mask.max(initial=0))) >= self.classes:
                raise InputError(
                    f"the label of frame {frame + 1} of {clip.id} holds the class {top}; this student's classes go "
                    f"from 0 to {self.classes - 1}"
                )


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the permutation of an epoch."""
    return tuple(int(i) for i in np.random.default_rng([seed, 0, epoch]).permutation(count))


def read_frames(clip: BenchmarkClip, frames: Sequence[int]) -> list[ImageArray]:
    """Read the frames of a clip, which have one size; the InputError for other sizes names the clip."""
    images = [read_image(clip.frames[i]) for i in frames]
    if any(image.shape != images[0].shape for image in images):
        raise InputError(f"the frames of {clip.id} differ in size; bring them to one size")
    return images


def collate(examples: Sequence[TrainingExample], multiple: int = 1) -> StudentBatch:
    """Collate examples to a batch; different lengths and sizes are padded with zeros (see `StudentBatch`)."""
    count = max(len(example.images) for example in examples)
    inner = tuple((e.images.shape[1], e.images.shape[2]) for e in examples)
    height, width = (-(-max(size[axis] for size in inner) // multiple) * multiple for axis in (0, 1))
    rows = (len(examples), count)
    frames = np.zeros((*rows, 3, height, width), dtype=np.uint8)
    masks = np.zeros((*rows, height, width), dtype=np.uint8)
    audio = np.zeros((*rows, examples[0].audio.shape[1]), dtype=np.float32)
    present, labeled, weight = np.zeros(rows, bool), np.zeros(rows, bool), np.zeros(rows, np.float32)
    for i, (example, (h, w)) in enumerate(zip(examples, inner, strict=True)):
        t = len(example.images)
        frames[i, :t, :, :h, :w] = example.images.transpose(0, 3, 1, 2)
        audio[i, :t] = example.audio
        present[i, :t] = True
        for place, mask in example.masks.items():
            masks[i, place, :h, :w] = mask
            labeled[i, place], weight[i, place] = True, example.weights[place]
    return StudentBatch(
        ids=tuple(example.id for example in examples),
        frames=torch.from_numpy(frames),
        audio=torch.from_numpy(audio),
        present=torch.from_numpy(present),
        masks=torch.from_numpy(masks),
        labeled=torch.from_numpy(labeled),
        weight=torch.from_numpy(weight),
        inner=inner,
        sizes=tuple(example.size for example in examples),
    )


def check_split(batch: int, accumulate: int, devices: int) -> None:
    """Raise InputError if a step's clips cannot be divided into micro-batches and devices."""
    if batch % (accumulate * devices):
        raise InputError(
            f"a batch of {batch} clips cannot be split evenly over {devices} devices and {accumulate} parts; "
            "choose 'batch' as a multiple of both"
        )


class StepSampler:
    """Positions of the stream by step, divided into micro-batches and devices.

    Iteration yields this device's micro-batches from `start` on, `accumulate` of them per step.
    """

    def __init__(
        self, batch: int, start: int, steps: int, accumulate: int = 1, rank: int = 0, devices: int = 1
    ) -> None:
        check_split(batch, accumulate, devices)
        self.batch, self.start, self.steps = batch, start, steps
        self.accumulate, self.rank, self.devices = accumulate, rank, devices

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch // (self.accumulate * self.devices)
        for step in range(self.start, self.steps):
            for part in range(self.accumulate):
                first = step * self.batch + (part * self.devices + self.rank) * size
                yield list(range(first, first + size))

    def __len__(self) -> int:
        return max(0, self.steps - self.start) * self.accumulate


class _Collate:
    """`collate` with its padding as a picklable callable."""

    def __init__(self, multiple: int) -> None:
        self.multiple = multiple

    def __call__(self, examples: list[TrainingExample]) -> StudentBatch:
        return collate(examples, self.multiple)


def loader(clips: TrainingDataset, positions: StepSampler, workers: int) -> DataLoader[StudentBatch]:
    """Return a loader of batches in the order of the positions, with `workers` processes."""
    made: DataLoader[Any] = DataLoader(
        clips,
        batch_sampler=positions,
        num_workers=workers,
        collate_fn=_Collate(clips.view.multiple),
        persistent_workers=workers > 0,
    )
    return made


def batches_to_predict(
    name: str, images: Sequence[ImageArray], audio: Floats, view: TransformConfig
) -> Iterator[StudentBatch]:
    """Yield a clip as batches of consecutive runs of frames, without labels."""
    for run in runs_of_frames(len(images), view.frames):
        scaled = np.stack([scale_image(images[i], view.sides[-1], view) for i in run])
        size = (images[run[0]].shape[0], images[run[0]].shape[1])
        yield collate([TrainingExample(name, scaled, audio[list(run)], {}, {}, size)], view.multiple)


Labels = npt.NDArray[np.uint8]


def scaled_size(size: Size, side: int, view: TransformConfig) -> Size:
    """Return the (height, width) of an image of `size` after scaling, before the crop.

    For a crop the longer side is rounded down, as AVSS's published loader does.
    """
    height, width = size
    if view.fit == "stretch":
        return side, side
    if view.fit == "crop":
        return height * side // min(size), width * side // min(size)
    factor = min(side / min(size), view.longest / max(size))
    return max(1, round(height * factor)), max(1, round(width * factor))


def scale_image(image: ImageArray, side: int, view: TransformConfig) -> ImageArray:
    """Scale an image `[H, W, 3]` bilinearly."""
    size = scaled_size((image.shape[0], image.shape[1]), side, view)
    return _cut(_resized(image, size, Image.Resampling.BILINEAR), side, view)


def scale_mask(mask: Labels, of: Size, side: int, view: TransformConfig) -> Labels:
    """Scale a mask `[h, w]` of an image of size `of` by the nearest pixel, to fit the scaled image.

    A mask may be stored at another size than its image (AVSS compares both at 224 x 224).
    """
    return _cut(_resized(mask, scaled_size(of, side, view), Image.Resampling.NEAREST), side, view)


def choose_frames(
    count: int, labeled: Sequence[int], wanted: int | None, random: np.random.Generator
) -> tuple[int, ...]:
    """Return the frames of a training example, in order: all, or `wanted` of them with at least one labeled."""
    if wanted is None or wanted >= count:
        return tuple(range(count))
    first = int(random.choice(np.asarray(labeled))) if labeled else int(random.integers(count))
    others = [i for i in range(count) if i != first]
    return tuple(sorted([first, *(int(i) for i in random.choice(others, wanted - 1, replace=False))]))


def runs_of_frames(count: int, wanted: int | None) -> list[range]:
    """Return the frames of a clip in consecutive runs of `wanted`; the last one may be shorter."""
    step = wanted or max(count, 1)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _resized(pixels: npt.NDArray[np.uint8], size: Size, how: Image.Resampling) -> npt.NDArray[np.uint8]:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), how))


def _cut(pixels: npt.NDArray[np.uint8], side: int, view: TransformConfig) -> npt.NDArray[np.uint8]:
    """Cut the centered square if the view wants one; half pixels are rounded to even, as published."""
    if view.fit != "crop":
        return pixels
    top, left = (round((length - side) / 2) for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]
