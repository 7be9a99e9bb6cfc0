"""FiftyOne's dataset on disk: documents of its public classes, which FiftyOne 1.22.1 reads."""

from __future__ import annotations

import base64
import io
import json
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openavs.exports.base import Categories, ExportItem, open_source, run_items
from openavs.exports.registry import ExportOptions, export
from openavs.media.clip import probe
from openavs.results.serialization import read_result
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask
from tests.exports.conftest import FPS, SIZE, by_hand


def whole_mask(detection: dict[str, Any]) -> BoolMask:
    """The mask in its frame: an array of NumPy's format, compressed by zlib, at its box in shares of the frame."""
    data = base64.b64decode(detection["mask"]["$binary"]["base64"])
    crop = np.load(io.BytesIO(zlib.decompress(data)))
    x, y, width, height = (round(v * side) for v, side in zip(detection["bounding_box"], SIZE[::-1] * 2, strict=True))
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[y : y + height, x : x + width] = crop
    return mask


def test_samples_are_videos_with_exact_masks_and_sounds(run: Path, tmp_path: Path) -> None:
    export("fiftyone", run_items(run), tmp_path / "set")
    metadata = json.loads((tmp_path / "set" / "metadata.json").read_text())
    assert metadata["media_type"] == "video" and "version" not in metadata  # a version is that of internal documents
    for sample in json.loads((tmp_path / "set" / "samples.json").read_text())["samples"]:
        result = read_result(run, sample["clip"])
        assert sample["filepath"] == result.source
        frames = json.loads((tmp_path / "set" / sample["frames"]).read_text())["frames"]
        for frame in result.frames:
            found = frames[str(int(frame.time * FPS) + 1)]["objects"]["detections"]
            for own, segment in zip(found, frame.segments, strict=True):
                assert np.array_equal(whole_mask(own), rle_to_mask(segment.mask))
                assert (own["label"], own["confidence"]) == (segment.phrase, segment.score)
                assert own.get("index") == segment.track and own["sampled_frame"] == frame.index
        sounds = [(own["label"], own["onset"], own["offset"]) for own in sample["sounds"]["detections"]]
        assert sounds == [(event.phrase, event.onset, event.offset) for event in result.events]


def test_the_support_of_a_sound_is_its_frames_from_one(run: Path, tmp_path: Path) -> None:
    export("fiftyone", run_items(run, ["one"]), tmp_path / "set")
    (sample,) = json.loads((tmp_path / "set" / "samples.json").read_text())["samples"]
    assert [own["support"] for own in sample["sounds"]["detections"]] == [[2, 10], [11, 13]]  # 0.24-1.88 and 2-2.5 s


def test_videos_are_copied_on_request(run: Path, tmp_path: Path) -> None:
    export("fiftyone", run_items(run, ["one"]), tmp_path / "set", ExportOptions(Categories(), images=True))
    (sample,) = json.loads((tmp_path / "set" / "samples.json").read_text())["samples"]
    source = Path(str(read_result(run, "one").source))
    assert (tmp_path / "set" / sample["filepath"]).read_bytes() == source.read_bytes()


def test_a_folder_of_images_becomes_a_video_of_the_sampled_frames(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for second in range(3):
        Image.new("RGB", SIZE[::-1], (80 * second, 0, 0)).save(tmp_path / "images" / f"{second}.png")
    result = replace(by_hand("images", str(tmp_path / "images"), 3), recipe={"sample": {"fps": 1.0}})
    export("fiftyone", [ExportItem(result, partial(open_source, result))], tmp_path / "set")
    (sample,) = json.loads((tmp_path / "set" / "samples.json").read_text())["samples"]
    assert probe(tmp_path / "set" / sample["filepath"]).frames == 3
    frames = json.loads((tmp_path / "set" / "frames" / "images.json").read_text())["frames"]
    assert [*frames] == ["1", "2", "3"]
