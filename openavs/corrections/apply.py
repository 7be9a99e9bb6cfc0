"""From corrections to segments: applies records to a result and carries changes to the other frames of a track.

The change of a mask (the pixels that were added and removed) moves with the optical flow from frame to frame, in both
directions, up to a cut or to a frame of the track that a person corrected directly. A tracker that propagates masks
(`sam2-video`, `edgetam-video`) is used instead if there is one. Changed segments are a person's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from openavs.corrections.clicks import Click, box_mask, click_mask
from openavs.corrections.store import change_clip, is_removed, merge_segments, rejected_tracks
from openavs.errors import InputError
from openavs.stages.trackers.iou import link_tracks
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.masks import RLE, iou, mask_to_rle, rle_to_mask, small_size
from openavs.structures.types import (
    BoolMask,
    Box,
    Clip,
    ClipResult,
    Correction,
    DenseFrameSource,
    Frame,
    FrameResult,
    ImageArray,
    Rejection,
    Segment,
)
from openavs.utils.text import utc_now
from openavs.visualization.moving_masks import FlowReader, level_to_rle, mask_to_level, warp

_FLOW_RATE = 8.0  # small frames per second
_MASK_SIDE = 480  # pixels of the masks that are moved
_SAME_BOX = 0.3  # IoU of the moved mask's box with a candidate that is the same object
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


def correct_clip(clip_dir: str | Path, corrections: Sequence[Correction], tools: CorrectionTools | None) -> ClipResult:
    """Apply corrections to a clip of a result folder, under its lock, and write it; see `correct_result`."""
    return change_clip(clip_dir, lambda result: correct_result(result, corrections, tools))


def correct_result(
    result: ClipResult, corrections: Sequence[Correction], tools: CorrectionTools | None = None
) -> ClipResult:
    """Return the result after corrections, in order, with their records; segments without tracks get some.

    Raises:
        InputError: a frame, track, point or candidate that does not exist; nothing is applied then.
    """
    work = _Work(link_tracks(result), tools)
    for correction in corrections:
        work.apply(replace(correction, at=correction.at or utc_now()))
    return work.result


@dataclass
class _Work:
    """A result under correction, and what is known of its pictures."""

    result: ClipResult
    tools: CorrectionTools | None
    _clip: Clip | None = None
    _images: dict[int, ImageArray] = field(default_factory=dict)
    _flows: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def apply(self, correction: Correction) -> None:
        """Apply one correction and append its record."""
        actions: Mapping[str, Callable[[Correction], tuple[Correction, dict[int, list[Segment]]]]] = {
            "add point": self._point,
            "remove point": self._point,
            "mask": self._mask,
            "keep": self._keep,
            "reject": self._reject,
            "rename": self._rename,
            "span": self._span,
        }
        if correction.action not in actions:
            raise InputError(f"there is no correction {correction.action!r:.40}; choose one of {', '.join(actions)}")
        if correction.frame is not None:
            self._frame(correction)
        record, changed = actions[correction.action](correction)
        self.result = merge_segments(self.result, changed, [record])

    # ------------------------------------------------------------------------------------------------- the actions

    def _point(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        frame, height, width = self._frame(c), *self.result.size
        x, y = _numbers(c, 2, "a point is [x, y] in pixels")
        if not (0 <= x < width and 0 <= y < height):
            raise InputError(f"the point ({x:g}, {y:g}) is outside of the picture of {width} x {height} pixels")
        inside = c.action == "add point"
        old = None if c.track is None else self._segment(frame, c.track)
        if old is None and not (inside and (c.track is not None or c.phrase)):
            of = "no track" if c.track is None else f"no segment of track {c.track}"
            raise InputError(f"frame {frame.index} has {of} to change; a new object needs 'add point' with a phrase")
        before = np.zeros(self.result.size, dtype=np.bool_) if old is None else rle_to_mask(old.mask)
        clicks = [*(() if old is None else self._clicks(c)), (x, y, inside)]
        after = click_mask(self._image(frame.index), before, clicks, self._tool("segmenter"))
        return self._changed_mask(c, frame, old, before, after)

    def _mask(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        frame = self._frame(c)
        given = c.value if isinstance(c.value, Mapping) else {}
        try:
            after = rle_to_mask(RLE((int(given["size"][0]), int(given["size"][1])), str(given["counts"])))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                "the value of a mask is {'size': [height, width], 'counts': run lengths of COCO}"
            ) from error
        if after.shape != self.result.size:
            raise InputError(f"the mask has {after.shape} pixels and the clip {self.result.size}")
        old = None if c.track is None else self._segment(frame, c.track)
        before = np.zeros(self.result.size, dtype=np.bool_) if old is None else rle_to_mask(old.mask)
        return self._changed_mask(c, frame, old, before, after)

    def _keep(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        frames = self.result.frames if c.frame is None else (self._frame(c),)
        wanted: Box | None = None if c.value is None else _numbers(c, 4, "a box is [x0, y0, x1, y1]")  # type: ignore[assignment]
        found = [(f, r) for f in frames for r in f.rejected if r.box is not None and c.phrase in ("", r.phrase)]
        if wanted is not None:
            found = [(f, r) for f, r in found if iou(r.box, wanted) > 0.9]  # type: ignore[arg-type]
        if not found:
            of = f" of {c.phrase}" if c.phrase else ""
            raise InputError(f"no rejected candidate{of} with a box is there to keep; see 'rejected' of the frames")
        frame, best = max(found, key=lambda own: own[1].score or 0.0)
        track = self._new_track() if c.track is None else c.track
        record = replace(c, track=track, phrase=best.phrase, value=list(best.box or ()))
        changed = {frame.index: [*frame.segments, self._of_candidate(frame, best, track)]}
        for neighbor, moved in self._carried(frame.index, track, changed[frame.index][-1].mask):
            place = moved.box
            same = [r for r in neighbor.rejected if r.box is not None and r.phrase == best.phrase]
            near = max(same, key=lambda r: iou(r.box, place), default=None)  # type: ignore[arg-type]
            if near is not None and near.box is not None and iou(near.box, place) >= _SAME_BOX:
                changed[neighbor.index] = [*neighbor.segments, self._of_candidate(neighbor, near, track)]
        return record, changed

    def _reject(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        def named(segment: Segment) -> bool:
            return segment.track == c.track if c.track is not None else segment.phrase == c.phrase

        frames = self.result.frames if c.frame is None else (self._frame(c),)
        changed = {f.index: [s for s in f.segments if not named(s)] for f in frames if any(map(named, f.segments))}
        return self._named(c, changed), changed

    def _rename(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        phrase = c.value.strip().lower() if isinstance(c.value, str) else ""
        if not phrase:
            raise InputError("the value of a rename is the new phrase")
        label, how = self._label(phrase)
        new = {"phrase": phrase, "label": label, "label_how": how, "author": "person"}
        frames = self.result.frames if c.frame is None else (self._frame(c),)
        changed = {}
        for f in frames:
            hit = [s.track == c.track if c.track is not None else s.phrase == c.phrase for s in f.segments]
            if any(hit):
                own = zip(f.segments, hit, strict=True)
                changed[f.index] = [replace(s, **new) if yes else s for s, yes in own]  # type: ignore[arg-type]
        return replace(self._named(c, changed), value=phrase), changed

    def _span(self, c: Correction) -> tuple[Correction, dict[int, list[Segment]]]:
        start, end = _numbers(c, 2, "a span is [start, end] in seconds")
        has = {f.index: own for f in self.result.frames if (own := self._segment(f, c.track)) is not None}
        if c.track is None or not has:
            raise InputError(f"track {c.track} has no segment in {self.result.clip}; a span needs a track")
        record = replace(c, frame=None, value=[start, end], phrase=c.phrase or next(iter(has.values())).phrase)
        changed = {}
        inside = [f for f in self.result.frames if not is_removed(record, f)]
        for f in self.result.frames:
            if f not in inside and f.index in has:
                changed[f.index] = [s for s in f.segments if s.track != c.track]
        gone = {f.index for f in inside if c.track in rejected_tracks(self.result.corrections, f)}
        missing = {f.index for f in inside} - set(has) - gone
        ends = sorted(i for i in has if i - 1 in missing or i + 1 in missing)
        distance = {i: min((abs(i - end), end) for end in ends) for i in missing} if ends else {}
        for end in ends:
            for f, moved in self._carried(end, c.track, has[end].mask):
                if f.index in missing and distance[f.index][1] == end:
                    new = replace(has[end], mask=moved, box=moved.box, author="person")
                    changed[f.index] = [*f.segments, new]
        for f in inside:
            if f.index in has:
                confirmed = [replace(s, author="person") if s.track == c.track else s for s in f.segments]
                changed[f.index] = confirmed
        return record, changed

    # --------------------------------------------------------------------------------------------- masks in time

    def _changed_mask(
        self, c: Correction, frame: FrameResult, old: Segment | None, before: BoolMask, after: BoolMask
    ) -> tuple[Correction, dict[int, list[Segment]]]:
        """Return the segments of all frames after a change of one frame's mask."""
        if not after.any():
            raise InputError("the mask would be empty; use 'reject' to remove the object")
        code = mask_to_rle(after)
        track = self._new_track() if c.track is None else c.track
        pattern = old or self._any_segment(track)
        phrase = c.phrase or (pattern.phrase if pattern else "")
        made = replace(pattern, mask=code, box=code.box, author="person") if pattern else None
        new = made or Segment(code, code.box, phrase, 1.0, None, *self._label(phrase), track, author="person")
        changed = {frame.index: _with(frame, new)}
        tracked = self._propagated(frame.index, track, code)
        if tracked is not None:
            carried = tracked
        elif old is None:
            carried = list(self._carried(frame.index, track, code)) if pattern is None else []
            carried = [(f, m) for f, m in carried if any(p.phrase == phrase for p in f.prompts)]
        else:
            carried = list(self._changes(frame.index, track, after & ~before, before & ~after))
        for other, mask in carried:
            if mask.area:
                own = self._segment(other, track) or new
                moved = replace(own, mask=mask, box=mask.box, author="person")
                changed[other.index] = _with(other, moved)
        return replace(c, track=track, phrase=phrase), changed

    def _changes(self, start: int, track: int, added: BoolMask, removed: BoolMask) -> Iterator[tuple[FrameResult, RLE]]:
        """Yield the other frames of a track with their masks after the same change, moved with the picture."""
        parts = [mask_to_rle(added), mask_to_rle(removed)]
        ways = [{f.index: m for f, m in self._carried(start, track, part)} for part in parts]
        for f in self.result.frames:
            own = self._segment(f, track)
            if own is not None and f.index != start and any(f.index in way for way in ways):
                more, less = (rle_to_mask(way[f.index]) if f.index in way else False for way in ways)
                yield f, mask_to_rle((rle_to_mask(own.mask) | more) & ~np.asarray(less))

    def _carried(self, start: int, track: int, mask: RLE) -> Iterator[tuple[FrameResult, RLE]]:
        """Yield other frames with a mask that moves with the picture: ahead, then back, each up to its end."""
        frames, place = self.result.frames, self._place(start)
        direct = self._direct(track)
        for step in (1, -1):
            level = mask_to_level(rle_to_mask(mask), _MASK_SIDE)
            i = place + step
            while 0 <= i < len(frames) and frames[i].index not in direct and level.any():
                ahead, back = self._flow(min(i, i - step))
                way = ahead if step > 0 else back
                if way is None:
                    break
                level = warp(level, way)
                moved = level_to_rle(level, self.result.size)
                if moved is None:
                    break
                yield frames[i], moved
                i += step

    def _flow(self, number: int) -> tuple[Any, Any]:
        """Return the fields that move masks from a frame to the next one, and back; None at a cut."""
        if not self._flows:
            clip, frames = self._opened(), self.result.frames
            rate = clip.fps if clip.dense_frames is None else _FLOW_RATE
            reader = FlowReader(clip.dense_frames or _sampled_frames(clip), rate)
            for i, (one, other) in enumerate(pairwise(frames)):
                gap = reader.gap(one.time, other.time)
                self._flows[i] = (gap.ahead(gap.count - 1), gap.back(0)) if gap and gap.is_whole else (None, None)
        return self._flows[number]

    def _propagated(self, start: int, track: int, mask: RLE) -> list[tuple[FrameResult, RLE]] | None:
        """Return a track's masks in its other frames from the recipe's tracker; None without one that propagates."""
        propagator = getattr(self._tool("tracker"), "propagator", None)
        if propagator is None:
            return None
        direct, place = self._direct(track), self._place(start)
        found: list[tuple[FrameResult, RLE]] = []
        for step in (1, -1):
            way = list(range(place, len(self.result.frames) if step > 0 else -1, step))[: _PROPAGATED + 1]
            frames = [self.result.frames[i] for i in way]
            images = {f.index: f.image for f in self._opened().frames(frozenset(f.index for f in frames))}
            if start not in images:
                raise InputError(f"frame {start} of {self.result.clip} can no longer be read")
            memory = propagator.init_track(place, images[start], mask)
            for i, frame in zip(way[1:], frames[1:], strict=True):
                if frame.index in direct or frame.index not in images:
                    break
                moved, presence = propagator.propagate(memory, i, images[frame.index], backward=step < 0)
                if presence >= 0.5 and self._segment(frame, track) is not None:
                    found.append((frame, moved))
        return found

    # ------------------------------------------------------------------------------------------------------ parts

    def _frame(self, c: Correction) -> FrameResult:
        found = next((f for f in self.result.frames if f.index == c.frame), None)
        if found is None:
            raise InputError(
                f"{self.result.clip} has no frame {c.frame} for '{c.action}': it has {len(self.result.frames)} frames, "
                "counted from 0; nothing was changed"
            )
        return found

    def _place(self, index: int) -> int:
        return next(i for i, f in enumerate(self.result.frames) if f.index == index)

    def _segment(self, frame: FrameResult, track: int | None) -> Segment | None:
        return next((s for s in frame.segments if s.track == track and track is not None), None)

    def _any_segment(self, track: int) -> Segment | None:
        return next((s for f in self.result.frames for s in f.segments if s.track == track), None)

    def _new_track(self) -> int:
        used = [s.track for f in self.result.frames for s in f.segments if s.track is not None]
        used += [c.track for c in self.result.corrections if c.track is not None]
        return max(used, default=-1) + 1

    def _direct(self, track: int) -> set[int]:
        """Return the frames in which a person changed the track's mask directly."""
        drawn = ("add point", "remove point", "mask", "keep")
        return {
            c.frame
            for c in self.result.corrections
            if c.track == track and c.frame is not None and c.action in drawn and c.author != "model"
        }

    def _clicks(self, c: Correction) -> Iterator[Click]:
        """Yield the earlier clicks on the object in the frame."""
        for before in self.result.corrections:
            if (before.frame, before.track) == (c.frame, c.track) and before.action in ("add point", "remove point"):
                x, y = before.value
                yield float(x), float(y), before.action == "add point"

    def _named(self, c: Correction, changed: Mapping[int, Any]) -> Correction:
        """Return the record with the phrase of its track; raises InputError if it changes nothing."""
        if not changed:
            of = f"track {c.track}" if c.track is not None else f"the phrase {c.phrase!r}"
            raise InputError(f"no segment of {of} is in {self.result.clip} to {c.action}")
        known = None if c.track is None else self._any_segment(c.track)
        return replace(c, phrase=c.phrase or (known.phrase if known else ""))

    def _of_candidate(self, frame: FrameResult, candidate: Rejection, track: int) -> Segment:
        box = candidate.box or (0.0, 0.0, 0.0, 0.0)
        mask = mask_to_rle(box_mask(self._image(frame.index), box, self._tool("segmenter")))
        label = self._label(candidate.phrase)
        return Segment(mask, box, candidate.phrase, candidate.score or 0.0, None, *label, track, author="person")

    def _label(self, phrase: str) -> tuple[str | None, str | None]:
        recipe = self.result.recipe
        label: tuple[str | None, str | None] = ClassMapper(recipe.get("vocabulary"), recipe.get("aliases") or {})(
            phrase
        )
        return label

    def _tool(self, name: str) -> Any:
        return None if self.tools is None else getattr(self.tools, name)

    def _opened(self) -> Clip:
        if self._clip is None:
            if self.tools is None:
                raise InputError(f"masks of {self.result.clip} cannot be changed without its video")
            self._clip = self.tools.open()
        return self._clip

    def _image(self, index: int) -> ImageArray:
        if index not in self._images:
            for frame in self._opened().frames(frozenset((index,))):
                self._images[frame.index] = frame.image
            if index not in self._images:
                raise InputError(f"frame {index} of {self.result.clip} can no longer be read")
        return self._images[index]


def _with(frame: FrameResult, new: Segment) -> list[Segment]:
    """Return the segments of a frame with a new one in the place of that of its track, which keeps the colors."""
    own = [new if s.track == new.track else s for s in frame.segments]
    return own if new in own else [*own, new]


def _sampled_frames(clip: Clip) -> DenseFrameSource:
    """Return the sampled frames of a clip of images as its small frames."""

    def source(fps: float, longest_side: int) -> Iterator[Frame]:
        height, width = small_size(clip.size, longest_side)
        for frame in clip.frames(None):
            small = cv2.resize(frame.image, (width, height), interpolation=cv2.INTER_AREA)
            yield replace(frame, image=np.asarray(small, dtype=np.uint8))

    return source


def _numbers(c: Correction, count: int, what: str) -> tuple[float, ...]:
    value = c.value
    if (
        not isinstance(value, list | tuple)
        or len(value) != count
        or not all(isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n) for n in value)
    ):
        raise InputError(f"{what}, not {value!r:.60}")
    return tuple(float(n) for n in value)
