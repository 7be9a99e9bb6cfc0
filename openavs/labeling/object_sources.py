"""Sources on an object store: what a local source may be, but for image folders and benchmarks.

The same clips get the same ids and paths as in a local folder, so that a job writes the same bytes. Only listings,
lists, tables and the headers of tars are read here.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from openavs.errors import InputError
from openavs.jobs.sample import Sample
from openavs.labeling import files, table, webdataset
from openavs.labeling.base import AUDIO_SUFFIXES, VIDEO_SUFFIXES, Candidate, Source, make_source
from openavs.utils.objects import ObjectStore, is_object_name
from openavs.utils.text import pluralize

NOWHERE = Path("/objects")
"""The folder that objects are named below where their names have to be paths."""
SINGLE = VIDEO_SUFFIXES | {".tar", ".txt", ".lst", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet"}

Sizes = Mapping[str, int]
"""Objects by name, with their sizes in bytes."""


def read(url: str) -> Source:
    """List the clips at an address: below it, the matches of a glob, or those of a list, table, tar or video.

    Raises:
        InputError: there is nothing, or it cannot be read.
        StoreError: the store cannot be reached.
    """
    fixed = re.split(r"[*?\[]", url, maxsplit=1)[0]
    if fixed != url:
        home = ObjectStore(fixed.rpartition("/")[0])
        return _folder(home, _matches(_sizes(home), url[len(home.url) + 1 :]), "glob")
    if PurePosixPath(url).suffix.lower() in SINGLE and not url.endswith("/"):
        folder, _, name = url.rpartition("/")
        return _single(ObjectStore(folder), name)
    webdataset.refuse_compressed(Path(url))
    store = ObjectStore(url)
    return _folder(store, _sizes(store), "folder")


def _folder(store: ObjectStore, found: Sizes, kind: str) -> Source:
    if kind == "folder" and "s4_meta_data.csv" in found:
        raise InputError(f"a benchmark is read from a folder; download {store.url} and name the folder")
    tars = [name for name in found if name.lower().endswith(".tar") and (kind == "glob" or "/" not in name)]
    if tars and (kind == "folder" or len(tars) == len(found)):
        return _tars(store, tars)
    videos = [name for name in found if kind == "glob" or PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES]
    ignored = [name for name in found if PurePosixPath(name).suffix.lower() not in VIDEO_SUFFIXES | AUDIO_SUFFIXES]
    skipped = pluralize(len(ignored), "object that is not a video", "objects that are not videos")
    notes = [f"skipped: {skipped}"] if ignored and kind == "folder" else []
    clips = [Candidate(PurePosixPath(name).stem, Sample("", name, bytes=found[name])) for name in videos]
    return replace(make_source(kind, NOWHERE, clips, notes), url=store.url)


def _single(store: ObjectStore, name: str) -> Source:
    try:
        size = store.size(name)
    except FileNotFoundError as error:
        raise InputError(f"{store.url}/{name} does not exist; check the name") from error
    suffix = PurePosixPath(name).suffix.lower()
    if suffix == ".tar":
        return _tars(store, [name])
    if suffix in VIDEO_SUFFIXES:
        return _folder(store, {name: size}, "file")
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch).resolve() / name
        store.download(name, path)
        with _named(path, f"{store.url}/{name}"):
            listed = (files.read_list if suffix in (".txt", ".lst") else table.read)(path)
        notes = tuple(note.replace(str(path), f"{store.url}/{name}") for note in listed.notes)
    sizes = _sizes(store)
    samples = [_below(sample, store, sizes) for sample in listed.samples]
    return replace(listed, samples=tuple(samples), notes=notes, root=NOWHERE, url=store.url)


def _below(sample: Sample, store: ObjectStore, sizes: Sizes) -> Sample:
    """Return a sample of a list with names below the list's folder, where it gave addresses, and its size."""
    collapsed = store.url.replace("://", ":/")  # as a `Path` writes it
    path, audio = (
        name and name.removeprefix(f"{store.url}/").removeprefix(f"{collapsed}/")
        for name in (sample.path, sample.audio)
    )
    outside = [name for name in (path, audio) if name and (":/" in name or not is_object_name(name))]
    problem = sample.problem
    if outside and problem is None:
        problem = f"{outside[0]!r:.80} is not below {store.url}, where the clips of this list have to be"
    return replace(sample, path=path or "", audio=audio, bytes=sizes.get(path or ""), problem=problem)


def _tars(store: ObjectStore, names: Iterable[str]) -> Source:
    paths = [NOWHERE / name for name in names]
    with _named(NOWHERE, store.url):
        source = webdataset.read(NOWHERE, paths, lambda tar: store.open(tar.relative_to(NOWHERE).as_posix()))
    return replace(source, url=store.url)


@contextmanager
def _named(path: Path, url: str) -> Iterator[None]:
    """Name the address in the sentences of errors."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).replace(str(path), url)) from error


def _sizes(store: ObjectStore) -> dict[str, int]:
    """List all objects but hidden ones and those whose name cannot be the name of a file."""
    found: dict[str, dict[str, Any]] = store.find()
    return {name: int(info["size"]) for name, info in found.items() if is_object_name(name) and not _is_hidden(name)}


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _matches(found: Sizes, pattern: str) -> Sizes:
    """Return the objects that match a glob, in which `*` is a part of a name and `**` any folders."""
    from fsspec.utils import glob_translate

    whole = re.compile(glob_translate(pattern))
    return {name: size for name, size in found.items() if whole.fullmatch(name)}
