"""Ref-AVS Bench: a sentence chooses one of the objects in a clip of ten frames, or nothing (null expressions).

R2-AVSBench is the same tree with another table. A clip of the data set is one expression. Properties of the release:

- The folder of a clip is the `uid` without its last two parts, not the column `vid`; they differ in 1,708 rows.
- 25 rows have the split `TODO`, which no split of the benchmark contains.
- 11 values of `uid` occur twice, two of them with another expression; the second row has the id `<uid>.2` here.

Both protocols compare masks at 256 x 256. `official` resizes truth and predictions bilinearly, as OpenCV does it for
the published loader, and every pixel above 0 is true: true objects grow at their edges. `fixed` takes the nearest
pixel.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks, find_predictions
from openavs.evaluation.datasets.mask_io import Labels, interpolate_linear, read_gray, read_probability, resize_mask
from openavs.evaluation.datasets.tables import (
    MissingSplitError,
    TableRow,
    check_names,
    check_present,
    find_home,
    in_split,
    read_table,
)
from openavs.evaluation.metrics.referring import ReferringMetrics

FRAMES = 10
SIZE = (256, 256)
EXPRESSIONS_PER_BATCH = 4
COLUMNS = {"vid": 0, "uid": 1, "split": 2, "fid": 3, "exp": 4}
_READERS = 2  # threads
TEST = ("test_s", "test_u", "test_n")
"""Seen objects, unseen objects, null expressions; the split `test` has all three."""


def read_ref_avs(root: Path, split: str = "test") -> Dataset:
    """Read a split; `root` has `metadata.csv`, `media/` and `gt_mask/`, or is a table (CSV) beside these folders.

    Raises:
        InputError: missing files, tables or names that do not match the layout, or an empty split.
    """
    table = root if root.suffix == ".csv" else find_home(root, "metadata.csv", ("REFAVS", "Ref-AVS")) / "metadata.csv"
    rows = read_table(table, COLUMNS)
    check_names(table, rows, "uid")
    chosen = _rows_of(table, rows, split)
    for row in chosen:
        _check_row(table, row)
    home = table.parent
    wanted = dict.fromkeys((home / "gt_mask" / _folder(row), f"fid_{row['fid']}") for row in chosen)
    check_present(split, table, list(wanted))
    clips = LazyClips(list(zip(chosen, _ids(chosen), strict=True)), partial(_clip, home))
    return Dataset(
        *("ref-avs", "binary", home, split, clips, read_truth, read_prediction),
        read_published=read_published,
        make_metric=partial(ReferringMetrics, read_published_truth),
        clips_per_batch=EXPRESSIONS_PER_BATCH,
    )


def _rows_of(table: Path, rows: list[TableRow], split: str) -> list[TableRow]:
    if split != "test":
        return in_split(table, rows, split)
    existing = {row["split"] for row in rows}
    parts = [part for part in TEST if part in existing]
    if not parts:
        raise MissingSplitError(f"{table} lists no clip of the splits {', '.join(TEST)}")
    return [row for part in parts for row in in_split(table, rows, part)]


def _check_row(table: Path, row: TableRow) -> None:
    if row["uid"].count("_") < 2 or not row["fid"].isdigit() or not row["exp"]:
        found = f"uid {row['uid']!r}, fid {row['fid']!r}, exp {row['exp'][:40]!r}"
        raise InputError(
            f"{table}, line {row.line}: {found}; expected were a uid that ends in _<object>_<number>, a whole number "
            "and a sentence"
        )


def _folder(row: TableRow) -> str:
    return row["uid"].rsplit("_", 2)[0]


def _ids(rows: Iterable[TableRow]) -> list[str]:
    """The uid of each row, with `.2` and so on for a uid that has occurred before."""
    seen: Counter[str] = Counter()
    found = []
    for row in rows:
        seen[row["uid"]] += 1
        found.append(row["uid"] if seen[row["uid"]] == 1 else f"{row['uid']}.{seen[row['uid']]}")
    return found


def _clip(home: Path, numbered: tuple[TableRow, str]) -> BenchmarkClip:
    row, name = numbered
    media, masks = home / "media" / _folder(row), home / "gt_mask" / _folder(row) / f"fid_{row['fid']}"
    return BenchmarkClip(
        id=name,
        split=row["split"],
        frames=tuple(media / "frames" / f"{k}.jpg" for k in range(FRAMES)),
        audio=media / "audio.wav",
        truth=tuple(masks / f"{k:05d}.png" for k in range(FRAMES)),
        predictions=tuple(f"{name}/{k}.png" for k in range(FRAMES)),
        group=row["uid"].rsplit("_", 2)[1],
        expression=row["exp"],
    )


# ------------------------------------------------------------------------------------------------------------- masks


def read_truth(clip: BenchmarkClip) -> Masks:
    """Read the truth of `fixed`, bool `[10, 256, 256]`."""
    return _truth(clip)[0] > 0


def read_published_truth(clip: BenchmarkClip) -> Masks:
    """Read the truth of `official`, bool `[10, 256, 256]`."""
    return _truth(clip)[1] > 0


def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted probabilities times 255 for `fixed`, uint8 `[10, 256, 256]`; masks may have any size."""
    paths = find_predictions(clip, folder)
    return None if paths is None else _sampled(tuple(paths), False, _stamps(paths))[0]


def read_published(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted probabilities times 255 for `official`, uint8 `[10, 256, 256]`."""
    paths = find_predictions(clip, folder)
    return None if paths is None else _sampled(tuple(paths), False, _stamps(paths))[1]


def _truth(clip: BenchmarkClip) -> tuple[Labels, Labels]:
    paths = [path for path in clip.truth if path is not None]
    return _sampled(tuple(paths), True, _stamps(paths))


def _stamps(paths: Iterable[Path]) -> tuple[tuple[int, int], ...]:
    """Size and time of files, so that a changed file is read again."""
    try:
        found = [os.stat(path) for path in paths]
    except OSError as error:
        raise InputError(f"cannot read the mask {error.filename}: {error.strerror}") from error
    return tuple((one.st_size, one.st_mtime_ns) for one in found)


@lru_cache(
    maxsize=8
)  # both protocols read masks, also of the next clip, and the expressions of an object have one truth
def _sampled(paths: tuple[Path, ...], true: bool, stamps: tuple[tuple[int, int], ...]) -> tuple[Labels, Labels]:
    """Masks at 256 x 256 by the nearest pixel and bilinearly, uint8 `[T, 256, 256]` each."""
    with ThreadPoolExecutor(_READERS) as pool:  # decoding a PNG file of 1280 x 720 takes most of the time
        masks = list(pool.map(read_gray if true else read_probability, paths))
    return np.stack([resize_mask(mask, SIZE) for mask in masks]), np.stack([interpolate_linear(m, SIZE) for m in masks])
