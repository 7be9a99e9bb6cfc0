"""Names the nearest thing to a misspelt name: the tail of every "unknown ..." sentence."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of a sentence: the closest known name if one is close, else all of them.

    >>> nearest("tinny", ["tiny", "openavs"])
    "did you mean 'tiny'?"
    >>> nearest("zebra", ["tiny", "openavs"])
    'there are openavs, tiny'
    """
    names = sorted(known)
    close = get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(n for n in names if n.lower() == close[0])!r}?"
    return f"there are {', '.join(names)}" if names else "there are none"
