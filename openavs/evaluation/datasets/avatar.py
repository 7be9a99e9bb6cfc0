"""AVATAR: annotated frames of VGGSound videos, with the scenario of each sounding object, on screen or off it.

The layout is that of the archives of huggingface.co/datasets/mipal/AVATAR. Masks are compared at 640 x 360, by the
nearest pixel. A frame's truth is the union of its annotations but those with the task `Off-Screen`: their
`segmentation` (COCO run lengths or polygons), or their `bbox` (x, y, width, height) where they have no mask.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks, find_predictions
from openavs.evaluation.datasets.mask_io import coco_to_rle, read_probability, resize_mask
from openavs.evaluation.datasets.tables import MissingDataError, MissingSplitError, is_plain_name, listing
from openavs.evaluation.metrics.localization import OFF_SCREEN, TASKS, LocalizationMetrics
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask
from openavs.utils.serialization import parse_json

SIZE = (360, 640)


def read_avatar(root: Path, split: str = "test") -> Dataset:
    """Read the benchmark; `root` has `metadata/<video>/<frame>.json` and, to run a system, `video/<video>.mp4`.

    Raises:
        InputError: missing files, or names that do not match the layout.
    """
    if split != "test":
        raise MissingSplitError(f"AVATAR has one split, 'test', and not {split!r}")
    homes = [folder for folder in (root, root / "AVATAR") if (folder / "metadata").is_dir()]
    if not homes:
        raise MissingDataError(f"{root} holds no folder metadata/; --root is the folder of metadata/ and video/")
    metadata = homes[0] / "metadata"
    rows = [(name, _frames(metadata / name)) for name in sorted(listing(metadata)) if (metadata / name).is_dir()]
    rows = [(name, frames) for name, frames in rows if frames]
    if not rows:
        raise MissingDataError(f"{metadata} holds no <video>/<frame>.json; unpack metadata.zip there")
    clips = LazyClips(rows, partial(_clip, homes[0]))
    return Dataset(
        *("avatar", "binary", homes[0], split, clips, read_truth, read_prediction),
        make_metric=lambda clips_per_batch: LocalizationMetrics(read_tasks),
    )


def _frames(folder: Path) -> list[str]:
    """The names of a video's annotated frames, in the order of their numbers."""
    stems = [name.removesuffix(".json") for name in listing(folder) if name.endswith(".json")]
    for stem in stems:
        if not (stem.isascii() and stem.isdigit() and is_plain_name(folder.name)):
            raise InputError(f"{folder / stem}.json is not named by the number of its frame, such as 00012.json")
    return sorted(stems, key=int)


def _clip(home: Path, row: tuple[str, list[str]]) -> BenchmarkClip:
    name, stems = row
    video = home / "video" / f"{name}.mp4"
    files = tuple(home / "metadata" / name / f"{stem}.json" for stem in stems)
    return BenchmarkClip(
        id=name,
        split="test",
        frames=(),
        audio=video,
        truth=files,
        predictions=tuple(f"{name}/{stem}.png" for stem in stems),
        video=video,
        times=partial(_times, files),
    )


def _times(files: Sequence[Path]) -> tuple[float, ...]:
    """The middle of each annotated frame in seconds, from its number and the file's `fps`."""
    fps = _number(files[0], _load(files[0]), "fps")
    return tuple((int(file.stem) + 0.5) / fps for file in files)


def read_truth(clip: BenchmarkClip) -> Masks:
    """Read the union of what sounds on the screen, bool `[T, 360, 640]`."""
    return _annotations(clip).masks


def read_tasks(clip: BenchmarkClip) -> tuple[frozenset[str], ...]:
    """Read the tasks of each annotated frame's objects."""
    return _annotations(clip).tasks


def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted maps times 255, uint8 `[T, 360, 640]`; masks may have any size."""
    paths = find_predictions(clip, folder)
    return None if paths is None else np.stack([resize_mask(read_probability(path), SIZE) for path in paths])


@dataclass(frozen=True, eq=False)
class _Annotations:
    masks: Masks
    tasks: tuple[frozenset[str], ...]


def _annotations(clip: BenchmarkClip) -> _Annotations:
    files = tuple(path for path in clip.truth if path is not None)
    return _parse(files, tuple(os.stat(path).st_mtime_ns if path.is_file() else 0 for path in files))


@lru_cache(maxsize=2)  # the masks and the tasks of a clip are read one after the other
def _parse(files: tuple[Path, ...], stamps: tuple[int, ...]) -> _Annotations:
    frames = [_parse_frame(path) for path in files]
    return _Annotations(np.stack([mask for mask, _ in frames]), tuple(tasks for _, tasks in frames))


def _parse_frame(path: Path) -> tuple[BoolMask, frozenset[str]]:
    data = _load(path)
    size = (int(_number(path, data, "original_height")), int(_number(path, data, "original_width")))
    annotations = data.get("annotations")
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise InputError(f"{path} has no list 'annotations'; a frame of AVATAR has one, of objects with a task")
    if unknown := {str(one.get("task")) for one in annotations} - {*TASKS, OFF_SCREEN}:
        raise InputError(f"{path} has the task {min(unknown)!r:.40}; there are {', '.join((*TASKS, OFF_SCREEN))}")
    union = np.zeros(size, dtype=np.bool_)
    for one in annotations:
        if one["task"] != OFF_SCREEN:
            union |= _mask(path, one, size)
    return np.asarray(resize_mask(union.astype(np.uint8), SIZE) > 0), frozenset(one["task"] for one in annotations)


def _mask(path: Path, annotation: dict[str, Any], size: tuple[int, int]) -> BoolMask:
    code, box = annotation.get("segmentation"), annotation.get("bbox")
    try:
        if code:
            return rle_to_mask(coco_to_rle(code, size))
        x, y, width, height = (float(value) for value in box or ())
    except (InputError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: an object has neither a segmentation (COCO run lengths or polygons of {size[1]} x {size[0]} "
            f"pixels) nor a bbox of four numbers ({error!s:.100})"
        ) from error
    mask = np.zeros(size, dtype=np.bool_)
    mask[max(0, round(y)) : max(0, round(y + height)), max(0, round(x)) : max(0, round(x + width))] = True
    return mask


def _load(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not a JSON file ({error!s:.100})") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} is not the annotation of a frame, a JSON object")
    return data


def _number(path: Path, data: dict[str, Any], key: str) -> float:
    value = data.get(key)
    if not isinstance(value, int | float) or not 0 < value < 1 << 16:
        raise InputError(f"{path} has no positive number {key!r} (it is {value!r:.40})")
    return float(value)
