"""Protocol of trackers: the same object over time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

from openavs.structures.types import TrackedFrame


@runtime_checkable
class Tracker(Protocol):
    """Assigns a track to each segment of a clip and fills the frames between key frames.

    `keyframe_interval`: while the phrases stay the same, each n-th frame is a key frame (`association.key_frames`).
    """

    keyframe_interval: int

    def track(self, frames: Iterable[TrackedFrame]) -> Iterator[TrackedFrame]:
        """Set the track of every segment of one clip.

        Args:
            frames: in order. They are consumed lazily, at most a bounded number ahead of the output.

        Returns:
            The same frames in the same order; segments have a phrase of their frame. A track id identifies one object
            and is not reused within the clip.
        """
        ...
