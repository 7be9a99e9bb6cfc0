"""Tracking with SAM 2 and EdgeTAM video against the library's own session, with less work and memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import EdgeTamVideoModel, Sam2VideoModel
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from openavs.errors import InputError, OpenAVSError
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.segmenters.sam import EdgeTamSegmenter, Sam2Segmenter
from openavs.stages.trackers.base import Tracker
from openavs.stages.trackers.sam2_video import EdgeTamVideoTracker, Sam2VideoTracker
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import Frame, ImageArray, Segment, TrackedFrame
from tests.stages.segmenters.images import picture, some_boxes
from tests.tiny_sams import SAM2_SIZE, make_edgetam_video, make_sam2_video

SIZE = (SAM2_SIZE, SAM2_SIZE)  # the model's own, so that neither pixels nor masks are resized on the way in
TRACKERS = {
    "sam2-video": (Sam2VideoTracker, make_sam2_video),
    "edgetam-video": (EdgeTamVideoTracker, make_edgetam_video),
}
LENGTH = 20  # frames: more than the pointers that SAM 2 looks at


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam2_video(tmp_path_factory.mktemp("sam2") / "video")


@pytest.fixture(scope="module", params=["sam2-video", pytest.param("edgetam-video", marks=pytest.mark.timm)])
def tracker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sam2VideoTracker:
    adapter, make = TRACKERS[request.param]
    return adapter(model=str(make(tmp_path_factory.mktemp(request.param) / "model")), keyframe_interval=4)


def film(length: int = LENGTH) -> list[ImageArray]:
    """A picture that moves two pixels a frame."""
    wide = picture(SIZE[0], SIZE[1] + 2 * length)
    return [np.ascontiguousarray(wide[:, 2 * i : 2 * i + SIZE[1]]) for i in range(length)]


def block(x: int, y: int = 20, side: int = 24) -> RLE:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask_to_rle(mask)


class Library:
    """The library's session over a whole film, as its documentation uses it, for one thing given by masks."""

    def __init__(self, tracker: Sam2VideoTracker, pixels: torch.Tensor) -> None:
        edge = isinstance(tracker, EdgeTamVideoTracker)
        model, session = (
            (EdgeTamVideoModel, EdgeTamVideoInferenceSession) if edge else (Sam2VideoModel, Sam2VideoInferenceSession)
        )
        self.model: Any = model.from_pretrained(next(iter(tracker.models))).eval()
        self.session: Any = session(pixels, *SIZE, dtype=torch.float32)

    def add_mask(self, at: int, mask: RLE) -> None:
        place = self.session.obj_id_to_idx(0)
        self.session.add_mask_inputs(place, at, torch.from_numpy(rle_to_mask(mask))[None, None].float())
        self.session.obj_with_new_inputs = [0]
        self.model(self.session, frame_idx=at)

    def masks(self, frames: Iterator[int] | range, reverse: bool = False) -> list[np.ndarray]:
        answers = [self.model(self.session, frame_idx=t, reverse=reverse).pred_masks for t in frames]
        return [(interpolate(a, SIZE, mode="bilinear", align_corners=False) > 0)[0, 0].numpy() for a in answers]


def library(tracker: Sam2VideoTracker, images: list[ImageArray]) -> Library:
    return Library(tracker, torch.stack([tracker.pixels.prepare(image) for image in images]))


def propagated_masks(
    tracker: Sam2VideoTracker, memory: Any, images: list[ImageArray], frames: range, back: bool = False
) -> Any:
    return [rle_to_mask(tracker.propagator.propagate(memory, t, images[t], backward=back)[0]) for t in frames]


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """Up to a pixel in a thousand: the same sums in another order, over many frames of memory."""
    assert len(ours) == len(theirs)
    assert max(float((a ^ b).mean()) for a, b in zip(ours, theirs, strict=True)) < 2e-3
    assert 0.02 < float(np.mean(ours)) < 0.98  # the comparison is of something
    assert any((a ^ b).any() for a, b in pairwise(ours))


def test_forward_propagation_is_the_librarys(tracker: Sam2VideoTracker) -> None:
    """Over more frames than a memory keeps: the dropped ones are not needed."""
    images = film()
    theirs = library(tracker, images)
    theirs.add_mask(0, block(10))
    memory = tracker.propagator.init_track(0, images[0], block(10))
    steps = range(1, LENGTH)
    assert_same(propagated_masks(tracker, memory, images, steps), theirs.masks(steps))


def test_backward_propagation_is_the_librarys(tracker: Sam2VideoTracker) -> None:
    images = film()
    theirs = library(tracker, images)
    theirs.add_mask(LENGTH - 1, block(10))
    memory = tracker.propagator.init_track(LENGTH - 1, images[-1], block(10))
    steps = range(LENGTH - 2, LENGTH - 8, -1)
    assert_same(propagated_masks(tracker, memory, images, steps, back=True), theirs.masks(steps, reverse=True))


def test_a_correction_conditions_what_follows_as_in_the_library(tracker: Sam2VideoTracker) -> None:
    images = film()
    theirs = library(tracker, images)
    theirs.add_mask(0, block(10))
    before = theirs.masks(range(1, 8))
    theirs.add_mask(8, block(36))
    after = theirs.masks(range(9, LENGTH))
    memory = tracker.propagator.init_track(0, images[0], block(10))
    assert_same(propagated_masks(tracker, memory, images, range(1, 8)), before)
    propagated = rle_to_mask(
        tracker.propagator.propagate(memory, 8, images[8])[0]
    )  # a key frame is carried to before it is corrected
    tracker.propagator.correct(memory, 8, images[8], block(36))
    assert_same(propagated_masks(tracker, memory, images, range(9, LENGTH)), after)
    assert (propagated ^ rle_to_mask(block(36))).any()


