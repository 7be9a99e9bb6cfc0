"""Opens a source: chooses the reader by its path, or reads an AVSBench root with labels in its layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.tables import read_table
from openavs.evaluation.job_io import to_sample
from openavs.jobs.sample import unique_ids
from openavs.labeling import files, object_sources, table, webdataset
from openavs.labeling.base import Source
from openavs.utils.fs import refuse_address
from openavs.utils.objects import is_object_url

TABLES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
LISTS = frozenset({".txt", ".lst"})


def open_source(source: str, *, benchmark: str | None = None, split: str | None = None) -> Source:
    """List the clips of a source; no clip is opened.

    Args:
        source: A folder (searched recursively), a glob in quotes, a `.txt` list, a manifest (`.jsonl`, `.csv`, `.tsv`,
            `.parquet`), a `.tar` or a folder of them, one video, or an AVSBench root; all but the last also as an
            address on an object store.
        benchmark: The benchmark of the folder; those of AVSBench are detected by their tables.
        split: The split of the benchmark; None: all splits that exist.

    Raises:
        InputError: the source does not exist, is malformed, or holds no clips.
    """
    opened = _open(source, benchmark, split)
    if not opened.samples:
        raise InputError(f"{source} holds no clips; videos are known by their endings, such as .mp4, .mkv and .webm")
    return opened


def _open(source: str, benchmark: str | None, split: str | None) -> Source:
    if is_object_url(source):
        if benchmark is not None or split is not None:
            raise InputError(f"a benchmark is read from a folder; download {source} and name the folder")
        return object_sources.read(source)
    refuse_address(source)
    path = Path(source).expanduser()
    name = benchmark or (detect_benchmark(path) if os.path.isdir(path) else None)
    if name is not None:
        return read_benchmark(name, path, split)
    if split is not None:
        raise InputError(f"--split needs a benchmark, and {source} is not a known one; name it with --benchmark")
    if os.path.isdir(path):
        tars = webdataset.find_tars(path)
        return webdataset.read(path, tars) if tars else files.read_folder(path)
    if os.path.isfile(path):
        suffix = path.suffix.lower()
        readers: dict[str, Callable[[Path], Source]] = {
            **dict.fromkeys(LISTS, files.read_list),
            **dict.fromkeys(TABLES, table.read),
            ".tar": lambda tar: webdataset.read(tar.parent, [tar]),
        }
        webdataset.refuse_compressed(path)
        return readers.get(suffix, files.read_one)(path)
    if any(letter in source for letter in "*?["):
        root, found = files.matches(source)
        if webdataset.are_tars(found):
            return webdataset.read(root, found)
        return files.read_files("glob", root, found)
    raise InputError(f"{source} does not exist; check the name (put a glob in quotes)")


BENCHMARK_TABLES = {"s4": "s4_meta_data.csv", "ms3": "ms3_meta_data.csv", "avss": "metadata.csv"}


def detect_benchmark(folder: Path) -> str | None:
    """Return the benchmark whose table is in a folder: s4, ms3 or avss; None for any other folder."""
    found = [name for name, table in BENCHMARK_TABLES.items() if (folder / table).is_file()]
    if found == ["avss"] and not any((folder / subset).is_dir() for subset in ("v1s", "v1m", "v2")):
        return None  # any table may be called metadata.csv
    if len(found) > 1:
        raise InputError(f"{folder} holds {' and '.join(found)}; choose one with --benchmark")
    return found[0] if found else None


def read_benchmark(name: str, root: Path, split: str | None) -> Source:
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
    table = root / BENCHMARK_TABLES.get(name, "")
    if not table.is_file():
        return splits
    present = {row["split"] for row in read_table(table, {"split": 0})}
    return [one for one in splits if one in present] or splits
