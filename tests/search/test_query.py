"""Queries: words in any form, other names of a thing, conditions on time, and the merging of what overlaps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.search.query import Hit, SoundIndex, fts_queries
from openavs.search.sound_index import update_index
from tests.search.conftest import BOX, Sound, write_run


@pytest.fixture
def sounds(index: Path) -> Iterator[SoundIndex]:
    with SoundIndex(index) as opened:
        yield opened


def clips(sounds: SoundIndex, query: str, **conditions: Any) -> list[str]:
    return [hit.clip for hit in sounds.find(query, **conditions).hits]


def test_a_hit_merges_the_sound_and_the_thing_that_makes_it(sounds: SoundIndex, tmp_path: Path) -> None:
    hit = sounds.find("dog", limit=1).hits[0]
    expected = Hit("room", 0.0, 2.0, "Bark", 0.9, tmp_path / "home", False, None, None, 0, 0.5, None, 6.0)
    assert hit == expected
    hit = sounds.find("dog barking").hits[1]  # after "Bark": 0.9 * 0.9
    expected = Hit("yard", 1.0, 4.0, "dog barking", 0.8, tmp_path / "home", True, None, 0, 3, 3.5, BOX, 6.0)
    assert hit == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("a dog that barks", []),  # no text has the word "that"
        ("barks", ["room", "yard"]),
        ("the barking of a dog", ["room", "yard"]),  # "Bark" is a dog's
        ("DOG", ["room", "yard", "street"]),  # "puppy" is a dog, too
        ("puppies", ["room", "yard", "street"]),
        ("animal", ["room", "yard", "street"]),
        ("ambulance", ["street"]),
        ("instrument", ["room"]),  # a label
        ("door", ["yard"]),
        ("dog door", []),
    ],
)
def test_words_and_other_names(sounds: SoundIndex, query: str, expected: list[str]) -> None:
    assert sorted(clips(sounds, query)) == sorted(expected)


def test_words_count_more_than_the_lexicon(sounds: SoundIndex) -> None:
    scores = {hit.phrase: round(hit.score, 3) for hit in sounds.find("barking").hits}
    assert scores == {"Bark": 0.9, "dog barking": 0.8}
    assert round(sounds.find("dog", runs=["town"]).hits[0].score, 3) == 0.45  # 0.9 * 0.5


def test_only_what_is_seen(sounds: SoundIndex) -> None:
    assert clips(sounds, "barking", seen=True) == ["yard"]
    hit = sounds.find("barking", seen=True).hits[0]
    assert hit.phrase == "dog" and hit.seen


def test_a_second_sound_at_the_same_time(sounds: SoundIndex) -> None:
    assert clips(sounds, "dog", both=["door"]) == ["yard"]
    assert clips(sounds, "dog", both=["music"]) == ["room"]
    assert clips(sounds, "dog", both=["music", "door"]) == []


def test_no_second_sound_at_the_same_time(sounds: SoundIndex) -> None:
    assert clips(sounds, "dog", without=["music"]) == ["yard", "street"]
    assert clips(sounds, "dog", without=["dog"]) == []


def test_times_may_be_apart(sounds: SoundIndex) -> None:
    assert clips(sounds, "puppy", both=["siren"]) == []
    assert clips(sounds, "puppy", both=["siren"], within=1.5) == ["street"]
    assert clips(sounds, "puppy", both=["siren"], within=math.inf) == ["street"]
    assert clips(sounds, "dog", without=["siren"], within=math.inf) == ["room", "yard"]


def test_runs_by_name_or_path(sounds: SoundIndex, home: Path) -> None:
    assert clips(sounds, "dog", runs=["town"]) == ["street"]
    assert clips(sounds, "dog", runs=[str(home)]) == ["room", "yard"]
    with pytest.raises(InputError, match="has no run 'hime'; did you mean 'home'"):
        sounds.find("dog", runs=["hime"])


def test_the_limit_keeps_the_best_and_the_total(sounds: SoundIndex) -> None:
    result = sounds.find("dog", limit=2)
    assert result.total == 3 and [hit.clip for hit in result.hits] == ["room", "yard"]


def test_spans_of_one_clip_that_do_not_touch_stay_apart(tmp_path: Path) -> None:
    bells = [Sound("Bell", "bell", 0, 2), Sound("church bell", "bell", 1, 3, score=0.9), Sound("Bell", "bell", 5, 6)]
    update_index(tmp_path / "x.db", [write_run(tmp_path / "run", clip=bells)])
    with SoundIndex(tmp_path / "x.db") as index:
        assert [(h.start, h.end, h.phrase) for h in index.find("bell").hits] == [
            (0.0, 3.0, "church bell"),
            (5.0, 6.0, "Bell"),
        ]


def test_quotes_and_operators_are_words_like_others(sounds: SoundIndex) -> None:
    assert clips(sounds, 'dog" OR text : "music') == []
    assert clips(sounds, "NOT") == clips(sounds, "dog*") == [] or clips(sounds, "dog*") == clips(sounds, "dog")
    assert fts_queries("the dog")[0] == 'text : ("dog")'


def test_a_query_without_matches_gets_a_suggestion(sounds: SoundIndex) -> None:
    assert sounds.suggestion("sirenn") == "did you mean 'Siren'?"
    assert sounds.suggestion("dog growling").startswith("the index has 'dog")


@pytest.mark.parametrize(
    ("conditions", "sentence"),
    [
        ({"query": "?!"}, "has no words"),
        ({"query": "dog", "both": [""]}, "has no words"),
        ({"query": "dog", "within": -1.0}, "from 0 on"),
        ({"query": "dog", "similar": 2.0}, r"in \[-1, 1\]"),
        ({"query": "dog", "similar": 0.5}, "has no text embeddings; add them with: openavs index"),
    ],
)
def test_wrong_conditions_are_one_sentence(sounds: SoundIndex, conditions: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        sounds.find(**conditions)
