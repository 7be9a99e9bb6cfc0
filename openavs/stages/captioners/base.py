"""The captioner's protocol: audio -> text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from openavs.structures.types import AudioWindow, Caption


@runtime_checkable
class Captioner(Protocol):
    """Says what is heard. Windows may differ in length and sample rate; none of them is silent or empty."""

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """One list of captions per window, best first; several questions or labels give several captions."""
        ...
