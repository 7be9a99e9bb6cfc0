"""Run-length codes of others: which of them may be handed to the C decoder."""

from __future__ import annotations

from openavs.errors import InputError
from openavs.structures.types import RLE

MAX_PIXELS = 1 << 28  # of a mask: a code of three letters may stand for any number of them


def check_rle(rle: RLE, where: str) -> None:
    """Refuses a code whose runs do not fill the mask, which the C decoder would write beside, or a huge mask."""
    rle_runs(rle, where)


def rle_runs(rle: RLE, where: str) -> list[int]:
    """The run lengths of a code, background first: COCO's uncompressed counts.

    Raises:
        InputError: not a run-length code of a mask of this size, or a huge mask; `where` is named in the sentence.
    """
    if rle.size[0] * rle.size[1] > MAX_PIXELS:
        raise InputError(f"{where} is a mask of {rle.size[0]} x {rle.size[1]} pixels, over the limit of {MAX_PIXELS}")
    runs: list[int] = []
    value = shift = 0
    for letter in rle.counts:
        code = ord(letter) - 48
        if not 0 <= code < 64 or shift > 60:
            raise InputError(f"{where} is no run-length code")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if shift or min(rle.size) < 0 or any(run < 0 for run in runs) or sum(runs) != rle.size[0] * rle.size[1]:
        raise InputError(f"{where}: the run-length code does not fill a mask of {rle.size[0]} x {rle.size[1]} pixels")
    return runs
