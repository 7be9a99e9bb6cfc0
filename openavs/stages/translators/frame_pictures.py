"""Pictures of a clip's frames for translators that see them: which frames, how large, and on which contact sheet."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from PIL import Image

from openavs.media.images import encode_jpeg, fit_picture
from openavs.stages.prompting import CaptionRun, merge_runs
from openavs.stages.translators.base import FramePicture
from openavs.structures.types import Caption, Clip, ImageArray
from openavs.visualization.contact_sheet import contact_sheet

MAX_PICTURES = 12
"""Maximum number of frames on a contact sheet, and of pictures of `STRETCH` frames with equal captions."""

STRETCH = 60
FRAME_PIXELS, FRAME_BYTES = 1 << 17, 100_000  # of one picture: a window of 256 clips is held at the same time

TitledPicture = tuple[str, FramePicture]

T = TypeVar("T")


def frame_pictures(clip: Clip, frames: Sequence[tuple[Caption, ...]]) -> tuple[FramePicture, ...]:
    """Return pictures of the frames that have captions, in temporal order; only these frames are decoded.

    A run of frames with equal captions has at most 12 pictures for every 60 frames, evenly chosen.

    Args:
        clip: the clip; frames that cannot be decoded are left out.
        frames: the captions of every frame.
    """
    wanted = frozenset(index for run in merge_runs(frames) for index in _chosen_frames(run))
    return tuple(
        FramePicture(frame.index, frame.time, encode_jpeg(fit_picture(frame.image, FRAME_PIXELS), FRAME_BYTES))
        for frame in (clip.frames(wanted) if wanted else ())
    )


def _chosen_frames(run: CaptionRun) -> list[int]:
    stretches = (range(start, min(start + STRETCH, run.stop)) for start in range(run.start, run.stop, STRETCH))
    return [index for stretch in stretches for index in choose_evenly(stretch, MAX_PICTURES)]


def choose_pictures(
    runs: Sequence[CaptionRun], pictures: Sequence[FramePicture], unit: str
) -> tuple[TitledPicture, ...]:
    """Return the pictures for the contact sheet of some runs, at most 12, with titles such as `run 0, 2.5 s`.

    All runs with captions share the sheet evenly; of more than 12 runs, evenly chosen ones are on it.

    Args:
        runs: runs (or frames) of one chat request, whose positions are their numbers.
        pictures: of the whole clip.
        unit: `run` or `frame`, the word for the number.
    """
    by_index = {picture.index: picture for picture in pictures}
    captioned = [(number, run) for number, run in enumerate(runs) if run.captions]
    each = max(1, MAX_PICTURES // max(1, len(captioned)))
    titled = []
    for number, run in captioned:
        own = [by_index[index] for index in range(run.start, run.stop) if index in by_index]
        titled += [(f"{unit} {number}, {round(p.time, 1):g} s", p) for p in choose_evenly(own, each)]
    return tuple(choose_evenly(titled, MAX_PICTURES))


def draw_sheet(pictures: Sequence[TitledPicture], max_pixels: int) -> ImageArray:
    """Return the contact sheet, uint8 `[H, W, 3]` of at most `max_pixels`."""
    images = [np.asarray(Image.open(io.BytesIO(picture.jpeg), formats=["JPEG"])) for _, picture in pictures]
    return contact_sheet(images, [title for title, _ in pictures], max_pixels=max_pixels)


def choose_evenly(items: Sequence[T], most: int) -> list[T]:
    """Return at most `most` items in order: the middle ones of equal parts of the sequence."""
    count = min(most, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]
