"""AVSBench-semantic: v1s and v1m (5 frames), v2 (10 frames), 71 classes; and V3, binary splits of it.

Frames and masks are numbered from 0. Training clips of v1s have a mask for their first frame only. Frames have their
original sizes; AVSS compares masks at 224 x 224, to which the published loader resizes them by the nearest pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_object import read_prediction as read_binary_prediction
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks, find_predictions
from openavs.evaluation.datasets.mask_io import (
    Labels,
    Size,
    check_predicted_size,
    png_size,
    read_index,
    read_palette,
    read_predicted_labels,
    read_rgb,
    read_stack,
    resize_mask,
)
from openavs.evaluation.datasets.tables import (
    CLASSES,
    MissingDataError,
    TableRow,
    check_present,
    find_home,
    in_split,
    listing,
    read_clip_table,
    sounding_classes,
)
from openavs.structures.types import BoolMask
from openavs.utils.text import did_you_mean

FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
SIZE = (224, 224)
MASK_FOLDERS = ("labels_semantic", "labels_rgb")
COLUMNS = {"uid": 1, "a_obj": 4, "split": 5, "label": 6}
PLACES = ("AVSBench-semantic", "AVSBench_semantic", "avs_released", "avsbench_data/AVSBench-semantic")


def read_avss(root: Path, split: str = "test") -> Dataset:
    """Read a split of AVSBench-semantic; `root` has `metadata.csv`, `v1s/`, `v1m/` and `v2/`.

    Raises:
        InputError: missing files, tables or names that do not match the layout, or an empty split.
    """
    home = find_home(root, "metadata.csv", PLACES)
    table = home / "metadata.csv"
    rows = in_split(table, read_metadata(table), split)
    check_present(split, table, [(home / row["label"], row["uid"]) for row in rows])
    clips = semantic_clips(home, table, rows, split)
    return Dataset("avss", "semantic", home, split, clips, read_truth, read_prediction, CLASSES, read_native)


def read_metadata(table: Path) -> list[TableRow]:
    """Read and check the rows of `metadata.csv`."""
    rows = read_clip_table(table, COLUMNS, "uid", "label")
    for row in rows:
        if row["label"] not in FRAMES:
            raise InputError(
                f"{table}, line {row.line}: there is no subset {row['label']!r} in AVSBench-semantic; "
                f"{did_you_mean(row['label'], FRAMES)}"
            )
    return rows


def semantic_clips(
    home: Path, table: Path, rows: Sequence[TableRow], split: str, kind: str = "labels_semantic"
) -> LazyClips:
    """Create the clips of these rows; the kinds of files are looked up in the first clip only.

    `kind` is the preferred folder of masks: `labels_semantic` (indices) or `labels_rgb` (colors).
    """
    first = home / rows[0]["label"] / rows[0]["uid"]
    held = [name for name in (kind, *MASK_FOLDERS) if listing(first / name)]
    if not held:
        raise MissingDataError(f"{first} holds no masks; {kind}/0.png, 1.png ... were expected in it")
    suffix = ".png" if "0.png" in listing(first / "frames") else ".jpg"
    for row in rows:  # raises early for an unknown class
        sounding_classes(table, row)
    return LazyClips(rows, partial(_clip, home, table, split, held[0], suffix))


def _clip(home: Path, table: Path, split: str, labels: str, suffix: str, row: TableRow) -> BenchmarkClip:
    place = f"{row['label']}/{row['uid']}"
    folder = home / place
    frames, masks = folder / "frames", folder / labels  # joined once: a split has 66,240 frames
    numbers = range(FRAMES[row["label"]])
    labeled = 1 if row["label"] == "v1s" and split == "train" else len(numbers)
    return BenchmarkClip(
        id=row["uid"],
        split=split,
        frames=tuple(frames / f"{k}{suffix}" for k in numbers),
        audio=folder / "audio.wav",
        truth=tuple(masks / f"{k}.png" if k < labeled else None for k in numbers),
        predictions=tuple(f"{place}/labels_semantic/{k}.png" for k in numbers),
        classes=sounding_classes(table, row),
        group=row["label"],
    )


def mask_file(path: Path) -> Path:
    """Return the mask file, or if it is missing that of the other kind (indices or colors).

    Raises:
        MissingDataError: neither exists.
    """
    if path.is_file():
        return path
    other = next(name for name in MASK_FOLDERS if name != path.parent.name)
    if (beside := path.parent.parent / other / path.name).is_file():
        return beside
    raise MissingDataError(f"the mask {path} is missing, and {other}/ has none either")


def read_labels(path: Path, size: Size | None = SIZE) -> Labels:
    """Read a ground-truth label map uint8 `[H, W]` from indices or colors."""
    file = mask_file(path)
    return read_palette(file, size) if file.parent.name == "labels_rgb" else read_index(file, size)


def read_truth(clip: BenchmarkClip) -> Masks:
    """Read the clip's class indices, uint8 `[T, 224, 224]`."""
    return np.stack([read_labels(path) for path in clip.truth if path is not None])


