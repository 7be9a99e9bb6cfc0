"""COCO JSON: one image entry per sampled frame, one annotation per segment.

A folder has the layout of the COCO release, which CVAT and datumaro read: `annotations/instances_<split>.json` and
`images/<split>/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from openavs import __version__
from openavs.exports.categories import Categories
from openavs.exports.coco_rle import CocoCategory, CocoMask, JsonListWriter, MaskWriter, coco_box, coco_categories
from openavs.exports.frames import picture_name, write_pictures
from openavs.exports.items import ExportItem
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.types import ClipResult, FrameResult, Segment


class CocoImage(TypedDict):
    """One frame; `video`, `frame_index` and `time` (s) say which."""

    id: int
    file_name: str
    width: int
    height: int
    video: str
    frame_index: int
    time: float


class CocoAttributes(TypedDict):
    """What COCO has no field of its own for. A `track_id` belongs to one thing of one clip."""

    score: float
    phrase: str
    track_id: NotRequired[int]


class CocoAnnotation(TypedDict):
    """One segment. `attributes` repeats the fields that CVAT and datumaro read from there only."""

    id: int
    image_id: int
    category_id: int
    segmentation: CocoMask
    bbox: list[float]
    area: int
    iscrowd: int
    score: float
    phrase: str
    track_id: NotRequired[int]
    attributes: CocoAttributes


class CocoDataset(TypedDict):
    """A whole COCO file."""

    info: dict[str, str]
    licenses: list[dict[str, str]]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


def to_coco(segmentations: Iterable[ClipResult], classes: Sequence[str] = ()) -> CocoDataset:
    """Results as COCO data, ready for `json.dump` or pycocotools.

    `classes` fixes the category ids (from 1) and leaves other segments out; without it every label (else phrase) is a
    category, in the order of first appearance.
    """
    categories, images, annotations = Categories(classes), [], []
    entries = _Entries(categories, MaskWriter("rle"))
    for segmentation in segmentations:
        for image, own in entries.of(segmentation):
            images.append(image)
            annotations += own
    return {
        "info": _info(),
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": coco_categories(categories.names),
    }


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Writes `annotations/instances_<split>.json` and, with `images`, the frames under `images/<split>/`."""
    told, entries = ExportSummary(), _Entries(options.categories, MaskWriter(options.masks))
    head = {"info": _info(), "licenses": []}
    (folder / "annotations").mkdir()
    path = folder / "annotations" / f"instances_{options.split}.json"
    with JsonListWriter(path, head, ("images", "annotations")) as file:
        for item in items:
            told.clips += 1
            for image, annotations in entries.of(item.result):
                told.frames += 1
                told.segments += len(annotations)
                file.add("images", image)
                for annotation in annotations:
                    file.add("annotations", annotation)
            if options.images:
                write_pictures(folder / "images" / options.split, item)
        file.finish({"categories": coco_categories(options.categories.names)})
    told.notes += entries.masks.notes()
    return told


def _info() -> dict[str, str]:
    return {"description": f"exported by openavs {__version__}"}


class _Entries:
    """Makes the entries and counts their ids through all clips."""

    def __init__(self, categories: Categories, masks: MaskWriter) -> None:
        self._categories, self.masks = categories, masks
        self._images = self._annotations = 0
        self._tracks: dict[tuple[str, int], int] = {}

    def of(self, result: ClipResult) -> Iterator[tuple[CocoImage, list[CocoAnnotation]]]:
        """The frames of one clip and their annotations."""
        self._tracks.clear()  # the next clip's tracks are other things
        for frame in result.frames:
            self._images += 1
            yield _image(result, frame, self._images), list(self._annotate(result.clip, frame))

    def _annotate(self, clip: str, frame: FrameResult) -> Iterator[CocoAnnotation]:
        for segment in frame.segments:
            category, mask = self._categories.id(segment), self.masks(segment.mask)
            if category is None or mask is None:
                continue
            self._annotations += 1
            attributes: CocoAttributes = {"score": segment.score, "phrase": segment.phrase}
            entry: CocoAnnotation = {
                "id": self._annotations,
                "image_id": self._images,
                "category_id": category,
                "segmentation": mask,
                "bbox": coco_box(segment.mask),
                "area": segment.mask.area,
                "iscrowd": 0,
                "score": segment.score,
                "phrase": segment.phrase,
                "attributes": attributes,
            }
            if segment.track is not None:
                entry["track_id"] = attributes["track_id"] = self._track(clip, segment)
            yield entry

    def _track(self, clip: str, segment: Segment) -> int:
        assert segment.track is not None
        return self._tracks.setdefault((clip, segment.track), self._annotations)


def _image(result: ClipResult, frame: FrameResult, number: int) -> CocoImage:
    height, width = result.size
    return {
        "id": number,
        "file_name": picture_name(result.clip, frame.index),
        "width": width,
        "height": height,
        "video": result.clip,
        "frame_index": frame.index,
        "time": frame.time,
    }
