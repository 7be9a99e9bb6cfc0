"""Box selection, and the reasons of rejected boxes."""

from __future__ import annotations

from typing import Any

from openavs.config.recipe import PipelineConfig
from openavs.pipeline.filtering import filter_detections
from openavs.structures.masks import iou
from openavs.structures.types import Caption, Detection, Prompt, Rejection

BOX = (10.0, 10.0, 50.0, 50.0)


def chosen(candidates: list[Detection], phrases: list[str], **rules: Any) -> tuple[list[Detection], list[Rejection]]:
    return filter_detections(candidates, [Prompt(phrase) for phrase in phrases], PipelineConfig(**rules))


def test_boxes_are_kept_from_the_threshold_on() -> None:
    at, under = Detection(BOX, "dog", 0.25), Detection((60.0, 60.0, 90.0, 90.0), "cat", 0.24)
    kept, dropped = chosen([under, at], ["dog", "cat", "bell"], box_threshold=0.25)
    assert kept == [at]
    reasons = [(drop.phrase, drop.reason, drop.score) for drop in dropped]
    assert reasons == [("cat", "below threshold", 0.24), ("bell", "not found", None)]


def test_a_word_that_the_detector_does_not_know_has_a_reason_of_its_own() -> None:
    knows = {"dog", "bell"}.__contains__
    _, dropped = filter_detections([], [Prompt("bell"), Prompt("violin")], PipelineConfig(), knows)
    assert dropped == [Rejection("bell", "not found"), Rejection("violin", "unknown word")]


def test_a_box_that_a_better_one_covers_is_a_duplicate() -> None:
    better, worse = Detection(BOX, "dog", 0.9), Detection((11.0, 10.0, 50.0, 50.0), "puppy", 0.5)
    kept, dropped = chosen([worse, better], ["dog", "puppy"])
    assert kept == [better]
    assert [(drop.phrase, drop.reason) for drop in dropped] == [("puppy", "duplicate")]
    again = Detection((10.0, 11.0, 50.0, 50.0), "dog", 0.8)
    assert chosen([better, again], ["dog"]) == ([better], [])  # a duplicate adds nothing
    assert chosen([worse, better], ["dog", "puppy"], nms_iou=None)[0] == [better, worse]


def test_phrases_of_other_frames_are_not_kept() -> None:
    assert chosen([Detection(BOX, "bell", 0.9)], ["dog"])[0] == []


def test_a_frame_has_a_maximum_number_of_boxes() -> None:
    boxes = [Detection((i * 20.0, 0.0, i * 20.0 + 10, 10.0), "bird", 0.9 - i / 100) for i in range(5)]
    kept, dropped = chosen(boxes, ["bird"], max_boxes=3)
    assert kept == boxes[:3]
    assert {drop.reason for drop in dropped} == {"too many"}


def test_a_phrase_may_be_held_to_its_best_box() -> None:
    boxes = [Detection((i * 20.0, 0.0, i * 20.0 + 10, 10.0), "bird", 0.9 - i / 100) for i in range(3)]
    dog = Detection((0.0, 50.0, 10.0, 60.0), "dog", 0.5)
    kept, dropped = chosen([*boxes, dog], ["bird", "dog"], max_per_phrase=1)
    assert kept == [boxes[0], dog]
    assert [(drop.phrase, drop.reason, drop.score) for drop in dropped] == [
        ("bird", "too many", boxes[1].score),
        ("bird", "too many", boxes[2].score),
    ]


def test_further_boxes_of_a_phrase_may_need_a_higher_score() -> None:
    boxes = [Detection((i * 20.0, 0.0, i * 20.0 + 10, 10.0), "bird", 0.5 - i / 10) for i in range(3)]
    dog = Detection((0.0, 50.0, 10.0, 60.0), "dog", 0.3)
    rules = {"box_threshold": 0.25, "repeat_threshold": 0.4}
    assert chosen([*boxes, dog], ["bird", "dog"], **rules) == ([*boxes[:2], dog], [])
    assert chosen(boxes, ["bird"], box_threshold=0.45, repeat_threshold=0.35)[0] == boxes[:1]  # never a lower one


def test_iou_of_boxes() -> None:
    assert iou(BOX, BOX) == 1.0
    assert iou(BOX, (50.0, 10.0, 90.0, 50.0)) == 0.0
    assert iou((0, 0, 10, 10), (0, 0, 10, 5)) == 0.5
    assert iou((5, 5, 5, 5), BOX) == 0.0


def heard(phrase: str, score: float | None) -> Prompt:
    return Prompt(phrase, captions=(Caption(phrase, score, 0.0, 1.0),))


def test_audio_score_times_best_box_decides_between_phrases() -> None:
    """A viola that sounds half as likely as the violin, and looks no likelier, is dropped; a second source is not."""
    violin, viola = Detection(BOX, "violin", 0.6), Detection((60.0, 0.0, 90.0, 30.0), "viola", 0.55)
    piano = Detection((0.0, 60.0, 40.0, 90.0), "piano", 0.9)
    prompts = [heard("violin", 0.4), heard("viola", 0.15), heard("piano", 0.2)]
    kept, dropped = filter_detections([violin, viola, piano], prompts, PipelineConfig(min_audio_visual_ratio=0.5))
    assert kept == [piano, violin]
    assert dropped == [Rejection("viola", "less likely", 0.55, viola.box)]
    assert filter_detections([violin, viola, piano], prompts, PipelineConfig())[0] == [piano, violin, viola]


def test_a_phrase_without_a_box_does_not_compete() -> None:
    """Background music without an instrument in the picture takes nothing from the dog."""
    dog = Detection(BOX, "dog", 0.5)
    faint = Detection((60.0, 0.0, 90.0, 30.0), "musical instrument", 0.2)
    prompts = [heard("musical instrument", 0.9), heard("dog", 0.1)]
    kept, dropped = filter_detections([dog, faint], prompts, PipelineConfig(min_audio_visual_ratio=0.5))
    assert kept == [dog]
    assert [(drop.phrase, drop.reason) for drop in dropped] == [("musical instrument", "below threshold")]


def test_captions_without_scores_leave_the_choice_to_the_boxes() -> None:
    dog, cat = Detection(BOX, "dog", 0.8), Detection((60.0, 0.0, 90.0, 30.0), "cat", 0.3)
    kept, dropped = filter_detections(
        [dog, cat], [heard("dog", None), Prompt("cat")], PipelineConfig(min_audio_visual_ratio=0.5)
    )
    assert kept == [dog] and dropped[0].reason == "less likely"