def test_a_memory_is_bounded(tracker: Sam2VideoTracker) -> None:
    images = film(40)
    memory = tracker.propagator.init_track(0, images[0], block(10))
    for t in range(1, 40):
        tracker.propagator.propagate(memory, t, images[t])
        if t % 3 == 0:
            tracker.propagator.correct(memory, t, images[t], block(10))
    outputs = memory.output_dict_per_obj[0]
    assert list(outputs["cond_frame_outputs"]) == [0, 33, 36, 39]
    assert len(outputs["non_cond_frame_outputs"]) <= 16 and len(memory.frames_tracked_per_obj[0]) <= 16
    stored = [*outputs["cond_frame_outputs"].values(), *outputs["non_cond_frame_outputs"].values()]
    assert all("high_res_masks" not in output and "pred_masks" not in output for output in stored)
    assert not memory.processed_frames and memory.mask_inputs_per_obj == {0: {}}


def seen(images: list[ImageArray], keys: set[int], things: dict[str, int]) -> list[TrackedFrame]:
    """Frames of a film in which each object is found at every key frame at its first position."""
    tracked = []
    for i, image in enumerate(images):
        masks = {phrase: block(x) for phrase, x in things.items()} if i in keys else {}
        segments = tuple(Segment(mask, mask.box, phrase, 0.5) for phrase, mask in masks.items())
        tracked.append(TrackedFrame(Frame(i, i / 8, image), tuple(things), segments, (), i in keys))
    return tracked


def count_encodings(tracker: Sam2VideoTracker, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    encoded: list[int] = []
    forward = tracker.model.vision_encoder.forward

    def counting(pixels: torch.Tensor, **options: Any) -> Any:
        encoded.append(len(pixels))
        return forward(pixels, **options)

    monkeypatch.setattr(tracker.model.vision_encoder, "forward", counting)
    return encoded


def test_each_frame_is_encoded_once_for_segmenting_and_tracking(
    tracker: Sam2VideoTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = count_encodings(tracker, monkeypatch)
    images = film(9)
    boxes = some_boxes(*SIZE, count=2)
    tracker.segment([images[0], images[4]], [boxes, boxes])
    assert encoded == [1, 1]
    answers = list(tracker.track(seen(images, {0, 4, 8}, {"dog": 4, "bell": 36})))
    assert sum(encoded) == 9
    assert all({s.phrase for s in a.segments} == {"dog", "bell"} for a in answers if a.key)


def test_features_live_as_long_as_their_frames(tracker: Sam2VideoTracker) -> None:
    images = film(3)
    list(tracker.track(seen(images, {0}, {"dog": 4})))
    assert all(tracker._cache.get(image) is not None for image in images)
    before = len(tracker._cache)
    del images
    gc.collect()
    assert len(tracker._cache) == before - 3


def test_it_segments_boxes_as_the_image_model_does(tracker: Sam2VideoTracker) -> None:
    images = [picture(*SIZE, seed) for seed in range(2)]
    boxes = [some_boxes(*SIZE, count=3, seed=seed) for seed in range(2)]
    ours = tracker.segment(images, boxes)
    image_model = EdgeTamSegmenter if isinstance(tracker, EdgeTamVideoTracker) else Sam2Segmenter
    theirs = image_model(model=next(iter(tracker.models))).segment(images, boxes)
    assert [[m.rle for m in masks] for masks in ours] == [[m.rle for m in masks] for masks in theirs]
    assert isinstance(tracker, Segmenter) and isinstance(tracker, Tracker)


def test_tracks_do_not_depend_on_what_was_tracked_before(tracker: Sam2VideoTracker) -> None:
    first, second = (list(tracker.track(seen(film(6), {0, 4}, {"dog": 4}))) for _ in range(2))
    assert [a.segments for a in first] == [a.segments for a in second]
    assert first[0].segments[0].track == 0


def test_a_hidden_object_has_an_empty_mask_and_a_low_score(tracker: Sam2VideoTracker) -> None:
    images = film(2)
    bias = tracker.video.get_parameter("mask_decoder.pred_obj_score_head.proj_out.bias")
    before = bias.clone()
    memory = tracker.propagator.init_track(0, images[0], block(10))
    try:
        bias.fill_(-9.0)
        mask, sure = tracker.propagator.propagate(memory, 1, images[1])
    finally:
        bias.copy_(before)
    assert mask.area == 0 and sure < 0.05


def test_a_frame_of_another_shape_gets_masks_of_its_own(tracker: Sam2VideoTracker) -> None:
    wide = picture(90, 130)
    mask = np.zeros((90, 130), dtype=np.bool_)
    mask[20:60, 30:90] = True
    memory = tracker.propagator.init_track(0, wide, mask_to_rle(mask))
    assert tracker.propagator.propagate(memory, 1, wide)[0].size == (90, 130)


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    broken = Sam2VideoTracker(model=str(folder))
    images = film(2)
    memory = broken.propagator.init_track(0, images[0], block(10))
    broken.video.get_parameter("memory_attention.layer_norm.bias").fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite while tracking"):
        broken.propagator.propagate(memory, 1, images[1])


@pytest.mark.parametrize(
    "option", [{"keyframe_interval": 0}, {"max_missed_keyframes": -1}, {"min_iou": 0.0}, {"max_objects": 0}]
)
def test_bad_options_are_refused(folder: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="sam2-video: "):
        Sam2VideoTracker(model=str(folder), **option)
