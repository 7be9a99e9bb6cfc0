"""Sentences about rejections and verdicts: one table, which the documentation repeats."""

from __future__ import annotations

import re
from typing import Any, get_args

import pytest

from openavs.structures.masks import RLE
from openavs.structures.types import Caption, Decision, FrameResult, Prompt, Rejection, Segment, Verdict
from openavs.visualization.reasons import (
    REASONS,
    caveat_texts,
    chain_texts,
    count_caveats,
    is_unresolved,
    merge_rejections,
    reason_text,
    rejection_text,
    remedy_text,
    unprompted_texts,
    verdict_text,
)
from tests.docs.reading import text_of

ALONE = Verdict("unresolved", 0.0, None, None, "sync")
UNDECIDED = Verdict("unresolved", 0.5, None, None, "reasoner")
UNSURE = Verdict("unresolved", 0.5, 0.03, None, "sync")


def segment(*verdicts: Verdict, phrase: str = "dog") -> Segment:
    return Segment(RLE((2, 2), "04"), (0.0, 0.0, 2.0, 2.0), phrase, 0.5, verdicts=verdicts)


def open_segments(*segments: Segment) -> list[bool]:
    """Return whether each segment of a frame is unresolved."""
    frame = FrameResult(0, 0.5, segments=segments)
    return [is_unresolved(one, frame) for one in segments]


@pytest.mark.parametrize(
    ("rejection", "text"),
    [
        (Rejection("dog", "not found"), "not found: no box for it"),
        (Rejection("dog", "duplicate", 0.5), "duplicate: a better box covers it (0.50)"),
        (
            Rejection("dog", "silent", 0.12, None, 0.4, "sync"),
            "silent: another dog moves in time with the sound (0.12, margin 0.40)",
        ),
        (Rejection("dog", "silent", 0.12, None, None, "pe-av"), "silent: another dog fits the sound better (0.12)"),
        (
            Rejection("dog", "off-screen", 0.12, None, 0.3, "pe-av"),
            "off-screen: nothing in the picture fits the sound; best candidate 0.12 (margin 0.30)",
        ),
        (Rejection("dog", "off-screen"), "off-screen: nothing in the picture fits the sound"),
        (Rejection("dog", "of a plugin", 0.1), "of a plugin (0.10)"),
    ],
)
def test_a_rejection_is_a_sentence_with_its_numbers(rejection: Rejection, text: str) -> None:
    assert rejection_text(rejection) == text


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (Verdict("kept", 0.9, 0.4, None, "sync"), "sync: sounds (0.90, margin 0.40)"),
        (Verdict("kept", 0.9, None, "dog", "clip"), "clip: looks like its phrase (0.90)"),
        (Verdict("kept", 0.9, None, None, "./own.py:Own"), "./own.py:Own: kept (0.90)"),
        (
            Verdict("unresolved", 0.0, -0.001, None, "sync"),
            "sync: unresolved: kept, the margin is small (0.00, margin 0.00)",
        ),
        (UNSURE, "sync: unresolved: kept, the margin is small (0.50, margin 0.03)"),
        (ALONE, "sync: kept without a comparison"),
        (Verdict("kept", 1.0, None, None, "reasoner"), "reasoner: sounds"),
        (UNDECIDED, "reasoner: unresolved: kept without a decision"),
    ],
)
def test_a_verdict_is_a_few_words_with_its_numbers(verdict: Verdict, text: str) -> None:
    assert verdict_text(verdict) == text


def test_a_segment_is_unresolved_unless_another_verifier_compared_and_kept_it() -> None:
    look = Verdict("kept", 0.9, None, "dog", "clip")
    assert open_segments(segment(look, UNSURE)) == [True]
    assert open_segments(segment(UNSURE, Verdict("kept", 0.9, 0.4, None, "pe-av"))) == [False]
    assert open_segments(segment(), segment(look)) == [False, False]


def test_an_only_candidate_is_unresolved_only_if_it_was_compared() -> None:
    assert open_segments(segment(ALONE), segment(ALONE, phrase="cat")) == [False, False]
    assert open_segments(segment(ALONE), segment(ALONE)) == [True, True]  # a still picture of two dogs
    assert open_segments(segment(UNSURE)) == [True]


def test_a_reasoner_decides_what_verifiers_left_open() -> None:
    assert open_segments(segment(UNSURE, Verdict("kept", 1.0, None, None, "reasoner"))) == [False]
    assert open_segments(segment(UNDECIDED)) == [True]
    assert open_segments(segment(Verdict("kept", 0.9, 0.4, None, "sync"), UNDECIDED)) == [False]


