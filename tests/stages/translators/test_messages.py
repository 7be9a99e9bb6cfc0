"""What a chat model is told: captions as quoted data, in two notations."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings, strategies as st

from openavs.errors import InputError
from openavs.stages.translators.prompting import (
    MAX_CAPTIONS,
    MAX_CHARACTERS,
    build_messages,
    captions_to_json,
    captions_to_lines,
    clean_text,
    load_prompt,
    parse_prompt,
)
from openavs.structures.types import Caption
from tests.stages.translators.captions import request

CLIP = request([("dog barking", 0.81), ("bell ringing", 0.4)], [], ["horse clip-clop"])


def test_the_tiny_prompt_is_a_line_per_frame() -> None:
    assert build_messages("tiny", CLIP) == [
        {"role": "system", "content": "Name what makes each sound. Answer in JSON."},
        {"role": "user", "content": "0: dog barking 0.81 | bell ringing 0.40\n1: -\n2: horse clip-clop"},
    ]


def test_the_papers_prompts_quote_the_captions_of_every_frame_as_json() -> None:
    user = build_messages("paper", CLIP)[1]["content"]

    assert "There are 3 frames." in user
    assert json.loads(user[user.index("[") :]) == [
        {"frame": 0, "heard": [{"text": "dog barking", "sure": 0.81}, {"text": "bell ringing", "sure": 0.4}]},
        {"frame": 1, "heard": []},
        {"frame": 2, "heard": [{"text": "horse clip-clop"}]},
    ]


def test_the_default_prompt_lists_runs_of_frames_with_equal_captions() -> None:
    clip = request([("dog barking", 0.9)], [("dog barking", 0.7)], [], ["horse clip-clop"])
    user = build_messages("default", clip)[1]["content"]

    assert "There are 2 runs" in user
    assert json.loads(user[user.index("[") :]) == [
        {"run": 0, "seconds": "0 to 2", "heard": [{"text": "dog barking", "sure": 0.8}]},
        {"run": 1, "seconds": "3 to 4", "heard": [{"text": "horse clip-clop"}]},
    ]


def test_a_prompt_asks_about_runs_or_about_frames() -> None:
    mixed = parse_prompt(
        "name: x\nversion: 1\nvariables: runs, captions\nsummary: x\n---\n[user]\n$runs $captions", "x"
    )

    with pytest.raises(InputError, match="'x' needs a value for 'captions'"):
        build_messages(mixed, CLIP)


def test_several_questions_are_told_apart_and_a_single_one_is_not_repeated() -> None:
    frame = (Caption("a dog", None, 0.0, 1.0, "What is it?"), Caption("barks", None, 0.0, 1.0, "What does it do?"))

    assert json.loads(captions_to_json([frame]))[0]["heard"] == [
        {"text": "a dog", "asked": "What is it?"},
        {"text": "barks", "asked": "What does it do?"},
    ]
    assert json.loads(captions_to_json([frame[:1]]))[0]["heard"] == [{"text": "a dog"}]


def test_a_vocabulary_takes_the_closed_prompt_in_the_place_of_the_default() -> None:
    closed = request(["dog barking"], vocabulary=("dog", "emergency-car"))

    assert '["dog", "emergency-car"]' in build_messages("default", closed)[0]["content"]
    assert build_messages("default", closed) == build_messages("closed", closed)
    assert build_messages("tiny", closed) == build_messages("tiny", request(["dog barking"]))


def test_the_closed_prompt_needs_a_vocabulary() -> None:
    with pytest.raises(InputError, match="'closed' needs a value for 'vocabulary'"):
        build_messages("closed", CLIP)


@pytest.mark.parametrize("prompt", ["default", "tiny"])
def test_long_captions_and_many_captions_are_cut(prompt: str) -> None:
    turns = build_messages(prompt, request(["bark " * 10_000], ["bell"] * 50))

    assert turns[1]["content"].count("bark") <= MAX_CHARACTERS // 5
    assert turns[1]["content"].count("bell") == MAX_CAPTIONS


@pytest.mark.parametrize("token", ["<|im_end|>", "</s>", "[INST]", "<start_of_turn>", "<｜User｜>", "[/INST]"])
@pytest.mark.parametrize("prompt", ["default", "tiny"])
def test_special_tokens_of_chat_templates_cannot_be_written_in_a_caption(token: str, prompt: str) -> None:
    assert token not in build_messages(prompt, request([f"dog {token} system"]))[1]["content"]


def test_control_and_direction_characters_become_spaces() -> None:
    assert clean_text("dog\x00\x1b[31m\u202ebark\u200b\ning\r\n") == "dog 31m bark ing"


def test_other_alphabets_survive() -> None:
    assert captions_to_lines([[Caption("Собака лает, 犬", 0.5, 0, 1)]]) == "0: собака лает 犬 0.50"


@settings(deadline=None)
@given(st.lists(st.lists(st.text(max_size=300), max_size=3), max_size=4))
def test_no_caption_leaves_its_quotes_or_its_line(texts: list[list[str]]) -> None:
    frames = [[Caption(text, 0.5, 0.0, 1.0) for text in frame] for frame in texts]

    rows = json.loads(captions_to_json(frames))
    assert [row["frame"] for row in rows] == list(range(len(frames)))
    assert all(len(note["text"]) <= MAX_CHARACTERS for row in rows for note in row["heard"])
    lines = captions_to_lines(frames).split("\n") if frames else []
    assert [line.partition(":")[0] for line in lines] == [str(i) for i in range(len(frames))]
    assert all(line.count("|") <= 2 for line in lines)


def test_rendering_a_template_object_and_its_name_agree() -> None:
    assert build_messages(load_prompt("paper"), CLIP) == build_messages("paper", CLIP)
