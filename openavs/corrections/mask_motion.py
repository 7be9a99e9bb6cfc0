"""Masks of a clip in time: a mask, or the change of one, moves from a frame to the other frames of its track.

It moves with the optical flow, in both directions, up to a cut or to a frame of the track that a person corrected
directly. A tracker that propagates masks (`sam2-video`, `edgetam-video`) is used instead if there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import cv2
import numpy as np

from openavs.errors import InputError
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask, small_size
from openavs.structures.types import (
    BoolMask,
    Clip,
    ClipResult,
    DenseFrameSource,
    Frame,
    FrameResult,
    ImageArray,
    Segment,
)
from openavs.visualization.moving_masks import FlowReader, level_to_rle, mask_to_level, warp

_FLOW_RATE = 8.0  # small frames per second
_MASK_SIDE = 480  # pixels of the masks that are moved
_PROPAGATED = 64  # frames; the images of a tracker's way back are in memory


@dataclass(frozen=True)
class CorrectionTools:
    """Inputs of corrections of masks; those of words and rejections need none.

    Attributes:
        open: opens the clip.
        segmenter: the recipe's segmenter; None: masks by color.
        tracker: the recipe's tracker; None: changes move with the optical flow.
    """

    open: Callable[[], Clip]
    segmenter: Any = None
    tracker: Any = None


FrameMask = tuple[FrameResult, RLE]
"""A frame and a mask in it."""


class MaskMover:
    """Moves masks through a clip, which is opened when it is needed.

    Args:
        name: the clip's id, for error messages.
        tools: how the clip is opened, and the recipe's models; None for changes that need no pictures.
    """

    def __init__(self, name: str, tools: CorrectionTools | None) -> None:
        self.name, self.tools = name, tools
        self._clip: Clip | None = None
        self._images: dict[int, ImageArray] = {}
        self._flows: list[tuple[Any, Any]] = []

    def clip(self) -> Clip:
        """Return the clip; InputError if it cannot be opened."""
        if self._clip is None:
            if self.tools is None:
                raise InputError(f"masks of {self.name} cannot be changed without its video")
            self._clip = self.tools.open()
        return self._clip

    def image(self, index: int) -> ImageArray:
        """Return the image of a frame; InputError if it cannot be read."""
        if index not in self._images:
            for frame in self.clip().frames(frozenset((index,))):
                self._images[frame.index] = frame.image
            if index not in self._images:
                raise InputError(f"frame {index} of {self.name} can no longer be read")
        return self._images[index]

    def changes(
        self, result: ClipResult, start: int, track: int, added: BoolMask, removed: BoolMask
    ) -> Iterator[FrameMask]:
        """Yield the other frames of a track with their masks after the same change, moved with the picture."""
        ways = [{f.index: m for f, m in self.carried(result, start, track, mask_to_rle(p))} for p in (added, removed)]
        for f in result.frames:
            own = segment_of(f, track)
            if own is not None and f.index != start and any(f.index in way for way in ways):
                more, less = (rle_to_mask(way[f.index]) if f.index in way else False for way in ways)
                yield f, mask_to_rle((rle_to_mask(own.mask) | more) & ~np.asarray(less))

    def carried(self, result: ClipResult, start: int, track: int, mask: RLE) -> Iterator[FrameMask]:
        """Yield other frames with a mask that moves with the picture: ahead, then back, each up to its end."""
        frames, place = result.frames, _place(result, start)
        direct = _direct(result, track)
        for step in (1, -1):
            level = mask_to_level(rle_to_mask(mask), _MASK_SIDE)
            i = place + step
            while 0 <= i < len(frames) and frames[i].index not in direct and level.any():
                ahead, back = self._flow(result, min(i, i - step))
                way = ahead if step > 0 else back
                if way is None:
                    break
                level = warp(level, way)
                moved = level_to_rle(level, result.size)
                if moved is None:
                    break
                yield frames[i], moved
                i += step

    def _flow(self, result: ClipResult, number: int) -> tuple[Any, Any]:
        """Return the fields that move masks from a frame to the next one, and back; None at a cut."""
        if not self._flows:
            clip = self.clip()
            rate = clip.fps if clip.dense_frames is None else _FLOW_RATE
            reader = FlowReader(clip.dense_frames or _sampled_frames(clip), rate)
            for one, other in pairwise(result.frames):
                gap = reader.gap(one.time, other.time)
                self._flows.append((gap.ahead(gap.count - 1), gap.back(0)) if gap and gap.is_whole else (None, None))
        return self._flows[number]

    def propagated(self, result: ClipResult, start: int, track: int, mask: RLE) -> list[FrameMask] | None:
        """Return a track's masks in its other frames from the recipe's tracker; None without one that propagates."""
        propagator = getattr(self.tools and self.tools.tracker, "propagator", None)
        if propagator is None:
            return None
        direct, place = _direct(result, track), _place(result, start)
        found: list[FrameMask] = []
        for step in (1, -1):
            way = list(range(place, len(result.frames) if step > 0 else -1, step))[: _PROPAGATED + 1]
            frames = [result.frames[i] for i in way]
            images = {f.index: f.image for f in self.clip().frames(frozenset(f.index for f in frames))}
            if start not in images:
                raise InputError(f"frame {start} of {self.name} can no longer be read")
            memory = propagator.init_track(place, images[start], mask)
            for i, frame in zip(way[1:], frames[1:], strict=True):
                if frame.index in direct or frame.index not in images:
                    break
                moved, presence = propagator.propagate(memory, i, images[frame.index], backward=step < 0)
                if presence >= 0.5 and segment_of(frame, track) is not None:
                    found.append((frame, moved))
        return found


def segment_of(frame: FrameResult, track: int | None) -> Segment | None:
    """Return a track's segment in a frame; None without one, or without a track."""
    return next((s for s in frame.segments if s.track == track and track is not None), None)


def _place(result: ClipResult, index: int) -> int:
    return next(i for i, f in enumerate(result.frames) if f.index == index)


def _direct(result: ClipResult, track: int) -> set[int]:
    """Return the frames in which a person changed the track's mask directly."""
    drawn = ("add point", "remove point", "mask", "keep")
    return {
        c.frame
        for c in result.corrections
        if c.track == track and c.frame is not None and c.action in drawn and c.author != "model"
    }


def _sampled_frames(clip: Clip) -> DenseFrameSource:
    """Return the sampled frames of a clip of images as its small frames."""

    def source(fps: float, longest_side: int) -> Iterator[Frame]:
        height, width = small_size(clip.size, longest_side)
        for frame in clip.frames(None):
            small = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA)
            yield replace(frame, image=np.asarray(small, dtype=np.uint8))

    return source
