"""Validation of run-length codes: pycocotools' C decoder writes out of bounds for invalid ones."""

from __future__ import annotations

from openavs.errors import InputError
from openavs.structures.types import RLE

MAX_PIXELS = 1 << 28  # of a mask; a code of three letters can stand for any number


def check_rle(rle: RLE, where: str) -> None:
    """Raise InputError for a code whose runs do not fill the mask, and for a huge mask."""
    rle_runs(rle, where)


def rle_runs(rle: RLE, where: str) -> list[int]:
    """Return the run lengths of a code, background first: COCO's uncompressed counts.

    Args:
        rle: the code.
        where: the place of the code, for the error message.

    Raises:
        InputError: not a run-length code of a mask of this size, or a huge mask.
    """
    if rle.size[0] * rle.size[1] > MAX_PIXELS:
        raise InputError(f"{where} is a mask of {rle.size[0]} x {rle.size[1]} pixels, over the limit of {MAX_PIXELS}")
    runs: list[int] = []
    value = shift = 0
    for letter in rle.counts:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise InputError(f"{where} is not a run-length code")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or min(rle.size) < 0 or any(run < 0 for run in runs) or sum(runs) != rle.size[0] * rle.size[1]:
        raise InputError(f"{where}: the run-length code does not fill a mask of {rle.size[0]} x {rle.size[1]} pixels")
    return runs
