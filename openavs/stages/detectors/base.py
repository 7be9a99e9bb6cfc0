"""Protocol of detectors: images and noun phrases to boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import getattr_static
from typing import Any, Protocol, runtime_checkable

from openavs.structures.types import Detection, ImageArray


@runtime_checkable
class Detector(Protocol):
    """Grounds phrases in images. A result depends on the image and its phrases, not on the rest of the batch.

    A detector of a closed set of classes may also have a method `knows(phrase) -> bool`; a phrase that it does not know
    is rejected as `unknown word` instead of `not found`.
    """

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Return one list of candidate boxes per image, best first, each with the phrase that it matches best.

        Images are uint8 RGB `[H, W, 3]` of any sizes; one with an empty list of noun phrases is skipped. Candidates
        below the pipeline's threshold are included (down to the adapter's own `floor`), so that the pipeline can report
        how close a phrase came.
        """
        ...


def known_phrases(detector: Any) -> Callable[[str], bool]:
    """Return whether a detector knows a phrase, as a function; one without `knows` may know all.

    The attribute is looked up without reading it, because an attribute of a lazy backend loads its model.
    """
    if getattr_static(detector, "knows", None) is None:
        return lambda phrase: True
    knows: Callable[[str], bool] = detector.knows
    return knows
