"""Text of messages: suggestions for misspelled names, plurals, and text and log records that are safe to print."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return the end of an "unknown ..." message: the closest known name, else `otherwise` or all names.

    >>> did_you_mean("tinny", ["tiny", "openavs"])
    "did you mean 'tiny'?"
    >>> did_you_mean("zebra", ["tiny", "openavs"])
    'there are openavs, tiny'
    """
    names = sorted(known)
    close = get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        return f"did you mean {next(n for n in names if n.lower() == close[0])!r}?"
    return otherwise or (f"there are {', '.join(names)}" if names else "there are none")


def first_line(error: BaseException) -> str:
    """Return the first line of an error, or the name of its class, short enough for a message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def split_list(words: str | Iterable[str]) -> list[str]:
    """Return a list of words; a text is split at its commas.

    >>> split_list("dog, bell")
    ['dog', 'bell']
    """
    return [word.strip() for word in words.split(",") if word.strip()] if isinstance(words, str) else list(words)


def pluralize(number: float, thing: str, things: str = "") -> str:
    """Return a number with its noun in the singular or the plural; `things` is an irregular plural.

    >>> pluralize(1, "clip"), pluralize(3700, "frame"), pluralize(2, "entry", "entries")
    ('1 clip', '3,700 frames', '2 entries')
    """
    shown = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{shown} {thing if number == 1 else things or thing + 's'}"


# Control characters, lone surrogates, line and paragraph separators, and characters that reverse the text direction.
_UNSAFE = {"Cc", "Cs", "Zl", "Zp"}
_REVERSING = {*"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"}


def printable(text: str) -> str:
    r"""Escape the characters that a terminal would interpret; line breaks and tabs stay.

    >>> printable("a\x1b[2J.mp4")
    'a\\x1b[2J.mp4'
    """
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    unsafe = letter not in "\n\t" and (unicodedata.category(letter) in _UNSAFE or letter in _REVERSING)
    return letter.encode("unicode_escape").decode("ascii") if unsafe else letter


class SafeFormatter(logging.Formatter):
    """Escapes control characters in the formatted record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record without control characters."""
        return printable(super().format(record))


class TerminalFormatter(SafeFormatter):
    """`openavs: message` for warnings and errors of openavs; other records name their logger instead."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with its prefix."""
        own = record.name.startswith("openavs.") and record.levelno >= logging.WARNING
        return f"{'openavs' if own else record.name}: {record.message}"


def utc_now() -> str:
    """Return the date and time in UTC, as `Correction.at` has them."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
