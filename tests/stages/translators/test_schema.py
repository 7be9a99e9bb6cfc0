"""The form of an answer: its schema, and a budget that the longest answer fits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from openavs.evaluation.benchmark import load_benchmark
from openavs.stages.lexicon import audioset_labels, lexicon
from openavs.stages.translators.parsing import AnswerSchema

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
def test_the_longest_answer_fits_its_budget(
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


def test_the_budget_grows_with_runs_and_phrases_and_clips_of_like_size_share_one() -> None:
    assert [AnswerSchema(runs, 4).max_tokens for runs in (1, 3, 5, 12, 60)] == [256, 256, 512, 1024, 4096]
    assert AnswerSchema(12, 8).max_tokens == 1536
