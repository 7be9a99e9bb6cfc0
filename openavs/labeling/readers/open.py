"""Chooses the reader of a source by its path."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from openavs.errors import InputError
from openavs.labeling.readers import benchmark as benchmark_reader, files, table, webdataset
from openavs.labeling.readers.base import Source
from openavs.utils.fs import refuse_address

TABLES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
LISTS = frozenset({".txt", ".lst"})


def open_source(source: str, *, benchmark: str | None = None, split: str | None = None) -> Source:
    """List the clips of a source; no clip is opened.

    Args:
        source: A folder (searched recursively), a glob in quotes, a `.txt` list, a manifest (`.jsonl`, `.csv`, `.tsv`,
            `.parquet`), a `.tar` or a folder of them, one video, or an AVSBench root.
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
    refuse_address(source)
    path = Path(source).expanduser()
    name = benchmark or (benchmark_reader.detect_benchmark(path) if os.path.isdir(path) else None)
    if name is not None:
        return benchmark_reader.read(name, path, split)
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
