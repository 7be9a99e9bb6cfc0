"""AVSBench layouts as whole data sets: frames, audio, masks and the table of clips, for any AVSBench loader.

`avsbench-object` is MS3's layout (binary masks, five frames of 224 x 224, numbered from 1), because a video may have
several sources. `avsbench-semantic` is AVSBench-semantic's layout (class indices, original size, numbered from 0).
AVSBench's clips have 5 or 10 frames, one per second, so results are cut into chunks; the rest at the end is dropped.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark
from openavs.evaluation.datasets.tables import CLASSES
from openavs.exports.base import Categories, ExportItem, result_frames, sampled_fps
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.media.audio import resample, write_wav
from openavs.structures.masks import segments_to_label_map, segments_to_mask, voc_palette
from openavs.structures.types import ClipResult, FrameResult, ImageArray, Waveform
from openavs.utils.text import pluralize

SIDE = 224  # pixels of AVSBench-object's frames and masks; the aspect ratio is not kept
RATE = 16000  # Hz
UNSEEN = "off-the-screen"  # AVSBench's label of clips without a visible source


@dataclass(frozen=True)
class ClipChunk:
    """A chunk of a clip in AVSBench's length: whole seconds from `start`, one frame each; `subset` has that length."""

    name: str
    clip: str
    subset: str
    start: int
    frames: tuple[FrameResult, ...]


