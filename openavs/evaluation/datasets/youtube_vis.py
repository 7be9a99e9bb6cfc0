"""YouTube-VIS annotations, as in AVSBench-OV: one mask per clip, object and frame (run lengths or polygons)."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.classes import CLASSES
from openavs.evaluation.datasets.tables import is_plain_name
from openavs.structures.masks import RLE, check_rle
from openavs.structures.types import BoolMask
from openavs.utils.text import did_you_mean

_INDEX = {name: index for index, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class AnnotatedVideo:
    """The annotations of one clip.

    Attributes:
        uid: the name of the clip's folder.
        size: (height, width).
        length: the number of frames.
        objects: the class index of every object, and its mask per frame: COCO run lengths or polygons, decoded on
            access, or None while it is silent.
    """

    file: Path
    uid: str
    size: tuple[int, int]
    length: int
    objects: tuple[tuple[int, list[Any]], ...]

    def label_map(self, frame: int) -> npt.NDArray[np.uint8]:
        """Return the class of every pixel of a frame, 0 for background; later objects cover earlier ones."""
        labels = np.zeros(self.size, dtype=np.uint8)
        for index, masks in self.objects:
            if masks[frame] is not None:
                labels[self._decode(masks[frame], frame)] = index
        return labels

    def _decode(self, code: Any, frame: int) -> BoolMask:
        from pycocotools import mask as coco

        try:
            rle = _polygons(code, self.size) if isinstance(code, list) else _run_lengths(code, self.size)
            return np.asarray(coco.decode(rle), dtype=np.bool_)
        except (ValueError, TypeError, KeyError, InputError) as error:
            raise InputError(
                f"{self.file}: the mask of {self.uid!r} at frame {frame} is neither run lengths nor polygons of a "
                f"{self.size[1]} x {self.size[0]} frame ({error})"
            ) from error


def read_annotations(path: Path) -> dict[str, AnnotatedVideo]:
    """Read the clips of an annotation file by their folder's name, in the order of the file.

    Raises:
        InputError: not JSON, not YouTube-VIS annotations, a repeated clip, or an unknown category.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    try:
        return _videos(path, data)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is not in the layout of YouTube-VIS (videos, annotations, categories): "
            f"{type(error).__name__} {error}"
        ) from error


def _videos(path: Path, data: dict[str, Any]) -> dict[str, AnnotatedVideo]:
    classes = {category["id"]: _class_index(path, category["name"]) for category in data["categories"]}
    objects: dict[int, list[tuple[int, list[Any]]]] = {video["id"]: [] for video in data["videos"]}
    for annotation in data["annotations"]:
        objects[annotation["video_id"]].append((classes[annotation["category_id"]], annotation["segmentations"]))
    videos: dict[str, AnnotatedVideo] = {}
    for video in data["videos"]:
        uid = _uid(path, video["file_names"])
        if uid in videos:
            raise InputError(f"{path} lists the clip {uid!r} twice")
        size = (int(video["height"]), int(video["width"]))
        videos[uid] = AnnotatedVideo(path, uid, size, len(video["file_names"]), tuple(objects[video["id"]]))
        _check(videos[uid])
    return videos


def _check(video: AnnotatedVideo) -> None:
    if min(video.size) < 1 or math.prod(video.size) > 1 << 26:
        raise InputError(f"{video.file} gives the clip {video.uid!r} {video.size[1]} x {video.size[0]} pixels")
    for _, masks in video.objects:
        if len(masks) != video.length:
            raise InputError(
                f"{video.file}: the clip {video.uid!r} has {video.length} frames but an annotation with {len(masks)}"
            )


def _class_index(path: Path, name: str) -> int:
    if name not in _INDEX:
        raise InputError(f"{path}: {name!r} is not a class of AVSBench-semantic; {did_you_mean(name, _INDEX)}")
    return _INDEX[name]


def _uid(path: Path, files: list[str]) -> str:
    """The folder in the paths of all frames of a clip."""
    folders = {file.replace("\\", "/").rpartition("/")[0].rpartition("/")[2] for file in files}
    uid = folders.pop() if len(folders) == 1 else ""
    if not is_plain_name(uid):
        raise InputError(f"{path}: the frames {', '.join(files)[:80]!r} are not in one folder named after their clip")
    return uid


def _run_lengths(code: dict[str, Any], size: tuple[int, int]) -> Any:
    """COCO run lengths, compressed (a text) or plain (a list of counts)."""
    from pycocotools import mask as coco

    if list(code["size"]) != list(size):
        raise ValueError(f"its size is {list(code['size'])}, not {list(size)}")
    counts = code["counts"]
    if isinstance(counts, str):
        check_rle(RLE(size, counts), "the mask")
        return {"size": list(size), "counts": counts.encode("ascii")}
    if any(not isinstance(count, int) or count < 0 for count in counts) or sum(counts) != math.prod(size):
        raise ValueError(f"its counts do not sum to {math.prod(size)}")
    return coco.frPyObjects({"size": list(size), "counts": counts}, *size)


def _polygons(rings: list[Any], size: tuple[int, int]) -> Any:
    """The union of polygons, given as lists of x and y."""
    from pycocotools import mask as coco

    far = 2 * max(size)  # the memory of pycocotools grows with the coordinates
    for ring in rings:
        if len(ring) < 6 or len(ring) % 2 or any(not -far <= float(value) <= far for value in ring):
            raise ValueError("a polygon is a list of x and y of at least three points within the frame")
    if not rings:
        return coco.encode(np.zeros(size, dtype=np.uint8, order="F"))
    return coco.merge(coco.frPyObjects(rings, *size))
