"""Corrections of a clip in which a white square moves to the right by two pixels a second."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from openavs.corrections.apply import correct_result
from openavs.corrections.clicks import box_mask, click_mask
from openavs.corrections.mask_motion import CorrectionTools
from openavs.errors import InputError
from openavs.results.result import Result
from openavs.stages.trackers.iou import link_tracks
from openavs.structures.masks import RLE, mask_iou, mask_to_rle, rle_to_mask
from openavs.structures.types import (
    BoolMask,
    Clip,
    ClipResult,
    Correction,
    Frame,
    FrameResult,
    ImageArray,
    Mask,
    Prompt,
    Rejection,
    Segment,
)

SIZE, SECONDS = (64, 96), 5


def truth(time: float) -> BoolMask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    left = 20 + round(2 * time)
    mask[20:44, left : left + 24] = True
    return mask


def picture(time: float) -> ImageArray:
    noise = np.random.default_rng(0).integers(0, 40, (*SIZE, 3), dtype=np.uint8)
    return np.where(truth(time)[..., None], np.uint8(230) - noise, noise).astype(np.uint8)


def dense(fps: float, side: int) -> Iterator[Frame]:
    for i in range(round(SECONDS * fps)):
        yield Frame(i, (i + 0.5) / fps, picture((i + 0.5) / fps))


def open_clip() -> Clip:
    times = tuple(i + 0.5 for i in range(SECONDS))

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        return (Frame(i, t, picture(t)) for i, t in enumerate(times) if wanted is None or i in wanted)

    return Clip("clip", times, 1.0, SIZE, frames, None, dense_frames=dense)


TOOLS = CorrectionTools(open_clip)


def half(time: float) -> BoolMask:
    """The left half of the square."""
    mask = truth(time)
    mask[:, 32 + round(2 * time) :] = False
    return mask


@pytest.fixture
def result() -> ClipResult:
    """A dog whose masks lack their right half."""
    frames = []
    for i in range(SECONDS):
        segment = Segment(mask_to_rle(half(i + 0.5)), (20, 20, 32, 44), "dog", 0.5, track=3)
        frames.append(FrameResult(i, i + 0.5, prompts=(Prompt("dog"),), segments=(segment,)))
    return ClipResult("clip", SIZE, tuple(frames))


def ious(result: ClipResult) -> list[float]:
    return [mask_iou(rle_to_mask(f.segments[0].mask), truth(f.time)) if f.segments else 0.0 for f in result.frames]


@pytest.mark.parametrize("tools", [TOOLS, CorrectionTools(lambda: replace(open_clip(), dense_frames=None))])
def test_a_click_completes_the_mask_in_all_frames_and_locks_them(result: ClipResult, tools: CorrectionTools) -> None:
    assert max(ious(result)) < 0.6
    corrected = correct_result(result, [Correction("add point", 2, 3, "dog", [40, 32], "Ada")], tools)
    assert min(ious(corrected)) > 0.85
    assert {s.author for f in corrected.frames for s in f.segments} == {"person"}
    [record] = corrected.corrections
    assert (record.frame, record.track, record.author) == (2, 3, "Ada") and record.at.endswith("Z")


def test_a_frame_that_was_corrected_directly_ends_the_way(result: ClipResult) -> None:
    drawn = {"size": list(SIZE), "counts": mask_to_rle(truth(3.5)).counts}
    first = correct_result(result, [Correction("mask", 3, 3, value=drawn)], TOOLS)
    assert min(ious(first)) > 0.9
    taken = correct_result(first, [Correction("remove point", 1, 3, value=[44, 40])], TOOLS)
    assert taken.frames[3:] == first.frames[3:]
    assert not rle_to_mask(taken.frames[1].segments[0].mask)[40, 44]


class Propagator:
    """Finds the square in a picture by its brightness; `gone` are the steps at which it is not present."""

    def __init__(self, gone: tuple[int, ...] = ()) -> None:
        self.gone = gone
        self.steps: list[tuple[int, bool]] = []

    def init_track(self, step: int, image: ImageArray, mask: RLE) -> int:
        assert np.array_equal(image, picture(step + 0.5)) and mask.area
        return step

    def propagate(self, memory: int, step: int, image: ImageArray, backward: bool = False) -> tuple[RLE, float]:
        assert abs(step - memory) <= SECONDS and backward is (step < memory)
        self.steps.append((step, backward))
        return mask_to_rle(image[..., 0] > 128), 0.1 if step in self.gone else 0.9


def test_the_recipes_tracker_carries_a_change_in_both_directions(result: ClipResult) -> None:
    propagator = Propagator(gone=(4,))
    tools = CorrectionTools(open_clip, tracker=SimpleNamespace(propagator=propagator))
    drawn = {"size": list(SIZE), "counts": mask_to_rle(truth(2.5)).counts}
    corrected = correct_result(result, [Correction("mask", 2, 3, value=drawn)], tools)
    assert propagator.steps == [(3, False), (4, False), (1, True), (0, True)]
    assert ious(corrected)[:4] == [1.0] * 4
    assert corrected.frames[4] == result.frames[4]  # the model did not see the object there
    propagator.steps.clear()
    drawn = {"size": list(SIZE), "counts": mask_to_rle(half(4.5)).counts}
    again = correct_result(corrected, [Correction("mask", 4, 3, value=drawn)], tools)
    assert propagator.steps == [(3, True)]  # up to the frame that a person drew
    assert again.frames[:3] == corrected.frames[:3]


def test_a_tracker_needs_the_frame_that_was_corrected(result: ClipResult) -> None:
    def without(wanted: frozenset[int] | None) -> Iterator[Frame]:
        return (frame for frame in open_clip().frames(wanted) if frame.index != 2)

    tools = CorrectionTools(
        lambda: replace(open_clip(), frames=without), tracker=SimpleNamespace(propagator=Propagator())
    )
    drawn = {"size": list(SIZE), "counts": mask_to_rle(truth(2.5)).counts}
    with pytest.raises(InputError, match="frame 2 of clip can no longer be read"):
        correct_result(result, [Correction("mask", 2, 3, value=drawn)], tools)


def test_clicks_agree_with_the_mask_whatever_the_segmenter_returns() -> None:
    class Sure:
        def segment_points(self, image: ImageArray, points: Any, labels: Any, box: Any = None, mask: Any = None) -> Any:
            return [Mask(mask_to_rle(truth(0.0)), self.score)]

        def __init__(self, score: float) -> None:
            self.score = score

    before, clicks = half(0.0), [(40.0, 32.0, True)]
    assert np.array_equal(click_mask(picture(0.0), before, clicks, Sure(0.95)), truth(0.0))
    for segmenter in (Sure(0.5), None):
        found = click_mask(picture(0.0), before, [*clicks, (5.0, 5.0, False)], segmenter)
        assert found[32, 40] and not found[5, 5]
    with pytest.raises(InputError, match="would be empty; use 'reject'"):
        frame = FrameResult(
            0, 0.5, segments=(Segment(mask_to_rle(half(9) & half(0)), (0, 0, 1, 1), "dog", 1.0, track=0),)
        )
        drawn = {"size": list(SIZE), "counts": mask_to_rle(np.zeros(SIZE, dtype=np.bool_)).counts}
        correct_result(ClipResult("c", SIZE, (frame,)), [Correction("mask", 0, 0, value=drawn)], TOOLS)


def test_the_mask_in_a_box_is_the_segmenters_unless_it_is_empty() -> None:
    class Segmenter:
        def __init__(self, mask: BoolMask) -> None:
            self.mask = mask

        def segment(self, images: Any, boxes: Any) -> list[list[Mask]]:
            assert boxes == [[box]]
            return [[Mask(mask_to_rle(self.mask))]]

    box = (20.0, 20.0, 44.0, 44.0)
    assert np.array_equal(box_mask(picture(0.0), box, Segmenter(half(0.0))), half(0.0))
    by_color = box_mask(picture(0.0), box)
    assert mask_iou(by_color, truth(0.0)) > 0.9
    assert np.array_equal(box_mask(picture(0.0), box, Segmenter(np.zeros(SIZE, dtype=np.bool_))), by_color)


def test_a_rejected_candidate_is_kept_in_all_frames_that_have_it(result: ClipResult) -> None:
    def without(f: FrameResult) -> FrameResult:
        x = 20 + round(2 * f.time)
        return replace(f, segments=(), rejected=(Rejection("dog", "below threshold", 0.1, (x, 20, x + 24, 44)),))

    empty = replace(result, frames=tuple(map(without, result.frames)))
    kept = correct_result(empty, [Correction("keep", 1, phrase="dog")], TOOLS)
    assert min(ious(kept)) > 0.85 and not any(f.rejected for f in kept.frames)
    assert {s.track for f in kept.frames for s in f.segments} == {kept.corrections[0].track}
    with pytest.raises(InputError, match="no rejected candidate of cat with a box"):
        correct_result(empty, [Correction("keep", 1, phrase="cat")], TOOLS)


def test_words_rejections_and_spans_need_no_video(result: ClipResult) -> None:
    named = correct_result(result, [Correction("rename", None, 3, value=" Wolf")])
    assert {s.phrase for f in named.frames for s in f.segments} == {"wolf"}
    gone = correct_result(named, [Correction("reject", 1, 3), Correction("span", None, 3, value=[0.0, 3.0])])
    assert [len(f.segments) for f in gone.frames] == [1, 0, 1, 0, 0]
    assert [r.reason for r in gone.frames[4].rejected] == ["person"]


def test_a_span_fills_the_frames_inside(result: ClipResult) -> None:
    short = replace(result, frames=(*result.frames[:2], *(replace(f, segments=()) for f in result.frames[2:])))
    long = correct_result(short, [Correction("span", None, 3, value=[0, 3.6])], TOOLS)
    assert [len(f.segments) for f in long.frames] == [1, 1, 1, 1, 0]
    assert mask_iou(rle_to_mask(long.frames[3].segments[0].mask), half(3.5)) > 0.8


@pytest.mark.parametrize(
    ("correction", "sentence"),
    [
        (Correction("add point", 9, 3, value=[1, 1]), "has no frame 9 for 'add point': it has 5 frames"),
        (Correction("add point", 1, 3, value=[96, 1]), r"the point \(96, 1\) is outside of the picture of 96 x 64"),
        (Correction("add point", 1, 3, value="1,1"), r"a point is \[x, y\] in pixels, not '1,1'"),
        (Correction("remove point", 1, 8, value=[1, 1]), "frame 1 has no segment of track 8 to change"),
        (Correction("reject", None, 8), "no segment of track 8 is in clip to reject"),
        (Correction("span", None, 8, value=[0, 1]), "track 8 has no segment"),
        (Correction("rename", None, 3), "the value of a rename is the new phrase"),
        (Correction("mask", 1, 3, value=[1]), "the value of a mask is"),
    ],
)
def test_a_wrong_correction_is_one_sentence(result: ClipResult, correction: Correction, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        correct_result(result, [correction], TOOLS)


def test_a_result_without_tracks_gets_some(result: ClipResult) -> None:
    untracked = replace(
        result, frames=tuple(replace(f, segments=(replace(f.segments[0], track=None),)) for f in result.frames)
    )
    assert {s.track for f in link_tracks(untracked).frames for s in f.segments} == {0}
    corrected = Result.of(untracked, open_clip()).correct("add point", frame=2, track=0, value=(40, 32))
    assert min(ious(corrected)) > 0.85 and len(corrected.corrections) == 1
