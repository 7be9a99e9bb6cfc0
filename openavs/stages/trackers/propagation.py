"""Following things through a clip with a model that carries masks from frame to frame (SAM 2's memory).

Key frames come with what was found in them; between them every known thing is carried along. At a key frame what was
carried is matched with what was found: a match keeps its id and is corrected by the find, a find without a match is a
new thing and is also carried back to the key frame before, and a thing that is not found again and again is let go.
Frames are held back for no longer than to the next key frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from openavs.errors import InputError
from openavs.stages.trackers.association import mask_box, mask_iou, match_tracks, remaining_rejections
from openavs.stages.trackers.base import TrackedFrame
from openavs.structures.types import RLE, ImageArray, Rejection, Segment


class MaskPropagator(Protocol):
    """A model that carries one mask through frames. What it remembers of a thing is its own affair.

    `at` counts the frames it is shown; a memory is asked for neighbouring frames only, forwards or (from its beginning)
    backwards.
    """

    def begin(self, at: int, image: ImageArray, mask: RLE) -> Any:
        """A memory of the thing that a mask shows."""
        ...

    def carry(self, memory: Any, at: int, image: ImageArray, backwards: bool = False) -> tuple[RLE, float]:
        """Where the thing is in the next frame (an empty mask: hidden or gone), and how surely, in [0, 1]."""
        ...

    def correct(self, memory: Any, at: int, image: ImageArray, mask: RLE) -> None:
        """Replaces what was carried to a frame by a mask that was found there."""
        ...


@dataclass(frozen=True)
class TrackerConfig:
    """When two masks are one thing (`min_iou`), for how many key frames in a row a thing may be missed (`patience`),
    how many things are followed at once (`max_objects`), and the least area of a mask in pixels (`min_area`)."""

    min_iou: float = 0.5
    patience: int = 2
    max_objects: int = 32
    min_area: int = 1


def validate_tracker_options(
    who: str, every: int, min_iou: float, patience: int, max_objects: int
) -> tuple[int, TrackerConfig]:
    """A tracker's options as `every` and rules; InputError, in its name, for those that make no sense."""
    if min(every, max_objects) < 1 or patience < 0 or not 0 < min_iou <= 1:
        raise InputError(
            f"{who}: every and max_objects are at least 1, patience is not negative and min_iou is more than 0 and at "
            f"most 1, not {every}, {max_objects}, {patience}, {min_iou}"
        )
    return every, TrackerConfig(min_iou, patience, max_objects)


@dataclass(eq=False)
class _Track:
    """One followed thing: its id, its last find by every phrase it was found by, and the carrier's memory of it."""

    track: int
    finds: dict[str, Segment]
    memory: Any
    found_at: int
    missed: int = 0

    def segment(self, mask: RLE, sure: float, asked: Sequence[str]) -> Segment | None:
        """The thing where it was carried to, by the phrase that it was last found by among those asked for."""
        phrase = next((p for p in reversed(self.finds) if p in asked), None)
        if phrase is None:
            return None
        return replace(self.finds[phrase], mask=mask, box=mask_box(mask), mask_score=sure, track=self.track)

    def find(self, segment: Segment, at: int) -> Segment:
        """Takes note of a find of this thing, and returns it with its id."""
        named = replace(segment, track=self.track)
        self.finds.pop(segment.phrase, None)  # the last find stands last
        self.finds[segment.phrase] = named
        self.found_at, self.missed = at, 0
        return named


def propagate_tracks(
    carrier: MaskPropagator, sightings: Iterable[TrackedFrame], rules: TrackerConfig
) -> Iterator[TrackedFrame]:
    """One clip's sightings with their tracks; see `segmenters.base.Tracker.track`."""
    following = _TrackManager(carrier, rules)
    window: list[TrackedFrame] = []
    for sighting in sightings:
        window.append(sighting)
        if sighting.key:
            yield from following.through(window)
            window = []
    yield from following.through(window)


