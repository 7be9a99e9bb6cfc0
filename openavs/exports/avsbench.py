"""AVSBench's own layouts, as whole data sets: frames, sound, masks and the table of clips, for any AVSBench loader.

`avsbench-object` is MS3's (binary masks, five frames of 224 x 224, numbered from 1), since a video of one's own may
hold several sources; `avsbench-semantic` is AVSBench-semantic's (class indices, original size, numbered from 0).
AVSBench's clips have 5 or 10 frames, one a second, so results are cut into pieces; what is left over at the end is not
written.
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
from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark
from openavs.evaluation.datasets.classes import CLASSES
from openavs.exports.base import Categories, ExportItem, result_frames, sampled_fps
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.media import resample, write_wav
from openavs.structures.types import (
    ClipResult,
    FrameResult,
    ImageArray,
    Waveform,
    segments_to_label_map,
    segments_to_mask,
)
from openavs.utils.text import pluralize
from openavs.visualization.colors import voc_palette

SIDE = 224  # pixels; AVSBench-object's frames and masks, the aspect is not kept
RATE = 16000  # Hz
UNSEEN = "off-the-screen"  # AVSBench's word for clips in which nothing that sounds is seen


@dataclass(frozen=True)
class ClipChunk:
    """A clip as AVSBench cuts it: whole seconds from `start` on, a frame for each; `subset` has that length."""

    name: str
    clip: str
    subset: str
    start: int
    frames: tuple[FrameResult, ...]


class AvsBenchLayout(Protocol):
    """Where a layout has the files of a piece."""

    lengths: Mapping[int, str]

    def frame(self, piece: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """Writes the picture and the mask of the piece's frame k (from 0)."""

    def sound(self, piece: ClipChunk) -> Path:
        """The piece's wav file."""


def to_label_map(segmentation: ClipResult, frame: int, classes: Sequence[str] = ()) -> ImageArray:
    """The frame at a position of `segmentation.frames` as a label map uint8 `[H, W]`, best score on top.

    Without `classes` a binary mask, 0 and 255. With them the class index: the position from 1, with the background at 0
    (a leading `background` is taken as that); segments of other classes are not painted.
    """
    segments = segmentation.frames[frame].segments
    if not classes:
        return segments_to_mask(segments, segmentation.size).astype(np.uint8) * np.uint8(255)
    known = Categories(classes)
    kept = [segment for segment in segments if known.id(segment) is not None]
    return segments_to_label_map(kept, [known.id(segment) or 0 for segment in kept], segmentation.size)


