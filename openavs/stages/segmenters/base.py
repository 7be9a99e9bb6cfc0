"""Protocols of segmenters: from boxes or from phrases to masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.errors import InputError
from openavs.structures.types import Box, Detection, ImageArray, Mask


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
