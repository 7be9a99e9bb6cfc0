"""The protocols of what makes masks: from boxes, from phrases, and through the frames of a clip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from openavs.errors import InputError
from openavs.structures.types import Box, Detection, Frame, ImageArray, Mask, Rejection, Segment


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks. Each image is encoded once, whatever the number of its boxes; none without boxes is."""

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One list of masks per image, one mask per box, in the size of the image."""
        ...


@runtime_checkable
class PhraseSegmenter(Protocol):
    """Turns noun phrases into masks without a detector. Each image is encoded once; none without phrases is."""

    def segment_phrases(
        self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]
    ) -> list[list[tuple[Detection, Mask]]]:
        """One list of finds per image, best first, each a box with its phrase and score, and its mask.

        Finds below the pipeline's threshold are returned too (down to the adapter's own `floor`), so that the pipeline
        can say how close a phrase came.
        """
        ...


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


def validate_stages(detector: object, segmenter: object, tracker: object) -> None:
    """Refuses a recipe whose stages (made, or only their classes; None where there is none) cannot work together."""
    maker = segmenter if segmenter is not None else tracker
    if maker is None:
        raise InputError("the recipe has no segmenter; name one, or a tracker that segments, too, such as sam2-video")
    name = getattr(maker, "__name__", type(maker).__name__)
    if detector is None and not hasattr(maker, "segment_phrases"):
        raise InputError(f"the recipe has no detector but {name} needs boxes; name a detector, or the segmenter sam3")
    if detector is not None and not hasattr(maker, "segment"):
        other = "write 'detector: null'" if hasattr(maker, "segment_phrases") else "name a segmenter"
        raise InputError(f"{name} does not segment boxes, and the recipe has a detector; {other}")