class AvsBenchLayout(Protocol):
    """Places of a chunk's files in a layout."""

    lengths: Mapping[int, str]

    def frame(self, chunk: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """Write the image and the mask of the chunk's frame k (from 0)."""

    def sound(self, chunk: ClipChunk) -> Path:
        """Return the chunk's wav file."""


def to_label_map(result: ClipResult, frame: int, classes: Sequence[str] = ()) -> ImageArray:
    """Return one frame as a label map uint8 `[H, W]`; where segments overlap, the best score wins.

    Args:
        result: the result.
        frame: position in `result.frames`.
        classes: class names; values are their positions from 1, and 0 is the background (a leading `background` is
            ignored). Segments of other classes are left out. Empty: a binary mask of 0 and 255.
    """
    segments = result.frames[frame].segments
    if not classes:
        return segments_to_mask(segments, result.size).astype(np.uint8) * np.uint8(255)
    known = Categories(classes)
    kept = [segment for segment in segments if known.id(segment) is not None]
    return segments_to_label_map(kept, [known.id(segment) or 0 for segment in kept], result.size)


def write_object(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `ms3_meta_data.csv` and `ms3_data/{visual_frames,gt_masks,audio_wav}`."""
    rows: list[tuple[str, ...]] = [("video_id", "split")]
    summary = ExportSummary()
    for chunk in _write_chunks(items, ObjectLayout(folder / "ms3_data", options.split), summary):
        rows.append((chunk.name, options.split))
    _write_table(folder / "ms3_meta_data.csv", rows)
    return summary


def write_semantic(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `metadata.csv`, `label2idx.json` and `<subset>/<uid>/{frames,labels_semantic,labels_rgb,audio.wav}`."""
    rows: list[tuple[str, ...]] = [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    summary, layout = ExportSummary(), SemanticLayout(folder)
    for chunk in _write_chunks(items, layout, summary):
        minute, second = divmod(chunk.start, 60)
        label = "_".join(layout.classes(chunk)) or UNSEEN
        rows.append((chunk.clip, chunk.name, str(minute), str(second), label, options.split, chunk.subset))
    _write_table(folder / "metadata.csv", rows)
    write_class_indices(folder)
    summary.notes += layout.known.notes()
    return summary


def write_class_indices(folder: Path) -> None:
    """Write AVSBench-semantic's `label2idx.json`."""
    numbered = {name: index for index, name in enumerate(CLASSES)}
    (folder / "label2idx.json").write_text(json.dumps(numbered, indent=0) + "\n", encoding="ascii")


class ObjectLayout:
    """The MS3 layout of AVSBench-object."""

    lengths: Mapping[int, str] = MappingProxyType({5: "ms3"})

    def __init__(self, data: Path, split: str) -> None:
        self._data, self._split = data, split

    def frame(self, chunk: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """Write a frame and its binary mask, 224 x 224."""
        mask = segments_to_mask(chunk.frames[k].segments, result.size).astype(np.uint8) * np.uint8(255)
        _save(self._data / "visual_frames" / chunk.name / f"{chunk.name}.mp4_{k + 1}.png", _square(image))
        _save(self._data / "gt_masks" / self._split / chunk.name / f"{chunk.name}_{k + 1}.png", _square(mask))

    def sound(self, chunk: ClipChunk) -> Path:
        """Return `audio_wav/<split>/<video>.wav`."""
        return self._data / "audio_wav" / self._split / f"{chunk.name}.wav"


class SemanticLayout:
    """The AVSBench-semantic layout: labels and phrases are mapped to its 71 classes."""

    lengths: Mapping[int, str] = MappingProxyType({10: "v2", 5: "v1m"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.known = Categories.of_benchmark(load_benchmark("avss"))

    def frame(self, chunk: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """Write a frame, its class indices and the same in colors."""
        segments = chunk.frames[k].segments
        kept = [segment for segment in segments if self.known.id(segment) is not None]
        for segment in segments:
            if segment not in kept:
                self.known.leave_out(segment)
        labels = segments_to_label_map(kept, [self.known.id(segment) or 0 for segment in kept], result.size)
        place = self._place(chunk)
        _save(place / "frames" / f"{k}.jpg", image)
        _save(place / "labels_semantic" / f"{k}.png", labels)
        _save(place / "labels_rgb" / f"{k}.png", voc_palette()[labels])

    def sound(self, chunk: ClipChunk) -> Path:
        """Return `<subset>/<uid>/audio.wav`."""
        return self._place(chunk) / "audio.wav"

    def classes(self, chunk: ClipChunk) -> list[str]:
        """Return the classes of a chunk's segments."""
        ids = {self.known.id(segment) for frame in chunk.frames for segment in frame.segments}
        return [name for index, name in enumerate(CLASSES) if index in ids]

    def _place(self, chunk: ClipChunk) -> Path:
        return self._folder / chunk.subset / chunk.name


# -------------------------------------------------------------------------------------------------- chunks


def clip_chunks(result: ClipResult, lengths: Mapping[int, str]) -> Iterator[ClipChunk]:
    """Cut a result into chunks of the longest length that fits, from its start; the rest is dropped.

    The frame of a second is the first one sampled in it.

    Raises:
        InputError: less than one frame per second.
    """
    seconds: dict[int, FrameResult] = {}
    for frame in result.frames:
        seconds.setdefault(math.floor(frame.time + 1e-6), frame)
    if list(seconds) != list(range(len(seconds))):
        raise InputError(
            f"{result.clip} has no frame in some seconds; AVSBench has one per second, so use sample.fps=1"
        )
    start = 0
    for length, subset in sorted(lengths.items(), reverse=True):
        while start + length <= len(seconds):
            name = f"{result.clip}_{start * 1000}_{(start + length) * 1000}"
            yield ClipChunk(name, result.clip, subset, start, tuple(seconds[start + k] for k in range(length)))
            start += length


def _write_chunks(items: Iterable[ExportItem], layout: AvsBenchLayout, summary: ExportSummary) -> Iterator[ClipChunk]:
    """Write the files of every chunk and yield it for the table of clips; losses are added to `summary`."""
    seconds = mute = 0
    for item in items:
        summary.clips += 1
        chunks = list(clip_chunks(item.result, layout.lengths))
        clip = item.open()
        places = {frame.index: (chunk, k) for chunk in chunks for k, frame in enumerate(chunk.frames)}
        for frame in result_frames(item.result, clip):
            if frame.index in places:
                chunk, k = places[frame.index]
                layout.frame(chunk, k, frame.image, item.result)
                summary.segments += len(chunk.frames[k].segments)
        for chunk in chunks:
            _write_sound(layout.sound(chunk), clip.audio, chunk)
        yield from chunks
        summary.frames += len(places)
        seconds += math.ceil(len(item.result.frames) / max(sampled_fps(item.result), 1e-6)) - len(places)
        mute += clip.audio is None
    if seconds > 0:
        lengths = " or ".join(map(str, sorted(layout.lengths)))
        summary.notes.append(f"{seconds} s at the ends of clips are left out: the layout's clips last {lengths} s")
    if mute:
        summary.notes.append(f"{pluralize(mute, 'clip')} without audio: it is written as silence")


def _write_sound(path: Path, audio: Waveform | None, chunk: ClipChunk) -> None:
    length = len(chunk.frames)
    samples = np.zeros(length * RATE, dtype=np.float32)
    if audio is not None:
        own = resample(audio.cut(chunk.start, chunk.start + length), RATE).samples[: len(samples)]
        samples[: len(own)] = own
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, Waveform(samples, RATE))


def _square(picture: ImageArray) -> ImageArray:
    """Resize to 224 x 224: images bilinearly, masks `[H, W]` by the nearest pixel."""
    how = Image.Resampling.BILINEAR if picture.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), how))


def _save(path: Path, pixels: ImageArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def _write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
