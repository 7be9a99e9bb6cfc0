"""The detector's protocol: images and noun phrases -> boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.structures.types import Detection, ImageArray


@runtime_checkable
class Detector(Protocol):
    """Grounds phrases in images. A result depends on the image and its phrases, not on its batch mates."""

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """One list of candidate boxes per image, best first, each with the phrase it answers best.

        Candidates below the pipeline's threshold are returned too (down to the adapter's own `floor`), so that the
        pipeline can say how close a phrase came.
        """
        ...
