"""An AVSBench root as a source: the splits that the benchmark's reader finds, with labels in its layout."""

from __future__ import annotations

from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.tables import read_table
from openavs.evaluation.predictor import to_sample
from openavs.jobs.sample import unique_ids
from openavs.labeling.readers.base import Source

TABLES = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": "metadata.csv"}


def detect_benchmark(folder: Path) -> str | None:
    """Return the benchmark whose table is in a folder: s4, ms3 or avss; None for any other folder."""
    found = [name for name, table in TABLES.items() if (folder / table).is_file()]
    if found == ["avss"] and not any((folder / subset).is_dir() for subset in ("v1s", "v1m", "v2")):
        return None  # any table may be called metadata.csv
    if len(found) > 1:
        raise InputError(f"{folder} holds {' and '.join(found)}; choose one with --benchmark")
    return found[0] if found else None


def read(name: str, root: Path, split: str | None) -> Source:
    """Read the clips of a split, or of all splits that exist.

    Raises:
        InputError: as raised by the benchmark's reader.
    """
    datasets = tuple(open_dataset(name, root, one) for one in ([split] if split else _splits(name, root)))
    home = datasets[0].root.absolute()
    clips = {clip.predictions: clip for dataset in datasets for clip in dataset.clips}
    ids = unique_ids([(clip.id, places[0]) for places, clip in clips.items()])
    samples = [to_sample(clip, id, home) for id, clip in zip(ids, clips.values(), strict=True)]
    return Source(name, home, tuple(sorted(samples, key=lambda sample: sample.id)), datasets=datasets)


def _splits(name: str, root: Path) -> list[str]:
    """Return the card's splits that the table has clips of; all of them if the table is elsewhere."""
    splits = list(load_benchmark(name).splits)
    table = root / TABLES.get(name, "")
    if not table.is_file():
        return splits
    present = {row["split"] for row in read_table(table, {"split": 0})}
    return [one for one in splits if one in present] or splits
