"""The embedded language model: tokenizer, chat template, and quality on held-out clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import openavs
from openavs.stages.prompting import build_messages
from openavs.stages.translators.base import Request
from openavs.structures.types import Caption
from openavs.synthetic.categories import KINDS
from scripts.train_tiny import lm, lm_data
from scripts.train_tiny.lm_data import LabeledCaption, answer_of

HOME = Path(openavs.__file__).parent / "assets" / "tiny" / "lm"
BELL, DOG = 0, 6


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(HOME)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(HOME).eval()


def answer(model: Any, tokenizer: Any, *frames: tuple[tuple[str, float], ...]) -> list[list[str]]:
    request = Request(
        tuple(
            tuple(Caption(text, score, float(time), time + 1.0) for text, score in frame)
            for time, frame in enumerate(frames)
        )
    )
    inputs = tokenizer.apply_chat_template(
        build_messages("tiny", request), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=160)[0, inputs["input_ids"].shape[1] :]
    return json.loads(tokenizer.decode(output, skip_special_tokens=True))["frames"]


def test_files_are_small_and_contain_no_pickle() -> None:
    names = {path.name for path in HOME.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert sum(path.stat().st_size for path in HOME.iterdir()) < 3e6


def test_tokenizer_round_trip_is_exact(tokenizer: Any) -> None:
    for index in range(50):
        item = lm_data.example(lm_data.TEST, 5, index)
        answer = json.dumps({"frames": item.answer})
        assert tokenizer.decode(tokenizer(answer)["input_ids"]) == answer
        question = build_messages("tiny", item.request)[-1]["content"]
        back = tokenizer.decode(tokenizer(question)["input_ids"])
        assert back == question or "<unk>" in back


def test_all_names_and_captions_are_in_the_vocabulary(tokenizer: Any) -> None:
    for kind in KINDS:
        for text in (*kind.heard, kind.name):
            for place in (f"0: {text} 0.50", f"0: dog 0.60 | {text} 0.50", json.dumps({"frames": [[text]]})):
                unknown = tokenizer.unk_token_id in tokenizer(place)["input_ids"]
                assert not unknown or (place.startswith("{") and text != kind.name)


def test_training_batches_have_equal_size_and_similar_length(tokenizer: Any) -> None:
    batches = list(lm._batches(tokenizer, seed=1, steps=17, size=2))
    assert [len(batch) for batch in batches] == [2] * 32  # whole groups of 16
    spread = [abs(len(one.tokens) - len(other.tokens)) for one, other in batches]
    lengths = [len(item.tokens) for batch in batches for item in batch]
    assert sum(spread) / len(spread) < 0.1 * (max(lengths) - min(lengths))


def test_rules_of_the_correct_answer() -> None:
    sure, doubtful, unknown = (
        LabeledCaption(DOG, "dog barking", 0.9),
        LabeledCaption(BELL, "bell", 0.3),
        LabeledCaption(None, "speech", 0.9),
    )
    assert answer_of([[sure, doubtful], [], [sure, unknown]]) == (("dog",), (), ("dog",))
    assert answer_of([[sure, doubtful], [doubtful]]) == (("dog", "bell"), ("bell",))
    assert answer_of([[sure, sure, doubtful]]) == (("dog", "bell"),)


def test_sources_are_named_and_gaps_are_kept(model: Any, tokenizer: Any) -> None:
    captions = (("dog barking", 0.91),), (), (("bark of a dog", 0.52), ("church bell tolling", 0.44))
    assert answer(model, tokenizer, *captions) == [["dog"], [], ["dog", "bell"]]


def test_unconfirmed_captions_are_dropped_and_confirmed_ones_kept(model: Any, tokenizer: Any) -> None:
    cat, train = ("cat meowing", 0.88), ("train horn", 0.24)
    assert answer(model, tokenizer, (cat,), (cat, train), (cat,)) == [["cat"]] * 3
    assert answer(model, tokenizer, (cat,), (cat, train), (cat, train)) == [["cat"], ["cat", "train"], ["cat", "train"]]


def test_unknown_words_give_no_source(model: Any, tokenizer: Any) -> None:
    assert answer(model, tokenizer, (("vacuum cleaner", 0.9),), (("piano playing", 0.8),)) == [[], ["piano"]]


def test_quality_on_held_out_seeds(model: Any, tokenizer: Any) -> None:
    figures = lm.evaluate(model, tokenizer, split=lm_data.TEST, count=200)
    assert figures["answers"] >= 0.85
    assert figures["frames"] >= 0.97
