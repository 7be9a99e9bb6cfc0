"""Sources of a label job: the samples of a folder, list, table, tar or benchmark, with ids."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.evaluation.datasets.base import Dataset
from openavs.jobs.sample import Sample, file_size, unique_ids
from openavs.utils.text import pluralize

AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv"}
    | {".3gp"}
)


@dataclass(frozen=True)
class Candidate:
    """One clip of a source before it has an id: the wanted name, and the sample with an empty id."""

    name: str
    sample: Sample

    @property
    def origin(self) -> str:
        """The clip's path below the source's folder."""
        return self.sample.source


@dataclass(frozen=True)
class Source:
    """The clips to label.

    Attributes:
        kind: `folder`, `glob`, `list`, `file`, `manifest`, `tar` or the name of a benchmark.
        root: The folder that relative paths start from.
        samples: The clips, sorted by id.
        notes: Sentences about skipped and renamed entries.
        datasets: The splits of a benchmark, if the source is one.
        url: The address that relative paths start from, if the source is on an object store.
    """

    kind: str
    root: Path
    samples: tuple[Sample, ...]
    notes: tuple[str, ...] = ()
    datasets: tuple[Dataset, ...] = ()
    url: str | None = None


def make_source(kind: str, root: Path, found: Iterable[Candidate], notes: Iterable[str] = ()) -> Source:
    """Give ids to the clips of a source, drop duplicates, and look up the sizes of files."""
    kept: dict[tuple[str, str | None, str], Candidate] = {}
    duplicates = [one for one in found if kept.setdefault((one.name, one.sample.audio, one.origin), one) is not one]
    clips = list(kept.values())
    ids = unique_ids([(one.name, _key(one)) for one in clips])
    samples = [_named(one, id, root) for one, id in zip(clips, ids, strict=True)]
    said = [*notes, *_duplicates_note(duplicates), *_renamed_note(samples)]
    return Source(kind, root, tuple(sorted(samples, key=lambda sample: sample.id)), tuple(said))


def _key(one: Candidate) -> str:
    return f"{one.origin}\0{one.sample.audio}" if one.sample.audio else one.origin


def _named(one: Candidate, id: str, root: Path) -> Sample:
    name = one.name if one.name != id else None
    size = one.sample.bytes
    if size is None and not one.sample.frames:
        size = file_size(os.path.join(root, one.sample.path))
    return replace(one.sample, id=id, name=name, bytes=size)


def _duplicates_note(duplicates: list[Candidate]) -> list[str]:
    if not duplicates:
        return []
    count = pluralize(len(duplicates), "duplicate entry", "duplicate entries")
    return [f"skipped: {count}, such as {duplicates[0].origin!r:.80}"]


def _renamed_note(samples: list[Sample]) -> list[str]:
    renamed = [sample for sample in samples if sample.name is not None]
    if not renamed:
        return []
    first = min(renamed, key=lambda sample: sample.id)
    return [
        f"{pluralize(len(renamed), 'name')} got a hash, being shared, alike but for case, or unfit for a folder: "
        f"such as {first.name!r:.60} -> {first.id}"
    ]
