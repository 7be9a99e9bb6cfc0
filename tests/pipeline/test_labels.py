"""From phrases to the labels of a closed vocabulary, and how they were found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from openavs.stages.vocabulary import ClassMapper


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", ("dog", "exact")),
        ("Dog", ("dog", "exact")),
        ("dogs", ("dog", "exact")),
        ("missile rocket", ("missile-rocket", "exact")),
        ("cur", ("dog", "alias")),
        ("puppy", ("dog", "lexicon")),
        ("barking dog", ("dog", "lexicon")),
        ("teapot", (None, None)),
        ("buses", ("bus", "exact")),
        ("bus", ("bus", "exact")),
    ],
)
def test_names_then_aliases_then_the_lexicon(phrase: str, expected: tuple[str | None, str | None]) -> None:
    label = ClassMapper(["dog", "missile-rocket", "bus"], {"cur": "dog"})
    assert label(phrase) == expected


def test_the_name_that_detectors_know_has_the_label_of_its_thing() -> None:
    label = ClassMapper(["ventilator", "baby"], {"fan": "ventilator"})
    assert label("electric fan") == label("fan") == ("ventilator", "alias")
    assert label("baby rattle") == label("rattle") == (None, None)


def test_an_open_vocabulary_labels_nothing() -> None:
    assert ClassMapper(None)("dog") == (None, None)


def test_similarity_comes_last_and_must_reach_the_threshold() -> None:
    asked: list[str] = []

    def similarity(phrases: Sequence[str], labels: Sequence[str]) -> np.ndarray:
        asked.extend(phrases)
        return np.array([[0.9 if p == "snout" else 0.3, 0.1] for p in phrases], dtype=np.float32)

    label = ClassMapper(["dog", "bell"], similarity=similarity)
    assert label("bell") == ("bell", "exact")
    assert label("snout") == ("dog", "similarity")
    assert label("teapot") == (None, None)
    assert label("snout") == ("dog", "similarity")
    assert asked == ["snout", "teapot"]  # once each, and never for what a rule knows
