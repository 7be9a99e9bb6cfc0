"""From corrections to segments: each action changes a result, and the change of a mask is carried through its track.

Changed segments are a person's; `mask_motion.py` moves masks in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from openavs.corrections.clicks import Click, box_mask, click_mask
from openavs.corrections.mask_motion import CorrectionTools, MaskMover, segment_of
from openavs.corrections.store import change_clip, is_removed, merge_segments, rejected_tracks
from openavs.errors import InputError
from openavs.stages.trackers.iou import link_tracks
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.masks import RLE, iou, mask_to_rle, rle_to_mask
from openavs.structures.types import (
    BoolMask,
    Box,
    ClipResult,
    Correction,
    FrameResult,
    Rejection,
    Segment,
)
from openavs.utils.text import utc_now

_SAME_BOX = 0.3  # IoU of the moved mask's box with a candidate that is the same object


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
    work = _Work(link_tracks(result), MaskMover(result.clip, tools))
    for correction in corrections:
        work.apply(replace(correction, at=correction.at or utc_now()))
    return work.result


@dataclass
class _Work:
    """A result under correction."""

    result: ClipResult
    motion: MaskMover

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
        old = None if c.track is None else segment_of(frame, c.track)
        if old is None and not (inside and (c.track is not None or c.phrase)):
            of = "no track" if c.track is None else f"no segment of track {c.track}"
            raise InputError(f"frame {frame.index} has {of} to change; a new object needs 'add point' with a phrase")
        before = np.zeros(self.result.size, dtype=np.bool_) if old is None else rle_to_mask(old.mask)
        clicks = [*(() if old is None else self._clicks(c)), (x, y, inside)]
        after = click_mask(self.motion.image(frame.index), before, clicks, self._segmenter)
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
        old = None if c.track is None else segment_of(frame, c.track)
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
        for neighbor, moved in self.motion.carried(self.result, frame.index, track, changed[frame.index][-1].mask):
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
        has = {f.index: own for f in self.result.frames if (own := segment_of(f, c.track)) is not None}
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
            for f, moved in self.motion.carried(self.result, end, c.track, has[end].mask):
                if f.index in missing and distance[f.index][1] == end:
                    new = replace(has[end], mask=moved, box=moved.box, author="person")
                    changed[f.index] = [*f.segments, new]
        for f in inside:
            if f.index in has:
                confirmed = [replace(s, author="person") if s.track == c.track else s for s in f.segments]
                changed[f.index] = confirmed
        return record, changed

    # -------------------------------------------------------------------------------------------- changed masks

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
        tracked = self.motion.propagated(self.result, frame.index, track, code)
        if tracked is not None:
            carried = tracked
        elif old is None:
            carried = list(self.motion.carried(self.result, frame.index, track, code)) if pattern is None else []
            carried = [(f, m) for f, m in carried if any(p.phrase == phrase for p in f.prompts)]
        else:
            carried = list(self.motion.changes(self.result, frame.index, track, after & ~before, before & ~after))
        for other, mask in carried:
            if mask.area:
                own = segment_of(other, track) or new
                moved = replace(own, mask=mask, box=mask.box, author="person")
                changed[other.index] = _with(other, moved)
        return replace(c, track=track, phrase=phrase), changed

    # ------------------------------------------------------------------------------------------------------ parts

    def _frame(self, c: Correction) -> FrameResult:
        found = next((f for f in self.result.frames if f.index == c.frame), None)
        if found is None:
            raise InputError(
                f"{self.result.clip} has no frame {c.frame} for '{c.action}': it has {len(self.result.frames)} frames, "
                "counted from 0; nothing was changed"
            )
        return found

    def _any_segment(self, track: int) -> Segment | None:
        return next((s for f in self.result.frames for s in f.segments if s.track == track), None)

    def _new_track(self) -> int:
        used = [s.track for f in self.result.frames for s in f.segments if s.track is not None]
        used += [c.track for c in self.result.corrections if c.track is not None]
        return max(used, default=-1) + 1

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
        mask = mask_to_rle(box_mask(self.motion.image(frame.index), box, self._segmenter))
        label = self._label(candidate.phrase)
        return Segment(mask, box, candidate.phrase, candidate.score or 0.0, None, *label, track, author="person")

    def _label(self, phrase: str) -> tuple[str | None, str | None]:
        recipe = self.result.recipe
        label: tuple[str | None, str | None] = ClassMapper(recipe.get("vocabulary"), recipe.get("aliases") or {})(
            phrase
        )
        return label

    @property
    def _segmenter(self) -> Any:
        return self.motion.tools and self.motion.tools.segmenter


def _with(frame: FrameResult, new: Segment) -> list[Segment]:
    """Return the segments of a frame with a new one in the place of that of its track, which keeps the colors."""
    own = [new if s.track == new.track else s for s in frame.segments]
    return own if new in own else [*own, new]


def _numbers(c: Correction, count: int, what: str) -> tuple[float, ...]:
    value = c.value
    if (
        not isinstance(value, list | tuple)
        or len(value) != count
        or not all(isinstance(n, int | float) and not isinstance(n, bool) and np.isfinite(n) for n in value)
    ):
        raise InputError(f"{what}, not {value!r:.60}")
    return tuple(float(n) for n in value)
