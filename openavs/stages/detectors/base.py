"""Protocol of detectors: images and noun phrases to boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.structures.types import Detection, ImageArray


@runtime_checkable
class Detector(Protocol):
    """Grounds phrases in images. A result depends on the image and its phrases, not on the rest of the batch."""

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return one list of candidate boxes per image, best first, each with the phrase that it matches best.

        Candidates below the pipeline's threshold are included (down to the adapter's own `floor`), so that the pipeline
        can report how close a phrase came.
        """
        ...
