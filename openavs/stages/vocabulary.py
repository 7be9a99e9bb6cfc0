"""Closed vocabularies: their entries, and the mapping of phrases to them by name, alias, lexicon, similarity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.lexicon import (
    audioset_labels,
    broader,
    invisible_sound,
    lexicon,
    narrower,
    normalize_phrase,
    source_of,
    stem,
)

AUDIOSET, THINGS = "audioset", "audioset-things"

# Man, woman and child are not kinds of these in the lexicon, yet each of them may be meant.
_IMPLY_PERSON = frozenset({"singer", "choir", "crowd", "hand"})


def load_vocabulary(spec: str | Sequence[str]) -> tuple[str, ...]:
    """Load the entries of a vocabulary, in order and without duplicates.

    Args:
        spec: a sequence of entries; `audioset` (its 527 display names); `audioset-things` (those that name something
            visible, and the few that stand for rain, wind, noise and the like); or the path of a UTF-8 text file with
            one entry per line, in which blank lines and lines that start with # are skipped.

    Raises:
        InputError: an unreadable or empty vocabulary.
    """
    if spec == AUDIOSET:
        return audioset_labels()
    if spec == THINGS:
        return tuple(label for label in audioset_labels() if lexicon(label) or invisible_sound(label))
    if isinstance(spec, str):
        return _load_file(Path(spec).expanduser())
    if not all(isinstance(entry, str) for entry in spec):
        raise InputError("a vocabulary is a list of words; put quotes around entries that YAML reads otherwise")
    return _distinct(spec, "the given vocabulary")


def _load_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the vocabulary '{path}' cannot be read as a text file ({type(error).__name__}); "
            "give 'audioset-things', a list of words, or a UTF-8 file with one entry per line"
        ) from error
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return _distinct(lines, f"the vocabulary '{path}'")


def _distinct(entries: Iterable[str], name: str) -> tuple[str, ...]:
    kept = tuple(dict.fromkeys(" ".join(entry.split()) for entry in entries if entry.strip()))
    if not kept:
        raise InputError(f"{name} is empty; it needs at least one entry")
    return kept


def match_classes(phrase: str, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that a phrase stands for, spelled as in the vocabulary; empty without a match.

    The first rule that matches decides: the class itself (ignoring case, hyphens and plural), another name of the same
    thing (puppy -> dog), a broader term (ambulance -> emergency-car), its last words (toy piano -> piano) and, for a
    general word, the classes that are narrower (person -> man, woman).
    """
    classes: dict[str, str] = {}
    for word in vocabulary:
        classes.setdefault(plain_key(word), word)

    def known(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(classes[plain_key(name)] for name in names if plain_key(name) in classes))

    names = [phrase, *lexicon(phrase)]
    nearest = known(_closure(names, broader))[:1] or known(_suffixes(phrase))[:1]
    general = [*names, "person"] if _IMPLY_PERSON.intersection(names) else names
    return known([phrase]) or known(names) or nearest or known(_closure(general, narrower))


def classes_in_text(text: str, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """Return the classes whose name appears in a text, in the order of the vocabulary."""
    words = f" {plain_key(text)} "
    return tuple(dict.fromkeys(word for word in vocabulary if plain_key(word) and f" {plain_key(word)} " in words))


def plain_key(text: str) -> str:
    """Return the stems of a text's words: equal for names that differ in case, hyphens and endings only."""
    return " ".join(map(stem, normalize_phrase(text).split()))


def _closure(names: Sequence[str], step: Callable[[str], tuple[str, ...]]) -> list[str]:
    """The names and everything that repeated steps reach, nearest first."""
    reached, queue = dict.fromkeys(names), list(names)
    while queue:
        for name in step(queue.pop(0)):
            if name not in reached:
                reached[name] = None
                queue.append(name)
    return list(reached)


def _suffixes(phrase: str) -> list[str]:
    words = normalize_phrase(phrase).split()
    return [" ".join(words[start:]) for start in range(1, len(words))]


Similarity = Callable[[Sequence[str], Sequence[str]], npt.NDArray[np.float32]]
"""Cosine similarities `[phrases, labels]` of texts."""

MIN_SIMILARITY = 0.8
"""Least similarity of a phrase and the label that it gets."""


class ClassMapper:
    """Maps phrases to the labels of a closed vocabulary and records how.

    A detector's name of a class ("electric fan") gets the label of the class ("fan").

    Args:
        vocabulary: the labels; None for open vocabulary, in which phrases have no label.
        aliases: further phrases of a label.
        similarity: text similarity for phrases that no rule maps; None leaves those without a label. A match has a
            cosine similarity of at least `MIN_SIMILARITY`.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | None,
        aliases: Mapping[str, str] | None = None,
        similarity: Similarity | None = None,
    ) -> None:
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        self._names = {plain_key(label): label for label in self.vocabulary or ()}
        self._aliases = {plain_key(phrase): label for phrase, label in (aliases or {}).items()}
        self._similarity = similarity
        self._mapped: dict[str, tuple[str | None, str | None]] = {}

    def __call__(self, phrase: str) -> tuple[str | None, str | None]:
        """Return the label and the rule (`exact`, `alias`, `lexicon`, `similarity`); (None, None) without a match."""
        if self.vocabulary is None:
            return None, None
        if phrase not in self._mapped:
            self._mapped[phrase] = self._find(phrase)
        return self._mapped[phrase]

    def _find(self, phrase: str) -> tuple[str | None, str | None]:
        thing = source_of(phrase)
        for key in map(plain_key, (phrase, thing)):
            for how, table in (("exact", self._names), ("alias", self._aliases)):
                if key in table:
                    return table[key], how
        if matches := match_classes(thing, self.vocabulary or ()):
            return matches[0], "lexicon"
        if self._similarity is not None and self.vocabulary:
            row = self._similarity([phrase], self.vocabulary)[0]
            if row.max() >= MIN_SIMILARITY:
                return self.vocabulary[int(row.argmax())], "similarity"
        return None, None
