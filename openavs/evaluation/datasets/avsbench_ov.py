"""AVSBench-OV: the clips of AVSBench-semantic with 40 base and 30 novel classes (OV-AVSS).

The ground truth of validation and test are the color masks of AVSBench-semantic, without the classes that are not in
the clip's metadata. Training clips, whose novel classes are not labeled, and clips without color masks use the
YouTube-VIS file. Masks are compared at 224 x 224. The published code samples truth and predictions at different pixels
there, and so do the `official` figures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_semantic import (
    FRAMES,
    SIZE,
    mask_file,
    read_labels,
    read_metadata,
    read_predicted,
)
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks, find_predictions
from openavs.evaluation.datasets.mask_io import (
    Labels,
    Size,
    coco_to_rle,
    interpolate_nearest,
    png_size,
    resize_mask,
)
from openavs.evaluation.datasets.tables import (
    CLASSES,
    MissingDataError,
    TableRow,
    is_plain_name,
    listing,
    sounding_classes,
)
from openavs.evaluation.metrics.functional import keep_classes
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask
from openavs.utils.text import did_you_mean, pluralize

OPEN_VOCABULARY = "AVSBench-openvoc"
SEMANTIC = ("AVSBench-semantic", "AVSBench_semantic", "avs_released")
_INDEX = {name: index for index, name in enumerate(CLASSES)}


class OvFolders(NamedTuple):
    """The folders of the two parts of the benchmark."""

    openvoc: Path
    semantic: Path

    @property
    def table(self) -> Path:
        """The list of clips of AVSBench-semantic."""
        return self.semantic / "metadata.csv"


def read_ov(root: Path, split: str = "test") -> Dataset:
    """Read a split of AVSBench-OV; `root` has `AVSBench-openvoc/` and `AVSBench-semantic/`, or is one of the two.

    The clips are those of `avsbench_ov_<split>*.json`, or without such a file those in `<split>/JPEGImages/`.

    Raises:
        InputError: missing files, or tables, names or annotations that do not match the layout.
    """
    folders = _folders(root)
    rows = {row["uid"]: row for row in read_metadata(folders.table)}
    videos = _annotations(folders.openvoc, split)
    pictures = folders.openvoc / split / "JPEGImages"
    uids = list(videos) or sorted(name for name in listing(pictures) if is_plain_name(name) and name[0] != ".")
    if not uids:
        raise MissingDataError(
            f"{folders.openvoc} holds neither avsbench_ov_{split}*.json nor clips in {split}/JPEGImages/"
        )
    if unknown := [uid for uid in uids if uid not in rows]:
        many = pluralize(len(unknown), "clip")
        raise InputError(f"{folders.table} does not list {many} of {split!r}, such as {unknown[0]!r}")
    chosen = [rows[uid] for uid in uids]
    reader = _Reader(videos)
    clips = _clips(folders, split, chosen, videos)
    return Dataset(
        *("ov", "open-vocabulary", root, split, clips, reader.truth, reader.prediction, CLASSES),
        read_native=reader.native,
        read_published=reader.published,
    )


def _folders(root: Path) -> OvFolders:
    for base in (root, root.parent, root / "datasets"):
        if base == root.parent and root.name not in (OPEN_VOCABULARY, *SEMANTIC):
            continue
        semantic = next((base / name for name in SEMANTIC if (base / name / "metadata.csv").is_file()), None)
        if semantic is not None and (base / OPEN_VOCABULARY).is_dir():
            return OvFolders(base / OPEN_VOCABULARY, semantic)
    raise MissingDataError(
        f"{root} does not hold {OPEN_VOCABULARY}/ and AVSBench-semantic/ with its metadata.csv; --root is the folder "
        "of both"
    )


def _annotations(openvoc: Path, split: str) -> dict[str, AnnotatedVideo]:
    files = sorted(openvoc.glob(f"avsbench_ov_{split}*.json"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"{openvoc} holds several files for the split {split!r} ({names}); keep one")
    return read_annotations(files[0]) if files else {}


def _clips(
    folders: OvFolders, split: str, rows: list[TableRow], videos: Mapping[str, AnnotatedVideo]
) -> tuple[BenchmarkClip, ...]:
    masked = _masked(folders.semantic, rows) if split != "train" else frozenset()
    pictures = folders.openvoc / split / "JPEGImages"
    suffix = ".png" if "0.png" in listing(pictures / rows[0]["uid"]) else ".jpg"
    clips = []
    for row in rows:
        if row["uid"] not in masked and row["uid"] not in videos:
            raise MissingDataError(
                f"the clip {row['uid']!r} of {split!r} has no masks: neither in {folders.semantic / row['label']} nor "
                f"in an annotation file avsbench_ov_{split}*.json"
            )
        clips.append(_clip(folders, split, row, None if row["uid"] in masked else videos[row["uid"]], suffix))
    return tuple(clips)


def _masked(semantic: Path, rows: list[TableRow]) -> frozenset[str]:
    """The clips with masks in AVSBench-semantic, from one listing per subset and one of its clips."""
    found: set[str] = set()
    for subset in FRAMES:
        held = listing(semantic / subset)
        clips = [row["uid"] for row in rows if row["label"] == subset and row["uid"] in held]
        if clips and any(listing(semantic / subset / clips[0] / kind) for kind in ("labels_rgb", "labels_semantic")):
            found.update(clips)
    return frozenset(found)


def _clip(folders: OvFolders, split: str, row: TableRow, video: AnnotatedVideo | None, suffix: str) -> BenchmarkClip:
    uid, place = row["uid"], f"{row['label']}/{row['uid']}"
    numbers = range(FRAMES[row["label"]])
    if video is not None and video.length != len(numbers):
        raise InputError(
            f"{video.file} gives the clip {uid!r} {video.length} frames where {row['label']} has {len(numbers)}"
        )
    labeled = 1 if row["label"] == "v1s" and split == "train" else len(numbers)
    pictures, masks = folders.openvoc / split / "JPEGImages" / uid, folders.semantic / place / "labels_rgb"
    truth = [masks / f"{k}.png" if video is None else video.file for k in numbers]
    return BenchmarkClip(
        id=uid,
        split=split,
        frames=tuple(pictures / f"{k}{suffix}" for k in numbers),
        audio=folders.semantic / place / "audio.wav",
        truth=tuple(path if k < labeled else None for k, path in enumerate(truth)),
        predictions=tuple(f"{place}/labels_semantic/{k}.png" for k in numbers),
        classes=sounding_classes(folders.table, row),
        group=row["label"],
    )


class _Reader:
    """Reads masks; the truth of some clips is the annotation file itself."""

    def __init__(self, videos: Mapping[str, AnnotatedVideo]) -> None:
        self._videos = videos

    def truth(self, clip: BenchmarkClip) -> Masks:
        """Read the clip's class indices, uint8 `[T, 224, 224]`."""
        return self._stack(clip, SIZE)

    def native(self, clip: BenchmarkClip) -> Masks:
        """Read the clip's class indices at the size of its frames."""
        return self._stack(clip, None)

    def _stack(self, clip: BenchmarkClip, size: Size | None) -> Masks:
        allowed = [_INDEX[name] for name in clip.classes]
        return np.stack([self._frame(clip, i, allowed, size) for i in clip.annotated])

    def _frame(self, clip: BenchmarkClip, i: int, allowed: list[int], size: Size | None) -> Labels:
        path = clip.truth[i]
        assert path is not None
        if path.suffix == ".json":
            labels = Image.fromarray(self._videos[clip.id].label_map(i))
            return np.asarray(labels if size is None else labels.resize((size[1], size[0]), Image.Resampling.NEAREST))
        return np.asarray(keep_classes(read_labels(path, size), allowed), dtype=np.uint8)

    def prediction(self, clip: BenchmarkClip, folder: Path) -> Masks | None:
        """Read predicted class indices uint8 `[T, 224, 224]`, sampled at the centers of pixels like the truth."""
        return self._predicted(clip, folder, resize_mask)

    def published(self, clip: BenchmarkClip, folder: Path) -> Masks | None:
        """Read predicted class indices as the published code samples them, unlike the truth."""
        return self._predicted(clip, folder, interpolate_nearest)

    def _predicted(self, clip: BenchmarkClip, folder: Path, sample: Callable[[Labels, Size], Labels]) -> Masks | None:
        if (paths := find_predictions(clip, folder)) is None:
            return None
        frames = zip(paths, clip.annotated, strict=True)
        maps = (read_predicted(clip, path, partial(self._size, clip, i)) for path, i in frames)
        return np.stack([sample(labels, SIZE) for labels in maps])

    def _size(self, clip: BenchmarkClip, i: int) -> Size:
        path = clip.truth[i]
        assert path is not None
        return self._videos[clip.id].size if path.suffix == ".json" else png_size(mask_file(path))


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
        try:
            return rle_to_mask(coco_to_rle(code, self.size))
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
