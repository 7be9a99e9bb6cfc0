"""Words of sentences: the nearest thing to a misspelt name, a number with what is counted, text safe to print."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
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


def join_words(words: str | Iterable[str]) -> list[str]:
    """The entries of a list of words; one text is split at its commas.

    >>> listed_words("dog, bell")
    ['dog', 'bell']
    """
    return [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else list(words)


def pluralize(number: float, thing: str, things: str = "") -> str:
    """A number and its thing in the singular or the plural, which is `things` where it is more than an s.

    >>> counted(1, "clip"), counted(3700, "frame"), counted(2, "entry", "entries")
    ('1 clip', '3,700 frames', '2 entries')
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing if number == 1 else things or thing + 's'}"


# Control characters, lone surrogates, line and paragraph separators, and those that reverse the direction of writing.
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
_REVERSING = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def printable(text: str) -> str:
    """The text with escape sequences in place of characters that a terminal would obey; line breaks and tabs stay.

    >>> printable("a\\x1b[2J.mp4")
    'a\\\\x1b[2J.mp4'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(letter: str) -> str:
    unsafe = letter not in "\n\t" and (unicodedata.category(letter) in _UNSAFE or letter in _REVERSING)
    return letter.encode("unicode_escape").decode("ascii") if unsafe else letter
