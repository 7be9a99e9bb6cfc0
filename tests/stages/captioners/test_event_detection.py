"""Events from scores over time: hysteresis, pauses, short events, kinds before categories, and blocks of any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.stages.captioners.event_detection import EventDetector
from openavs.structures.types import Event

RATE = 10.0


def detector(labels: list[str], **options: Any) -> EventDetector:
    plain = {"threshold": 0.5, "off_threshold": 0.3, "min_seconds": 0.0, "merge_seconds": 0.0, "top_k": 9}
    return EventDetector(labels, rate=RATE, **(plain | options))


def detect(scores: dict[str, list[float]], block: int | None = None, **options: Any) -> list[Event]:
    rows = np.array(list(scores.values()), dtype=np.float32)
    size = block or rows.shape[1]
    blocks = [rows[:, i : i + size] for i in range(0, rows.shape[1], size)]
    return detector(list(scores), **options).detect(blocks, rows.shape[1] / RATE)


def spans(events: list[Event]) -> list[tuple[str, float, float]]:
    return [(event.phrase, event.onset, event.offset) for event in events]


def test_on_at_the_threshold_and_off_below_the_lower_one() -> None:
    [event] = detect({"Dog": [0.4, 0.5, 0.35, 0.3, 0.29, 0.4]})
    assert (event.onset, event.offset) == (0.1, 0.4)
    assert event.curve == (0.5, 0.35, 0.3)
    assert event.score == 0.5 and event.rate == RATE


def test_scores_between_the_thresholds_begin_nothing() -> None:
    assert detect({"Dog": [0.4] * 5}) == []


def test_short_pauses_belong_to_the_event_with_their_scores() -> None:
    scores = {"Dog": [0.9, 0.1, 0.2, 0.8, 0.0, 0.0, 0.0, 0.7]}
    first, second = detect(scores, merge_seconds=0.2)
    assert first.curve == (0.9, 0.1, 0.2, 0.8)
    assert spans([second]) == [("Dog", 0.7, 0.8)]


def test_short_events_are_left_out_after_pauses_are_filled() -> None:
    scores = {"Dog": [0.9, 0.0, 0.9, 0.0, 0.0, 0.0, 0.9]}
    assert spans(detect(scores, min_seconds=0.3, merge_seconds=0.1)) == [("Dog", 0.0, 0.3)]


def test_events_do_not_depend_on_the_blocks() -> None:
    rng = np.random.default_rng(0)
    labels = ["Dog", "Bark", "Animal", "Bell", "Bird", "Crow", "Rain"]
    scores = {label: np.repeat(rng.uniform(0, 1, 60), 3).tolist() for label in labels}
    options = {"merge_seconds": 0.5, "min_seconds": 0.2, "top_k": 2}
    whole = detect(scores, **options)
    assert len(whole) > 10
    for block in (1, 2, 7, 50):
        assert detect(scores, block, **options) == whole


def test_labels_of_one_thing_are_one_event_named_by_the_best() -> None:
    events = detect({"Dog": [0.6, 0.6, 0.2], "Bark": [0.2, 0.9, 0.6]})
    assert spans(events) == [("Bark", 0.0, 0.3)]
    assert events[0].curve == (0.6, 0.9, 0.6)


def test_a_category_gives_way_while_one_of_its_things_sounds() -> None:
    events = detect({"Animal": [0.9] * 4, "Dog": [0.0, 0.6, 0.6, 0.0]})
    assert spans(events) == [("Animal", 0.0, 0.1), ("Dog", 0.1, 0.3), ("Animal", 0.3, 0.4)]


def test_a_general_thing_gives_way_to_a_kind_unless_it_is_far_more_likely() -> None:
    assert {event.phrase for event in detect({"Bird": [0.9] * 3, "Crow": [0.6] * 3})} == {"Crow"}
    weak = detect({"Bird": [1.0] * 3, "Crow": [0.3] * 3}, threshold=0.3)
    assert {event.phrase for event in weak} == {"Bird", "Crow"}


def test_without_things_each_label_has_its_events() -> None:
    events = detect({"Animal": [0.9], "Dog": [0.6], "Bark": [0.7]}, things=False)
    assert {event.phrase for event in events} == {"Animal", "Dog", "Bark"}


def test_the_best_events_of_each_moment_are_kept() -> None:
    scores = {"Dog": [0.9, 0.9, 0.0, 0.0], "Bell": [0.0, 0.8, 0.8, 0.0], "Drum": [0.0, 0.0, 0.7, 0.7]}
    assert [event.phrase for event in detect(scores, top_k=1)] == ["Dog", "Drum"]


def test_no_blocks_have_no_events() -> None:
    assert detector(["Dog"]).detect([], 0.0) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 0}, "top_k is at least 1"),
        ({"threshold": 1.2}, "at most 1"),
        ({"off_threshold": 0.6}, "at most threshold"),
        ({"off_threshold": 0.0}, "above 0"),
        ({"min_seconds": -1.0}, "min_seconds is not negative"),
        ({"merge_seconds": float("inf")}, "merge_seconds is not negative and finite"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector(["Dog"], **options)


def test_a_vocabulary_that_names_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="things=false"):
        detector(["Inside, small room"])
