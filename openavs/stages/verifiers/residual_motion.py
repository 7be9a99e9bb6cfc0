"""Motion between small frames of a video, without that of the camera, and inside the masks of segments.

The camera's motion between two frames (shift, turn and zoom) is fitted to the picture outside the candidates by least
squares on gradients (Lucas & Kanade 1981), coarse to fine, with weights that let outliers count less (iteratively
reweighted). The rest of the change between the two frames is the motion of things.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation

from openavs.structures.types import BoolMask, DenseFrameSource, ImageArray

Array = npt.NDArray[np.float32]

_COARSE = 4  # pixels per side of a block of the coarse level
_STRIDE = 2  # of the pixels that the camera's motion is fitted to
_ROUNDS = 3  # of weights
_MAX_SHIFT = 8  # pixels that the camera may shift between two small frames
_CUT_LEVELS = 16.0  # gray levels; a pixel that changes by more has not been explained by the camera's motion
_CUT_SHARE = 0.4  # of the picture outside the candidates; a cut if more has not been explained
_DILATION = 2  # small pixels around a mask that move with it
_MIN_OUTSIDE = 0.1  # of the picture; with less outside the candidates, all of it counts


@dataclass(frozen=True, eq=False)
class MotionMap:
    """Change between a small frame and the one before.

    Attributes:
        index: number of the frame among the small frames.
        change: absolute change beyond the camera's motion in gray levels, `[h, w]`.
        outside: its mean square outside the candidates.
        scene: number of the scene that the frame is in; it grows at every cut.
        fresh: False if the picture is that of the frame before, as in videos of a lower frame rate.
    """

    index: int
    change: Array
    outside: float
    scene: int
    fresh: bool


class MotionReader:
    """Reads a clip's small frames once, in order, and keeps the motion of a few seconds.

    Args:
        source: the decoder.
        fps: frames per second to decode.
        longest_side: of the small frames, in pixels.
    """

    def __init__(self, source: DenseFrameSource, fps: float, longest_side: int) -> None:
        self._frames = source(fps, longest_side)
        self._next = 0
        self._image: ImageArray | None = None
        self._gray: Array | None = None
        self._scene = 0
        self._maps: deque[MotionMap] = deque()

    def read(self, first: int, last: int, outside: Callable[[int], BoolMask]) -> list[MotionMap]:
        """Return the motion of frames `first` to `last`, as far as there are; `first` never decreases between calls.

        Args:
            first: first frame; earlier ones are dropped.
            last: last frame.
            outside: returns the pixels outside the candidates at a frame, given its number.
        """
        while self._maps and self._maps[0].index < first:
            self._maps.popleft()
        while self._next <= last:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._take(frame.image, first, outside)
        return list(self._maps)

    def _take(self, image: ImageArray, first: int, outside: Callable[[int], BoolMask]) -> None:
        index, self._next = self._next, self._next + 1
        before, fresh = self._gray, image is not self._image
        if index < first - 1:  # decoded only because a file is read from its start
            return
        self._image = image
        if not fresh and before is not None:
            zero = np.zeros_like(before)
            self._maps.append(MotionMap(index, zero, 0.0, self._scene, False))
            return
        self._gray = after = smooth_gray(image)
        if before is None or before.shape != after.shape:
            return
        free = outside(index)
        change = np.abs(unexplained_change(before, after, free))
        counted = free if np.count_nonzero(free) >= _MIN_OUTSIDE * free.size else np.ones_like(free)
        count = np.count_nonzero(counted)
        self._scene += bool(np.count_nonzero((change > _CUT_LEVELS) & counted) > _CUT_SHARE * count)
        around = (change * counted).ravel()
        self._append(MotionMap(index, change, float(around @ around) / count, self._scene, True))

    def _append(self, new: MotionMap) -> None:
        """Append a map; its change is spread over the repeated frames before it."""
        repeats = 0
        while self._maps and repeats < len(self._maps) and not self._maps[-1 - repeats].fresh:
            repeats += 1
        share = 1.0 / (repeats + 1)
        change, outside = new.change * np.float32(share), new.outside * share**2
        for i in range(len(self._maps) - repeats, len(self._maps)):
            self._maps[i] = MotionMap(self._maps[i].index, change, outside, new.scene, False)
        self._maps.append(MotionMap(new.index, change, outside, new.scene, True))


class MotionOutline:
    """A segment's mask at the size of the small frames, and the pixels that move with it.

    Args:
        mask: the mask, `[h, w]`.
        others: the pixels of the frame's other segments, `[h, w]`.
    """

    def __init__(self, mask: BoolMask, others: BoolMask) -> None:
        self._mask, self._others = mask, others
        self._levels: dict[int, float] = {}  # motion by number of the small frame, as far as needed

    def level(self, change: MotionMap) -> float:
        """Return the mean square of the change, in gray levels, beyond that of the rest of the picture; at least 0."""
        if change.index not in self._levels:
            inside = change.change.ravel()[self._pixels]
            power = float(inside @ inside) / max(len(inside), 1)
            self._levels[change.index] = max(power - change.outside, 0.0)
        return self._levels[change.index]

    @cached_property
    def _pixels(self) -> npt.NDArray[np.intp]:
        near = binary_dilation(self._mask, iterations=_DILATION) & ~self._others
        return np.flatnonzero(near if near.any() else self._mask)


def pixels_outside(masks: Sequence[BoolMask], size: tuple[int, int]) -> BoolMask:
    """Return the pixels away from all masks, `[h, w]`."""
    if not len(masks):
        return np.ones(size, dtype=np.bool_)
    return np.asarray(~binary_dilation(np.logical_or.reduce(masks), iterations=_DILATION + 1))


def smooth_gray(image: ImageArray) -> Array:
    """Return the smoothed brightness of an RGB image in gray levels, `[h, w]`."""
    gray = image[..., 1].astype(np.float32) * 2
    gray += image[..., 0]
    gray += image[..., 2]
    smooth = np.pad(gray, 2, mode="edge")  # two box filters of 3 x 3 pixels
    for _ in range(2):
        smooth = smooth[2:] + smooth[1:-1] + smooth[:-2]
        smooth = smooth[:, 2:] + smooth[:, 1:-1] + smooth[:, :-2]
    return smooth * np.float32(1 / (4 * 81))


def unexplained_change(before: Array, after: Array, free: BoolMask) -> Array:
    """Return the change between two frames that the camera's motion does not explain, signed, `[h, w]`.

    Args:
        before: brightness, `[h, w]`.
        after: brightness of the next frame.
        free: the pixels that only the camera moves; all are used if there are none.
    """
    weight = free.astype(np.float32) if free.any() else np.ones(free.shape, dtype=np.float32)
    dx = dy = 0
    if min(after.shape) >= 3 * _COARSE:
        coarse = _blocks(before), _blocks(after)
        middles = weight[_COARSE // 2 :: _COARSE, _COARSE // 2 :: _COARSE][: coarse[0].shape[0], : coarse[0].shape[1]]
        shift = _fit(_basis(*coarse, turns=False), coarse[1] - coarse[0], middles)
        limit = _MAX_SHIFT / _COARSE
        dx, dy = (round(_COARSE * float(np.clip(value, -limit, limit))) for value in shift)
    moved, valid = _shifted(before, dx, dy)
    basis, change = _basis(moved, after, turns=True), after - moved
    part = slice(None, None, _STRIDE)
    motion = _fit(basis[:, part, part], change[part, part], (weight * valid)[part, part])
    rest = change + np.tensordot(motion, basis, axes=1)
    return np.asarray(np.where(valid, rest, np.float32(0)), dtype=np.float32)


def _basis(before: Array, after: Array, *, turns: bool) -> Array:
    """Return the change that each motion causes, `[2 or 4, h, w]`: a shift along x, along y, a turn and a zoom."""
    height, width = after.shape
    basis = np.zeros((4 if turns else 2, height, width), dtype=np.float32)
    mean = (before + after) * np.float32(0.5)
    gx, gy = basis[0], basis[1]
    np.multiply(mean[:, 2:] - mean[:, :-2], np.float32(0.5), out=gx[:, 1:-1])
    np.multiply(mean[2:] - mean[:-2], np.float32(0.5), out=gy[1:-1])
    if turns:
        unit = 2 / max(height, width)
        x = ((np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(unit))[None]
        y = ((np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(unit))[:, None]
        basis[2] = gy * x - gx * y
        basis[3] = gx * x + gy * y
    return basis


def _fit(basis: Array, change: Array, weight: Array) -> Array:
    """Return the motion that explains the change best, by iteratively reweighted least squares."""
    rows, target, base = basis.reshape(len(basis), -1), change.ravel(), weight.ravel()
    inside = np.flatnonzero(base > 0)[::4]
    now, motion = base, np.zeros(len(rows), dtype=np.float32)
    for step in range(_ROUNDS):
        weighted = rows * now
        normal = weighted @ rows.T
        normal[np.diag_indices(len(rows))] += np.float32(1e-3 + 1e-5 * np.trace(normal) / len(rows))
        motion = np.linalg.solve(normal, -(weighted @ target)).astype(np.float32)
        if step + 1 < _ROUNDS and len(inside):
            rest = target + motion @ rows
            middle = np.partition(np.abs(rest[inside]), len(inside) // 2)[len(inside) // 2]
            now = base / (1 + np.square(rest * np.float32(1 / max(2 * float(middle), 0.2))))
    return motion


def _blocks(array: Array) -> Array:
    """Return the means of blocks of `_COARSE` x `_COARSE` pixels."""
    height, width = (side // _COARSE * _COARSE for side in array.shape)
    cut = array[:height, :width]
    rows = np.add.reduce([cut[i::_COARSE] for i in range(_COARSE)])
    blocks: Array = np.add.reduce([rows[:, i::_COARSE] for i in range(_COARSE)]) * np.float32(1 / _COARSE**2)
    return blocks


def _shifted(array: Array, dx: int, dy: int) -> tuple[Array, BoolMask]:
    """Shift by whole pixels; also returns which pixels are within the picture."""
    height, width = array.shape
    moved, valid = array.copy(), np.zeros(array.shape, dtype=np.bool_)
    target = (slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0)))
    source = (slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0)))
    moved[target] = array[source]
    valid[target] = True
    return moved, valid
