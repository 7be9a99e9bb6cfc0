"""Tar shards (WebDataset): files of one name and different endings are one sample.

Only headers are read here; a worker copies the bytes of a member to a generated name before it opens the clip. Members
are never extracted by their names; links, devices and members that are not media are skipped.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

from openavs.errors import InputError
from openavs.jobs.sample import ByteRange, Sample, relative
from openavs.labeling.base import (
    AUDIO_SUFFIXES,
    VIDEO_SUFFIXES,
    Candidate,
    Source,
    make_source,
)
from openavs.utils.fs import BoundedFile
from openavs.utils.text import pluralize


def find_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder (not of its subfolders), sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.is_file())


def are_tars(files: list[Path]) -> bool:
    """Return whether all files are tars."""
    return bool(files) and all(path.suffix.lower() == ".tar" for path in files)


def refuse_compressed(path: Path) -> None:
    """Raise InputError for a compressed tar, whose members cannot be read one by one."""
    if path.suffixes[-2:-1] == [".tar"] or path.suffix.lower() in (".tgz", ".tbz2", ".txz"):
        raise InputError(f"{path} is compressed, and videos hardly shrink by it; give it as a plain .tar")


OpenTar = Callable[[Path], IO[bytes]]


def read(root: Path, tars: list[Path], open_tar: OpenTar = BoundedFile) -> Source:
    """Read the samples of tars that hold a video; `open_tar` opens one for reading at any place."""
    root = Path(os.path.abspath(root))
    found: list[Candidate] = []
    left_out = 0
    for tar in tars:
        samples, skipped = _samples(Path(os.path.abspath(tar)), root, open_tar)
        found += samples
        left_out += skipped
    notes = [f"{pluralize(left_out, 'member')} of the tars skipped: no media, no plain files or unsafe names"]
    return make_source("tar", root, found, notes if left_out else [])


def _samples(tar: Path, root: Path, open_tar: OpenTar) -> tuple[list[Candidate], int]:
    samples: dict[str, Sample] = {}
    left_out = 0
    empty = Sample("", relative(tar, root))
    for member in _members(tar, open_tar):
        name = PurePosixPath(member.name)
        stem, _, ending = name.name.partition(".")
        part = ByteRange(member.name, member.offset_data, member.size, PurePosixPath(f"x.{ending}").suffix.lower())
        key = str(name.parent / stem)
        kind = (
            "video_slice" if part.suffix in VIDEO_SUFFIXES else "audio_slice" if part.suffix in AUDIO_SUFFIXES else None
        )
        if kind is None or not _is_safe(member) or getattr(samples.get(key), kind, None) is not None:
            left_out += not member.isdir()
            continue
        samples[key] = replace(samples.get(key, empty), **{kind: part})  # type: ignore[arg-type]
    whole = {key: sample for key, sample in samples.items() if sample.video_slice is not None}
    left_out += len(samples) - len(whole)
    return [Candidate(PurePosixPath(key).name, _sized(sample)) for key, sample in whole.items()], left_out


def _members(tar: Path, open_tar: OpenTar) -> Iterator[tarfile.TarInfo]:
    try:
        with open_tar(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            while (member := archive.next()) is not None:
                if member.size < 0:
                    raise tarfile.ReadError(f"the size of {member.name!r:.80} is negative")
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                yield member
            if _is_damaged(file, archive.offset):
                raise tarfile.ReadError("the last readable member is not followed by an end")
    except (tarfile.TarError, OSError, EOFError, OverflowError, ValueError) as error:
        raise InputError(f"{tar} cannot be read as a tar ({error}); fetch it again or leave it out") from error


def _is_damaged(file: IO[bytes], offset: int) -> bool:
    """Return whether other bytes than zeros follow the last header that tarfile found, where it stops silently."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    return any(block) or 0 < len(block) < tarfile.BLOCKSIZE


def _is_safe(member: tarfile.TarInfo) -> bool:
    """Return whether a member is a regular file with a safe name; a sparse file is stored differently."""
    name = PurePosixPath(member.name)
    printable = member.name.isprintable() and "\\" not in member.name
    return member.isreg() and not member.issparse() and printable and not name.is_absolute() and ".." not in name.parts


def _sized(sample: Sample) -> Sample:
    parts = (sample.video_slice, sample.audio_slice)
    return replace(sample, bytes=sum(part.size for part in parts if part is not None))
