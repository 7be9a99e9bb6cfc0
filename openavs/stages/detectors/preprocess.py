"""Image sizes for detectors: resizing by the edges, and letterboxing of very thin images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from openavs.models.ops.image import resize_bilinear
from openavs.structures.types import ImageArray

Size = tuple[int, int]  # height, width
_ASPECT_RATIOS = (16.0, 8.0, 4.0, 2.0, 1.0)  # of letterboxed canvases, long to short side, tried in this order


@dataclass(frozen=True)
class ResizePolicy:
    """Resize of an image from `original` to `content` size, placed in the top left corner of a `canvas`."""

    original: Size
    content: Size
    canvas: Size

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the whole canvas in pixels of the original image."""
        height, width = (o * k / c for o, k, c in zip(self.original, self.canvas, self.content, strict=True))
        return height, width


def edge_size(size: Size, shortest: int, longest: int) -> Size:
    """Scale a size to a short edge of `shortest`, or less if the long edge would exceed `longest`.

    Rounds as the Grounding DINO image processor does; the short edge of a very thin image can become 0.
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


def choose_resize_policy(
    size: Size, shortest: int, longest: int, accepts: Callable[[Size], bool]
) -> ResizePolicy | None:
    """Choose the resize with the least letterboxing whose canvas the model accepts.

    Args:
        size: height and width of the image.
        shortest: short edge of a resized image.
        longest: maximum long edge of a resized image.
        accepts: whether the model accepts images of a size.

    Returns:
        None if not even a square canvas is accepted.
    """
    plain = edge_size(size, shortest, longest)
    if accepts(plain):
        return ResizePolicy(size, plain, plain)
    short, long = min(size), max(size)
    for ratio in _ASPECT_RATIOS:
        padded = max(round(long / ratio), short)
        if padded == short:
            continue
        tall = size[0] > size[1]
        canvas = edge_size((long, padded) if tall else (padded, long), shortest, longest)
        if accepts(canvas):
            thin = max(1, round(short * max(canvas) / long))
            return ResizePolicy(size, (canvas[0], thin) if tall else (thin, canvas[1]), canvas)
    return None


def resize(image: ImageArray, size: Size, filter_: Image.Resampling, device: torch.device) -> torch.Tensor:
    """Resize an image to the same bytes as the model's image processor: uint8 `[h, w, 3]` on the device.

    The bilinear filter, which all released checkpoints use, runs on the device; any other is done by Pillow on the CPU.
    """
    if filter_ is Image.Resampling.BILINEAR:
        return resize_bilinear(image, size, device)
    resized = Image.fromarray(image).resize((size[1], size[0]), resample=filter_)
    return torch.from_numpy(np.array(resized)).to(device)
