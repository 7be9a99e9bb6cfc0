"""Videos: the masks painted on, or what sounds cut out on a transparent background, always with the sound.

Masks are those of the sampled frame nearest in time, so a cutout of a recipe with few frames a second moves in steps;
sample more of them (`sample.fps`) or use a tracker for smooth ones.
"""

from __future__ import annotations

import shutil
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image as Pictures, ImageFilter

from openavs.exports.base import ExportItem
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.media import write_overlay
from openavs.media.encode_alpha import (
    AudioSource,
    Kind,
    TimedImage,
    clip_audio,
    clip_images,
    file_audio,
    write_transparent,
)
from openavs.structures.types import BoolMask, Clip, ClipResult, FrameResult, segments_to_mask
from openavs.visualization.overlay import FrameTimeline, OverlayPainter

MARGIN = 8  # pixels of the picture kept around a mask, unseen: lossy codecs mix the colours of neighbours
_BLOCK = 1 << 18


def write_overlays(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `<clip>.mp4` of every item: a copy of its overlay where there is one that shows the same."""

    def write(path: Path, item: ExportItem) -> None:
        if item.overlay is not None and item.whole:
            shutil.copyfile(item.overlay, path)
        else:
            write_overlay(path, item.open(), OverlayPainter(item.result))

    return _write_each(items, lambda item: write(folder / f"{item.result.clip}.mp4", item))


def write_webm(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `<clip>.webm`: VP9 with alpha, Opus."""
    return _write_each(items, partial(_write_transparent, folder, "webm"))


def write_mov(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `<clip>.mov`: ProRes 4444, PCM."""
    return _write_each(items, partial(_write_transparent, folder, "mov"))


def write_pngs(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `<clip>/00000.png`, ... (RGBA, one per picture of the source) and `<clip>/sound.wav`."""
    rates: dict[str, float] = {}

    def write(item: ExportItem) -> None:
        place = folder / item.result.clip
        place.mkdir()
        last = 0.0
        for number, shown in enumerate(cutouts(item.result, item.open())):
            Pictures.fromarray(shown.image).save(place / f"{number:05d}.png", compress_level=3)
            last = (number + 1) / (shown.time + shown.duration)
        rates[item.result.clip] = last
        if (sound := sounding_frames(item)) is not None:
            write_sound(place / "sound.wav", sound)

    told = _write_each(items, write)
    speeds = sorted({f"{rate:.5g}" for rate in rates.values()})
    told.notes.append(f"import the pictures at {', '.join(speeds[:5])} frames per second")
    return told


def cutouts(result: ClipResult, clip: Clip) -> Iterator[TimedImage]:
    """Every picture of a clip as RGBA uint8 `[H, W, 4]`: opaque where a segment is, transparent elsewhere.

    The colours are the picture's own up to `MARGIN` pixels around the segments and black beyond.
    """
    timeline = FrameTimeline(result.frames)

    @lru_cache(maxsize=1)  # many pictures show one sampled frame
    def masks(frame: FrameResult) -> tuple[BoolMask, BoolMask]:
        mask = segments_to_mask(frame.segments, result.size)
        spread = Pictures.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * MARGIN + 1))
        return mask, np.asarray(spread, dtype=np.bool_)

    with closing(clip_images(clip)) as pictures:
        for shown in pictures:
            frame = timeline.at(shown.time)
            rgba = np.zeros((*shown.image.shape[:2], 4), dtype=np.uint8)
            if frame is not None and frame.segments:
                mask, near = masks(frame)
                rgba[near, :3] = shown.image[near]
                rgba[..., 3] = mask.astype(np.uint8) * 255
            yield TimedImage(shown.time, shown.duration, rgba)


def sounding_frames(item: ExportItem) -> AudioSource | None:
    """The sound that was heard: the overlay's, which has it wherever it came from, else the clip's own."""
    if item.overlay is not None and (sound := file_audio(item.overlay)) is not None:
        return sound
    return clip_audio(item.open())


def write_sound(path: Path, sound: AudioSource) -> None:
    """Writes 16-bit PCM with all of its channels."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        for start in range(0, len(sound.samples), _BLOCK):
            block = np.clip(sound.samples[start : start + _BLOCK], -1.0, 1.0)
            file.writeframes(np.round(block * 32767.0).astype("<i2").tobytes())


def _write_transparent(folder: Path, kind: Kind, item: ExportItem) -> None:
    path = folder / f"{item.result.clip}.{kind}"
    write_transparent(path, cutouts(item.result, item.open()), kind, sounding_frames(item))


def _write_each(items: Iterable[ExportItem], write: Callable[[ExportItem], None]) -> ExportSummary:
    told = ExportSummary()
    for item in items:
        write(item)
        told.clips += 1
        told.frames += len(item.result.frames)
        told.segments += sum(len(frame.segments) for frame in item.result.frames)
    return told