def test_caveats_count_frames_and_not_segments() -> None:
    off = Rejection("radio", "off-screen", 0.1)
    frames = (
        FrameResult(0, 0.5, segments=(segment(UNSURE), segment(UNSURE)), rejected=(off, off)),
        FrameResult(1, 1.5, segments=(segment(UNSURE),), rejected=(Rejection("cat", "silent"),)),
        FrameResult(2, 2.5, segments=(segment(),)),
    )
    counts = count_caveats(frames)
    assert counts == {"unresolved": {"dog": 2}, "off-screen": {"radio": 1}}
    assert caveat_texts(counts, 3) == [
        "dog unresolved in 2 of 3 frames: kept, the evidence is too weak",
        "radio off-screen in 1 of 3 frames: nothing in the picture fits the sound",
    ]
    assert caveat_texts(count_caveats(()), 0) == []


def test_the_documentation_has_every_reason_and_its_sentence() -> None:
    section = text_of("concepts.md").split("| `reason` of a rejection |")[1].split("\n\n")[0]
    rows: dict[str, Any] = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE))
    assert list(rows) == list(REASONS)
    for reason, meaning in rows.items():
        sentence = reason_text(Rejection("dog", reason, verifier="sync")).split(": ", 1)[1]
        assert meaning.startswith(sentence), (reason, sentence)


def test_every_decision_has_words() -> None:
    assert all(verdict_text(Verdict(decision, 0.5)) for decision in get_args(Decision))


BARK, TROT = Caption("dog barking", 0.81, 0.0, 1.0), Caption("horse trotting", 0.3, 0.0, 1.0)
VIOLIN = Caption("Violin", 0.71, 0.0, 1.0)


def nothing(*rejected: Rejection, prompts: tuple[str, ...] = ("violin",)) -> list[FrameResult]:
    """A frame with a violin in its sound, and nothing found."""
    asked = tuple(Prompt(phrase, captions=(VIOLIN,)) for phrase in prompts)
    return [FrameResult(0, 0.5, captions=(VIOLIN,), prompts=asked, rejected=rejected)]


def test_the_way_from_caption_to_segment_is_named_and_where_it_ends() -> None:
    louder = Caption("dog barking", 0.9, 1.0, 2.0)
    frames = [
        FrameResult(0, 0.5, captions=(BARK, TROT), prompts=(Prompt("dog", captions=(BARK,)),), segments=(segment(),)),
        FrameResult(1, 1.5, captions=(louder,), prompts=(Prompt("dog", captions=(louder,)),), segments=(segment(),)),
    ]
    assert chain_texts(frames) == ["dog <- dog barking 0.90"]
    assert unprompted_texts(frames) == ["no prompt from the language model for horse trotting 0.30"]
    assert remedy_text(frames) is None


@pytest.mark.parametrize(
    ("frames", "parts"),
    [
        ([FrameResult(0, 0.5, silent=True)], ["the audio is silent", "--audio FILE"]),
        ([FrameResult(0, 0.5)], ["no sound was recognized", "lower captioner.threshold"]),
        (
            [FrameResult(0, 0.5, weak=(Caption("dog", 0.118, 0.0, 1.0, weak=True),))],
            ["the best caption is dog 0.12", "captioner.threshold=0.11 accepts it"],
        ),
        ([FrameResult(0, 0.5, captions=(VIOLIN,))], ["no visible thing was named for Violin 0.71"]),
        (
            nothing(Rejection("violin", "unknown word")),
            ["the detector does not know violin: use one of open"],
        ),
        (nothing(Rejection("violin", "below threshold", 0.219)), ["filtering.box_threshold=0.21 keeps it"]),
        (nothing(Rejection("violin", "not found")), ["no box for violin: it is not in view", "sample.fps=4"]),
        (nothing(Rejection("violin", "off-screen", 0.1)), ["nothing in the picture fits the sound", "verifier=null"]),
        (nothing(Rejection("violin", "reasoner", 0.3)), ["by all evidence of the clip", "reasoner=null keeps it"]),
        (nothing(Rejection("violin", "empty mask", 0.3)), ["all boxes were rejected"]),
    ],
)
def test_where_nothing_is_found_the_reason_comes_with_a_remedy(frames: list[FrameResult], parts: list[str]) -> None:
    text = remedy_text(frames)
    assert text is not None and all(part in text for part in parts)


def test_boxes_over_the_limit_are_one_rejection_with_their_number() -> None:
    over = [Rejection("guitar", "too many", score) for score in (0.2, 0.22, 0.19)]
    away = [Rejection("dog", "off-screen", score, None, 0.1, "sync") for score in (0.3, 0.2)]
    verified = [Rejection("cat", "verifier", score, None, 0.1, "clip") for score in (0.3, 0.2)]
    merged = merge_rejections([*over, *away, *verified])
    assert merged == [(over[1], 3), (away[0], 1), (verified[0], 1), (verified[1], 1)]
