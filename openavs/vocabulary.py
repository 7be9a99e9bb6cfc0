"""Closed lists of sounds or things: by name, from a text file, or as given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from openavs.types import InputError

_AUDIOSET = Path(__file__).parent / "data" / "audioset.tsv"


def load_vocabulary(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The entries of a vocabulary, in order, each once.

    `spec` is a sequence of entries, the name `audioset` (its 527 display names) or the path of a UTF-8 text file
    with one entry a line (blank lines and lines that start with # are skipped). Raises InputError for an unreadable
    or empty one.
    """
    if spec == "audioset":
        return _audioset()
    if isinstance(spec, str):
        return _from_file(Path(spec).expanduser())
    if not all(isinstance(entry, str) for entry in spec):
        raise InputError("a vocabulary is a list of words; put quotes around entries that YAML reads otherwise")
    return _tidy(spec, "the given vocabulary")


def _from_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the vocabulary '{path}' cannot be read as a text file ({type(error).__name__}); "
            "give 'audioset', a list of words, or a UTF-8 file with one entry a line"
        ) from error
    return _tidy((line for line in text.splitlines() if not line.lstrip().startswith("#")), f"the vocabulary '{path}'")


@cache
def _audioset() -> tuple[str, ...]:
    """The first column of the packaged table (label, tab, sounding things)."""
    lines = _AUDIOSET.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t")[0] for line in lines if not line.startswith("#"))
    return _tidy((label for label in rows if label != "label"), "the AudioSet vocabulary")


def _tidy(entries: Iterable[str], name: str) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(" ".join(entry.split()) for entry in entries if entry.strip()))
    if not kept:
        raise InputError(f"{name} is empty; it needs at least one entry")
    return kept
