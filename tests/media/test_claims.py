"""The sizes that an mp4's tables claim are compared with the file's size, in any layout of boxes."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.media.limits import SPARE, check_sample_tables

MANY = 5 * SPARE


def box(name: bytes, body: bytes, length: int | None = None) -> bytes:
    """A box; `length` is what its head says, 1 stands for a long head with 64 bits."""
    if length == 1:
        return struct.pack(">I4sQ", 1, name, len(body) + 16) + body
    return struct.pack(">I4s", len(body) + 8 if length is None else length, name) + body


HEAD = box(b"ftyp", b"isom" + bytes(4))


def sizes(first: int, count: int) -> bytes:
    """A table of the sizes of `count` samples: all `first` bytes or, at 0, each with an entry, which is absent."""
    return box(b"stsz", struct.pack(">III", 0, first, count))


def run(flags: int, count: int) -> bytes:
    """A fragment's run of samples."""
    return box(b"trun", struct.pack(">III", flags, count, 0))


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "a.mp4"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "data",
    [
        HEAD + box(b"moov", sizes(1, MANY)),
        HEAD + box(b"moov", sizes(1, MANY), length=1),
        HEAD + box(b"moov", sizes(1, MANY), length=0),  # to the end of the file
        HEAD + box(b"moov", sizes(1, MANY), length=1 << 30),  # beyond it
        HEAD + box(b"free", b"", length=1) + box(b"moov", sizes(1, MANY)),
        HEAD + box(b"moof", run(0, MANY)),
    ],
    ids=["plain", "64 bits", "to the end", "beyond the end", "after a long head", "fragment"],
)
def test_tables_that_promise_more_than_the_file_holds(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"a\.mp4 promises {MANY} samples of sound or pictures in {len(data)} bytes"):
        check_sample_tables(saved(tmp_path, data))


@pytest.mark.parametrize(
    "data",
    [
        b"abc",  # shorter than a box's head
        HEAD + box(b"moov", sizes(1, 1000)),
        HEAD + box(b"moov", sizes(0, MANY)),  # each has an entry: FFmpeg finds that they are missing
        HEAD + box(b"moof", run(0x200, MANY)),
        HEAD + box(b"mdat", sizes(1, MANY)),  # samples may look like a table
        HEAD + box(b"free", b"", length=4) + box(b"moov", sizes(1, MANY)),  # readers stop at such a box
        b"RIFF" + bytes(8) + sizes(1, MANY),
    ],
    ids=["three bytes", "as many as may be", "entries", "run of entries", "no table", "a length of 4", "other format"],
)
def test_what_promises_no_more_than_that_passes(data: bytes, tmp_path: Path) -> None:
    check_sample_tables(saved(tmp_path, data))
