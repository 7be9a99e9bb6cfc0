"""Protocol of trackers, key frames, and rejections of phrases that a tracker still follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from openavs.structures.types import Rejection, Segment, TrackedFrame

_NOT_DETECTED = ("not found", "unknown word", "below threshold")


@runtime_checkable
class Tracker(Protocol):
    """Assigns a track to each segment of a clip and fills the frames between key frames.

    `keyframe_interval`: while the phrases stay the same, each n-th frame is a key frame (`key_frames`).
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


def key_frames(phrases: Sequence[Collection[str]], interval: int) -> frozenset[int]:
    """Select key frames: indices into `phrases`, the phrases that sound at each frame of a clip.

    The first frame of every run of frames with equal phrases is one (so wherever the prompts change, and after every
    silence), and every `interval`-th frame of the run after it. Frames without phrases are skipped.
    """
    keys = []
    since = 0
    for i, current in enumerate(phrases):
        if not current:
            continue
        changed = i == 0 or set(phrases[i - 1]) != set(current)
        since = 0 if changed else since + 1
        if since % interval == 0:
            keys.append(i)
    return frozenset(keys)


def remaining_rejections(rejected: Iterable[Rejection], segments: Iterable[Segment]) -> tuple[Rejection, ...]:
    """Remove the rejections of phrases that the detector missed and the tracker still follows."""
    tracked = {segment.phrase for segment in segments}
    return tuple(r for r in rejected if r.phrase not in tracked or r.reason not in _NOT_DETECTED)
