"""Tracking with SAM 3 video: one encoding per frame, and the library's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Sam3VideoModel

from openavs.errors import InputError
from openavs.stages.segmenters.base import PhraseSegmenter
from openavs.stages.segmenters.sam3 import Sam3Segmenter
from openavs.stages.trackers.base import Tracker
from openavs.stages.trackers.sam3_video import Sam3VideoTracker
from openavs.structures.types import Frame, Segment, TrackedFrame
from tests.stages.segmenters.images import picture
from tests.tiny_sams import SAM3_SIZE, make_sam3_video

SQUARE = (SAM3_SIZE, SAM3_SIZE)  # the model's own size, so that images are not resized
PHRASES = ["dog", "barking dog", "engine"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam3_video(tmp_path_factory.mktemp("sam3") / "video")


def test_the_video_checkpoint_holds_the_image_model(video: Path) -> None:
    image = picture(*SQUARE)
    [as_image], [as_video] = (
        backend(model=str(video), floor=0.0).segment_phrases([image], [PHRASES])
        for backend in (Sam3Segmenter, Sam3VideoTracker)
    )
    assert [(box, mask.rle) for box, mask in as_image] == [(box, mask.rle) for box, mask in as_video]


def test_features_for_the_tracker_are_the_librarys(video: Path) -> None:
    """The library's own loop gives its tracker exactly these."""
    tracker = Sam3VideoTracker(model=str(video))
    image = picture(*SQUARE)
    model: Any = Sam3VideoModel.from_pretrained(video).eval()
    with torch.inference_mode():
        pixels = tracker.pixels.prepare(image)[None]
        levels, positions = model.get_vision_features_for_tracker(
            model.detector_model.get_vision_features(pixel_values=pixels)
        )
        ours = tracker._memory_features(image)
    assert all(torch.equal(a, b) for a, b in zip(ours.levels, levels, strict=True))
    assert torch.equal(ours.positions, positions[-1])


def test_each_frame_is_encoded_once_for_finding_and_tracking(video: Path) -> None:
    tracker = Sam3VideoTracker(model=str(video), keyframe_interval=3, floor=0.0)
    encoded: list[int] = []
    tracker.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    wide = picture(SQUARE[0], SQUARE[1] + 14)
    images = [np.ascontiguousarray(wide[:, 2 * i : 2 * i + SQUARE[1]]) for i in range(7)]
    keys = {0, 3, 6}
    finds = dict(
        zip(sorted(keys), tracker.segment_phrases([images[i] for i in sorted(keys)], [["dog"]] * 3), strict=True)
    )
    assert encoded == [1, 1, 1]
    tracked = []
    for i, image in enumerate(images):
        found = [Segment(mask.rle, box.box, box.phrase, box.score) for box, mask in finds.get(i, [])[:2]]
        tracked.append(TrackedFrame(Frame(i, i / 8, image), ("dog",), tuple(found), (), i in keys))
    answers = list(tracker.track(tracked))
    assert sum(encoded) == 7
    assert [a.frame.index for a in answers] == list(range(7))
    assert all(s.track is not None for a in answers for s in a.segments)
    assert any(a.segments for a in answers if not a.key)
    assert isinstance(tracker, Tracker) and isinstance(tracker, PhraseSegmenter)


def test_options_of_the_tracker_are_checked(video: Path) -> None:
    with pytest.raises(InputError, match="sam3-video: keyframe_interval"):
        Sam3VideoTracker(model=str(video), keyframe_interval=0)
