"""An AVSBench root as a source: its splits through the benchmark's own reader, its labels in the benchmark's layout."""

from __future__ import annotations

from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.evaluation.datasets.tables import read_table
from openavs.jobs.sample import Sample, unique_ids
from openavs.labeling.readers.open import Source, relative

TABLES = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": "metadata.csv"}


def detect_benchmark(folder: Path) -> str | None:
    """The benchmark whose table lies in a folder: s4, ms3 or avss; None for any other folder."""
    found = [name for name, table in TABLES.items() if (folder / table).is_file()]
    if found == ["avss"] and not any((folder / subset).is_dir() for subset in ("v1s", "v1m", "v2")):
        return None  # any table may be called metadata.csv
    if len(found) > 1:
        raise InputError(f"{folder} holds {' and '.join(found)}; say which with --benchmark")
    return found[0] if found else None


def read(name: str, root: Path, split: str | None) -> Source:
    """The clips of a split, or of all splits that are there. InputError as the benchmark's reader raises it."""
    datasets = tuple(open_dataset(name, root, one) for one in ([split] if split else _splits(name, root)))
    home = datasets[0].root.absolute()
    clips = {clip.predictions: (dataset, clip) for dataset in datasets for clip in dataset.clips}
    ids = unique_ids([(clip.id, places[0]) for places, (_, clip) in clips.items()])
    items = [_item(id, clip, home) for id, (_, clip) in zip(ids, clips.values(), strict=True)]
    return Source(name, home, tuple(sorted(items, key=lambda item: item.id)), datasets=datasets)


def _splits(name: str, root: Path) -> list[str]:
    """The card's splits that the table has clips of; all of the card's where the table lies elsewhere."""
    splits = list(load_benchmark(name).splits)
    table = root / TABLES.get(name, "")
    if not table.is_file():
        return splits
    there = {row["split"] for row in read_table(table, {"split": 0})}
    return [one for one in splits if one in there] or splits


def _item(id: str, clip: BenchmarkClip, home: Path) -> Sample:
    masks = (path for path in clip.truth if path is not None and path.suffix == ".png")  # AVSBench-OV's is one JSON
    truth = next(masks, None)
    return Sample(
        id,
        relative(clip.frames[0].absolute().parent, home),
        name=clip.id if clip.id != id else None,
        audio=relative(clip.audio.absolute(), home),
        frames=tuple(relative(frame.absolute(), home) for frame in clip.frames),
        places=clip.predictions,
        like=None if truth is None else relative(truth.absolute(), home),
        classes=clip.classes,
    )
