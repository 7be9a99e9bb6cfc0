"""Short ways to write requests in tests."""

from __future__ import annotations

from openavs.stages.translators.base import Request
from openavs.structures.types import Caption

Note = str | tuple[str, float]


def request(*frames: list[Note], vocabulary: tuple[str, ...] | None = None) -> Request:
    """One list per frame of captions, each a text or a text with its score."""
    return Request(tuple(tuple(caption(note, i) for note in frame) for i, frame in enumerate(frames)), vocabulary)


def caption(note: Note, second: int = 0) -> Caption:
    text, score = note if isinstance(note, tuple) else (note, None)
    return Caption(text, score, float(second), second + 1.0)
