"""Training pictures: endless batches of scenes with the exact box and mask of everything in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as Pil

from openavs.structures.types import ImageArray
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, who is seen where (0: nobody, i + 1: thing i) and what kinds the things are."""

    image: ImageArray
    owners: npt.NDArray[np.uint8]  # [H, W]
    kinds: tuple[int, ...]

    def boxes(self) -> npt.NDArray[np.float32]:
        """The tight boxes `[N, 4]` (x0, y0, x1, y1 in pixels) of the visible part of every thing; NaN where hidden."""
        boxes = np.full((len(self.kinds), 4), np.nan, dtype=np.float32)
        for number in range(len(self.kinds)):
            ys, xs = np.nonzero(self.owners == number + 1)
            if len(xs) > 20:
                boxes[number] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        return boxes


def picture(rng: Rng, size: tuple[int, int]) -> Picture:
    """One to four different kinds on a ground, rendered at 1 to 2 times the size and resized as a processor would."""
    kinds = rng.choice(len(KINDS), int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15])), replace=False)
    zoom = float(rng.choice([1.0, 1.0, 1.75]))
    height, width = (round(side * zoom) for side in size)
    scene = plan_scene([Role(KINDS[k].name, (True,)) for k in kinds], rng, 1, (height, width))
    image, owners = scene.picture(float(rng.uniform(0, 5)))
    if zoom != 1.0:
        image = np.asarray(Pil.fromarray(image).resize((size[1], size[0]), Pil.Resampling.BILINEAR))
        owners = np.asarray(Pil.fromarray(owners).resize((size[1], size[0]), Pil.Resampling.NEAREST))
    return Picture(image, owners, tuple(int(k) for k in kinds))


def batches(split: str, seed: int, count: int, shapes: Sequence[tuple[int, int]]) -> Iterator[list[Picture]]:
    """Endless batches of pictures; all of a batch have one of the given shapes (height, width)."""
    step = 0
    while True:
        rng = scene_rng(split, 900, seed, step)
        size = shapes[int(rng.integers(len(shapes)))]
        yield [picture(rng, size) for _ in range(count)]
        step += 1


def to_tensor(pictures: list[Picture], mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Normalised pixel values `[B, 3, H, W]`."""
    pixels = np.stack([p.image for p in pictures]).astype(np.float32) / 255.0
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
