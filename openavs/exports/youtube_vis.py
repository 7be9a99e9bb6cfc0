"""YouTube-VIS JSON: per track one mask for every frame of its clip, null where it is not there.

A clip without tracks gets one annotation per category, the union of its masks, as AVSBench-OV is annotated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

from openavs import __version__
from openavs.exports.categories import Categories
from openavs.exports.codes import CocoCategory, CocoRLE, ListsFile, coco_box, coco_categories, coco_rle, merged
from openavs.exports.formats import Options, Told
from openavs.exports.items import Item
from openavs.exports.pictures import picture_name, write_pictures
from openavs.types import Segment, Segmentation

Thing = tuple[str, int]  # ("track", its number) or ("category", its id)


class YoutubeVisVideo(TypedDict):
    """One clip and its frames."""

    id: int
    width: int
    height: int
    length: int
    file_names: list[str]


class YoutubeVisAnnotation(TypedDict):
    """One thing through a clip; the lists have an entry per frame. `score` is the mean of its frames'."""

    id: int
    video_id: int
    category_id: int
    iscrowd: int
    width: int
    height: int
    score: float
    segmentations: list[CocoRLE | None]
    bboxes: list[list[float] | None]
    areas: list[int | None]


class YoutubeVisDataset(TypedDict):
    """A whole YouTube-VIS file."""

    info: dict[str, str]
    videos: list[YoutubeVisVideo]
    annotations: list[YoutubeVisAnnotation]
    categories: list[CocoCategory]


def to_youtube_vis(segmentations: Iterable[Segmentation], classes: Sequence[str] = ()) -> YoutubeVisDataset:
    """Results as YouTube-VIS data; `classes` as in `to_coco`."""
    categories = Categories(classes)
    videos: list[YoutubeVisVideo] = []
    annotations: list[YoutubeVisAnnotation] = []
    for number, segmentation in enumerate(segmentations, start=1):
        videos.append(_video(segmentation, number))
        annotations += _annotations(segmentation, number, len(annotations), categories)
    listed = coco_categories(categories.names)
    return {"info": _info(), "videos": videos, "annotations": annotations, "categories": listed}


def write(folder: Path, items: Iterable[Item], options: Options) -> Told:
    """Writes `youtube_vis.json` and, with `images`, the frames under `images/`."""
    told, done = Told(), 0
    with ListsFile(folder / "youtube_vis.json", {"info": _info()}, ("videos", "annotations")) as file:
        for item in items:
            told.clips += 1
            told.frames += len(item.result.frames)
            file.add("videos", _video(item.result, told.clips))
            for annotation in _annotations(item.result, told.clips, done, options.categories):
                done += 1
                told.segments += sum(mask is not None for mask in annotation["segmentations"])
                file.add("annotations", annotation)
            if options.images:
                write_pictures(folder / "images", item)
        file.finish({"categories": coco_categories(options.categories.names)})
    return told


def _info() -> dict[str, str]:
    return {"description": f"exported by openavs {__version__}"}


def _video(result: Segmentation, number: int) -> YoutubeVisVideo:
    files = [picture_name(result.clip, frame.index) for frame in result.frames]
    height, width = result.size
    return {"id": number, "width": width, "height": height, "length": len(files), "file_names": files}


def _annotations(result: Segmentation, video: int, done: int, categories: Categories) -> Iterator[YoutubeVisAnnotation]:
    height, width = result.size
    for number, frames in enumerate(_things(result, categories).values(), start=done + 1):
        own = [segment for segments in frames for segment in segments]
        masks = [merged([segment.mask for segment in segments]) if segments else None for segments in frames]
        yield {
            "id": number,
            "video_id": video,
            "category_id": _category(own, categories),
            "iscrowd": 0,
            "width": width,
            "height": height,
            "score": round(sum(segment.score for segment in own) / len(own), 6),
            "segmentations": [None if mask is None else coco_rle(mask) for mask in masks],
            "bboxes": [None if mask is None else coco_box(mask) for mask in masks],
            "areas": [None if mask is None else mask.area for mask in masks],
        }


def _things(result: Segmentation, categories: Categories) -> dict[Thing, list[list[Segment]]]:
    """The segments of every thing, by frame, in the order in which the things appear."""
    things: dict[Thing, list[list[Segment]]] = {}
    for place, frame in enumerate(result.frames):
        for segment in frame.segments:
            category = categories.id(segment)
            if category is None:
                continue
            thing = ("category", category) if segment.track is None else ("track", segment.track)
            things.setdefault(thing, [[] for _ in result.frames])[place].append(segment)
    return things


def _category(segments: Sequence[Segment], categories: Categories) -> int:
    """The category that most of a thing's segments have."""
    ids = Counter(categories.id(segment) for segment in segments)
    category = ids.most_common(1)[0][0]
    assert category is not None
    return category
