"""V3: GAVS's zero-shot and few-shot splits of AVSBench-semantic's v1m and v2, with binary masks.

Its tables have the columns of `metadata.csv`, and each file is a split: the `split` column of the few-shot tables has
the same value in all of them. Their `a_obj` is empty, so classes come from `metadata.csv`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_object import read_prediction as read_binary_prediction
from openavs.evaluation.datasets.avsbench_semantic import PLACES, mask_file, read_metadata, semantic_clips
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks
from openavs.evaluation.datasets.mask_io import read_index, read_rgb, read_stack
from openavs.evaluation.datasets.tables import check_present, find_home, sounding_classes
from openavs.structures.types import BoolMask
from openavs.utils.text import did_you_mean

TABLES = {
    "train": "meta_v3_seen_train.csv",
    "val": "meta_v3_seen_val.csv",
    "test": "meta_v3_unseen.csv",
    **{f"{k}-shot-{split}": f"v3_{k}_shot/{split}.csv" for k in (1, 3, 5) for split in ("train", "test")},
}
_DATASET = "segment_anything/dataset/v3"  # within GAVS's repository
_TABLE_PLACES = ("v3", _DATASET, f"GAVS/{_DATASET}")


def read_v3(root: Path, split: str = "test") -> Dataset:
    """Read a split of V3.

    `root` has `metadata.csv`, `v1m/` and `v2/` of AVSBench-semantic, and the tables of GAVS or `v3/`. `test` is the
    zero-shot split, with classes that are not in the training split.

    Raises:
        InputError: missing files, or tables or names that do not match the layout.
    """
    if split not in TABLES:
        raise InputError(f"V3 has no split {split!r}; {did_you_mean(split, TABLES)}")
    home = find_home(root, "metadata.csv", (*PLACES, "data/AVS"))
    table = find_home(root, TABLES[split], _TABLE_PLACES) / TABLES[split]
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

    return Dataset("v3", "binary", home, split, LazyClips(range(len(clips)), named), read_truth, read_prediction)


def read_truth(clip: BenchmarkClip) -> Masks:
    """Read the clip's ground truth in its own size, bool `[T, H, W]`: every pixel that is not black."""
    return read_stack([path for path in clip.truth if path is not None], _foreground, "mask")


def _foreground(path: Path) -> BoolMask:
    file = mask_file(path)
    return np.asarray(read_rgb(file).any(axis=-1) if file.parent.name == "labels_rgb" else read_index(file) > 0)


def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted probabilities times 255, uint8 `[T, H, W]`, in the size of the ground truth."""
    truth = tuple(None if path is None else mask_file(path) for path in clip.truth)
    return read_binary_prediction(replace(clip, truth=truth), folder)
