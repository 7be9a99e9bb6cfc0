"""Masks between sampled frames: they follow the picture, end at cuts, and are those of the samples at the samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import pytest

from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, Caption, Clip, Frame, FrameResult, ImageArray, Segment
from openavs.visualization.moving_masks import MovingMasks, level_to_rle, mask_to_level, warp

SIZE = (120, 200)
RNG = np.random.default_rng(3)
GROUND = cv2.GaussianBlur(RNG.integers(0, 255, (*SIZE, 3)).astype(np.uint8), (0, 0), 3)
THING = cv2.resize(RNG.integers(0, 255, (8, 8, 3)).astype(np.uint8), (40, 40))

Place = Callable[[float], int]  # left edge of the thing at a time, in pixels


def thing(left: int) -> BoolMask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[40:80, left : left + 40] = True
    return mask


def picture(left: int) -> ImageArray:
    image = np.array(GROUND)
    image[40:80, left : left + 40] = THING
    return image


def clip_of(draw: Callable[[float], ImageArray], seconds: int = 2) -> Clip:
    """A clip that is sampled once a second, at the middle."""

    def dense(fps: float, longest_side: int) -> Iterator[Frame]:
        for i in range(round(seconds * fps)):
            yield Frame(i, (i + 0.5) / fps, draw((i + 0.5) / fps))

    times = tuple(i + 0.5 for i in range(seconds))
    return Clip("clip", times, 1.0, SIZE, lambda wanted: iter(()), None, dense_frames=dense)


def segment(mask: BoolMask, phrase: str = "dog", score: float = 0.5, track: int | None = None) -> Segment:
    return Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), phrase, score, track=track)


def iou(one: BoolMask, other: BoolMask) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def moved(frame: FrameResult | None) -> BoolMask:
    assert frame is not None
    (own,) = frame.segments
    return rle_to_mask(own.mask)


def slide(time: float) -> int:
    return round(20 + 25 * time)


SLIDING = clip_of(lambda time: picture(slide(time)))
SAMPLED = [FrameResult(i, t, segments=(segment(thing(slide(t))),)) for i, t in enumerate(SLIDING.times)]


def test_masks_follow_the_picture_between_the_samples() -> None:
    moving, still = MovingMasks(SAMPLED, SLIDING), MovingMasks(SAMPLED)
    for i in (16, 20, 24, 28, 33):
        truth = thing(slide((i + 0.5) / 25))
        assert iou(moved(moving.at(i / 25)), truth) > 0.9
        assert moved(still.at(i / 25)).sum() == truth.sum()
    assert iou(moved(still.at(1.0)), thing(slide(1.0))) < 0.6


def test_a_sampled_frame_keeps_its_own_masks_and_others_are_marked() -> None:
    moving = MovingMasks(SAMPLED, SLIDING)
    assert moving.at(0.5) == SAMPLED[0]
    between = moving.at(0.8)
    assert between is not None and between.interpolated and not SAMPLED[0].interpolated
    assert replace(between, segments=(), interpolated=False) == replace(SAMPLED[0], segments=())


def test_masks_are_carried_before_the_first_sample_and_after_the_last() -> None:
    moving = MovingMasks(SAMPLED, SLIDING)
    assert iou(moved(moving.at(0.12)), thing(slide(0.14))) > 0.9
    assert iou(moved(moving.at(1.88)), thing(slide(1.9))) > 0.9
    assert moving.at(9.0) is None


def test_times_may_go_back() -> None:
    moving = MovingMasks(SAMPLED, SLIDING)
    first = moved(moving.at(0.8))
    moving.at(1.8)
    assert (moved(moving.at(0.8)) == first).all()


def test_a_cut_ends_the_masks_of_both_sides() -> None:
    def draw(time: float) -> ImageArray:
        return picture(20) if time < 0.9 else picture(100) // 4

    frames = [
        FrameResult(0, 0.5, segments=(segment(thing(20), "dog"),)),
        FrameResult(1, 1.5, segments=(segment(thing(100), "cat"),)),
    ]
    moving = MovingMasks(frames, clip_of(draw))
    for at, phrase, left in ((0.8, "dog", 20), (0.96, "cat", 100), (1.2, "cat", 100)):
        shown = moving.at(at)
        assert shown is not None
        assert [s.phrase for s in shown.segments] == [phrase], at
        assert iou(moved(shown), thing(left)) > 0.9


def test_an_object_that_is_found_at_one_sample_only_lasts_to_the_middle() -> None:
    moving = MovingMasks([SAMPLED[0], FrameResult(1, 1.5)], SLIDING)
    early, late = moving.at(0.9), moving.at(1.1)
    assert early is not None and late is not None
    assert len(early.segments) == 1 and not late.segments


def test_in_the_middle_of_two_samples_captions_change_with_the_masks() -> None:
    frames = [
        replace(
            SAMPLED[i],
            captions=(Caption(text, 0.5, float(i), i + 1.0),),
            segments=(segment(thing(slide(i + 0.5)), score=score),),
        )
        for i, (text, score) in enumerate((("early", 0.4), ("late", 0.6)))
    ]
    moving = MovingMasks(frames, SLIDING)
    for time, text, score in ((0.96, "early", 0.4), (1.0, "late", 0.6), (1.04, "late", 0.6)):
        shown = moving.at(time)
        assert shown is not None and shown.captions[0].text == text, time
        assert [own.score for own in shown.segments] == [score], time


@pytest.mark.parametrize("tracks", [(None, None), (0, 1)])
def test_two_of_a_kind_keep_their_own_masks(tracks: tuple[int | None, int | None]) -> None:
    def frame(index: int, time: float) -> FrameResult:
        lower = np.roll(thing(slide(time)), 40, axis=0)
        pair = (segment(thing(slide(time)), track=tracks[0]), segment(lower, track=tracks[1]))
        return FrameResult(index, time, segments=pair if index == 0 else pair[::-1])

    def draw(time: float) -> ImageArray:
        image = picture(slide(time))
        image[80:120, slide(time) : slide(time) + 40] = THING[::-1]
        return image

    moving = MovingMasks([frame(0, 0.5), frame(1, 1.5)], clip_of(draw))
    shown = moving.at(1.0)
    assert shown is not None and len(shown.segments) == 2
    for own, down in zip(shown.segments, (0, 40), strict=True):
        assert iou(rle_to_mask(own.mask), np.roll(thing(slide(1.02)), down, axis=0)) > 0.85


def test_a_video_that_ends_early_keeps_its_last_masks() -> None:
    def dense(fps: float, longest_side: int) -> Iterator[Frame]:
        yield from (Frame(i, (i + 0.5) / fps, picture(20)) for i in range(15))

    still = replace(SLIDING, dense_frames=dense)
    frames = [FrameResult(0, 0.5, segments=(segment(thing(20)),)), FrameResult(1, 1.5)]
    assert iou(moved(MovingMasks(frames, still).at(0.7)), thing(20)) > 0.95


def test_warping_with_the_identity_and_enlarging_restores_a_mask() -> None:
    mask = np.zeros((361, 641), dtype=np.bool_)
    cv2.ellipse(mask.view(np.uint8), (300, 170), (130, 90), 20, 0, 360, 1, -1)
    level = mask_to_level(mask, 320)
    grid = np.stack(np.meshgrid(np.arange(160), np.arange(90)), axis=-1).astype(np.float32)
    restored = level_to_rle(warp(level, grid), (361, 641))
    assert restored is not None
    assert iou(rle_to_mask(restored), mask) > 0.97
    assert level_to_rle(np.zeros((9, 9), dtype=np.uint8), (90, 90)) is None
