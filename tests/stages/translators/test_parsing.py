"""Answers of language models: the parser, the JSON schema and the maximum tokens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from openavs.evaluation.benchmark import load_benchmark
from openavs.models.chat_api.endpoint import ParseError
from openavs.stages.lexicon import audioset_labels, lexicon
from openavs.stages.translators import parsing as answers
from openavs.stages.translators.parsing import AnswerSchema, parse_answer

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
def test_valid_answers_are_parsed(text: str) -> None:
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
def test_invalid_answers_have_a_reason(text: str, reason: str) -> None:
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
def test_anything_but_a_short_noun_phrase_is_removed(phrase: str) -> None:
    kept = parse_answer(json.dumps({"frames": [["bell", phrase]]}), AnswerSchema(1))[0]

    assert kept in {("bell",), ("bell", "dog"), ("bell", "dog cat")}  # only what is left after tidying


@pytest.mark.parametrize("phrase", ["police car", "jack-in-the-box", "driver's horn", "dogs' toy", "café"])
def test_short_noun_phrases_stay(phrase: str) -> None:
    assert parse_answer(json.dumps({"frames": [[phrase]]}), AnswerSchema(1)) == ((phrase.replace("é", "e"),),)


def test_naming_nothing_is_an_answer() -> None:
    assert parse_answer('{"frames": [[], ["music"], ["none", ""]]}', AnswerSchema(3)) == ((), (), ())


def test_the_number_of_phrases_is_limited() -> None:
    text = '{"frames": [["a", "bell", "cat", "dog", "egg", "fan"]]}'

    assert parse_answer(text, AnswerSchema(1, max_phrases=3)) == (("a", "bell", "cat"),)


def test_a_vocabulary_closes_the_answer_in_its_own_spelling() -> None:
    text = '{"frames": [["Dogs", "puppy", "ambulance", "toaster"], ["hair dryer"]]}'

    assert parse_answer(text, AnswerSchema(2, vocabulary=("dog", "emergency-car", "Hair-Dryer"))) == (
        ("dog", "emergency-car"),
        ("Hair-Dryer",),
    )


def test_a_vocabulary_may_contain_words_that_are_otherwise_removed() -> None:
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
def test_any_text_gives_valid_phrases_or_a_parse_error(
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
def test_json_is_found_within_other_text(rows: list[list[str]], chatter: str) -> None:
    plain = re.sub(r"[\[{<]", "", chatter)

    assert parse_answer(plain + json.dumps({"frames": rows}) + plain, AnswerSchema(len(rows))) == tuple(
        map(tuple, rows)
    )


# ------------------------------------------------------------------------------------------------------ answers by runs

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
def test_a_missing_or_malformed_run_does_not_affect_the_others(text: str) -> None:
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
def test_an_answer_without_any_usable_run_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(ParseError) as raised:
        parse_answer(text, BY_RUNS)
    assert raised.value.reason == reason


def test_a_run_outside_the_vocabulary_is_left_to_the_lexicon() -> None:
    form = AnswerSchema(2, vocabulary=("dog", "bell"), by_runs=True)

    assert parse_answer('{"0": ["toaster"], "1": ["puppy"]}', form) == (None, ("dog",))


# --------------------------------------------------------------------------------------------------------------- schema


ROOT = Path(__file__).resolve().parents[3]
AVSS = tuple(load_benchmark("avss").classes[1:])
THINGS = tuple(dict.fromkeys(thing for label in audioset_labels() for thing in lexicon(label)))
LETTERS_40 = tuple(f"rechargeable electric lawn trimmer m{word}" for word in ("otor", "iter", "aker", "over"))
JAPANESE = ("犬が吠える音", "救急車のサイレン", "アコースティックギター", "掃除機")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level byte-pair encoding of 8000 tokens, made from the documentation; language models have many more."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pages = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    made.train_from_iterator(pages, trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet))
    return made


def test_the_schema_of_runs_requires_every_key_and_allows_no_other() -> None:
    schema = AnswerSchema(3, 2, by_runs=True).to_json_schema()

    assert schema["required"] == list(schema["properties"]) == ["0", "1", "2"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["2"] == {
        "type": "array",
        "maxItems": 2,
        "items": {"type": "string", "pattern": "^[a-z][a-z '-]{0,39}$"},
    }
    assert len(AnswerSchema(12, by_runs=True).to_json_schema()["properties"]) == 12


def test_the_schema_of_frames_is_one_list() -> None:
    schema = AnswerSchema(3, 2, ("dog", "bell")).to_json_schema()

    assert schema["required"] == ["frames"]
    assert schema["properties"]["frames"] == {
        "type": "array",
        "minItems": 3,
        "maxItems": 3,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "string", "enum": ["dog", "bell"]}},
    }


@pytest.mark.parametrize("max_phrases", [1, 4, 8])
@pytest.mark.parametrize("runs", [1, 5, 12])
@pytest.mark.parametrize(
    ("words", "vocabulary"),
    [(THINGS, None), (LETTERS_40, None), (AVSS, AVSS), (JAPANESE, JAPANESE)],
    ids=["things", "40 letters", "avss", "japanese"],
)
@pytest.mark.parametrize("by_runs", [True, False])
def test_the_longest_answer_fits_the_maximum_tokens(
    tokenizer: Tokenizer,
    words: tuple[str, ...],
    vocabulary: tuple[str, ...] | None,
    runs: int,
    max_phrases: int,
    by_runs: bool,
) -> None:
    longest = sorted(words, key=lambda word: len(tokenizer.encode(f' "{word}",').ids), reverse=True)
    form = AnswerSchema(runs, max_phrases, vocabulary, by_runs)
    rows = [longest[:max_phrases]] * runs
    answer = dict(zip(form.keys, rows, strict=True)) if by_runs else {"frames": rows}
    texts = [f"```json\n{json.dumps(answer, ensure_ascii=False, indent=indent)}\n```" for indent in (None, 1)]
    counts = [len(tokenizer.encode(text).ids) for text in texts]

    assert max(counts) <= form.max_tokens


def test_maximum_tokens_grow_in_steps_with_runs_and_phrases() -> None:
    assert [AnswerSchema(runs, 4).max_tokens for runs in (1, 3, 5, 12, 60)] == [256, 256, 512, 1024, 4096]
    assert AnswerSchema(12, 8).max_tokens == 1536
