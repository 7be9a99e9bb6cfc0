"""What can be labelled: a folder, a glob, a list, a manifest, an AVSBench root, tar shards; each becomes `Item`s."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.datasets.base import Dataset
from openavs.jobs.sample import Sample, file_size, unique_ids
from openavs.utils.fs import refuse_address
from openavs.utils.text import pluralize

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"})
VIDEOS = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"}
    | {".3gp"}
)
TABLES = frozenset({".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"})
LISTS = frozenset({".txt", ".lst"})


@dataclass(frozen=True)
class Candidate:
    """One clip of a source before it has an id: the name that it would like to have, and what tells it from others."""

    name: str
    item: Sample  # its id is still empty

    @property
    def origin(self) -> str:
        """What the clip is, below the source's folder."""
        return self.item.source


@dataclass(frozen=True)
class Source:
    """What is to be labelled. `items` are sorted by id; `notes` are sentences about what was left out or renamed;
    `datasets` are the splits of a benchmark, where the source is one."""

    kind: str
    root: Path
    items: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()


def open_source(source: str, *, benchmark: str | None = None, split: str | None = None) -> Source:
    """Lists the clips of a source; no clip is opened.

    Args:
        source: A folder (searched with all that is below it), a glob in quotes, a `.txt` list, a manifest (`.jsonl`,
            `.csv`, `.tsv`, `.parquet`), a `.tar` or a folder of them, one video, or an AVSBench root.
        benchmark: The benchmark that the folder is; AVSBench's own are known by their tables.
        split: The split of the benchmark; None: all that are there.

    Raises:
        InputError: there is no such source, it is malformed, or holds no clips.
    """
    opened = _open(source, benchmark, split)
    if not opened.items:
        raise InputError(f"{source} holds no clips; videos are known by their endings, such as .mp4, .mkv and .webm")
    return opened


def _open(source: str, benchmark: str | None, split: str | None) -> Source:
    from openavs.labeling.readers import (
        benchmark as source_benchmark,
        files as source_files,
        table as source_manifest,
        webdataset as source_tars,
    )

    refuse_address(source)
    path = Path(source).expanduser()
    name = benchmark or (source_benchmark.detect_benchmark(path) if os.path.isdir(path) else None)
    if name is not None:
        return source_benchmark.read(name, path, split)
    if split is not None:
        raise InputError(f"--split goes with a benchmark, and {source} is none that is known; name it with --benchmark")
    if os.path.isdir(path):
        tars = source_tars.find(path)
        return source_tars.read(path, tars) if tars else source_files.read_folder(path)
    if os.path.isfile(path):
        suffix = path.suffix.lower()
        readers: dict[str, Callable[[Path], Source]] = {
            **dict.fromkeys(LISTS, source_files.read_list),
            **dict.fromkeys(TABLES, source_manifest.read),
            ".tar": lambda tar: source_tars.read(tar.parent, [tar]),
        }
        source_tars.refuse_compressed(path)
        return readers.get(suffix, source_files.read_one)(path)
    if any(letter in source for letter in "*?["):
        root, files = source_files.matches(source)
        if source_tars.are_tars(files):
            return source_tars.read(root, files)
        return source_files.read_files("glob", root, files)
    raise InputError(f"{source} does not exist; check the name (put a glob in quotes)")


def build_manifest(kind: str, root: Path, found: Iterable[Candidate], notes: Iterable[str] = ()) -> Source:
    """Gives ids to what was found, leaves out what is there twice, and looks up the sizes of files."""
    kept: dict[tuple[str, str | None, str], Candidate] = {}
    again = [one for one in found if kept.setdefault((one.name, one.item.audio, one.origin), one) is not one]
    clips = list(kept.values())
    ids = unique_ids([(one.name, _apart(one)) for one in clips])
    items = [_named(one, id, root) for one, id in zip(clips, ids, strict=True)]
    said = [*notes, *_twice(again), *_renamed(items)]
    return Source(kind, root, tuple(sorted(items, key=lambda item: item.id)), tuple(said))


def relative(path: str | Path, root: Path) -> str:
    """A path from `root` on, or as it is where it lies elsewhere."""
    text = os.fspath(path)
    return text[len(str(root)) + 1 :] if text.startswith(f"{root}{os.sep}") else text


def _apart(one: Candidate) -> str:
    return f"{one.origin}\0{one.item.audio}" if one.item.audio else one.origin


def _named(one: Candidate, id: str, root: Path) -> Sample:
    name = one.name if one.name != id else None
    size = one.item.bytes
    if size is None and not one.item.frames:
        size = file_size(os.path.join(root, one.item.path))
    return replace(one.item, id=id, name=name, bytes=size)


def _twice(again: list[Candidate]) -> list[str]:
    if not again:
        return []
    return [f"taken once: {pluralize(len(again), 'entry', 'entries')} there twice, such as {again[0].origin!r:.80}"]


def _renamed(items: list[Sample]) -> list[str]:
    renamed = [item for item in items if item.name is not None]
    if not renamed:
        return []
    first = min(renamed, key=lambda item: item.id)
    return [
        f"{pluralize(len(renamed), 'name')} got a hash, being shared, alike but for case, or unfit for a folder: "
        f"such as {first.name!r:.60} -> {first.id}"
    ]
