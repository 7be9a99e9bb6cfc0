"""Answers become decisions about numbers that exist, and nothing else."""

from __future__ import annotations

import json

import pytest

from openavs.models.chat_api.endpoint import EMPTY
from openavs.stages.reasoners.judgment import CONTRADICTION, NO_JSON, answer_schema, parse_judgment
from tests.stages.reasoners.clips import decisions


def test_every_number_gets_its_decision_and_reason() -> None:
    found = parse_judgment(decisions({1: "accept", 2: "reject", 3: "unsure"}), 3)

    assert {number: decision for number, (decision, _) in found.decisions.items()} == {
        1: "kept",
        2: "rejected",
        3: "unresolved",
    }
    assert found.decisions[1][1] == "because"
    assert not found.problems and not found.none


def test_json_is_found_in_other_text_and_the_last_object_counts() -> None:
    text = f"<think>{decisions({1: 'reject'})}</think> Sure {{: ```json\n{decisions({1: 'accept'})}\n``` done."
    assert parse_judgment(text, 1).decisions == {1: ("kept", "because")}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", EMPTY),
        ("I cannot help with that.", NO_JSON),
        ('{"candidates": [{"number": 1, "decision": "acc', NO_JSON),
        ('{"decisions": []}', NO_JSON),
        ('{"candidates": "all"}', NO_JSON),
        ("{" * 5000, NO_JSON),
        (decisions({1: "accept", 99: "accept", 2: "reject"}), "it names 1 number that no candidate has"),
        (decisions({1: "accept"}), "it leaves out 1 of 2 candidates"),
        ('{"candidates": [{"number": true, "decision": "accept"}, 3]}', "2 entries of it cannot be read"),
        ('{"candidates": [{"number": 1, "decision": ["accept"]}]}', "1 entry of it cannot be read"),
        (decisions({1: "accept", 2: "reject"}, none=True), CONTRADICTION),
    ],
)
def test_a_problem_is_named(text: str, problem: str) -> None:
    assert problem in parse_judgment(text, 2).problems


def test_contradictions_decide_nothing() -> None:
    twice = {"candidates": [{"number": 1, "decision": own} for own in ("accept", "reject", "accept")]}
    found = parse_judgment(json.dumps(twice), 1)
    assert found.decisions == {} and found.problems == ("it decides 1 candidate in two ways",)
    assert parse_judgment(decisions({1: "accept"}, none=True), 1).decisions == {}


def test_none_rejects_all() -> None:
    found = parse_judgment('{"candidates": [], "none": true}', 2)
    assert [decision for decision, _ in found.decisions.values()] == ["rejected", "rejected"]
    assert found.none and not found.problems


def test_reasons_are_one_short_clean_line() -> None:
    found = parse_judgment(decisions({1: "accept"}, reason="a\nb\x1b[31m <|im_end|>" + "x" * 5000), 1)
    reason = found.decisions[1][1]
    assert len(reason) <= 200 and "\n" not in reason and "\x1b" not in reason and "<" not in reason


def test_the_second_answer_completes_the_first() -> None:
    first = parse_judgment(decisions({1: "accept", 2: "accept"}), 3)
    both = parse_judgment(decisions({2: "reject", 3: "accept"}), 3).after(first)
    assert {number: own[0] for number, own in both.decisions.items()} == {1: "kept", 2: "rejected", 3: "kept"}
    assert len(both.answers) == 2


def test_the_schema_is_strict() -> None:
    def check(schema: dict[str, object]) -> None:
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is False
            assert isinstance(schema["properties"], dict) and schema["required"] == list(schema["properties"])
        for value in schema.values():
            for own in [value, *(value.values() if isinstance(value, dict) else ())]:
                if isinstance(own, dict):
                    check(own)

    check(answer_schema(3))
