"""Closed lists of sounds or things: by name, from a text file, or as given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from openavs.errors import InputError
from openavs.stages.lexicon import audioset_labels, lexicon, rejected_sound

AUDIOSET, THINGS = "audioset", "audioset-things"


def load_vocabulary(spec: str | Sequence[str]) -> tuple[str, ...]:
    """The entries of a vocabulary, in order, each once.

    `spec` is a sequence of entries, a name or the path of a UTF-8 text file with one entry a line (blank lines and
    lines that start with # are skipped). The names are `audioset` (its 527 display names) and `audioset-things` (those
    that name something visible, and the few that stand for rain, wind, noise and the like).

    Raises:
        InputError: an unreadable or empty vocabulary.
    """
    if spec == AUDIOSET:
        return audioset_labels()
    if spec == THINGS:
        return tuple(label for label in audioset_labels() if lexicon(label) or rejected_sound(label))
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
            "give 'audioset-things', a list of words, or a UTF-8 file with one entry a line"
        ) from error
    return _tidy((line for line in text.splitlines() if not line.lstrip().startswith("#")), f"the vocabulary '{path}'")


def _tidy(entries: Iterable[str], name: str) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(" ".join(entry.split()) for entry in entries if entry.strip()))
    if not kept:
        raise InputError(f"{name} is empty; it needs at least one entry")
    return kept
