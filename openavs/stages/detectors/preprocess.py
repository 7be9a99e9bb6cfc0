"""How a frame is fitted to the size a model wants: resized by its edges and, if very long and thin, letterboxed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch

from openavs.models.ops.resize import resize_bilinear
from openavs.structures.types import ImageArray

Size = tuple[int, int]  # height, width
_RATIOS = (16.0, 8.0, 4.0, 2.0, 1.0)  # long side to short side, tried in turn


@dataclass(frozen=True)
class ResizePolicy:
    """A frame of `original` size is resized to `content` and lies in the top left corner of `canvas`."""

    original: Size
    content: Size
    canvas: Size

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the whole canvas in pixels of the original frame."""
        height, width = (o * k / c for o, k, c in zip(self.original, self.canvas, self.content, strict=True))
        return height, width


def edge_size(size: Size, shortest: int, longest: int) -> Size:
    """The size with the same aspect whose short edge is `shortest`, or less where the long one would pass `longest`.

    Rounds as the Grounding DINO image processor does; the short edge of a very thin frame can come out as 0.
    """
    short, long = min(size), max(size)
    exact: float = shortest
    if long / short * shortest > longest:
        exact = longest * short / long
    edge = round(exact)
    if short == edge:
        return size
    other = int(exact * long / short)
    return (other, edge) if size[1] < size[0] else (edge, other)


def scaled_edges(size: Size, shortest: int, longest: int, accepts: Callable[[Size], bool]) -> ResizePolicy | None:
    """Fits a frame by its edges, with as little letterboxing as makes the canvas acceptable to the model.

    Returns None where not even a square canvas is accepted.
    """
    plain = edge_size(size, shortest, longest)
    if accepts(plain):
        return ResizePolicy(size, plain, plain)
    short, long = min(size), max(size)
    for ratio in _RATIOS:
        padded = max(round(long / ratio), short)
        if padded == short:
            continue
        tall = size[0] > size[1]
        canvas = edge_size((long, padded) if tall else (padded, long), shortest, longest)
        if accepts(canvas):
            thin = max(1, round(short * max(canvas) / long))
            return ResizePolicy(size, (canvas[0], thin) if tall else (thin, canvas[1]), canvas)
    return None


def resize(image: ImageArray, size: Size, filter_: PIL.Image.Resampling, device: torch.device) -> torch.Tensor:
    """A frame resized to the bytes that the model's image processor makes of it: uint8 `[h, w, 3]` on the device.

    The bilinear filter, which all released checkpoints name, runs on the device; Pillow does any other on the CPU.
    """
    if filter_ is PIL.Image.Resampling.BILINEAR:
        return resize_bilinear(image, size, device)
    resized = PIL.Image.fromarray(image).resize((size[1], size[0]), resample=filter_)
    return torch.from_numpy(np.array(resized)).to(device)
