"""What is taken from a model's answer, and what is not."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings, strategies as st

from openavs.stages.translators import parsing as answers
from openavs.stages.translators.parsing import AnswerSchema, ParseError, parse_answer

PLAIN = '{"frames": [["dog"], [], ["dog", "man"]]}'
EXPECTED = (("dog",), (), ("dog", "man"))


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        json.dumps(json.loads(PLAIN), indent=2),
        f"Sure! Here it is:\n```json\n{PLAIN}\n```\nLet me know if I [can] help {{further}}.",
        f"<think>Maybe {{'frames': [['cat']]}}, or\n{PLAIN.replace('dog', 'cat')}</think>\n{PLAIN}",
        f'The format is {{"frames": [["..."], []]}}. My answer:\n{PLAIN}',
        '[["dog"], [], ["dog", "man"]]',
        '{"note": [1, 2], "frames": ["dog", null, ["dog", "man"]]}',
        '{"frames": [["  The Dog. "], [], ["a dog", "MAN", "dog"]]}',
    ],
)
def test_answers_that_are_understood(text: str) -> None:
    assert parse_answer(text, AnswerSchema(3)) == EXPECTED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", answers.EMPTY),
        (" \n ", answers.EMPTY),
        ("<think>a dog, I would say</think>", answers.EMPTY),
        ("I'm sorry, but I can't help with that.", answers.REFUSED),
        ("As an AI I am not able to listen.", answers.REFUSED),
        ("There is a dog.", answers.NO_JSON),
        (PLAIN[:-4], answers.TRUNCATED),
        (PLAIN[:12], answers.TRUNCATED),
        ('{"frames": [["dog"], [], ["dog" "man"]]}', answers.TRUNCATED),
        ("[" * 50_000, answers.TRUNCATED),
        ('{"frames": [["dog"], [], [7]]}', answers.WRONG_SHAPE),
        ('{"frames": {"0": ["dog"]}}', answers.WRONG_SHAPE),
        ('{"frame": [["dog"], [], []]}', answers.WRONG_SHAPE),
        ("<!DOCTYPE html><p>502 Bad Gateway</p>", answers.NO_JSON),
        ('{"frames": [["dog"], []]}', "the answer has 2 frames instead of 3"),
        ('{"frames": []}', "the answer has 0 frames instead of 3"),
        ('{"frames": [["/etc/passwd"], [], []]}', answers.UNUSABLE),
    ],
)
def test_answers_that_are_not_say_why(text: str, reason: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse_answer(text, AnswerSchema(3))
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "phrase",
    [
        "/etc/passwd", "../../x", "rm -rf", "dog; cat", "dog.", "<b>dog</b>", "dog\ncat", "b4", "x" * 41,
        "a very large brown barking dog", "собака", "-dog", "", "silence", "Music", "none", "n/a", "Unknown",
    ],
)  # fmt: skip
def test_what_is_no_short_noun_phrase_is_left_out(phrase: str) -> None:
    kept = parse_answer(json.dumps({"frames": [["bell", phrase]]}), AnswerSchema(1))[0]

    assert kept in {("bell",), ("bell", "dog"), ("bell", "dog cat")}  # only what is left after tidying


@pytest.mark.parametrize("phrase", ["police car", "jack-in-the-box", "driver's horn", "dogs' toy", "café"])
def test_short_noun_phrases_stay(phrase: str) -> None:
    assert parse_answer(json.dumps({"frames": [[phrase]]}), AnswerSchema(1)) == ((phrase.replace("é", "e"),),)


def test_naming_nothing_is_an_answer() -> None:
    assert parse_answer('{"frames": [[], ["music"], ["none", ""]]}', AnswerSchema(3)) == ((), (), ())


def test_at_most_so_many_phrases() -> None:
    text = '{"frames": [["a", "bell", "cat", "dog", "egg", "fan"]]}'

    assert parse_answer(text, AnswerSchema(1, max_phrases=3)) == (("a", "bell", "cat"),)


def test_a_vocabulary_closes_the_answer_in_its_own_spelling() -> None:
    text = '{"frames": [["Dogs", "puppy", "ambulance", "toaster"], ["hair dryer"]]}'

    assert parse_answer(text, AnswerSchema(2, vocabulary=("dog", "emergency-car", "Hair-Dryer"))) == (
        ("dog", "emergency-car"),
        ("Hair-Dryer",),
    )


def test_a_vocabulary_may_hold_what_no_open_answer_may() -> None:
    form = AnswerSchema(1, vocabulary=("r2-d2", "music"))

    assert parse_answer('{"frames": [["R2-D2", "music"]]}', form) == (("r2-d2", "music"),)


def test_an_answer_wholly_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ParseError) as raised:
        parse_answer('{"frames": [["toaster"]]}', AnswerSchema(1, vocabulary=("dog",)))
    assert raised.value.reason == answers.NOT_IN_VOCABULARY


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["frames", "x", "0", "1"]), inner),
    max_leaves=12,
)
NEAR_MISSES = st.text(alphabet='{}[]":, \\n`framesdog0/', max_size=80)


@settings(deadline=None)
@given(
    st.one_of(st.text(), NEAR_MISSES, JSON.map(json.dumps)),
    st.integers(0, 4),
    st.none() | st.lists(st.text(), max_size=3).map(tuple),
    st.booleans(),
)
def test_whatever_comes_back_the_result_is_checked_phrases_or_an_answer_error(
    text: str, count: int, vocabulary: tuple[str, ...] | None, by_runs: bool
) -> None:
    try:
        kept = parse_answer(text, AnswerSchema(count, 2, vocabulary, by_runs))
    except ParseError as error:
        assert error.reason
        return
    assert len(kept) == count
    assert any(phrases is not None for phrases in kept) if by_runs else None not in kept
    for phrases in filter(None, kept):
        assert len(set(phrases)) == len(phrases) <= 2
        for phrase in phrases:
            assert phrase in vocabulary if vocabulary is not None else re.fullmatch(r"[a-z][a-z' -]{0,39}", phrase)


@settings(deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["dog", "bell", "police car"]), max_size=3, unique=True), max_size=5), st.text()
)
def test_good_json_is_found_among_chatter(rows: list[list[str]], chatter: str) -> None:
    plain = re.sub(r"[\[{<]", "", chatter)

    assert parse_answer(plain + json.dumps({"frames": rows}) + plain, AnswerSchema(len(rows))) == tuple(
        map(tuple, rows)
    )


# ---------------------------------------------------------------------------------------------------- answers by runs

BY_RUNS = AnswerSchema(3, by_runs=True)
KEYED = '{"0": ["dog"], "1": [], "2": ["dog", "man"]}'


@pytest.mark.parametrize(
    "text",
    [
        KEYED,
        json.dumps(json.loads(KEYED), indent=2),
        f"Sure! Here it is:\n```json\n{KEYED}\n```\nLet me know if I [can] help {{further}}.",
        f"<think>{KEYED.replace('dog', 'cat')}</think>\n{KEYED}",
        f'The format is {{"0": ["..."], "1": []}}. My answer:\n{KEYED}',
        '{"2": ["A Dog", "man"], "1": null, "0": "dog"}',
        KEYED[:-1] + ', "3": ["cat"], "00": ["cat"], "-1": ["cat"], "frames": [["cat"]], "why": {"0": ["cat"]}}',
        KEYED[:-1] + f', "{"9" * 50_000}": ["cat"]}}',
        '{"0": ["cat"], "0": ["dog"], "1": [], "2": ["dog", "man"]}',
    ],
)
def test_runs_are_read_by_their_keys_and_others_are_ignored(text: str) -> None:
    assert parse_answer(text, BY_RUNS) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        '{"0": ["dog"], "1": []}',
        '{"0": ["dog"], "1": [], "2": {"0": ["cat"]}}',
        '{"0": ["dog"], "1": [], "2": [["cat"]]}',
        '{"0": ["dog"], "1": [], "2": 7}',
        '{"0": ["dog"], "1": ["music"], "2": ["/etc/passwd", "rm -rf"]}',
        '{"0": ["dog"], "1": [], "2": ["ca',
        '{"0": ["dog"], "1": [], "2": ' + '{"2": ' * 10_000,
        'The format is {"0": ["x y z w v"]}. {"0": ["dog"], "1": [], "2": ["man", "do',
    ],
)
def test_a_run_that_is_missing_or_malformed_does_not_spoil_the_others(text: str) -> None:
    assert parse_answer(text, BY_RUNS) == (("dog",), (), None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"3": ["dog"]}', answers.WRONG_SHAPE),
        ('{"runs": {"0": ["dog"]}}', answers.WRONG_SHAPE),
        ('[["dog"], [], ["dog", "man"]]', answers.WRONG_SHAPE),
        (PLAIN, answers.WRONG_SHAPE),
        ('{"0": 1, "1": {}, "2": [null]}', answers.WRONG_SHAPE),
        ('{"0": ["../../etc/passwd"], "2": ["7"]}', answers.UNUSABLE),
        ('{"0": ["do', answers.TRUNCATED),
        ('{"0": ' * 20_000, answers.TRUNCATED),
        ('{"0": ' + "9" * 50_000 + "}", answers.TRUNCATED),
    ],
)
def test_an_answer_without_any_usable_run_says_why(text: str, reason: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse_answer(text, BY_RUNS)
    assert raised.value.reason == reason


def test_a_run_outside_the_vocabulary_is_left_to_the_lexicon() -> None:
    form = AnswerSchema(2, vocabulary=("dog", "bell"), by_runs=True)

    assert parse_answer('{"0": ["toaster"], "1": ["puppy"]}', form) == (None, ("dog",))
