"""Box selection, and the reasons of rejected boxes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from openavs.config.recipe import PipelineConfig
from openavs.pipeline.filtering import LINK_SECONDS, FrameBoxes, filter_detections, filter_frames
from openavs.structures.masks import iou
from openavs.structures.types import Caption, Detection, Frame, Prompt, Rejection

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


def found_at(time: float, *boxes: Detection) -> FrameBoxes:
    frame = Frame(round(time * 10), time, np.zeros((100, 100, 3), dtype=np.uint8))
    return FrameBoxes(frame, (Prompt("dog"), Prompt("cat")), True, boxes)


def kept_boxes(frames: Sequence[FrameBoxes], linked_threshold: float | None = 0.2) -> list[list[Detection]]:
    rules = PipelineConfig(box_threshold=0.3, repeat_threshold=0.4, linked_threshold=linked_threshold)
    return [list(found.kept) for found in filter_frames(frames, rules, lambda phrase: True)]


STRONG, WEAK = Detection(BOX, "dog", 0.5), Detection((12.0, 10.0, 52.0, 50.0), "dog", 0.25)


def test_a_weak_box_is_kept_where_the_frame_before_or_after_has_one() -> None:
    assert kept_boxes([found_at(0, STRONG), found_at(1, WEAK)]) == [[STRONG], [WEAK]]
    assert kept_boxes([found_at(0, WEAK), found_at(1, STRONG)]) == [[WEAK], [STRONG]]
    assert kept_boxes([found_at(0, STRONG), found_at(1, WEAK)], None) == [[STRONG], []]
    weaker = Detection(WEAK.box, "dog", 0.19)
    assert kept_boxes([found_at(0, STRONG), found_at(1, weaker)]) == [[STRONG], []]


def test_a_further_weak_box_of_a_phrase_is_kept_at_the_place_of_one() -> None:
    other = Detection((60.0, 60.0, 90.0, 90.0), "dog", 0.6)
    again, elsewhere = Detection(BOX, "dog", 0.45), Detection((10.0, 60.0, 40.0, 95.0), "dog", 0.35)
    frames = [found_at(0, other, again), found_at(1, other, WEAK, elsewhere)]
    assert kept_boxes(frames) == [[other, again], [other, WEAK]]


def test_boxes_of_another_phrase_place_or_time_are_not_linked() -> None:
    cat, moved = Detection(BOX, "cat", 0.5), Detection((60.0, 60.0, 99.0, 99.0), "dog", 0.5)
    assert kept_boxes([found_at(0, cat), found_at(1, WEAK)])[1] == []
    assert kept_boxes([found_at(0, moved), found_at(1, WEAK)])[1] == []  # as after a cut
    assert kept_boxes([found_at(0, STRONG), found_at(LINK_SECONDS + 0.1, WEAK)])[1] == []


def test_links_do_not_spread() -> None:
    frames = [found_at(0, STRONG), found_at(1, WEAK), found_at(2, WEAK), found_at(3, WEAK)]
    assert kept_boxes(frames) == [[STRONG], [WEAK], [], []]


def test_frames_between_key_frames_stay_in_order_and_are_not_filtered() -> None:
    between = FrameBoxes(found_at(0.5).frame)
    frames = [between, found_at(0.6, STRONG), between, between, found_at(1, WEAK), between]
    for threshold in (None, 0.2):
        filtered = filter_frames(frames, PipelineConfig(linked_threshold=threshold), lambda phrase: True)
        order = [(found.frame.time, found.key, bool(found.rejected)) for found in filtered]
        key = [(0.6, True, True), (1, True, True)]
        assert order == [(0.5, False, False), key[0], *[(0.5, False, False)] * 2, key[1], (0.5, False, False)]


def test_a_linked_frame_is_out_once_the_next_is_known() -> None:
    taken = []

    def source() -> Iterator[FrameBoxes]:
        for time in range(4):
            taken.append(time)
            yield found_at(time, STRONG)

    filtered = filter_frames(source(), PipelineConfig(linked_threshold=0.2), lambda phrase: True)
    assert next(filtered).frame.time == 0 and taken == [0, 1]


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