class _TrackManager:
    """The things of one clip on their way."""

    def __init__(self, carrier: MaskPropagator, rules: TrackerConfig) -> None:
        self.carrier, self.rules = carrier, rules
        self.things: list[_Track] = []
        self.given = 0  # ids, counted from 0 and never used again
        self.clock = 0  # frames shown

    def through(self, window: Sequence[TrackedFrame]) -> Iterator[TrackedFrame]:
        """A window: frames left to the tracker, and then the key frame that ends it, if any."""
        start = self.clock
        answers: list[list[Segment]] = []
        for sighting in window:
            carried = self._carry(sighting)
            if sighting.key:
                segments, new = self._meet(sighting, carried)
                answers.append(segments)
                for thing in new:
                    self._carry_back(thing, window, answers, start)
            else:
                answers.append(self._report(carried, sighting))
            self.clock += 1
        for sighting, segments in zip(window, answers, strict=True):
            ordered = tuple(sorted(segments, key=lambda s: -s.score))
            yield replace(sighting, segments=ordered, rejected=_dropped(sighting, ordered))

    def _carry(self, sighting: TrackedFrame) -> dict[_Track, tuple[RLE, float]]:
        image = sighting.frame.image
        return {thing: self.carrier.carry(thing.memory, self.clock, image) for thing in self.things}

    def _report(self, carried: dict[_Track, tuple[RLE, float]], sighting: TrackedFrame) -> list[Segment]:
        """Things that are seen and asked for at a frame."""
        seen = [(t, mask, sure) for t, (mask, sure) in carried.items() if mask.area >= self.rules.min_area]
        segments = [thing.segment(mask, sure, sighting.phrases) for thing, mask, sure in seen]
        return [segment for segment in segments if segment is not None]

    def _meet(
        self, sighting: TrackedFrame, carried: dict[_Track, tuple[RLE, float]]
    ) -> tuple[list[Segment], list[_Track]]:
        """A key frame: its segments with their ids (the finds, and things that were missed but are seen), and who is
        new."""
        found, known = sighting.segments, list(carried)
        overlap = mask_iou([mask for mask, _ in carried.values()], [segment.mask for segment in found])
        same = np.array([[s.phrase in thing.finds for s in found] for thing in known], dtype=np.bool_)
        who = match_tracks(overlap, same.reshape(overlap.shape), self.rules.min_iou)
        segments, new = [], []
        for segment, place in zip(found, who, strict=True):
            if place is None:
                thing = self._welcome(segment, sighting)
                new.append(thing)
            else:
                thing = known[place]
                self.carrier.correct(thing.memory, self.clock, sighting.frame.image, segment.mask)
            segments.append(thing.find(segment, self.clock))
        missed = {t: carried[t] for i, t in enumerate(known) if i not in who}
        # What a find covers is that find, not one more thing.
        clear = {
            t: c for i, (t, c) in enumerate(carried.items()) if t in missed and not _covered(overlap[i], self.rules)
        }
        segments += self._report(clear, sighting)
        self._let_go(missed, sighting)
        return segments, new

    def _welcome(self, segment: Segment, sighting: TrackedFrame) -> _Track:
        """A new thing, for which the one that was found longest ago is let go where there are too many."""
        if len(self.things) >= self.rules.max_objects:
            self.things.remove(min(self.things, key=lambda thing: thing.found_at))
        memory = self.carrier.begin(self.clock, sighting.frame.image, segment.mask)
        thing = _Track(self.given, {}, memory, self.clock)
        self.given += 1
        self.things.append(thing)
        return thing

    def _let_go(self, missed: Iterable[_Track], sighting: TrackedFrame) -> None:
        """A thing is missed where it was asked for and not found; after too many times it is not followed any more."""
        for thing in missed:
            if any(phrase in thing.finds for phrase in sighting.phrases):
                thing.missed += 1
        self.things = [thing for thing in self.things if thing.missed <= self.rules.patience]

    def _carry_back(
        self, thing: _Track, window: Sequence[TrackedFrame], answers: list[list[Segment]], start: int
    ) -> None:
        """Adds a new thing to the frames before its first find, as far back as it is seen there on its own."""
        key = len(answers) - 1
        [find] = thing.finds.values()
        if not any(find.phrase in sighting.phrases for sighting in window[:key]):
            return
        memory = self.carrier.begin(start + key, window[key].frame.image, find.mask)
        for i in range(key - 1, -1, -1):
            if window[i].frame.index + 1 != window[i + 1].frame.index:
                return  # frames without a sound lie between
            mask, sure = self.carrier.carry(memory, start + i, window[i].frame.image, backwards=True)
            overlap = mask_iou([mask], [segment.mask for segment in answers[i]])
            if mask.area < self.rules.min_area or _covered(overlap[0], self.rules):
                return
            segment = thing.segment(mask, sure, window[i].phrases)
            if segment is not None:
                answers[i].append(segment)


def _covered(overlap: Any, rules: TrackerConfig) -> bool:
    """Whether a mask is the same as one of those it was compared with."""
    return bool((overlap >= rules.min_iou).any())


def _dropped(sighting: TrackedFrame, segments: Sequence[Segment]) -> tuple[Rejection, ...]:
    """Why what was asked for is not there: the detector's reasons at a key frame, else that it was lost on the way."""
    if sighting.key:
        return remaining_rejections(sighting.rejected, segments)
    seen = {segment.phrase for segment in segments}
    return tuple(Rejection(phrase, "not tracked") for phrase in sighting.phrases if phrase not in seen)
