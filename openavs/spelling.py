"""Words of sentences: the nearest thing to a misspelt name, and a number with what is counted."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The tail of every "unknown ..." sentence: the closest known name if one is close, else `otherwise` or all.

    >>> nearest("tinny", ["tiny", "openavs"])
    "did you mean 'tiny'?"
    >>> nearest("zebra", ["tiny", "openavs"])
    'there are openavs, tiny'
    """
    names = sorted(known)
    close = get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(n for n in names if n.lower() == close[0])!r}?"
    return otherwise or (f"there are {', '.join(names)}" if names else "there are none")


def counted(number: float, thing: str, things: str = "") -> str:
    """A number and its thing in the singular or the plural, which is `things` where it is more than an s.

    >>> counted(1, "clip"), counted(3700, "frame"), counted(2, "entry", "entries")
    ('1 clip', '3,700 frames', '2 entries')
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing if number == 1 else things or thing + 's'}"
