"""Translators without a model: the lexicon and the captions themselves."""

from __future__ import annotations

import pytest

from openavs.stages.translators.base import Request, Translator
from openavs.stages.translators.lexicon_translator import IdentityTranslator, LexiconTranslator
from tests.stages.translators.captions import request


def test_the_caption_with_the_best_score_is_first() -> None:
    clip = request([("bell ringing", 0.2), ("dog barking", 0.9), "cat meowing", ("bark", 0.8)], [])

    assert LexiconTranslator().translate([clip])[0].frames == (("dog", "bell", "cat"), ())
    assert LexiconTranslator(max_phrases=1).translate([clip])[0].frames == (("dog",), ())


def test_a_vocabulary_limits_the_lexicon_and_adds_its_own_words() -> None:
    clip = request(["dog barking"], ["a theremin-like kazoo"], ["car"], vocabulary=("Dog", "kazoo"))

    assert LexiconTranslator().translate([clip])[0].frames == (("Dog",), ("kazoo",), ())


def test_the_lexicon_needs_no_attempts() -> None:
    translation = LexiconTranslator().translate([request(["Bark"])])[0]

    assert (translation.origin, translation.attempts, translation.note) == ("lexicon", 0, None)
    assert isinstance(LexiconTranslator(), Translator) and isinstance(IdentityTranslator(), Translator)
    assert LexiconTranslator().translate([Request(())])[0].frames == ()


def test_identity_translator_returns_captions_as_phrases() -> None:
    clip = request(["A dog is barking. Loudly!", "a dog is barking. loudly"], ["x" * 300], ["\x00."], [])
    translation = IdentityTranslator().translate([clip])[0]

    assert translation.frames == (("a dog is barking loudly",), ("x" * 80,), (), ())
    assert translation.origin == "none"


def test_identity_translator_keeps_to_a_vocabulary() -> None:
    clip = request(["dog barking", "bell"], vocabulary=("bell",))

    assert IdentityTranslator().translate([clip])[0].frames == (("bell",),)


@pytest.mark.parametrize(
    ("captions", "phrases"),
    [
        (["Animal", "Dog", "Domestic animals, pets"], ("dog",)),
        (["Domestic animals, pets"], ("dog", "cat")),
        (["Vehicle", "Car", "Lawn mower"], ("car", "mower")),
        (["Music", "Violin, fiddle"], ("violin",)),
        (["Music", "Dog"], ("musical instrument", "dog")),
        (["Speech", "Baby laughter"], ("baby",)),
        (["an animal", "a dog barks"], ("dog",)),
        (["Jazz", "Sad music"], ()),
    ],
)
def test_categories_add_nothing_to_their_members(captions: list[str], phrases: tuple[str, ...]) -> None:
    assert LexiconTranslator().translate([request(captions)])[0].frames[0] == phrases


def test_a_genre_stands_for_an_instrument_only_on_request() -> None:
    on = LexiconTranslator(genre_instruments=True)
    assert on.translate([request(["Jazz"])])[0].frames == (("musical instrument",),)
    assert on.translate([request(["Jazz", "Trumpet"])])[0].frames == (("trumpet",),)
    assert on.translate([request(["Rain"])])[0].frames == ((),)
