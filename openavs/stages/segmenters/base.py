"""Protocols of segmenters: from boxes or from phrases to masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.errors import InputError
from openavs.structures.types import Box, Detection, ImageArray, Mask


@runtime_checkable
class Segmenter(Protocol):
    """Segments the object in each box. Images are encoded once, and only if they have boxes."""

    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """Return one list of masks per image, one mask per box, in the size of the image."""
        ...


@runtime_checkable
class PhraseSegmenter(Protocol):
    """Segments the objects that phrases name, without a detector. Images are encoded once, and only if needed."""

    def segment_phrases(
        self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]
    ) -> list[list[tuple[Detection, Mask]]]:
        """Return one list of objects per image, best first: the box with its phrase and score, and the mask.

        Objects below the pipeline's threshold are included (down to the adapter's own `floor`), so that the pipeline
        can report how close a phrase came.
        """
        ...


def validate_stages(detector: object, segmenter: object, tracker: object) -> None:
    """Check that the stages of a recipe (objects or their classes; None if absent) work together.

    Raises:
        InputError: a stage is missing, or has an input that no other stage provides.
    """
    maker = segmenter if segmenter is not None else tracker
    if maker is None:
        raise InputError("the recipe has no segmenter; add one, or a tracker that also segments, such as sam2-video")
    name = getattr(maker, "__name__", type(maker).__name__)
    if detector is None and not hasattr(maker, "segment_phrases"):
        raise InputError(
            f"the recipe has no detector but {name} needs boxes; add a detector, or use the segmenter sam3"
        )
    if detector is not None and not hasattr(maker, "segment"):
        fix = "write 'detector: null'" if hasattr(maker, "segment_phrases") else "add a segmenter"
        raise InputError(f"{name} does not segment boxes, and the recipe has a detector; {fix}")
