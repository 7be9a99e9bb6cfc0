"""Video exports: painted masks, or sounding objects on a transparent background, with the audio.

Masks move with the picture between the sampled frames (`visualization/moving_masks.py`).
"""

from __future__ import annotations

import shutil
import wave
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from openavs.exports.base import ExportItem
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.exports.supervision import AnnotatorPainter
from openavs.media.encode import (
    AudioSource,
    Kind,
    TimedImage,
    clip_audio,
    clip_images,
    file_audio,
    write_transparent,
)
from openavs.media.remux import write_overlay
from openavs.structures.masks import segments_to_mask
from openavs.structures.types import BoolMask, Clip, ClipResult, FrameResult
from openavs.visualization.moving_masks import MovingMasks
from openavs.visualization.overlay import OverlayPainter

MARGIN = 8  # invisible pixels kept around a mask: lossy codecs mix the colors of neighbors
_BLOCK = 1 << 18


def write_overlays(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `<clip>.mp4` of every item: a copy of its overlay if that shows the same segments.

    With `options.styles` supervision's annotators draw it.
    """

    def write(path: Path, item: ExportItem) -> None:
        if options.styles:
            clip = item.open()
            write_overlay(path, clip, AnnotatorPainter(item.result, options.styles, clip))
        elif item.overlay is not None and item.whole:
            shutil.copyfile(item.overlay, path)
        else:
            clip = item.open()
            write_overlay(path, clip, OverlayPainter(item.result, clip=clip))

    return _write_each(items, lambda item: write(folder / f"{item.result.clip}.mp4", item))


def write_webm(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `<clip>.webm`: VP9 with alpha, Opus."""
    return _write_each(items, partial(_write_transparent, folder, "webm"))


def write_mov(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `<clip>.mov`: ProRes 4444, PCM."""
    return _write_each(items, partial(_write_transparent, folder, "mov"))


def write_pngs(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `<clip>/00000.png`, ... (RGBA, one per frame of the source) and `<clip>/sound.wav`."""
    rates: dict[str, float] = {}

    def write(item: ExportItem) -> None:
        place = folder / item.result.clip
        place.mkdir()
        last = 0.0
        for number, shown in enumerate(cutouts(item.result, item.open())):
            Image.fromarray(shown.image).save(place / f"{number:05d}.png", compress_level=3)
            last = (number + 1) / (shown.time + shown.duration)
        rates[item.result.clip] = last
        if (sound := item_audio(item)) is not None:
            write_sound(place / "sound.wav", sound)

    summary = _write_each(items, write)
    speeds = sorted({f"{rate:.5g}" for rate in rates.values()})
    summary.notes.append(f"import the images at {', '.join(speeds[:5])} frames per second")
    return summary


def cutouts(result: ClipResult, clip: Clip) -> Iterator[TimedImage]:
    """Yield every frame of a clip as RGBA uint8 `[H, W, 4]`: opaque inside segments, transparent elsewhere.

    Colors are those of the frame up to `MARGIN` pixels around the segments, and black beyond.
    """
    moving = MovingMasks(result.frames, clip)

    @lru_cache(maxsize=1)  # many frames share one sampled frame
    def masks(frame: FrameResult) -> tuple[BoolMask, BoolMask]:
        mask = segments_to_mask(frame.segments, result.size)
        spread = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * MARGIN + 1))
        return mask, np.asarray(spread, dtype=np.bool_)

    with closing(clip_images(clip)) as pictures:
        for shown in pictures:
            frame = moving.at(shown.time)
            rgba = np.zeros((*shown.image.shape[:2], 4), dtype=np.uint8)
            if frame is not None and frame.segments:
                mask, near = masks(frame)
                rgba[near, :3] = shown.image[near]
                rgba[..., 3] = mask.astype(np.uint8) * 255
            yield TimedImage(shown.time, shown.duration, rgba)


def item_audio(item: ExportItem) -> AudioSource | None:
    """Return the audio that was captioned: the overlay's, else the clip's own."""
    if item.overlay is not None and (sound := file_audio(item.overlay)) is not None:
        return sound
    return clip_audio(item.open())


def write_sound(path: Path, sound: AudioSource) -> None:
    """Write 16-bit PCM with all channels."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(sound.samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        for start in range(0, len(sound.samples), _BLOCK):
            block = np.clip(sound.samples[start : start + _BLOCK], -1.0, 1.0)
            file.writeframes(np.round(block * 32767.0).astype("<i2").tobytes())


def _write_transparent(folder: Path, kind: Kind, item: ExportItem) -> None:
    path = folder / f"{item.result.clip}.{kind}"
    write_transparent(path, cutouts(item.result, item.open()), kind, item_audio(item))


def _write_each(items: Iterable[ExportItem], write: Callable[[ExportItem], None]) -> ExportSummary:
    summary = ExportSummary()
    for item in items:
        write(item)
        summary.clips += 1
        summary.frames += len(item.result.frames)
        summary.segments += sum(len(frame.segments) for frame in item.result.frames)
    return summary
