"""Protocol of trackers: the same object over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openavs.structures.types import Frame, Rejection, Segment


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """A frame with what was asked for and found in it. `key` says whether it was looked for, or left to the tracker."""

    frame: Frame
    phrases: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    key: bool = True


@runtime_checkable
class Tracker(Protocol):
    """Says which segments of a clip are the same thing, and where it is in the frames between.

    `every`: of the frames at which the same things sound, each so-manieth is a key frame (see `tracking.key_frames`).
    """

    every: int

    def track(self, sightings: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """One clip's sightings in order, each with the track of every segment set.

        What leaves is in the order of what came, holds only what is asked for at its frame, and is at most a bounded
        number of frames behind. A track's id keeps its meaning and is not used again within the clip.
        """
        ...