def read_native(clip: BenchmarkClip) -> Masks:
    """Read the clip's class indices at their stored size, uint8 `[T, H, W]`."""
    return np.stack([read_labels(path, None) for path in clip.truth if path is not None])


def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted class indices, uint8 `[T, 224, 224]`; files have the truth's own size or 224 x 224."""
    if (paths := find_predictions(clip, folder)) is None:
        return None
    truth = [path for path in clip.truth if path is not None]
    maps = (read_predicted(clip, path, partial(_mask_size, mask)) for path, mask in zip(paths, truth, strict=True))
    return np.stack([resize_mask(labels, SIZE) for labels in maps])


def _mask_size(path: Path) -> Size:
    return png_size(mask_file(path))


def read_predicted(clip: BenchmarkClip, path: Path, native: Callable[[], Size]) -> Labels:
    """Read one predicted label map at its own size.

    Raises:
        InputError: the size is neither 224 x 224 nor `native()`, unless `clip.resize`.
    """
    size = png_size(path)
    if size != SIZE:
        check_predicted_size(clip, path, size, native, "224 x 224 was expected or the ground truth's")
    return read_predicted_labels(path)


V3_TABLES = {
    "train": "meta_v3_seen_train.csv",
    "val": "meta_v3_seen_val.csv",
    "test": "meta_v3_unseen.csv",
    **{f"{k}-shot-{split}": f"v3_{k}_shot/{split}.csv" for k in (1, 3, 5) for split in ("train", "test")},
}
_DATASET = "segment_anything/dataset/v3"  # within GAVS's repository
_TABLE_PLACES = ("v3", _DATASET, f"GAVS/{_DATASET}")


def read_v3(root: Path, split: str = "test") -> Dataset:
    """Read a split of V3: GAVS's zero-shot and few-shot splits of v1m and v2, with binary masks.

    Its tables have the columns of `metadata.csv`, and each file is a split: the `split` column of the few-shot tables
    has the same value in all of them. Their `a_obj` is empty, so classes come from `metadata.csv`.

    `root` has `metadata.csv`, `v1m/` and `v2/` of AVSBench-semantic, and the tables of GAVS or `v3/`. `test` is the
    zero-shot split, with classes that are not in the training split.

    Raises:
        InputError: missing files, or tables or names that do not match the layout.
    """
    if split not in V3_TABLES:
        raise InputError(f"V3 has no split {split!r}; {did_you_mean(split, V3_TABLES)}")
    home = find_home(root, "metadata.csv", (*PLACES, "data/AVS"))
    table = find_home(root, V3_TABLES[split], _TABLE_PLACES) / V3_TABLES[split]
    rows = read_metadata(table)
    if not rows:
        raise InputError(f"{table} lists no clip")
    known = {row["uid"]: row for row in read_metadata(home / "metadata.csv")}
    check_present(split, table, [(home / row["label"], row["uid"]) for row in rows])
    clips = semantic_clips(home, table, rows, split, "labels_rgb")

    def named(index: int) -> BenchmarkClip:
        clip = clips[index]
        if clip.classes or clip.id not in known:
            return clip
        return replace(clip, classes=sounding_classes(home / "metadata.csv", known[clip.id]))

    return Dataset("v3", "binary", home, split, LazyClips(range(len(clips)), named), read_v3_truth, read_v3_prediction)


def read_v3_truth(clip: BenchmarkClip) -> Masks:
    """Read the clip's ground truth in its own size, bool `[T, H, W]`: every pixel that is not black."""
    return read_stack([path for path in clip.truth if path is not None], _foreground, "mask")


def _foreground(path: Path) -> BoolMask:
    file = mask_file(path)
    return np.asarray(read_rgb(file).any(axis=-1) if file.parent.name == "labels_rgb" else read_index(file) > 0)


def read_v3_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted probabilities times 255, uint8 `[T, H, W]`, in the size of the ground truth."""
    truth = tuple(None if path is None else mask_file(path) for path in clip.truth)
    return read_binary_prediction(replace(clip, truth=truth), folder)
