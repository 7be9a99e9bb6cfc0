"""Trackers: their protocol, key frames, and the rule by which they match segments with tracks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from openavs.structures.association import IouMatrix, match_objects
from openavs.structures.types import Rejection, Segment, TrackedFrame

CROSS_PHRASE_MIN_IOU = 0.5
"""Minimum IoU of a track and a segment with different phrases."""

SAME_PHRASE_BONUS = 0.25
"""Added to the IoU of a track and a segment with the same phrase. Small: detectors confuse phrases, too."""

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


def match_tracks(iou: IouMatrix, same_phrase: npt.NDArray[np.bool_], min_iou: float) -> list[int | None]:
    """Match tracks and segments one to one, see `match_objects`; a track can change its phrase.

    A pair of one phrase needs an IoU of `min_iou`, any other also one of `CROSS_PHRASE_MIN_IOU`.

    Args:
        iou: `[tracks, segments]`, in [0, 1].
        same_phrase: whether a track had the segment's phrase before, `[tracks, segments]`.
        min_iou: minimum IoU of a pair.

    Returns:
        For each segment the index of its track, or None for a new object.
    """
    least = np.where(same_phrase, min_iou, max(CROSS_PHRASE_MIN_IOU, min_iou))
    return match_objects(iou, least, SAME_PHRASE_BONUS * same_phrase)


def remaining_rejections(rejected: Iterable[Rejection], segments: Iterable[Segment]) -> tuple[Rejection, ...]:
    """Remove the rejections of phrases that the detector missed and the tracker still follows."""
    tracked = {segment.phrase for segment in segments}
    return tuple(r for r in rejected if r.phrase not in tracked or r.reason not in _NOT_DETECTED)
