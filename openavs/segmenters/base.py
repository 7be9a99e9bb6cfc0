"""The segmenter's protocol: images and boxes -> masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.types import Box, Image, Mask


@runtime_checkable
class Segmenter(Protocol):
    """Turns boxes into masks. Each image is encoded once, whatever the number of its boxes; none without boxes is."""

    def segment(self, images: Sequence[Image], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One list of masks per image, one mask per box, in the size of the image."""
        ...
