"""FiftyOne's dataset on disk: videos, instance masks of their frames, and sounds as temporal detections.

`fiftyone.Dataset.from_dir` reads the form without a version number: documents of FiftyOne's public classes.
Frame numbers are those of the video and begin with 1. Format: `fiftyone/utils/data/importers.py` of FiftyOne.
"""

from __future__ import annotations

import base64
import io
import json
import math
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openavs import __version__
from openavs.exports.base import Categories, ExportItem, result_frames
from openavs.exports.coco import JsonListWriter, coco_box
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.media.clip import probe
from openavs.media.encode import write_video
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask, ClipResult, Event, FrameResult, Segment


@dataclass(frozen=True)
class _Video:
    """The video of a sample: its path, absolute or below the dataset, frames per second and number of frames."""

    path: str
    fps: float
    frames: int | None

    def number(self, time: float) -> int:
        """Return the number of the frame that is shown at a time in seconds, from 1."""
        number = math.floor(time * self.fps + 1e-6) + 1
        return max(1, number if self.frames is None else min(number, self.frames))


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `metadata.json`, `samples.json` and `frames/<clip>.json`; with `images` also the videos in `data/`.

    The sampled frames of a clip without a video file are always written as one.
    """
    summary, about = ExportSummary(), {"description": f"exported by openavs {__version__}"}
    (folder / "frames").mkdir()
    with JsonListWriter(folder / "samples.json", {}, ("samples",)) as file:
        for item in items:
            result, video = item.result, _video(folder, item, copy=bool(options.images))
            frames = _frames(result, video, options.categories)
            (folder / "frames" / f"{result.clip}.json").write_text(json.dumps({"frames": frames}), encoding="ascii")
            file.add("samples", _sample(result, video))
            summary.clips += 1
            summary.frames += len(result.frames)
            summary.segments += sum(len(own["objects"]["detections"]) for own in frames.values())
        file.finish({"info": about})
    metadata = {"media_type": "video", "info": about, "default_classes": list(options.categories.names)}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="ascii")
    return summary


def _video(folder: Path, item: ExportItem, *, copy: bool) -> _Video:
    """Return the video of a clip: its source, a copy of it, or its sampled frames as a new one."""
    clip = item.open()
    source = None if clip.source is None else Path(clip.source).absolute()
    info = None if source is None else probe(source)
    if source is not None and info is not None and info.kind == "video" and info.fps:
        if not copy:
            return _Video(str(source), info.fps, info.frames)
        name = f"data/{item.result.clip}{source.suffix}"
        (folder / "data").mkdir(exist_ok=True)
        shutil.copyfile(source, folder / name)
        return _Video(name, info.fps, info.frames)
    name = f"data/{item.result.clip}.mp4"
    write_video(folder / name, (frame.image for frame in result_frames(item.result, clip)), clip.fps, clip.audio)
    return _Video(name, clip.fps, len(item.result.frames))


def _sample(result: ClipResult, video: _Video) -> dict[str, Any]:
    return {
        "_media_type": "video",
        "filepath": video.path,
        "frames": f"frames/{result.clip}.json",
        "tags": [],
        "clip": result.clip,
        "sounds": {"_cls": "TemporalDetections", "detections": [_sound(event, video) for event in result.events]},
    }


def _sound(event: Event, video: _Video) -> dict[str, Any]:
    """Return an event; `support` are its first and last frame, `onset` and `offset` its exact times in seconds."""
    first = video.number(event.onset)
    last = max(first, video.number(math.nextafter(event.offset, 0.0)))
    return {
        "_cls": "TemporalDetection",
        "label": event.phrase,
        "support": [first, last],
        "confidence": event.score,
        "onset": event.onset,
        "offset": event.offset,
    }


def _frames(result: ClipResult, video: _Video, categories: Categories) -> dict[str, dict[str, Any]]:
    """Return the documents of the sampled frames by their numbers; frames that share a number are joined."""
    frames: dict[str, dict[str, Any]] = {}
    for frame in result.frames:
        number = video.number(frame.time)
        found = [_detection(frame, s, result.size, categories) for s in frame.segments if s.mask.area]
        empty = {"_cls": "Detections", "detections": []}
        own = frames.setdefault(
            str(number), {"frame_number": number, "time": frame.time, "silent": frame.silent, "objects": empty}
        )
        own["objects"]["detections"] += found
    return frames


def _detection(frame: FrameResult, segment: Segment, size: tuple[int, int], categories: Categories) -> dict[str, Any]:
    """Return an instance: the mask is cut to its box, whose place and size are shares of the frame's."""
    category = categories.id(segment)
    assert category is not None, "segments without a category are filtered out"
    x, y, width, height = (int(value) for value in coco_box(segment.mask))
    detection = {
        "_cls": "Detection",
        "label": categories.names[category - 1],
        "bounding_box": [x / size[1], y / size[0], width / size[1], height / size[0]],
        "mask": _binary(rle_to_mask(segment.mask)[y : y + height, x : x + width]),
        "confidence": segment.score,
        "phrase": segment.phrase,
        "sampled_frame": frame.index,
    }
    return detection if segment.track is None else {**detection, "index": segment.track}


def _binary(mask: BoolMask) -> dict[str, Any]:
    """Return an array as FiftyOne stores it: zlib over NumPy's format, in extended JSON."""
    buffer = io.BytesIO()
    np.save(buffer, mask, allow_pickle=False)
    return {"$binary": {"base64": base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii"), "subType": "00"}}
