"""Camera of the synthetic world: a view that shakes, and backdrops that are larger than the view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openavs.synthetic.shapes import Points, Rng

MARGIN = 0.1  # of the frame's short side, around a backdrop with texture


@dataclass(frozen=True, eq=False)
class Camera:
    """A hand-held camera: the whole picture is shifted and turned, smoothly and at random.

    `waves` `[3, K, 3]` holds amplitude, frequency in Hz and phase of the sines of x, y (in units of the short side)
    and turn (radians).
    """

    waves: npt.NDArray[np.float64]

    def pose(self, time: float) -> tuple[float, float, float]:
        """Return x, y and turn at a time in seconds."""
        amplitude, frequency, phase = np.moveaxis(self.waves, 2, 0)
        x, y, turn = (amplitude * np.sin(2 * np.pi * frequency * time + phase)).sum(axis=1)
        return float(x), float(y), float(turn)


def shaking_camera(rng: Rng) -> Camera:
    """Return a camera that shakes by a few pixels of 224 and about a degree, up to 3 times a second."""
    waves = np.empty((3, 4, 3))
    waves[:, :, 1] = rng.uniform(0.3, 3.0, (3, 4))
    waves[:, :, 0] = rng.uniform(0.5, 1.0, (3, 4)) / np.sqrt(waves[:, :, 1])
    reach = np.array([0.03, 0.03, 0.03]) * rng.uniform(0.6, 1.2, 3)
    waves[:, :, 0] *= (reach / waves[:, :, 0].sum(axis=1))[:, None]
    waves[:, :, 2] = rng.uniform(0, 2 * np.pi, (3, 4))
    return Camera(waves)


@dataclass(frozen=True)
class View:
    """The camera's view, drawn at twice the frame's size.

    Attributes:
        size: (height, width) of the frame in pixels.
        pose: x and y of the picture's shift in units of the short side, and the rotation around the center in radians.
    """

    size: tuple[int, int]
    pose: tuple[float, float, float]

    def project(self, points: Points) -> Points:
        """Return points `[N, 2]` of the scene, in pixels at twice the size, in the view."""
        rotation, middle, shift = self._parts()
        return (points - middle) @ rotation + middle + shift

    def background(self, backdrop: Image.Image) -> Image.Image:
        """Return the part of a backdrop (see `textured`) in the view, at twice the size."""
        height, width = self.size
        rotation, middle, shift = (part / 2 for part in self._parts())  # at once the size, which is four times as fast
        back = 2 * rotation  # the inverse of a rotation of row vectors, applied to columns
        margin = (np.array(backdrop.size) - (width, height)) / 2
        origin = middle + margin - back @ (middle + shift)
        matrix = (*back[0], origin[0], *back[1], origin[1])
        view = backdrop.transform((width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return view.resize((2 * width, 2 * height), Image.Resampling.NEAREST)

    def _parts(self) -> tuple[Points, Points, Points]:
        height, width = self.size
        x, y, turn = self.pose
        cos, sin = np.cos(turn), np.sin(turn)
        unit = 2.0 * min(self.size)
        return np.array([[cos, sin], [-sin, cos]]), np.array([width, height], float), np.array([x * unit, y * unit])


def textured(backdrop: npt.NDArray[np.uint8], size: tuple[int, int], rng: Rng) -> npt.NDArray[np.uint8]:
    """Return a backdrop at the frame's own scale with a margin, and with small shapes that show how it moves.

    Args:
        backdrop: small image `[h, w, 3]` of soft colors.
        size: (height, width) of the frame.
        rng: draws the shapes.
    """
    margin = round(MARGIN * min(size))
    height, width = (side + 2 * margin for side in size)
    ground = Image.fromarray(backdrop).resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(50, 90))):
        x, y = rng.uniform(0, 1, 2) * (width, height)
        half = rng.uniform(0.008, 0.03, 2) * min(size)
        near = np.array(ground.getpixel((int(x), int(y))), dtype=float)
        tint = tuple(int(v) for v in np.clip(near + rng.uniform(-40, 40) + rng.normal(0, 8, 3), 0, 255))
        if rng.random() < 0.5:
            draw.ellipse([x - half[0], y - half[1], x + half[0], y + half[1]], fill=tint)
        else:
            angle = rng.uniform(0, np.pi)
            reach = np.array([np.cos(angle), np.sin(angle)]) * half.max() * 2
            draw.line([x - reach[0], y - reach[1], x + reach[0], y + reach[1]], fill=tint, width=2)
    return np.asarray(ground)
