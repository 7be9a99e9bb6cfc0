"""Scenes of the synthetic world: who is there, who sounds when, and the exact picture, masks and sound of it.

A scene is planned once from a seed (`plan_scene`) and can then be asked for its picture and its masks at any time
(`picture`) and for its sound (`soundtrack`). A source sounds in whole seconds, so that every AVSBench frame has one
answer; what sounds may lie outside the picture, and what is in the picture may be silent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image as Pil, ImageDraw

from openavs.structures.types import BoolMask, ImageArray, Waveform
from openavs.synthetic import audio as sounds
from openavs.synthetic.shapes import Drawing, Points, Rng, shape_of

SPLITS = ("train", "val", "test")
"""Seeds of different splits never meet: the split's number is the first word of every seed."""

Colour = tuple[int, int, int]


def scene_rng(split: str, *words: int) -> Rng:
    """The random generator of one scene of one split."""
    return np.random.default_rng([SPLITS.index(split), *words])


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One thing of a scene. Positions and sizes are in units of the picture's short side; `on[i]` is second i."""

    kind: str
    drawing: Drawing
    tones: dict[str, Colour]
    on: tuple[bool, ...]
    visible: bool
    centre: tuple[float, float]
    size: float  # half extent
    turn: float  # radians
    stretch: float
    flip: bool
    motion: tuple[float, float, float, float, float]  # x and y swing, swing of the turn, period in s, phase

    def place(self, time: float) -> Points:
        """The affine map of the drawing at a time, [3, 2]: rows are the images of x, y and the origin."""
        dx, dy, dturn, period, phase = self.motion
        beat = 2 * np.pi * time / period + phase
        turn = self.turn + dturn * np.sin(beat)
        scale = np.diag([-self.size if self.flip else self.size, self.size * self.stretch])
        cos, sin = np.cos(turn), np.sin(turn)
        centre = (self.centre[0] + dx * np.sin(beat), self.centre[1] + dy * np.sin(beat * 1.3 + phase))
        return np.vstack([scale @ np.array([[cos, sin], [-sin, cos]]), centre])


@dataclass(frozen=True, eq=False)
class Scene:
    """A planned scene; all of it follows from its seed."""

    seconds: int
    size: tuple[int, int]  # height, width
    actors: tuple[SceneObject, ...]
    backdrop: npt.NDArray[np.uint8]  # [h, w, 3], small; stretched to the size
    noise: int
    sound_seed: int

    def sounding(self, second: int) -> tuple[str, ...]:
        """The kinds heard in a second, on screen or not."""
        return tuple(actor.kind for actor in self.actors if actor.on[second])

    def picture(self, time: float) -> tuple[ImageArray, npt.NDArray[np.uint8]]:
        """The picture `[H, W, 3]` and the map of who is seen where `[H, W]` (0: nobody, i + 1: actor i)."""
        height, width = self.size
        unit = min(height, width)
        fine = Pil.fromarray(self.backdrop).resize((2 * width, 2 * height), Pil.Resampling.BICUBIC)
        owners = Pil.new("L", fine.size, 0)
        paint, mark = ImageDraw.Draw(fine), ImageDraw.Draw(owners)
        for number, actor in enumerate(self.actors, start=1):
            if actor.visible:
                _draw(actor, actor.place(time) * 2 * unit, paint, mark, number)
        image = np.asarray(fine.reduce(2), dtype=np.int16)
        if self.noise:
            grain = np.random.default_rng([self.sound_seed, round(time * 1000)])
            image = image + grain.integers(-self.noise, self.noise + 1, image.shape[:2], dtype=np.int16)[..., None]
        return image.clip(0, 255).astype(np.uint8), np.asarray(owners)[1::2, 1::2].copy()

    def truth(self, time: float) -> dict[str, BoolMask]:
        """The visible pixels of every kind that sounds at a time (kinds that are all hidden are left out)."""
        _, owners = self.picture(time)
        second = min(int(time), self.seconds - 1)
        masks = {a.kind: owners == i for i, a in enumerate(self.actors, start=1) if a.on[second] and a.visible}
        return {kind: mask for kind, mask in masks.items() if mask.any()}

    def soundtrack(self) -> Waveform:
        """The sum of all that sounds, with a faint background, at 16 kHz."""
        rng = np.random.default_rng([self.sound_seed, 1])
        parts = [sounds.background(float(self.seconds), rng)]
        for actor in self.actors:
            parts.extend(_runs_of_sound(actor, self.seconds, rng))
        return Waveform(sounds.mix(parts), sounds.RATE)


def _draw(
    actor: SceneObject, place: Points, paint: ImageDraw.ImageDraw, mark: ImageDraw.ImageDraw, number: int
) -> None:
    for part in actor.drawing:
        points = (part.points @ place[:2] + place[2]).ravel().tolist()
        paint.polygon(points, fill=actor.tones[part.tone])
        mark.polygon(points, fill=number)


