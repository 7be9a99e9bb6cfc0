"""The data of the player: masks once each, boxes below the threshold, masks in motion; no text becomes HTML."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.media.clip import open_clip
from openavs.media.encode import write_video
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, ClipResult, FrameResult, Rejection, Segment
from openavs.visualization.colors import DISTINCT, palette_of
from openavs.visualization.overlay import OverlayPainter, paint, paint_layer
from openavs.visualization.player import MotionRecorder, player_data, record_motion, script_json

SIZE = (90, 160)
INTERVALS = [(float(i), i + 1.0) for i in range(3)]


def block(left: int, size: tuple[int, int] = SIZE) -> BoolMask:
    mask = np.zeros(size, dtype=np.bool_)
    mask[20:60, left : left + 30] = True
    return mask


def segment(mask: BoolMask, phrase: str = "dog", score: float = 0.66, track: int | None = None) -> Segment:
    return Segment(mask_to_rle(mask), (30.0, 20.0, 60.0, 60.0), phrase, score, track=track)


def clip_result(*frames: tuple[Segment, ...], size: tuple[int, int] = SIZE) -> ClipResult:
    made = tuple(FrameResult(i, i + 0.5, segments=own) for i, own in enumerate(frames))
    return ClipResult("clip", size, made, recipe={"filtering": {"box_threshold": 0.25}})


def data_of(result: ClipResult, moving: MotionRecorder | None = None) -> dict[str, Any]:
    data = player_data(result, palette_of(result.frames), INTERVALS[: len(result.frames)], 3.0, moving)
    parsed: dict[str, Any] = json.loads(script_json(data))
    return parsed


def test_a_mask_that_repeats_is_kept_once() -> None:
    still = segment(block(30))
    data = data_of(clip_result((still,), (still, segment(block(90), "drum", 0.5)), ()))
    assert data["objects"] == [{"name": "dog", "color": [*DISTINCT[0]]}, {"name": "drum", "color": [*DISTINCT[1]]}]
    (view,) = data["views"]
    assert [frame["segments"] for frame in view["frames"]] == [[[0, 0.66, 0]], [[0, 0.66, 0], [1, 0.5, 1]], []]
    assert [(frame["start"], frame["stop"]) for frame in view["frames"]] == [(0, 1), (1, 2), (2, 3)]
    decoded = rle_to_mask(RLE(tuple(view["size"]), data["codes"][1]))
    assert (decoded == block(90)).all()
    assert (data["threshold"], data["moving"], data["size"]) == (0.25, None, [90, 160])
    assert data["begin"] == 1.5  # the frame with most objects
    assert data_of(clip_result((), ()))["begin"] == 0


def test_boxes_below_the_threshold_are_candidates() -> None:
    result = clip_result((segment(block(30)),))
    low = Rejection("dog", "below threshold", 0.2, (1.0, 2.0, 3.04, 4.0))
    others = (Rejection("cat", "below threshold", 0.1, (0.0, 0.0, 5.0, 5.0)), Rejection("cat", "not found"))
    result = replace(result, frames=(replace(result.frames[0], rejected=(low, *others)),))
    (frame,) = data_of(result)["views"][0]["frames"]
    assert frame["candidates"] == [["dog", 0, 0.2, [1, 2, 3, 4]], ["cat", None, 0.1, [0, 0, 5, 5]]]


def test_large_masks_are_scaled_down_and_long_clips_have_coarser_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    big = (1080, 1920)
    result = clip_result((segment(block(30, big)),), size=big)
    view = data_of(result)["views"][0]
    assert view["size"] == [540, 960]
    monkeypatch.setattr("openavs.visualization.player.MAX_CHARACTERS", 10)
    data = data_of(result)
    assert data["views"][0]["size"] == [135, 240]
    mask = rle_to_mask(RLE((135, 240), data["codes"][0]))
    ys, xs = np.nonzero(mask)
    assert (ys.min(), ys.max(), xs.min(), xs.max()) == (2, 6, 4, 6)


@pytest.fixture(scope="module")
def moving_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds in which a bright block moves 20 pixels a second."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 90, SIZE, dtype=np.uint8)
    block_texture = rng.integers(150, 255, (40, 30), dtype=np.uint8)
    frames = []
    for i in range(50):
        image = texture.copy()
        left = 30 + round(20 * i / 25)
        image[20:60, left : left + 30] = block_texture
        frames.append(np.repeat(image[..., None], 3, axis=2))
    path = tmp_path_factory.mktemp("moving") / "clip.mp4"
    write_video(path, frames, 25)
    return path


def test_masks_move_between_the_sampled_frames(moving_clip: Path) -> None:
    clip = open_clip(moving_clip, fps=1.0)
    result = clip_result((segment(block(40)),), (segment(block(60)),))
    palette = palette_of(result.frames)
    alone = record_motion(result, palette, clip)
    painted = MotionRecorder()
    painter = OverlayPainter(result, palette, clip, painted)
    for i in range(50):
        painter(i / 25, np.zeros((*SIZE, 3), dtype=np.uint8))
    for recorder in (alone, painted):
        moving = data_of(result, recorder)["moving"]
        assert (moving["rate"], moving["size"], len(moving["frames"])) == (8, [90, 160], 16)
        codes = data_of(result, recorder)["codes"]
        masks = [rle_to_mask(RLE(SIZE, codes[rows[0][2]])) for rows in moving["frames"][5:12] if rows]
        lefts = [int(np.nonzero(mask)[1].min()) for mask in masks]
        assert len(lefts) >= 6 and lefts == sorted(lefts) and 40 <= lefts[0] < 45 and 55 < lefts[-1] <= 62


def test_no_text_of_the_data_ends_its_element() -> None:
    hostile = "</script><!--<script>alert(1)\u2028</script>"
    text = script_json(player_data(clip_result((segment(block(30), hostile),)), palette_of([]), INTERVALS[:1], 1.0))
    assert "<" not in text
    assert json.loads(text)["objects"][0]["name"] == hostile


def test_a_layer_on_an_image_is_the_painted_image() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    result = clip_result((segment(block(30)), segment(block(50), "drum", 0.5)))
    palette, segments = palette_of(result.frames), result.frames[0].segments
    layer = paint_layer(SIZE, segments, palette).astype(float)
    opacity = layer[..., 3:] / 255
    blended = layer[..., :3] * opacity + image * (1 - opacity)
    assert abs(blended - paint(image, segments, palette)).max() <= 4
