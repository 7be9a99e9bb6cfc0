"""YouTube-VIS JSON export: per track one mask for every frame of its clip, null where it is absent.

A clip without tracks gets one annotation per category, the union of its masks, like in AVSBench-OV. Clips of
AVSBench-semantic or AVSBench-OV, and any others of 5 or 10 frames, one per second, are written for AVSBench-OV's
readers: frames `<uid>/3.jpg`, whose number is the second of the audio, and the subset as the video's `label`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from openavs import __version__
from openavs.exports.base import Categories, ExportItem, image_name, write_images
from openavs.exports.coco import (
    CocoCategory,
    CocoMask,
    JsonListWriter,
    MaskWriter,
    coco_box,
    coco_categories,
)
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.masks import merge_masks
from openavs.structures.types import ClipResult, Segment

ObjectKey = tuple[str, int]  # ("track", its number) or ("category", its id)
LABELS = {5: "v1m", 10: "v2"}  # subset of AVSBench-semantic with fully labeled clips of this many frames


class YoutubeVisVideo(TypedDict):
    """One clip and its frames. `label` is a subset of AVSBench-semantic: v1s, v1m or v2."""

    id: int
    width: int
    height: int
    length: int
    file_names: list[str]
    label: NotRequired[str]


class YoutubeVisAnnotation(TypedDict):
    """One object through a clip; the lists have an entry per frame. `score` is the mean over its frames."""

    id: int
    video_id: int
    category_id: int
    iscrowd: int
    width: int
    height: int
    score: float
    segmentations: list[CocoMask | None]
    bboxes: list[list[float] | None]
    areas: list[int | None]


class YoutubeVisDataset(TypedDict):
    """A whole YouTube-VIS file."""

    info: dict[str, str]
    videos: list[YoutubeVisVideo]
    annotations: list[YoutubeVisAnnotation]
    categories: list[CocoCategory]


def to_youtube_vis(results: Iterable[ClipResult], classes: Sequence[str] = ()) -> YoutubeVisDataset:
    """Convert results to YouTube-VIS data; `classes` as in `to_coco`."""
    categories = Categories(classes)
    videos: list[YoutubeVisVideo] = []
    annotations: list[YoutubeVisAnnotation] = []
    write_mask = MaskWriter("rle")
    for number, result in enumerate(results, start=1):
        videos.append(_video(result, number, None))
        annotations += _annotations(result, number, len(annotations), categories, write_mask)
    listed = coco_categories(categories.names)
    return {"info": _info(), "videos": videos, "annotations": annotations, "categories": listed}


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `youtube_vis.json` and, with `images`, the frames under `images/`."""
    summary, done, write_mask = ExportSummary(), 0, MaskWriter(options.masks)
    with JsonListWriter(folder / "youtube_vis.json", {"info": _info()}, ("videos", "annotations")) as file:
        for item in items:
            summary.clips += 1
            summary.frames += len(item.result.frames)
            video = _video(item.result, summary.clips, item.avsbench)
            file.add("videos", video)
            for annotation in _annotations(item.result, summary.clips, done, options.categories, write_mask):
                done += 1
                summary.segments += sum(mask is not None for mask in annotation["segmentations"])
                file.add("annotations", annotation)
            if options.images:
                names = dict(zip(_plain_names(item.result), video["file_names"], strict=True))
                write_images(folder / "images", item, names.__getitem__)
        file.finish({"categories": coco_categories(options.categories.names)})
    summary.notes += write_mask.notes()
    return summary


def _info() -> dict[str, str]:
    return {"description": f"exported by openavs {__version__}"}


def _video(result: ClipResult, number: int, avsbench: tuple[str, str] | None) -> YoutubeVisVideo:
    label, uid = avsbench or (_label(result), result.clip)
    files = _plain_names(result) if label is None else [f"{uid}/{k}.jpg" for k in range(len(result.frames))]
    height, width = result.size
    video: YoutubeVisVideo = {
        "id": number,
        "width": width,
        "height": height,
        "length": len(files),
        "file_names": files,
    }
    return video if label is None else {**video, "label": label}


def _plain_names(result: ClipResult) -> list[str]:
    return [image_name(result.clip, frame.index) for frame in result.frames]


def _label(result: ClipResult) -> str | None:
    """Return the subset that fits a clip of no benchmark: frame k shows second k, for 5 or 10 seconds."""
    whole = all(math.floor(frame.time + 1e-6) == k for k, frame in enumerate(result.frames))
    return LABELS.get(len(result.frames)) if whole else None


def _annotations(
    result: ClipResult, video: int, done: int, categories: Categories, write_mask: MaskWriter
) -> Iterator[YoutubeVisAnnotation]:
    height, width = result.size
    for number, frames in enumerate(_objects(result, categories).values(), start=done + 1):
        own = [segment for segments in frames for segment in segments]
        masks = [merge_masks([segment.mask for segment in segments]) if segments else None for segments in frames]
        yield {
            "id": number,
            "video_id": video,
            "category_id": _category(own, categories),
            "iscrowd": 0,
            "width": width,
            "height": height,
            "score": round(sum(segment.score for segment in own) / len(own), 6),
            "segmentations": [None if mask is None else write_mask(mask) for mask in masks],
            "bboxes": [None if mask is None else coco_box(mask) for mask in masks],
            "areas": [None if mask is None else mask.area for mask in masks],
        }


def _objects(result: ClipResult, categories: Categories) -> dict[ObjectKey, list[list[Segment]]]:
    """Return the segments of every object, by frame, in order of appearance."""
    objects: dict[ObjectKey, list[list[Segment]]] = {}
    for place, frame in enumerate(result.frames):
        for segment in frame.segments:
            category = categories.id(segment)
            if category is None:
                continue
            key = ("category", category) if segment.track is None else ("track", segment.track)
            objects.setdefault(key, [[] for _ in result.frames])[place].append(segment)
    return objects


def _category(segments: Sequence[Segment], categories: Categories) -> int:
    """Return the most common category of an object's segments."""
    ids = Counter(categories.id(segment) for segment in segments)
    category = ids.most_common(1)[0][0]
    assert category is not None
    return category
