"""Training images: endless batches of synthetic images with the exact boxes and masks of their objects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from openavs.structures.types import ImageArray
from openavs.synthetic.categories import KINDS
from openavs.synthetic.motion import deformed, shaking_camera, textured
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng


@dataclass(frozen=True, eq=False)
class LabeledImage:
    """An image with the visible object of each pixel."""

    image: ImageArray
    owners: npt.NDArray[np.uint8]  # [H, W], 0: background, i + 1: object i
    kinds: tuple[int, ...]  # of the objects, indices into `KINDS`

    def boxes(self) -> npt.NDArray[np.float32]:
        """Return tight boxes `[N, 4]` (x0, y0, x1, y1 in pixels) of the visible parts of objects; NaN if hidden."""
        boxes = np.full((len(self.kinds), 4), np.nan, dtype=np.float32)
        for number in range(len(self.kinds)):
            ys, xs = np.nonzero(self.owners == number + 1)
            if len(xs) > 20:
                boxes[number] = xs.min(), ys.min(), xs.max() + 1, ys.max() + 1
        return boxes


Sampler = Callable[[Rng, tuple[int, int]], LabeledImage]
"""Samples an image of the given height and width."""


def sample_image(rng: Rng, size: tuple[int, int]) -> LabeledImage:
    """Sample an image of one to four different categories."""
    count = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.25, 0.15]))
    return render_kinds(rng.choice(len(KINDS), count, replace=False), rng, size)


def sample_repeated(rng: Rng, size: tuple[int, int]) -> LabeledImage:
    """Sample an image with two or three objects of one category in three of five images, else as `sample_image`."""
    if rng.random() < 0.4:
        return sample_image(rng, size)
    return render_kinds(_repeated(rng, (0.5, 0.35, 0.15), 0.4), rng, size)


def sample_bystanders(rng: Rng, size: tuple[int, int]) -> LabeledImage:
    """Sample an image like `sample_repeated`, with more objects of other categories.

    Half of the images look like those of the layout `twins`: a backdrop with texture, which the camera may have shifted
    and turned, and objects in the poses of their motions.
    """
    if rng.random() < 0.4:
        kinds = rng.choice(len(KINDS), int(rng.choice([1, 2, 3, 4], p=[0.2, 0.4, 0.25, 0.15])), replace=False)
    else:
        kinds = _repeated(rng, (0.3, 0.5, 0.2), 0.5)
    return render_kinds(kinds, rng, size, moving=bool(rng.random() < 0.5))


def _repeated(rng: Rng, beside_two: tuple[float, float, float], beside_three: float) -> npt.NDArray[np.int64]:
    """Sample two or three objects of one category and others beside them, in random order.

    Args:
        rng: the random generator.
        beside_two: probabilities of no, one and two others beside two objects.
        beside_three: probability of one other beside three.
    """
    copies = int(rng.choice([2, 3], p=[0.65, 0.35]))
    shares = beside_two if copies == 2 else (1 - beside_three, beside_three)
    others = int(rng.choice(len(shares), p=shares))
    first, *rest = rng.choice(len(KINDS), 1 + others, replace=False)
    return rng.permutation([first] * copies + rest)


def render_kinds(
    kinds: npt.NDArray[np.int64], rng: Rng, size: tuple[int, int], *, moving: bool = False
) -> LabeledImage:
    """Plan a scene of the categories, render it at one of two zooms and resize it as a processor does."""
    zoom = float(rng.choice([1.0, 1.0, 1.75]))
    height, width = (round(side * zoom) for side in size)
    scene = plan_scene([Role(KINDS[k].name, (True,)) for k in kinds], rng, 1, (height, width))
    if moving:
        actors = tuple(replace(actor, moves=deformed(actor.kind, rng)) for actor in scene.actors)
        camera = shaking_camera(rng) if rng.random() < 0.5 else None
        backdrop = textured(scene.backdrop, scene.size, rng)
        scene = replace(scene, actors=actors, backdrop=backdrop, texture=True, camera=camera)
    image, owners = scene.picture(float(rng.uniform(0, 5)))
    if zoom != 1.0:
        image = np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR))
        owners = np.asarray(Image.fromarray(owners).resize((size[1], size[0]), Image.Resampling.NEAREST))
    return LabeledImage(image, owners, tuple(int(k) for k in kinds))


def batches(
    split: str, seed: int, count: int, shapes: Sequence[tuple[int, int]], sample: Sampler = sample_image
) -> Iterator[list[LabeledImage]]:
    """Yield endless batches of images; all images of a batch have one of the given shapes (height, width)."""
    step = 0
    while True:
        rng = scene_rng(split, 900, seed, step)
        size = shapes[int(rng.integers(len(shapes)))]
        yield [sample(rng, size) for _ in range(count)]
        step += 1


def to_tensor(images: list[LabeledImage], mean: tuple[float, ...], std: tuple[float, ...]) -> npt.NDArray[np.float32]:
    """Return normalized pixel values `[B, 3, H, W]`."""
    pixels = np.stack([item.image for item in images]).astype(np.float32) / 255.0
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))
