"""Shown names: one object has one name and color through a clip, whatever its phrase was in a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from openavs.cli.jobs import clip_summary
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, ClipResult, FrameResult, Prompt, Segment
from openavs.visualization.colors import DISTINCT, object_names, palette_of
from openavs.visualization.overlay import OverlayPainter, status_line
from openavs.visualization.report import object_values, timeline_values

SIZE = (60, 80)
WORDS = ("horse", "animal", "horse", "animal")


def square(phrase: str, x: int, score: float = 0.5, track: int | None = None) -> Segment:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[10:40, x : x + 30] = True
    return Segment(mask_to_rle(mask), (x, 10.0, x + 30.0, 40.0), phrase, score, track=track)


def frame(index: int, *segments: Segment) -> FrameResult:
    prompts = tuple(
        Prompt(word, captions=(Caption(f"{word} sound", 0.4, index, index + 1.0),)) for word in ("horse", "animal")
    )
    return FrameResult(index, index + 0.5, captions=prompts[0].captions, prompts=prompts, segments=segments)


def names(*frames: FrameResult) -> list[list[str]]:
    shown = object_names(frames)
    return [[shown[segment] for segment in one.segments] for one in frames]


def horse() -> ClipResult:
    """An object that moves and whose phrase changes from frame to frame; `horse` has the better total score."""
    frames = (frame(i, square(word, 5 + 4 * i, 0.6 - 0.1 * (word == "animal"))) for i, word in enumerate(WORDS))
    return ClipResult("clip", SIZE, tuple(frames))


def test_an_object_has_one_name_in_picture_report_timeline_and_terminal() -> None:
    result = horse()
    palette = palette_of(result.frames)
    assert palette.phrases == ("horse",)
    assert [row["frames"] for row in object_values(result.frames, palette)["found"]] == [4]
    assert [(lane.text, len(lane.spans)) for lane in timeline_values(result, None, palette)["found_lanes"]] == [
        ("horse", 4)
    ]
    summary = clip_summary(result)
    assert [item["text"] for item in summary["found"]] == ["horse"]
    assert summary["chains"] == ["horse <- horse sound 0.40, animal sound 0.40"]
    for i in range(4):
        painted = OverlayPainter(result)(i + 0.5, np.full((*SIZE, 3), 128, dtype=np.uint8))
        assert tuple(painted[25, 5 + 4 * i]) == DISTINCT[0]  # the contour
    assert [one.segments[0].phrase for one in result.frames] == list(WORDS)  # the result keeps its phrases


def test_a_prompt_of_a_shown_object_is_not_called_missing() -> None:
    result = horse()
    shown = palette_of(result.frames).shown(result.frames[0])
    assert status_line(result.frames[0]).startswith("not found: animal")
    assert status_line(shown) == "captions: horse sound 0.40"


def test_phrases_that_are_two_things_somewhere_in_the_clip_stay_two() -> None:
    both = frame(2, square("horse", 5), square("animal", 45))
    assert names(frame(0, square("horse", 5)), frame(1, square("animal", 5)), both) == [
        ["horse"],
        ["animal"],
        ["horse", "animal"],
    ]


def test_phrases_far_apart_or_long_after_are_not_one_object() -> None:
    assert names(frame(0, square("horse", 5)), frame(1, square("animal", 25))) == [["horse"], ["animal"]]
    assert names(frame(0, square("horse", 5)), frame(4, square("animal", 5))) == [["horse"], ["animal"]]


def test_two_phrases_of_one_object_in_a_frame_do_not_change_its_name() -> None:
    first, both = frame(0, square("horse", 5, 0.9)), frame(1, square("animal", 6), square("horse", 5, 0.9))
    assert names(first, both, frame(2, square("horse", 6, 0.9)))[::2] == [["horse"], ["horse"]]


def test_twins_with_tracks_have_own_names_and_colors_and_share_them_without() -> None:
    frames = [frame(i, square("dog", 5, track=3), square("dog", 45, track=7)) for i in range(2)]
    assert names(*frames) == [["dog #3", "dog #7"]] * 2
    loose = [replace(one, segments=tuple(replace(s, track=None) for s in one.segments)) for one in frames]
    assert names(*loose) == [["dog", "dog"]] * 2


def test_a_track_is_one_object_wherever_it_is() -> None:
    assert names(frame(0, square("horse", 5, 0.9, 1)), frame(9, square("animal", 45, 0.2, 1))) == [["horse"], ["horse"]]
