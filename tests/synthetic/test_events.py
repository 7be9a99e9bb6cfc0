"""Exact times of sounds."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.synthetic.audio import RATE
from openavs.synthetic.events import active_spans
from openavs.synthetic.scenes import LAYOUTS, Role, plan_scene, sample_scene, scene_rng


def signal(*spans: tuple[float, float], seconds: float = 4.0) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    on = np.any([(time >= start) & (time < end) for start, end in spans] or [np.zeros_like(time)], axis=0)
    return np.where(on, np.sin(2 * np.pi * 440 * time), 0.0)


def test_short_pauses_are_part_of_an_event_and_long_ones_end_it() -> None:
    spans = active_spans(signal((0.5, 1.0), (1.6, 2.0), (2.7, 3.0)))
    assert spans == [pytest.approx((0.5, 2.0)), pytest.approx((2.7, 3.0))]


def test_blocks_thirty_decibels_below_the_loudest_are_silent() -> None:
    faint = 0.02 * signal((2.0, 4.0)) + signal((0.0, 1.0))
    assert active_spans(faint) == [pytest.approx((0.0, 1.0))]
    assert active_spans(signal()) == []


def test_an_event_may_last_to_the_end() -> None:
    assert active_spans(signal((3.0, 4.0))) == [pytest.approx((3.0, 4.0))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_events_lie_in_the_sounding_seconds_of_their_source(layout: str) -> None:
    for index in range(8):
        scene = sample_scene(layout, "test", 6, index).scene
        heard = np.zeros((len(scene.actors), scene.seconds), dtype=bool)
        for event in scene.events():
            actor = scene.actors[event.instance - 1]
            assert event.kind == actor.kind
            assert all(actor.on[int(event.onset) : int(np.ceil(event.offset - 1e-9))])
            heard[event.instance - 1, int(event.onset) : int(np.ceil(event.offset - 1e-9))] = True
        assert heard.tolist() == [list(actor.on) for actor in scene.actors]


def test_a_source_outside_the_frame_has_events() -> None:
    parts = [Role("dog", (False, True, True), visible=False), Role("clock", (True, False, True))]
    events = plan_scene(parts, scene_rng("test", 4), 3).events()
    assert [event.kind for event in events] == ["clock", "dog", "clock"]
    assert events[1].instance == 1
    assert 1.0 <= events[1].onset < 1.6
