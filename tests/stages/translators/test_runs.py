"""Runs of equal captions: what they are, what is asked about them, and whose answers are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from openavs.stages.translators.chat import ChatRequest, ChatTranslator
from openavs.stages.translators.openai import OpenAITranslator
from openavs.stages.translators.parsing import ParseError
from openavs.stages.translators.prompting import CaptionRun, merge_runs
from openavs.structures.types import Caption
from tests.stages.translators.captions import caption, request
from tests.stages.translators.local_server import Answer, Fields, completion, serving

SOUNDS = {"Bark": "hound", "Meow": "kitten", "Moo": "calf", "Neigh, whinny": "pony"}  # what no lexicon answers
LOOKED_UP = {"Bark": "dog", "Meow": "cat", "Moo": "cow", "Neigh, whinny": "horse"}
LABELS = list(SOUNDS)


def listed(messages: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """The runs of a question."""
    text = messages[1]["content"]
    return list(json.loads(text[text.index("[") :]))


class Small(ChatTranslator):
    """Names every sound, but loses count after a number of runs."""

    def __init__(self, upto: int, **options: Any) -> None:
        super().__init__(**options)
        self.upto, self.questions = upto, list[ChatRequest]()

    def _chat(self, questions: Sequence[ChatRequest]) -> list[str | ParseError]:
        self.questions += questions
        return [self.answer(listed(question.messages)) for question in questions]

    def answer(self, runs: list[dict[str, Any]]) -> str:
        named = {str(run["run"]): [SOUNDS[run["heard"][0]["text"]]] for run in runs[: self.upto]}
        return json.dumps(named | {str(len(runs)): ["mouse"]})


def changing(frames: int) -> list[list[str | tuple[str, float]]]:
    return [[LABELS[i % 4]] for i in range(frames)]


# ------------------------------------------------------------------------------------------------------ what runs are


def test_consecutive_frames_with_the_same_texts_are_one_run_with_the_mean_of_their_scores() -> None:
    clip = request([("dog", 0.5), "bell"], [("dog", 0.7), ("bell", 0.3)], [("dog", 0.6)])

    assert merge_runs(clip.frames) == [
        CaptionRun(0, 2, (Caption("dog", pytest.approx(0.6), 0.0, 2.0), Caption("bell", pytest.approx(0.3), 0.0, 2.0))),
        CaptionRun(2, 3, (Caption("dog", 0.6, 2.0, 3.0),)),
    ]


def test_silent_frames_are_in_no_run_and_part_their_neighbors() -> None:
    clip = request([], ["dog"], [], ["dog"], ["dog"], [])

    assert [(run.start, run.stop) for run in merge_runs(clip.frames)] == [(1, 2), (3, 5)]
    assert merge_runs(()) == merge_runs(((), ())) == []


@pytest.mark.parametrize(
    "other",
    [[caption("bell"), caption("dog")], [caption("dog")], [caption("dog"), Caption("bell", None, 0.0, 1.0, "What?")]],
)
def test_another_order_number_or_question_begins_a_run(other: list[Caption]) -> None:
    assert len(merge_runs((request(["dog", "bell"]).frames[0], tuple(other)))) == 2


# ------------------------------------------------------------------------------------------------- asking about them


def test_equal_frames_cost_one_run_and_all_get_its_answer() -> None:
    model = Small(12)
    translation = model.translate([request(["Bark"], ["Bark"], [], ["Bark"], ["Meow"])])[0]

    assert translation.frames == (("hound",), ("hound",), (), ("hound",), ("kitten",))
    assert (translation.origin, translation.origins, translation.note) == ("llm", None, None)
    assert [run["seconds"] for run in listed(model.questions[0].messages)] == ["0 to 2", "3 to 4", "4 to 5"]


def test_a_busy_clip_of_120_frames_is_answered_by_the_model_for_every_run_that_it_answers() -> None:
    model = Small(10)
    translation = model.translate([request(*changing(120))])[0]

    assert [question.schema.count for question in model.questions] == [12] * 10
    for i, (phrases, origin) in enumerate(zip(translation.frames, translation.origins or (), strict=True)):
        by_model = i % 12 < 10
        assert origin == ("llm" if by_model else "lexicon")
        assert phrases == ((SOUNDS if by_model else LOOKED_UP)[LABELS[i % 4]],)
    assert (translation.origin, translation.attempts) == ("llm", 10)
    assert translation.note == (
        "the lexicon answered for 20 of 120 runs of equal captions, which the language model left out or answered "
        "without a usable phrase"
    )


@pytest.mark.parametrize("upto", [1, 3, 7, 12])
def test_a_miscount_costs_only_the_runs_that_are_missing(upto: int) -> None:
    model = Small(upto, max_reprompts=3)
    translation = model.translate([request(*changing(12))])[0]

    expected = [(SOUNDS if i < upto else LOOKED_UP)[LABELS[i % 4]] for i in range(12)]
    assert [phrases[0] for phrases in translation.frames] == expected
    assert translation.attempts == 1


def test_only_an_answer_without_any_usable_run_is_asked_again_and_then_the_lexicon_answers() -> None:
    model = Small(0)
    translation = model.translate([request(["Bark"], ["Meow"])])[0]

    assert translation.frames == (("dog",), ("cat",))
    assert (translation.origin, translation.origins, translation.attempts) == ("lexicon", None, 2)
    assert "failed 2 times" in str(translation.note)


def test_a_part_that_fails_wholly_is_the_lexicons_and_the_others_are_not() -> None:
    class Moody(Small):
        def answer(self, runs: list[dict[str, Any]]) -> str:
            return "?" if runs[0]["heard"][0]["text"] == "Moo" else super().answer(runs)

    translation = Moody(12, max_runs=2, max_reprompts=0).translate([request(*changing(4))])[0]

    assert translation.frames == (("hound",), ("kitten",), ("cow",), ("horse",))
    assert translation.origins == ("llm", "llm", "lexicon", "lexicon")
    assert str(translation.note).startswith("frames 2 to 3: the lexicon answered")


def test_a_server_that_answers_in_part_is_asked_once() -> None:
    def part(fields: Fields, number: int) -> Answer:
        return completion(Small(2).answer(listed(fields["messages"])))

    with serving(part) as local:
        model = OpenAITranslator(model="small", base_url=local.url)
        translation = model.translate([request(*changing(3))])[0]

    assert translation.frames == (("hound",), ("kitten",), ("cow",))
    assert translation.origins == ("llm", "llm", "lexicon") and len(local.asked) == 1
