"""Names of the synthetic world's clips; they tell its data sets from real ones."""

from __future__ import annotations

import re

_NAME = re.compile(r"(tr|va|te)\d{3}w\d{5}(_|$)")


def clip_name(split: str, seed: int, index: int) -> str:
    """Return the name of a clip: 11 characters, as a YouTube id has."""
    return f"{split[:2]}{seed:03d}w{index:05d}"


def is_synthetic(clip_id: str) -> bool:
    """Whether a clip's id begins with a name of `clip_name`; layouts append a start or a length."""
    return _NAME.match(clip_id) is not None