def _runs_of_sound(actor: SceneObject, seconds: int, rng: Rng) -> list[npt.NDArray[np.float32]]:
    """One signal of the scene's length for every run of sounding seconds."""
    runs = []
    second = 0
    while second < seconds:
        length = 0
        while second + length < seconds and actor.on[second + length]:
            length += 1
        if length:
            signal = np.zeros(seconds * sounds.RATE, dtype=np.float32)
            start = second * sounds.RATE
            signal[start : start + length * sounds.RATE] = sounds.sound_of(actor.kind, float(length), rng)
            runs.append(signal)
        second += length or 1
    return runs


# ------------------------------------------------------------------------------------------------------ planning


@dataclass(frozen=True)
class Role:
    """One role of a scene to be planned: a kind, when it sounds, and whether it is in the picture."""

    kind: str
    on: tuple[bool, ...]
    visible: bool = True


def plan_scene(parts: list[Role], rng: Rng, seconds: int, size: tuple[int, int] = (224, 224)) -> Scene:
    """Places and colours the parts of a scene, without hiding one behind another more than a little."""
    height, width = size
    unit = min(height, width)
    shown = max(sum(part.visible for part in parts), 1)
    spots = _spots(shown, (width / unit, height / unit), rng)
    backdrop = _backdrop(rng)
    ground = backdrop.reshape(-1, 3).mean(axis=0)
    actors = []
    for part in parts:
        x, y, room = spots.pop() if part.visible else (0.5, 0.5, 0.2)
        swing = room * rng.uniform(0.0, 0.12, 2)
        actors.append(
            SceneObject(
                kind=part.kind,
                drawing=shape_of(part.kind, rng),
                tones=_tones(ground, rng),
                on=part.on,
                visible=part.visible,
                centre=(x, y),
                size=room * rng.uniform(0.78, 1.0),
                turn=float(rng.normal(0.0, 0.18)),
                stretch=float(rng.uniform(0.82, 1.15)),
                flip=bool(rng.random() < 0.5),
                motion=(*swing, float(rng.uniform(0, 0.15)), float(rng.uniform(1.5, 5)), float(rng.uniform(0, 6.28))),
            )
        )
    return Scene(seconds, size, tuple(actors), backdrop, int(rng.integers(0, 7)), int(rng.integers(1 << 31)))


def _spots(count: int, extent: tuple[float, float], rng: Rng) -> list[tuple[float, float, float]]:
    """Centres and half extents of `count` things in a picture of the given extent, hardly overlapping."""
    best: list[tuple[float, float, float]] = []
    for shrink in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        for _ in range(12):
            spots: list[tuple[float, float, float]] = []
            for _ in range(count):
                room = shrink * rng.uniform(*((0.24, 0.42) if count < 3 else (0.19, 0.29)))
                x, y = (rng.uniform(room * 0.9, side - room * 0.9) for side in extent)
                if all(max(abs(x - a), abs(y - b)) > 0.85 * (room + c) for a, b, c in spots):
                    spots.append((float(x), float(y), float(room)))
            if len(spots) == count:
                return spots
            best = max(best, spots, key=len)
    while len(best) < count:  # crowded beyond placing apart: small, anywhere
        best.append((float(rng.uniform(0.2, extent[0] - 0.2)), float(rng.uniform(0.2, extent[1] - 0.2)), 0.15))
    return best


def _backdrop(rng: Rng) -> npt.NDArray[np.uint8]:
    """A blurred ground: two colours and soft clouds, with a few soft blots that are nothing."""
    low, high = rng.uniform(30, 225, (2, 3))
    clouds = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9)), 1))
    slope = np.linspace(0, 1, clouds.shape[0])[:, None, None]
    share = np.clip(0.5 * clouds + 0.5 * slope + rng.normal(0, 0.04, (*clouds.shape[:2], 3)), 0, 1)
    ground = Pil.fromarray((low + (high - low) * share).astype(np.uint8)).resize((32, 32), Pil.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, 32, 2)
        rx, ry = rng.uniform(1, 6, 2)
        tint = tuple(int(v) for v in np.clip((low + high) / 2 + rng.normal(0, 30, 3), 0, 255))
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=tint)
    return np.asarray(ground)


def _tones(ground: npt.NDArray[np.float64], rng: Rng) -> dict[str, Colour]:
    """Random colours of one instance, the body never close to the mean colour of the ground."""
    body = ground
    while np.abs(body - ground).max() < 60:
        body = rng.uniform(20, 235, 3)
    detail = body
    while np.abs(detail - body).max() < 70:
        detail = rng.uniform(20, 235, 3)
    grey = rng.uniform(-12, 12, (2, 3))
    tones = {"body": body, "detail": detail, "dark": 28 + grey[0], "light": 225 + grey[1]}
    return {name: (int(r), int(g), int(b)) for name, (r, g, b) in tones.items()}
