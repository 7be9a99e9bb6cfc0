"""Closed vocabularies: which of the user's classes a phrase stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from openavs.stages.lexicon import broader, lexicon, narrower, normalize_phrase, stem

_ANYBODY = frozenset({"singer", "choir", "crowd", "hand"})  # of whom man, woman or child are no kinds, yet parts


def match_classes(phrase: str, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The classes a phrase stands for, spelt as the vocabulary spells them; empty where there is none.

    Tried in turn, the first that answers counts: the class itself (case, hyphens and plural apart), another name of
    the same thing (puppy -> dog), what it is a kind of (ambulance -> emergency-car), its last words (toy piano ->
    piano) and, for a general word, the classes that are kinds of it (person -> man, woman).
    """
    classes: dict[str, str] = {}
    for word in vocabulary:
        classes.setdefault(plain_key(word), word)

    def known(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(classes[plain_key(name)] for name in names if plain_key(name) in classes))

    names = [phrase, *lexicon(phrase)]
    nearest = known(_closure(names, broader))[:1] or known(_heads(phrase))[:1]
    general = [*names, "person"] if _ANYBODY.intersection(names) else names
    return known([phrase]) or known(names) or nearest or known(_closure(general, narrower))


def classes_in_text(text: str, vocabulary: Sequence[str]) -> tuple[str, ...]:
    """The classes whose name stands in a text, in the order of the vocabulary."""
    words = f" {plain_key(text)} "
    return tuple(dict.fromkeys(word for word in vocabulary if plain_key(word) and f" {plain_key(word)} " in words))


def plain_key(text: str) -> str:
    """The words of a text without case, hyphens and endings: what equal names have in common."""
    return " ".join(map(stem, normalize_phrase(text).split()))


def _closure(names: Sequence[str], step: Callable[[str], tuple[str, ...]]) -> list[str]:
    """The names and everything that repeated steps lead to, nearest first."""
    seen, queue = dict.fromkeys(names), list(names)
    while queue:
        for name in step(queue.pop(0)):
            if name not in seen:
                seen[name] = None
                queue.append(name)
    return list(seen)


def _heads(phrase: str) -> list[str]:
    words = normalize_phrase(phrase).split()
    return [" ".join(words[start:]) for start in range(1, len(words))]
