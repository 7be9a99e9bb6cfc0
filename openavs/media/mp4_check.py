"""What an mp4's tables claim: a box of twenty bytes can promise billions of samples, each of which FFmpeg indexes.

Only two kinds of tables can promise more than they hold: `stsz` with one size for all samples, and `trun` without
entries. Every real sample has a byte in the file, so what such tables promise is held against the file's size.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from openavs.errors import InputError

SPARE = 1 << 21  # samples; so many cost 70 MB at most
_TABLES = re.compile(rb"stsz|stz2|trun")
_HAS_ENTRIES = 0x100 | 0x200 | 0x400 | 0x800  # a trun's flags: duration, size, flags or offset of each sample


def check_sample_tables(path: Path) -> None:
    """InputError for an mp4, mov or the like whose tables promise more samples than the file has bytes."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if not _is_boxes(file.read(8), size):
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            claimed = sum(_claims(data, start, end) for start, end in _indexes(data, size))
    if claimed > size + SPARE:
        raise InputError(
            f"{path} promises {claimed} samples of sound or pictures in {size} bytes; it is cut short or made to fill "
            "the memory, so fetch or export it again"
        )


def _is_boxes(head: bytes, size: int) -> bool:
    """Whether a file may begin with a box: its length, which lies in the file or is unsaid, and a name in ASCII."""
    if len(head) < 8:
        return False
    length = int.from_bytes(head[:4], "big")
    return (length in (0, 1) or 8 <= length <= size) and all(32 <= letter < 127 for letter in head[4:])


def _indexes(data: mmap.mmap, size: int) -> Iterator[tuple[int, int]]:
    """Where the boxes at the top lie that hold tables; a length beyond the end, or 0, reaches to the end."""
    at = 0
    while at + 8 <= size:
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if length == 1 and at + 16 <= size:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        end = size if length == 0 else min(at + length, size)
        if length != 0 and length < 8:
            return
        if name in (b"moov", b"moof"):
            yield at, end
        at = end


def _claims(data: mmap.mmap, start: int, end: int) -> int:
    """How many samples the tables without entries in a part of the file promise."""
    claimed = 0
    for found in _TABLES.finditer(data, start, end):
        flags, first, second = struct.unpack(">III", data[found.end() : found.end() + 12].ljust(12, b"\0"))
        if found[0] == b"trun":
            claimed += 0 if flags & _HAS_ENTRIES else first
        elif first:  # a size for all; where it is 0 each sample has an entry
            claimed += second
    return claimed
