"""Which segments become labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openavs.config.recipe import Filter
from openavs.labeling.records import finished_row
from openavs.labeling.sample import Item
from openavs.results.filters import agreement, apply
from openavs.structures.types import Caption, Dropped, FrameResult, Prompt, Segment, Segmentation, mask_to_rle


def segment(phrase: str, share: float, score: float = 0.5, mask_score: float | None = None) -> Segment:
    mask = np.zeros((10, 10), dtype=bool)
    mask.flat[: round(share * 100)] = True
    return Segment(mask_to_rle(mask), (0.0, 0.0, 5.0, 5.0), phrase, score, mask_score)


def heard(*texts: str) -> tuple[Caption, ...]:
    return tuple(Caption(text, None, 0.0, 1.0, f"question {i}") for i, text in enumerate(texts))


def result(*frames: FrameResult) -> Segmentation:
    return Segmentation("clip", (10, 10), frames)


def frame(*segments: Segment, silent: bool = False, texts: tuple[str, ...] = ()) -> FrameResult:
    return FrameResult(0, 0.5, silent, heard(*texts), tuple(Prompt(s.phrase) for s in segments), segments)


SCENE = result(
    frame(segment("dog", 0.3, 0.9, 0.95), segment("cat", 0.02, 0.3, 0.4)), frame(segment("dog", 0.97, 0.8), silent=True)
)


def test_without_rules_everything_the_pipeline_keeps_is_a_label() -> None:
    left = apply(SCENE, Filter())
    assert (left.result, left.reason, left.dropped) == (SCENE, None, {})


@pytest.mark.parametrize(
    ("rules", "dropped", "kept"),
    [
        ({"min_score": 0.5}, {"min_score": 1}, [["dog"], ["dog"]]),
        ({"min_mask_score": 0.5}, {"min_mask_score": 1}, [["dog"], ["dog"]]),  # no estimate: it passes
        ({"min_area": 0.02}, {}, [["dog", "cat"], ["dog"]]),  # at the limit it stays
        ({"min_area": 0.05}, {"min_area": 1}, [["dog"], ["dog"]]),
        ({"max_area": 0.9}, {"max_area": 1}, [["dog", "cat"], []]),
        ({"min_score": 0.5, "min_area": 0.05}, {"min_score": 1}, [["dog"], ["dog"]]),  # counted once
    ],
)
def test_a_rule_leaves_segments_out(rules: dict[str, float], dropped: dict[str, int], kept: list[list[str]]) -> None:
    left = apply(SCENE, Filter(**rules))
    assert left.dropped == dropped
    assert [[s.phrase for s in f.segments] for f in left.result.frames] == kept
    assert left.reason is None


def test_a_verifiers_score_filters_labels_where_there_is_one() -> None:
    judged = result(
        frame(
            replace(segment("dog", 0.3), verifier_score=0.9),
            replace(segment("bell", 0.2), verifier_score=0.0),
            segment("cat", 0.1),  # nobody judged it
        )
    )
    left = apply(judged, Filter(min_verifier_score=0.5))
    assert left.dropped == {"min_verifier_score": 1}
    assert [s.phrase for s in left.result.frames[0].segments] == ["dog", "cat"]


def test_a_score_of_nothing_is_a_score() -> None:
    unsure = result(frame(segment("dog", 0.3, mask_score=0.0)))
    assert apply(unsure, Filter(min_mask_score=0.1)).dropped == {"min_mask_score": 1}


def test_clips_fail_as_a_whole_where_they_are_silent_or_nothing_is_left() -> None:
    assert apply(SCENE, Filter(min_sounding=0.5)).reason is None
    assert apply(SCENE, Filter(min_sounding=0.6)).reason == "min_sounding"
    assert apply(SCENE, Filter(min_area=1.0)).reason is None
    assert apply(SCENE, Filter(min_area=1.0, drop_empty=True)).reason == "drop_empty"


def test_agreement_is_the_share_of_questions_that_lead_to_the_phrase() -> None:
    three = frame(segment("dog", 0.3), texts=("a dog barks", "barking", "rain falls"))
    assert agreement("dog", three) == pytest.approx(2 / 3)  # the lexicon knows what barks
    assert agreement("cat", three) == 0
    assert apply(result(three), Filter(min_agreement=0.6)).dropped == {}
    assert apply(result(three), Filter(min_agreement=0.7)).dropped == {"min_agreement": 1}
    assert agreement("dog", frame()) == 0


def test_captions_of_a_thing_agree_with_the_name_that_detectors_know() -> None:
    assert agreement("electric fan", frame(texts=("Fan",))) == 1
    assert agreement("crow bird", frame(texts=("Caw",))) == 1
    assert agreement("electric fan", frame(texts=("Caw",))) == 0


def test_a_row_counts_what_the_pipeline_and_the_filters_dropped() -> None:
    scene = result(
        FrameResult(
            0, 0.5, asked=(Prompt("dog", "dog"), Prompt("cat")), segments=(segment("dog", 0.3, 0.9),),
            dropped=(Dropped("cat", "below threshold", 0.1),),
        ),
        FrameResult(1, 1.5, asked=(Prompt("dog", "dog"),), segments=(segment("dog", 0.01, 0.95),)),
    )  # fmt: skip
    row = finished_row(Item("clip", "clip.mp4"), scene, apply(scene, Filter(min_area=0.05)))
    assert row["dropped"] == {"below threshold": 1, "filter.min_area": 1}
    assert (row["prompts"], row["labels"]) == (["dog", "cat"], ["dog", None])
    assert (row["scores"], row["areas"], row["found"]) == ([0.9, None], [0.3, 0.0], [1, 0])
