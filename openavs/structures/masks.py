"""Masks as COCO run-length codes: encoding, decoding, validation, resizing, rendering; overlap of masks and boxes.

Converters are functions named `a_to_b`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError

if TYPE_CHECKING:
    import numpy.typing as npt

    from openavs.structures.types import BoolMask, Box, ImageArray, Segment

    _Codes = npt.NDArray[np.int64]

MAX_PIXELS = 1 << 28  # of a mask; a code of three letters can stand for any number


@dataclass(frozen=True)
class RLE:
    """A binary mask as COCO's compressed run-length code (column-major); `size` is (height, width)."""

    size: tuple[int, int]
    counts: str = field(repr=False)

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        from pycocotools import mask as coco

        return int(coco.area(self._coco))

    @property
    def box(self) -> Box:
        """Smallest box around the foreground; all zeros without any."""
        from pycocotools import mask as coco

        x, y, width, height = (float(v) for v in coco.toBbox(self._coco))
        return (x, y, x + width, y + height)

    @property
    def _coco(self) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.counts.encode("ascii")}


def mask_to_rle(mask: BoolMask) -> RLE:
    """Encode a boolean mask `[H, W]`."""
    from pycocotools import mask as coco

    if mask.ndim != 2:
        raise ValueError(f"a mask is [H, W], not {list(mask.shape)}")
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE((int(mask.shape[0]), int(mask.shape[1])), code["counts"].decode("ascii"))


def rle_to_mask(rle: RLE) -> BoolMask:
    """Decode to a boolean mask `[H, W]`."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(rle._coco), dtype=np.bool_)


def rle_to_part(rle: RLE) -> tuple[BoolMask, tuple[int, int]]:
    """Decode the part of a mask inside the smallest box around it.

    Returns:
        A boolean mask `[h, w]` in column order, empty for an empty mask, and the left and upper edge of the box.
    """
    left, top, right, bottom = map(int, rle.box)
    height = rle.size[0]
    # Only the columns of the box are decoded; odd runs are foreground.
    ends = np.cumsum(rle_runs(rle, "a mask")).clip(left * height, right * height)
    lengths = np.diff(ends, prepend=left * height)
    columns = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(right - left, height)
    return columns.T[top:bottom], (left, top)


def merge_masks(codes: Sequence[RLE]) -> RLE:
    """Return the union of masks of one size."""
    from pycocotools import mask as coco

    if len(codes) == 1:
        return codes[0]
    union = coco.merge([code._coco for code in codes])
    return RLE(codes[0].size, union["counts"].decode("ascii"))


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
    # pycocotools' C decoder writes out of bounds for invalid codes, so this check precedes every decoding of a file.
    if rle.size[0] * rle.size[1] > MAX_PIXELS:
        raise InputError(f"{where} is a mask of {rle.size[0]} x {rle.size[1]} pixels, over the limit of {MAX_PIXELS}")
    codes = np.frombuffer(rle.counts.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends + 1])
    if ((codes < 0) | (codes > 63)).any() or np.diff(starts, append=len(codes)).max() > 13:
        raise InputError(f"{where} is not a run-length code")
    runs = _decode_numbers(codes, starts[:-1], ends) if len(ends) else codes[:0]
    runs[1::2] = runs[1::2].cumsum()  # each is stored as its difference from the one before the last
    runs[2::2] = runs[2::2].cumsum()
    pixels = rle.size[0] * rle.size[1]
    whole = starts[-1] == len(codes) and min(rle.size) >= 0 and ((runs >= 0) & (runs <= pixels)).all()
    if not whole or runs.sum() != pixels:
        raise InputError(f"{where}: the run-length code does not fill a mask of {rle.size[0]} x {rle.size[1]} pixels")
    return list(runs.tolist())


def _decode_numbers(codes: _Codes, starts: _Codes, ends: _Codes) -> _Codes:
    """Decode numbers of five bits a letter, the lowest first; the highest bit of the last letter is the sign.

    Numbers of more than 63 bits wrap around; the result stays outside the range of runs.
    """
    lengths = ends - starts + 1
    places = np.arange(ends[-1] + 1) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes[: ends[-1] + 1] & 31) << (5 * places), starts)
    negative = (codes[ends] & 16 != 0) & (lengths < 13)
    return np.asarray(numbers - (negative.astype(np.int64) << np.minimum(5 * lengths, 60)))


def segments_to_mask(segments: Sequence[Segment], size: tuple[int, int]) -> BoolMask:
    """Return the union of the segments as one boolean mask `[H, W]` (OpenAVS, eq. 2)."""
    union = np.zeros(size, dtype=np.bool_)
    for segment in segments:
        union |= rle_to_mask(segment.mask)
    return union


def segments_to_label_map(segments: Sequence[Segment], values: Sequence[int], size: tuple[int, int]) -> ImageArray:
    """Return a label map, uint8 `[H, W]`; where segments overlap, the highest score wins; 0 is the background.

    Args:
        segments: the segments.
        values: the number of each segment, in 1..255: a class index or an instance number.
        size: (height, width) in pixels.
    """
    painted = np.zeros(size, dtype=np.uint8)
    for position in sorted(range(len(segments)), key=lambda i: segments[i].score):
        painted[rle_to_mask(segments[position].mask)] = values[position]
    return painted


def small_size(size: tuple[int, int], longest_side: int) -> tuple[int, int]:
    """Return (height, width) in pixels with the longest side limited, as dense frames have it."""
    scale = min(1.0, longest_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resize_mask(mask: BoolMask, size: tuple[int, int]) -> BoolMask:
    """Resize a mask to (height, width) by its nearest pixels; if none of it is left, all pixels that it touches."""
    if mask.shape == size:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(size, mask.shape, strict=True)
    )
    small: BoolMask = mask[rows][:, columns]
    if not small.any() and mask.any():
        y, x = np.nonzero(mask)
        small[y * size[0] // mask.shape[0], x * size[1] // mask.shape[1]] = True
    return small


def mask_iou(one: BoolMask, other: BoolMask) -> float:
    """Return the IoU of two masks of one size; 0 if both are empty."""
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 0.0


def rle_iou(ones: Sequence[RLE], others: Sequence[RLE]) -> npt.NDArray[np.float64]:
    """Return the IoU of every pair of encoded masks, `[ones, others]`; 0 where both are empty."""
    from pycocotools import mask as coco

    if not ones or not others:
        return np.zeros((len(ones), len(others)))
    ious = coco.iou([mask._coco for mask in others], [mask._coco for mask in ones], [0] * len(ones))
    return np.nan_to_num(np.asarray(ious, dtype=np.float64).T.reshape(len(ones), len(others)))


def iou(one: Box, two: Box) -> float:
    """Return the intersection over union of two boxes; 0 for boxes without area."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1]) - both)


@cache
def voc_palette() -> npt.NDArray[np.uint8]:
    """Return the 256 colors of Pascal VOC, uint8 `[256, 3]`.

    Bit i of an index goes to channel i mod 3, most significant bit first (VOCdevkit, `VOClabelcolormap.m`).
    """
    index = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((index >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    palette.flags.writeable = False
    return palette
