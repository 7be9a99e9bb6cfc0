"""Label filters."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openavs.config.recipe import LabelFilterConfig
from openavs.jobs.index import finished_row
from openavs.jobs.sample import Sample
from openavs.results.filters import agreement, apply_label_filters
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, ClipResult, FrameResult, Prompt, Rejection, Segment, Verdict


def segment(phrase: str, share: float, score: float = 0.5, mask_score: float | None = None) -> Segment:
    mask = np.zeros((10, 10), dtype=bool)
    mask.flat[: round(share * 100)] = True
    return Segment(mask_to_rle(mask), (0.0, 0.0, 5.0, 5.0), phrase, score, mask_score)


def heard(*texts: str) -> tuple[Caption, ...]:
    return tuple(Caption(text, None, 0.0, 1.0, f"question {i}") for i, text in enumerate(texts))


def result(*frames: FrameResult) -> ClipResult:
    return ClipResult("clip", (10, 10), frames)


def frame(*segments: Segment, silent: bool = False, texts: tuple[str, ...] = ()) -> FrameResult:
    return FrameResult(0, 0.5, silent, heard(*texts), tuple(Prompt(s.phrase) for s in segments), segments)


SCENE = result(
    frame(segment("dog", 0.3, 0.9, 0.95), segment("cat", 0.02, 0.3, 0.4)), frame(segment("dog", 0.97, 0.8), silent=True)
)


def test_without_rules_everything_the_pipeline_keeps_is_a_label() -> None:
    left = apply_label_filters(SCENE, LabelFilterConfig())
    assert (left.result, left.reason, left.rejected) == (SCENE, None, {})


@pytest.mark.parametrize(
    ("rules", "rejected", "kept"),
    [
        ({"min_score": 0.5}, {"min_score": 1}, [["dog"], ["dog"]]),
        ({"min_mask_score": 0.5}, {"min_mask_score": 1}, [["dog"], ["dog"]]),  # no estimate: it passes
        ({"min_area": 0.02}, {}, [["dog", "cat"], ["dog"]]),  # at the limit it stays
        ({"min_area": 0.05}, {"min_area": 1}, [["dog"], ["dog"]]),
        ({"max_area": 0.9}, {"max_area": 1}, [["dog", "cat"], []]),
        ({"min_score": 0.5, "min_area": 0.05}, {"min_score": 1}, [["dog"], ["dog"]]),  # counted once
    ],
)
def test_a_rule_leaves_segments_out(rules: dict[str, float], rejected: dict[str, int], kept: list[list[str]]) -> None:
    left = apply_label_filters(SCENE, LabelFilterConfig(**rules))
    assert left.rejected == rejected
    assert [[s.phrase for s in f.segments] for f in left.result.frames] == kept
    assert left.reason is None


def test_a_verifiers_score_filters_labels_where_there_is_one() -> None:
    judged = result(
        frame(
            replace(segment("dog", 0.3), verdicts=(Verdict("kept", 0.9), Verdict("kept", 0.1, verifier="sync"))),
            replace(segment("bell", 0.2), verdicts=(Verdict("kept", 0.0),)),
            segment("cat", 0.1),  # no verifier scored it
        )
    )
    left = apply_label_filters(judged, LabelFilterConfig(min_verifier_score=0.5))
    assert left.rejected == {"min_verifier_score": 1}
    assert [s.phrase for s in left.result.frames[0].segments] == ["dog", "cat"]


def test_a_score_of_nothing_is_a_score() -> None:
    unsure = result(frame(segment("dog", 0.3, mask_score=0.0)))
    assert apply_label_filters(unsure, LabelFilterConfig(min_mask_score=0.1)).rejected == {"min_mask_score": 1}


def test_clips_fail_as_a_whole_where_they_are_silent_or_nothing_is_left() -> None:
    assert apply_label_filters(SCENE, LabelFilterConfig(min_audible_fraction=0.5)).reason is None
    assert apply_label_filters(SCENE, LabelFilterConfig(min_audible_fraction=0.6)).reason == "min_audible_fraction"
    assert apply_label_filters(SCENE, LabelFilterConfig(min_area=1.0)).reason is None
    assert apply_label_filters(SCENE, LabelFilterConfig(min_area=1.0, drop_empty=True)).reason == "drop_empty"


def test_agreement_is_the_share_of_questions_that_lead_to_the_phrase() -> None:
    three = frame(segment("dog", 0.3), texts=("a dog barks", "barking", "rain falls"))
    assert agreement("dog", three) == pytest.approx(2 / 3)  # the lexicon knows what barks
    assert agreement("cat", three) == 0
    assert apply_label_filters(result(three), LabelFilterConfig(min_question_agreement=0.6)).rejected == {}
    assert apply_label_filters(result(three), LabelFilterConfig(min_question_agreement=0.7)).rejected == {
        "min_question_agreement": 1
    }
    assert agreement("dog", frame()) == 0


def test_captions_of_a_thing_agree_with_the_name_that_detectors_know() -> None:
    assert agreement("electric fan", frame(texts=("Fan",))) == 1
    assert agreement("crow bird", frame(texts=("Caw",))) == 1
    assert agreement("electric fan", frame(texts=("Caw",))) == 0


def test_a_row_counts_what_the_pipeline_and_the_filters_dropped() -> None:
    scene = result(
        FrameResult(
            0, 0.5, prompts=(Prompt("dog", "dog"), Prompt("cat")), segments=(segment("dog", 0.3, 0.9),),
            rejected=(Rejection("cat", "below threshold", 0.1),),
        ),
        FrameResult(1, 1.5, prompts=(Prompt("dog", "dog"),), segments=(segment("dog", 0.01, 0.95),)),
    )  # fmt: skip
    row = finished_row(Sample("clip", "clip.mp4"), scene, apply_label_filters(scene, LabelFilterConfig(min_area=0.05)))
    assert row["rejected"] == {"below threshold": 1, "label_filter.min_area": 1}
    assert (row["prompts"], row["labels"]) == (["dog", "cat"], ["dog", None])
    assert (row["scores"], row["areas"], row["found"]) == ([0.9, None], [0.3, 0.0], [1, 0])
