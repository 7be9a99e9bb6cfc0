"""Motion between small frames of a video, without that of the camera.

The camera's motion between two frames (shift, turn and zoom) is fitted to the picture outside the candidates by least
squares on gradients (Lucas & Kanade 1981), coarse to fine, with weights that let outliers count less (iteratively
reweighted). The rest of the change between the two frames is the motion of things.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from openavs.structures.types import BoolMask, DenseFrameSource, ImageArray

Array = npt.NDArray[np.float32]

_COARSE = 4  # pixels per side of a block of the coarse level
_MAX_SHIFT = 8  # pixels that the camera may shift between two small frames
_CUT_LEVELS = 16.0  # gray levels; a pixel that changes by more has not been explained by the camera's motion
_CUT_SHARE = 0.4  # of the picture outside the candidates; a cut if more has not been explained
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

    def read(self, first: int, last: int, outside: Callable[[int, tuple[int, int]], BoolMask]) -> list[MotionMap]:
        """Return the motion of frames `first` to `last`, as far as there are; `first` never decreases between calls.

        Args:
            first: first frame; earlier ones are dropped.
            last: last frame.
            outside: returns the pixels outside the candidates, given a frame's number and (height, width).
        """
        while self._maps and self._maps[0].index < first:
            self._maps.popleft()
        while self._next <= last:
            frame = next(self._frames, None)
            if frame is None:
                break
            self._take(frame.image, first, outside)
        return list(self._maps)

    def _take(self, image: ImageArray, first: int, outside: Callable[[int, tuple[int, int]], BoolMask]) -> None:
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
        free = outside(index, (after.shape[0], after.shape[1]))
        change = np.abs(unexplained_change(before, after, free))
        part = change[free] if np.count_nonzero(free) >= _MIN_OUTSIDE * free.size else change.ravel()
        self._scene += bool(np.count_nonzero(part > _CUT_LEVELS) > _CUT_SHARE * part.size)
        self._append(MotionMap(index, change, float(np.square(part).mean()), self._scene, True))

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


def smooth_gray(image: ImageArray) -> Array:
    """Return the smoothed brightness of an RGB image in gray levels, `[h, w]`."""
    gray = (image[..., 0].astype(np.float32) + 2 * image[..., 1].astype(np.float32) + image[..., 2]) / 4
    return np.asarray(uniform_filter(uniform_filter(gray, 3, mode="nearest"), 3, mode="nearest"))


def unexplained_change(before: Array, after: Array, free: BoolMask) -> Array:
    """Return the change between two frames that the camera's motion does not explain, signed, `[h, w]`.

    Args:
        before: brightness, `[h, w]`.
        after: brightness of the next frame.
        free: the pixels that only the camera moves; all are used if there are none.
    """
    weight = free.astype(np.float32) if free.any() else np.ones(free.shape, dtype=np.float32)
    coarse = [_blocks(part) for part in (before, after, weight)]
    if min(coarse[0].shape) >= 3:
        shift, _ = _fit(coarse[0], coarse[1], (coarse[2] > 0.5).astype(np.float32), turns=False)
        limit = _MAX_SHIFT / _COARSE
        dx, dy = (round(_COARSE * float(np.clip(value, -limit, limit))) for value in shift)
    else:
        dx = dy = 0
    moved, valid = _shifted(before, dx, dy)
    _, rest = _fit(moved, after, weight * valid, turns=True)
    return np.asarray(np.where(valid, rest, np.float32(0)), dtype=np.float32)


def _fit(before: Array, after: Array, weight: Array, *, turns: bool) -> tuple[Array, Array]:
    """Fit a shift (and a turn and zoom) and return the parameters and the rest of the change."""
    height, width = after.shape
    mean = (before + after) / 2
    gx, gy = np.zeros_like(mean), np.zeros_like(mean)
    gx[:, 1:-1] = (mean[:, 2:] - mean[:, :-2]) / 2
    gy[1:-1] = (mean[2:] - mean[:-2]) / 2
    basis = [gx, gy]
    if turns:
        unit = 2 / max(height, width)
        x = ((np.arange(width, dtype=np.float32) - (width - 1) / 2) * np.float32(unit))[None]
        y = ((np.arange(height, dtype=np.float32) - (height - 1) / 2) * np.float32(unit))[:, None]
        basis += [gy * x - gx * y, gx * x + gy * y]
    rows = np.stack([part.ravel() for part in basis])
    change, base = (after - before).ravel(), weight.ravel()
    now = base
    for step in range(3):
        weighted = rows * now
        normal = weighted @ rows.T
        normal[np.diag_indices(len(rows))] += np.float32(1e-3 + 1e-5 * np.trace(normal) / len(rows))
        motion = np.linalg.solve(normal, -(weighted @ change))
        rest = change + motion @ rows
        if step < 2:
            inside = np.abs(rest[::5][base[::5] > 0])
            scale = max(2 * float(np.median(inside)), 0.2) if len(inside) else 1.0
            now = base / (1 + np.square(rest / np.float32(scale)))
    return motion.astype(np.float32), rest.reshape(after.shape).astype(np.float32, copy=False)


def _blocks(array: Array) -> Array:
    """Return the means of blocks of `_COARSE` x `_COARSE` pixels."""
    height, width = (side // _COARSE for side in array.shape)
    cut = array[: height * _COARSE, : width * _COARSE]
    return np.asarray(cut.reshape(height, _COARSE, width, _COARSE).mean(axis=(1, 3)))


def _shifted(array: Array, dx: int, dy: int) -> tuple[Array, BoolMask]:
    """Shift by whole pixels; also returns which pixels are within the picture."""
    height, width = array.shape
    moved, valid = array.copy(), np.zeros(array.shape, dtype=np.bool_)
    target = (slice(max(dy, 0), height + min(dy, 0)), slice(max(dx, 0), width + min(dx, 0)))
    source = (slice(max(-dy, 0), height + min(-dy, 0)), slice(max(-dx, 0), width + min(-dx, 0)))
    moved[target] = array[source]
    valid[target] = True
    return moved, valid