def write_object(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `ms3_meta_data.csv` and `ms3_data/{visual_frames,gt_masks,audio_wav}`."""
    rows: list[tuple[str, ...]] = [("video_id", "split")]
    told = ExportSummary()
    for piece in _write_pieces(items, ObjectLayout(folder / "ms3_data", options.split), told):
        rows.append((piece.name, options.split))
    _write_table(folder / "ms3_meta_data.csv", rows)
    return told


def write_semantic(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `metadata.csv`, `label2idx.json` and `<subset>/<uid>/{frames,labels_semantic,labels_rgb,audio.wav}`."""
    rows: list[tuple[str, ...]] = [("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")]
    told, layout = ExportSummary(), SemanticLayout(folder)
    for piece in _write_pieces(items, layout, told):
        minute, second = divmod(piece.start, 60)
        heard = "_".join(layout.classes(piece)) or UNSEEN
        rows.append((piece.clip, piece.name, str(minute), str(second), heard, options.split, piece.subset))
    _write_table(folder / "metadata.csv", rows)
    write_class_indices(folder)
    told.notes += layout.known.notes()
    return told


def write_class_indices(folder: Path) -> None:
    """Writes AVSBench-semantic's `label2idx.json`."""
    numbered = {name: index for index, name in enumerate(CLASSES)}
    (folder / "label2idx.json").write_text(json.dumps(numbered, indent=0) + "\n", encoding="ascii")


class ObjectLayout:
    """MS3 of AVSBench-object."""

    lengths: Mapping[int, str] = MappingProxyType({5: "ms3"})

    def __init__(self, data: Path, split: str) -> None:
        self._data, self._split = data, split

    def frame(self, piece: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """A frame and its binary mask, 224 x 224."""
        mask = segments_to_mask(piece.frames[k].segments, result.size).astype(np.uint8) * np.uint8(255)
        _save(self._data / "visual_frames" / piece.name / f"{piece.name}.mp4_{k + 1}.png", _square(image))
        _save(self._data / "gt_masks" / self._split / piece.name / f"{piece.name}_{k + 1}.png", _square(mask))

    def sound(self, piece: ClipChunk) -> Path:
        """`audio_wav/<split>/<video>.wav`."""
        return self._data / "audio_wav" / self._split / f"{piece.name}.wav"


class SemanticLayout:
    """AVSBench-semantic: its 71 classes, which labels and phrases are mapped to as its card says."""

    lengths: Mapping[int, str] = MappingProxyType({10: "v2", 5: "v1m"})

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.known = Categories.of_card(load_benchmark("avss"))

    def frame(self, piece: ClipChunk, k: int, image: ImageArray, result: ClipResult) -> None:
        """A frame, its class indices and the same in colours."""
        segments = piece.frames[k].segments
        kept = [segment for segment in segments if self.known.id(segment) is not None]
        for segment in segments:
            if segment not in kept:
                self.known.leave_out(segment)
        labels = segments_to_label_map(kept, [self.known.id(segment) or 0 for segment in kept], result.size)
        place = self._place(piece)
        _save(place / "frames" / f"{k}.jpg", image)
        _save(place / "labels_semantic" / f"{k}.png", labels)
        _save(place / "labels_rgb" / f"{k}.png", voc_palette()[labels])

    def sound(self, piece: ClipChunk) -> Path:
        """`<subset>/<uid>/audio.wav`."""
        return self._place(piece) / "audio.wav"

    def classes(self, piece: ClipChunk) -> list[str]:
        """The classes that are found in a piece."""
        ids = {self.known.id(segment) for frame in piece.frames for segment in frame.segments}
        return [name for index, name in enumerate(CLASSES) if index in ids]

    def _place(self, piece: ClipChunk) -> Path:
        return self._folder / piece.subset / piece.name


# -------------------------------------------------------------------------------------------------- cutting into pieces


def clip_chunks(result: ClipResult, lengths: Mapping[int, str]) -> Iterator[ClipChunk]:
    """The result cut, from its beginning, into clips of the longest length that is left; the rest is left out.

    The frame of a second is the first one sampled in it.

    Raises:
        InputError: less than one frame a second.
    """
    seconds: dict[int, FrameResult] = {}
    for frame in result.frames:
        seconds.setdefault(math.floor(frame.time + 1e-6), frame)
    if list(seconds) != list(range(len(seconds))):
        raise InputError(f"{result.clip} has no frame in some seconds; AVSBench has one a second, so use sample.fps=1")
    start = 0
    for length, subset in sorted(lengths.items(), reverse=True):
        while start + length <= len(seconds):
            name = f"{result.clip}_{start * 1000}_{(start + length) * 1000}"
            yield ClipChunk(name, result.clip, subset, start, tuple(seconds[start + k] for k in range(length)))
            start += length


def _write_pieces(items: Iterable[ExportItem], layout: AvsBenchLayout, told: ExportSummary) -> Iterator[ClipChunk]:
    """Writes the files of every piece and gives it for the table of clips; `told` hears what was left out."""
    seconds = mute = 0
    for item in items:
        told.clips += 1
        pieces = list(clip_chunks(item.result, layout.lengths))
        clip = item.open()
        places = {frame.index: (piece, k) for piece in pieces for k, frame in enumerate(piece.frames)}
        for frame in result_frames(item.result, clip):
            if frame.index in places:
                piece, k = places[frame.index]
                layout.frame(piece, k, frame.image, item.result)
                told.segments += len(piece.frames[k].segments)
        for piece in pieces:
            _write_sound(layout.sound(piece), clip.audio, piece)
        yield from pieces
        told.frames += len(places)
        seconds += math.ceil(len(item.result.frames) / max(sampled_fps(item.result), 1e-6)) - len(places)
        mute += clip.audio is None
    if seconds > 0:
        lengths = " or ".join(map(str, sorted(layout.lengths)))
        told.notes.append(f"{seconds} s at the ends of clips are left out: the layout's clips last {lengths} s")
    if mute:
        told.notes.append(f"{pluralize(mute, 'clip')} without sound beside the pictures: it is written as silence")


def _write_sound(path: Path, audio: Waveform | None, piece: ClipChunk) -> None:
    length = len(piece.frames)
    samples = np.zeros(length * RATE, dtype=np.float32)
    if audio is not None:
        own = resample(audio.cut(piece.start, piece.start + length), RATE).samples[: len(samples)]
        samples[: len(own)] = own
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, Waveform(samples, RATE))


def _square(picture: ImageArray) -> ImageArray:
    """At 224 x 224: pictures smoothly, masks `[H, W]` by the nearest pixel."""
    how = Pictures.Resampling.BILINEAR if picture.ndim == 3 else Pictures.Resampling.NEAREST
    return np.asarray(Pictures.fromarray(picture).resize((SIDE, SIDE), how))


def _save(path: Path, pixels: ImageArray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pictures.fromarray(pixels).save(path, quality=95)


def _write_table(path: Path, rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
