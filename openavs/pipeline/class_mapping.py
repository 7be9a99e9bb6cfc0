"""Mapping of open-vocabulary phrases to the classes of a vocabulary: by name, alias, lexicon, similarity."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from openavs.stages.lexicon import source_of
from openavs.stages.vocabulary import match_classes, plain_key

Similarity = Callable[[Sequence[str], Sequence[str]], npt.NDArray[np.float32]]
"""Cosine similarities `[phrases, labels]` of texts."""


class ClassMapper:
    """Maps phrases to the labels of a closed vocabulary and records how.

    A detector's name of a class ("electric fan") gets the label of the class ("fan").

    Args:
        vocabulary: the labels; None for open vocabulary, in which phrases have no label.
        aliases: further phrases of a label.
        similarity: text similarity for phrases that no rule maps; None leaves those without a label.
        threshold: the least cosine similarity of a match.
    """

    def __init__(
        self,
        vocabulary: Sequence[str] | None,
        aliases: Mapping[str, str] | None = None,
        similarity: Similarity | None = None,
        threshold: float = 0.8,
    ) -> None:
        self.vocabulary = None if vocabulary is None else tuple(vocabulary)
        self._names = {plain_key(label): label for label in self.vocabulary or ()}
        self._aliases = {plain_key(phrase): label for phrase, label in (aliases or {}).items()}
        self._similarity, self._threshold = similarity, threshold
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
            if row.max() >= self._threshold:
                return self.vocabulary[int(row.argmax())], "similarity"
        return None, None
