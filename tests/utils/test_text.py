"""The words of sentences: what was meant, and how many of it."""

from __future__ import annotations

import pytest

from openavs.utils.text import did_you_mean, pluralize, printable


def test_a_name_that_is_nearly_right_is_guessed() -> None:
    assert did_you_mean("Tinny", ["tiny", "openavs"]) == "did you mean 'tiny'?"


def test_a_name_that_is_like_none_gets_them_all_or_where_they_are_listed() -> None:
    assert did_you_mean("zebra", ["tiny", "openavs"]) == "there are openavs, tiny"
    assert did_you_mean("zebra", ["tiny"], "see 'openavs list'") == "see 'openavs list'"
    assert did_you_mean("zebra", []) == "there are none"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((0, "clip"), "0 clips"),
        ((1, "clip"), "1 clip"),
        ((3700, "frame"), "3,700 frames"),
        ((1, "entry", "entries"), "1 entry"),
        ((2, "entry", "entries"), "2 entries"),
        ((2.0, "processor"), "2 processors"),
        ((1.5, "processor"), "1.5 processors"),
    ],
)
def test_a_number_has_its_thing_in_the_singular_or_the_plural(words: tuple[float, str], said: str) -> None:
    assert pluralize(*words) == said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;owned\x07\x1b[2J\r", r"\x1b]0;owned\x07\x1b[2J\r"),
        ("\x9b2J\x7f\x00", r"\x9b2J\x7f\x00"),
        ("gpj\u202e\u2066.mp4\u2028", r"gpj\u202e\u2066.mp4\u2028"),
        ("caf\udce9.mp4", r"caf\udce9.mp4"),
        ("Stra\u00dfe \u72ac \U0001f415\n\tdog", "Stra\u00dfe \u72ac \U0001f415\n\tdog"),
    ],
)
def test_characters_that_a_terminal_would_obey_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
