"""Tar shards (WebDataset): files of one name and different endings are one sample.

Only headers are read here; a worker copies the bytes of a member to a name of its own when the sample's turn comes.
Nothing is ever extracted by its name, links and devices are not looked at, and no member is anything but media.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath

from openavs.errors import InputError
from openavs.jobs.sample import ByteRange, Sample
from openavs.labeling.readers.open import SOUNDS, VIDEOS, Candidate, Source, build_manifest, relative
from openavs.utils.fs import BoundedFile
from openavs.utils.text import pluralize


def find(folder: Path) -> list[Path]:
    """The tars of a folder (not below it), in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())


def are_tars(files: list[Path]) -> bool:
    """Whether files are tars and nothing else."""
    return bool(files) and all(path.suffix.lower() == ".tar" for path in files)


def refuse_compressed(path: Path) -> None:
    """Raises InputError for a compressed tar: its members cannot be reached one by one."""
    if path.suffixes[-2:-1] == [".tar"] or path.suffix.lower() in (".tgz", ".tbz2", ".txz"):
        raise InputError(f"{path} is compressed, and videos hardly shrink by it; give it as a plain .tar")


def read(root: Path, tars: list[Path]) -> Source:
    """The samples of some tars that hold a video."""
    root = Path(os.path.abspath(root))
    found: list[Candidate] = []
    left_out = 0
    for tar in tars:
        samples, skipped = _samples(Path(os.path.abspath(tar)), root)
        found += samples
        left_out += skipped
    notes = [f"{pluralize(left_out, 'member')} of the tars left out: no media, no plain files or unsafe names"]
    return build_manifest("tar", root, found, notes if left_out else [])


def _samples(tar: Path, root: Path) -> tuple[list[Candidate], int]:
    samples: dict[str, Sample] = {}
    left_out = 0
    empty = Sample("", relative(tar, root))
    for member in _members(tar):
        name = PurePosixPath(member.name)
        stem, _, ending = name.name.partition(".")
        part = ByteRange(member.name, member.offset_data, member.size, PurePosixPath(f"x.{ending}").suffix.lower())
        key = str(name.parent / stem)
        kind = "video_slice" if part.suffix in VIDEOS else "audio_slice" if part.suffix in SOUNDS else None
        if kind is None or not _is_safe(member) or getattr(samples.get(key), kind, None) is not None:
            left_out += not member.isdir()
            continue
        samples[key] = replace(samples.get(key, empty), **{kind: part})  # type: ignore[arg-type]
    whole = {key: item for key, item in samples.items() if item.video_slice is not None}
    left_out += len(samples) - len(whole)
    return [Candidate(PurePosixPath(key).name, _sized(item)) for key, item in whole.items()], left_out


def _members(tar: Path) -> Iterator[tarfile.TarInfo]:
    try:
        with BoundedFile(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError(f"the size of {member.name!r:.80} is negative")
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                yield member
            if _is_damaged(tar, archive.offset):
                raise tarfile.ReadError("what follows its last readable member is not an end")
    except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError) as problem:
        raise InputError(f"{tar} cannot be read as a tar ({problem}); fetch it again or leave it out") from problem


def _is_damaged(tar: Path, offset: int) -> bool:
    """Whether a tar goes on with other than zeros where tarfile found no more headers: it stops there silently."""
    with tar.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
    return any(block) or 0 < len(block) < tarfile.BLOCKSIZE


def _is_safe(member: tarfile.TarInfo) -> bool:
    """A plain file of a plain name; a sparse one is stored otherwise than it reads."""
    name = PurePosixPath(member.name)
    printable = member.name.isprintable() and "\\" not in member.name
    return member.isreg() and not member.issparse() and printable and not name.is_absolute() and ".." not in name.parts


def _sized(item: Sample) -> Sample:
    parts = (item.video_slice, item.audio_slice)
    return replace(item, bytes=sum(part.size for part in parts if part is not None))
