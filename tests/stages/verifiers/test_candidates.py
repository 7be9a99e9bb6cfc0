"""Candidates over time: reading ahead, and their cut-outs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openavs.stages.verifiers.candidates import (
    CandidateTimeline,
    FrameWindow,
    Outline,
    Square,
    cut_square,
    film_candidate,
    square_around,
    window_times,
)
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Frame, ImageArray, Segment, TrackedFrame

SIZE = (40, 60)
FILL = np.zeros(3, dtype=np.uint8)


def patch(x: int, y: int = 10, side: int = 10) -> BoolMask:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def segment(mask: BoolMask, phrase: str = "dog", track: int | None = None) -> Segment:
    return Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), phrase, 0.5, track=track)


def frame(index: int, *segments: Segment) -> TrackedFrame:
    return TrackedFrame(Frame(index, index + 0.5, np.full((*SIZE, 3), index, dtype=np.uint8)), ("dog",), segments)


def read(*frames: TrackedFrame) -> tuple[CandidateTimeline, list[list[int]]]:
    timeline = CandidateTimeline(frames, SIZE, 0.0)
    timeline.read_until(100.0)
    return timeline, [list(timeline.keys(own)) for own in frames]


def test_frames_are_read_as_far_ahead_as_needed() -> None:
    taken: list[int] = []

    def source() -> Iterator[TrackedFrame]:
        for i in range(9):
            taken.append(i)
            yield frame(i, segment(patch(0), track=1))

    timeline = CandidateTimeline(source(), SIZE, 0.0)
    assert [own.frame.index for own in timeline.next_interval(2.0)] == [0, 1]
    assert taken == [0, 1, 2]  # the third shows that the interval is over
    assert [own.frame.index for own in timeline.read_until(4.0)] == [2, 3, 4]
    assert [own.frame.index for own in timeline.next_interval(2.0)] == [2, 3]


def test_outlines_are_those_of_the_window_and_its_neighbors_and_old_ones_are_dropped() -> None:
    frames = [frame(i, segment(patch(i), track=1)) for i in range(6)]
    timeline, keys = read(*frames)
    found = timeline.outlines(keys[0][0], 2.0, 4.0)
    assert [outline.time for outline in found] == [1.5, 2.5, 3.5, 4.5]
    timeline.forget(4.0, frames[:4])
    assert [outline.time for outline in timeline.outlines(keys[0][0], 0.0, 9.0)] == [4.5, 5.5]
    timeline.forget(9.0, frames)
    assert not timeline._outlines and not timeline._keys


def test_an_empty_mask_has_no_outline() -> None:
    timeline, ((key,),) = read(frame(0, segment(np.zeros(SIZE, dtype=np.bool_))))
    assert timeline.outlines(key, 0.0, 1.0) == []


def outline(time: float, x: int, side: int = 10) -> Outline:
    mask = patch(x, side=side)
    square = square_around(mask, 0.0)
    assert square is not None
    return Outline(time, square, cut_square(mask, square, False))


def test_a_film_shows_the_candidate_where_it_is_between_the_sampled_frames() -> None:
    images: list[ImageArray] = []
    for x in (0, 10, 20):
        image = np.full((*SIZE, 3), 50, dtype=np.uint8)
        image[10:20, x : x + 10] = 200
        images.append(image)
    film = film_candidate([outline(0.0, 0), outline(2.0, 20)], [0.0, 1.0, 2.0], images, FILL, 0.0)
    assert film.shape == (3, 30, 30, 3)  # one square that holds all of its places
    for i, x in enumerate((0, 10, 20)):
        bright = film[i, ..., 0] == 200
        assert bright.sum() == 100 and bright[:, x : x + 10].any(axis=0).all()
        assert (film[i, ~bright] == 0).all()


def test_a_candidate_of_one_frame_is_held() -> None:
    image = np.full((*SIZE, 3), 90, dtype=np.uint8)
    film = film_candidate([outline(0.5, 0)], [0.1, 5.0], [image, image], FILL, 0.0)
    assert film.shape == (2, 10, 10, 3) and (film == 90).all()


def test_segments_at_the_border_are_padded() -> None:
    edge = Outline(0.5, Square(-5, -5, 10), np.ones((10, 10), dtype=np.bool_))
    film = film_candidate([edge], [0.5], [np.full((*SIZE, 3), 90, dtype=np.uint8)], FILL, 0.0)
    assert (film[0, 5:, 5:] == 90).all() and (film[0, :5] == 0).all()


def dense(count: int, log: list[int]) -> Iterator[Frame]:
    for i in range(count):
        log.append(i)
        yield Frame(i, (i + 0.5) / 4, np.full((*SIZE, 3), i, dtype=np.uint8))


def test_a_window_has_the_nearest_frames_and_decodes_no_more_than_it_needs() -> None:
    log: list[int] = []
    window = FrameWindow(lambda fps, side: dense(40, log), 4.0, 640, SIZE)
    assert [int(image[0, 0, 0]) for image in window.images(window_times(0.0, 2.0, 4))] == [0, 2, 4, 6]
    assert log[-1] == 7 and len(window._held) <= 8
    assert [int(image[0, 0, 0]) for image in window.images([5.0, 5.2])] == [19, 20]
    assert len(window._held) <= 3


def test_frames_beyond_the_end_of_a_file_are_the_last_one() -> None:
    window = FrameWindow(lambda fps, side: dense(3, []), 4.0, 640, SIZE)
    assert [int(image[0, 0, 0]) for image in window.images([0.1, 7.0])] == [0, 2]
    assert FrameWindow(lambda fps, side: iter(()), 4.0, 640, SIZE).images([0.1]) == []


def test_without_dense_frames_the_sampled_ones_repeat() -> None:
    window = FrameWindow(None, 4.0, 640, (20, 30))
    window.offer([frame(0), frame(1)])
    window.offer([frame(1), frame(2)])
    found = window.images([0.4, 0.6, 1.4, 9.0])
    assert [int(image[0, 0, 0]) for image in found] == [0, 0, 1, 2] and found[0].shape == (20, 30, 3)
