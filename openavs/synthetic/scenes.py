"""Scenes of the synthetic world: objects, the seconds in which they sound, and exact images, masks and audio.

A scene is sampled and planned once from a seed (`sample_scene`, `plan_scene`) and then renders its image and masks at
any time (`picture`) and its audio (`soundtrack`). Sources sound in whole seconds, so that every AVSBench frame has one
answer. Sounding objects may be outside the frame, and visible objects may be silent. In the layout `twins` things move
in time with a sound (`motion.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from openavs.errors import InputError
from openavs.structures.types import BoolMask, ImageArray, Waveform
from openavs.synthetic import audio as sounds
from openavs.synthetic.categories import KINDS, Category
from openavs.synthetic.events import SoundEvent, active_spans
from openavs.synthetic.motion import STEADY, Camera, Pose, SoundMotion, View, move_with, shaking_camera, textured
from openavs.synthetic.shapes import Drawing, Points, Rng, shape_of

SPLITS = ("train", "val", "test")
"""The split's number is the first word of every seed, so that splits share no scene."""

Color = tuple[int, int, int]


def scene_rng(split: str, *words: int) -> Rng:
    """Return the random generator of one scene of one split."""
    return np.random.default_rng([SPLITS.index(split), *words])


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object of a scene. Positions and sizes are in units of the frame's short side; `on[i]` is second i."""

    kind: str
    drawing: Drawing
    tones: dict[str, Color]
    on: tuple[bool, ...]
    visible: bool
    center: tuple[float, float]
    size: float  # half extent
    turn: float  # radians
    stretch: float
    flip: bool
    motion: tuple[float, float, float, float, float]  # x and y swing, swing of the turn, period in s, phase
    moves: SoundMotion | None = None  # in time with a sound, in addition to the swing

    def place(self, time: float, pose: Pose) -> Points:
        """Return the affine map of the drawing at a time, [3, 2]: rows are the images of x, y and the origin."""
        dx, dy, dturn, period, phase = self.motion
        beat = 2 * np.pi * time / period + phase
        turn = self.turn + dturn * np.sin(beat) + pose.turn
        scale = np.diag([-self.size if self.flip else self.size, self.size * self.stretch])
        cos, sin = np.cos(turn), np.sin(turn)
        x, y = (self.size * shift for shift in pose.shift)
        center = (self.center[0] + dx * np.sin(beat) + x, self.center[1] + dy * np.sin(beat * 1.3 + phase) + y)
        return np.vstack([scale @ np.array([[cos, sin], [-sin, cos]]), center])

    def outlines(self, time: float, unit: float) -> list[tuple[Points, str]]:
        """Return points `[N, 2]` and tone of every polygon at a time, for a frame whose short side is `unit`."""
        pose = Pose() if self.moves is None else self.moves.pose(time)
        place = self.place(time, pose) * unit
        parts = [(part.points if self.moves is None else pose.warp(part.points), part.tone) for part in self.drawing]
        return [(points @ place[:2] + place[2], tone) for points, tone in parts]


@dataclass(frozen=True, eq=False)
class Scene:
    """A planned scene, determined by its seed."""

    seconds: int
    size: tuple[int, int]  # height, width
    actors: tuple[SceneObject, ...]
    backdrop: npt.NDArray[np.uint8]  # [h, w, 3], small; stretched to the size
    noise: int
    sound_seed: int
    camera: Camera | None = None  # None: it stands still
    texture: bool = False  # the backdrop is larger than the frame, at the frame's own scale, and not stretched

    def sounding(self, second: int) -> tuple[str, ...]:
        """Return the categories that sound in a second, on screen or not."""
        return tuple(actor.kind for actor in self.actors if actor.on[second])

    def picture(self, time: float) -> tuple[ImageArray, npt.NDArray[np.uint8]]:
        """Return the image `[H, W, 3]` and the instance map `[H, W]` (0: background, i + 1: object i)."""
        height, width = self.size
        view = View(self.size, (0.0, 0.0, 0.0) if self.camera is None else self.camera.pose(time))
        fine = Image.fromarray(self.backdrop)
        if self.texture:
            fine = view.background(fine)
        else:
            fine = fine.resize((2 * width, 2 * height), Image.Resampling.BICUBIC)
        owners = Image.new("L", fine.size, 0)
        paint, mark = ImageDraw.Draw(fine), ImageDraw.Draw(owners)
        for number, actor in enumerate(self.actors, start=1):
            for outline, tone in actor.outlines(time, 2 * min(self.size)) if actor.visible else ():
                points = (outline if self.camera is None else view.project(outline)).ravel().tolist()
                paint.polygon(points, fill=actor.tones[tone])
                mark.polygon(points, fill=number)
        image = np.asarray(fine.reduce(2), dtype=np.int16)
        if self.noise:
            grain = np.random.default_rng([self.sound_seed, round(time * 1000)])
            image = image + grain.integers(-self.noise, self.noise + 1, image.shape[:2], dtype=np.int16)[..., None]
        return image.clip(0, 255).astype(np.uint8), np.asarray(owners)[1::2, 1::2].copy()

    def truth(self, time: float) -> dict[str, BoolMask]:
        """Return the visible pixels of every category that sounds at a time; fully hidden ones are left out."""
        _, owners = self.picture(time)
        second = min(int(time), self.seconds - 1)
        masks = {a.kind: owners == i for i, a in enumerate(self.actors, start=1) if a.on[second] and a.visible}
        return {kind: mask for kind, mask in masks.items() if mask.any()}

    def soundtrack(self) -> Waveform:
        """Return the mixture of all sounds with faint background noise, at 16 kHz."""
        noise, sources = self._signals()
        return Waveform(sounds.mix([noise, *(run for runs in sources for run in runs)]), sounds.RATE)

    def events(self) -> tuple[SoundEvent, ...]:
        """Return what sounds when, on screen or not, by onset; see `events.active_spans`."""
        found = [
            SoundEvent(actor.kind, number, onset, offset)
            for number, (actor, signal) in enumerate(zip(self.actors, self.signals(), strict=True), start=1)
            for onset, offset in active_spans(signal)
        ]
        return tuple(sorted(found, key=lambda event: (event.onset, event.instance)))

    def signals(self) -> list[npt.NDArray[np.float32]]:
        """Return the sound of every object by itself `[seconds * RATE]`; zeros where it is silent."""
        silence = np.zeros(self.seconds * sounds.RATE, dtype=np.float32)
        return [np.sum([silence, *runs], axis=0, dtype=np.float32) for runs in self._signals()[1]]

    def _signals(self) -> tuple[npt.NDArray[np.float32], list[list[npt.NDArray[np.float32]]]]:
        """Return the background noise, and the runs of sound of every object."""
        rng = np.random.default_rng([self.sound_seed, 1])
        noise = sounds.background(float(self.seconds), rng)
        return noise, [_runs_of_sound(actor, self.seconds, rng) for actor in self.actors]


def _runs_of_sound(actor: SceneObject, seconds: int, rng: Rng) -> list[npt.NDArray[np.float32]]:
    """Return one signal of the scene's length for every run of sounding seconds."""
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
    """One object of a scene to be planned: its category, its sounding seconds, and whether it is visible."""

    kind: str
    on: tuple[bool, ...]
    visible: bool = True


def plan_scene(parts: list[Role], rng: Rng, seconds: int, size: tuple[int, int] = (224, 224)) -> Scene:
    """Place and color the objects of a scene so that they hide each other only slightly."""
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
                center=(x, y),
                size=room * rng.uniform(0.78, 1.0),
                turn=float(rng.normal(0.0, 0.18)),
                stretch=float(rng.uniform(0.82, 1.15)),
                flip=bool(rng.random() < 0.5),
                motion=(*swing, float(rng.uniform(0, 0.15)), float(rng.uniform(1.5, 5)), float(rng.uniform(0, 6.28))),
            )
        )
    return Scene(seconds, size, tuple(actors), backdrop, int(rng.integers(0, 7)), int(rng.integers(1 << 31)))


def _spots(count: int, extent: tuple[float, float], rng: Rng) -> list[tuple[float, float, float]]:
    """Return centers and half extents of `count` objects in a frame of the given extent, with little overlap."""
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
    while len(best) < count:  # too crowded to separate: small, anywhere
        best.append((float(rng.uniform(0.2, extent[0] - 0.2)), float(rng.uniform(0.2, extent[1] - 0.2)), 0.15))
    return best


def _backdrop(rng: Rng) -> npt.NDArray[np.uint8]:
    """Draw a blurred background: two colors, soft clouds and a few soft spots."""
    low, high = rng.uniform(30, 225, (2, 3))
    clouds = rng.random((int(rng.integers(3, 9)), int(rng.integers(3, 9)), 1))
    slope = np.linspace(0, 1, clouds.shape[0])[:, None, None]
    share = np.clip(0.5 * clouds + 0.5 * slope + rng.normal(0, 0.04, (*clouds.shape[:2], 3)), 0, 1)
    ground = Image.fromarray((low + (high - low) * share).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(ground)
    for _ in range(int(rng.integers(0, 5))):
        x, y = rng.uniform(0, 32, 2)
        rx, ry = rng.uniform(1, 6, 2)
        tint = tuple(int(v) for v in np.clip((low + high) / 2 + rng.normal(0, 30, 3), 0, 255))
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=tint)
    return np.asarray(ground)


def _tones(ground: npt.NDArray[np.float64], rng: Rng) -> dict[str, Color]:
    """Sample the colors of one instance; the body differs from the mean color of the background."""
    body = ground
    while np.abs(body - ground).max() < 60:
        body = rng.uniform(20, 235, 3)
    detail = body
    while np.abs(detail - body).max() < 70:
        detail = rng.uniform(20, 235, 3)
    gray = rng.uniform(-12, 12, (2, 3))
    tones = {"body": body, "detail": detail, "dark": 28 + gray[0], "light": 225 + gray[1]}
    return {name: (int(r), int(g), int(b)) for name, (r, g, b) in tones.items()}


LAYOUTS = ("clip", "s4", "ms3", "v2", "twins", "avis")
"""`clip`: a free scene; `s4`, `ms3`: AVSBench-object; `v2`: ten-second clips of AVSBench-semantic; `twins`: several of
one kind, one of which sounds; `avis`: twins, and musicians side by side, who start and stop."""

AVIS_KINDS = ("car", "cat", "dog", "flute", "guitar", "horse", "mower", "piano", "trumpet", "violin")
MUSICIANS = ("flute", "guitar", "piano", "trumpet", "violin")

TWIN_KINDS = tuple(kind.name for kind in KINDS if kind.name not in STEADY)
"""The kinds of `twins` by default: their sound has onsets or pauses."""


@dataclass(frozen=True, eq=False)
class SceneSpec:
    """A scene with its subset and, for S4, its category."""

    scene: Scene
    category: str | None = None

    @property
    def distractors(self) -> tuple[str, ...]:
        """Categories that are visible and never sound."""
        return tuple(actor.kind for actor in self.scene.actors if actor.visible and not any(actor.on))


def sample_scene(
    layout: str,
    split: str,
    seed: int,
    index: int,
    *,
    size: tuple[int, int] = (224, 224),
    seconds: int | None = None,
    base_only: bool = False,
    twins: Sequence[str] = TWIN_KINDS,
) -> SceneSpec:
    """Sample the scene of one clip.

    Args:
        layout: one of `LAYOUTS`.
        split: train, val or test.
        seed: scenes of different seeds have nothing in common.
        index: number of the clip; in `twins` it decides the camera, and every eighth is off-screen.
        size: (height, width) in pixels.
        seconds: length; by default 10 for `v2`, 8 for `twins`, 61 for `avis`, 5 for others.
        base_only: exclude the novel categories of the open-vocabulary benchmark.
        twins: the kinds that `twins` draws from.

    Raises:
        InputError: unknown layout.
    """
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    rng = scene_rng(split, LAYOUTS.index(layout), seed, index)
    kinds = [kind for kind in KINDS if not (base_only and kind.novel)]
    if layout == "s4":
        kinds = [kind for kind in kinds if kind.category]
    length = seconds or {"v2": 10, "twins": 8, "avis": 61}.get(layout, 5)
    if layout == "avis":
        parts = _ensemble(rng, length)
        return SceneSpec(plan_scene([parts[i] for i in rng.permutation(len(parts))], rng, length, size))
    if layout == "twins":
        parts = _twins(twins, rng, length, off_screen=index % 8 == 7)
        scene = plan_scene([parts[i] for i in rng.permutation(len(parts))], rng, length, size)
        return SceneSpec(_animate(scene, rng, shaking=(index + index // 8) % 2 == 1))
    parts = _single(kinds, rng, length) if layout == "s4" else _several(kinds, rng, length)
    order = rng.permutation(len(parts))  # the depth order is independent of what sounds
    scene = plan_scene([parts[i] for i in order], rng, length, size)
    source = next(kind for kind in KINDS if kind.name == parts[0].kind)
    return SceneSpec(scene, source.category if layout == "s4" else None)


def _single(kinds: list[Category], rng: Rng, length: int) -> list[Role]:
    """Sample one source that sounds throughout, and up to two silent objects."""
    others = int(rng.choice([0, 1, 2], p=[0.35, 0.4, 0.25]))
    names = _sample_names(kinds, 1, rng) + _sample_names(list(KINDS), others + 1, rng)
    silent = [name for name in names[1:] if name != names[0]][:others]
    return [Role(names[0], (True,) * length)] + [Role(name, (False,) * length) for name in silent]


def _several(kinds: list[Category], rng: Rng, length: int) -> list[Role]:
    """Sample one to three sources that start and stop, sometimes one off the screen, and up to one silent object."""
    sources = int(rng.choice([1, 2, 3], p=[0.2, 0.65, 0.15]))
    names = _sample_names(kinds, sources + 1, rng)
    schedule = _schedule(sources, length, rng)
    hidden = int(rng.integers(sources)) if sources > 1 and rng.random() < 0.2 else -1
    parts = [Role(names[i], schedule[i], visible=i != hidden) for i in range(sources)]
    if rng.random() < 0.5:
        parts.append(Role(names[-1], (False,) * length))
    return parts


def _twins(kinds: Sequence[str], rng: Rng, length: int, *, off_screen: bool) -> list[Role]:
    """Sample two or three visible objects of one kind, of which one sounds, or two alternate, or one off the screen.

    Runs of sound last 3 seconds at least, in scenes of 6 seconds or more. A silent object of another kind may be there.
    """
    kind = kinds[int(rng.integers(len(kinds)))]
    count = 3 if rng.random() < 0.4 else 2
    least = min(3, max(length // 2, 1))
    on = np.zeros((count + off_screen, length), dtype=bool)
    if not off_screen and length >= 2 and rng.random() < 1 / 3:
        change = int(rng.integers(least, length - least + 1))
        on[0, :change], on[1, change:] = True, True
    else:
        run = length if rng.random() < 0.5 else int(rng.integers(least, length + 1))
        start = int(rng.integers(length - run + 1))
        on[-1, start : start + run] = True
    parts = [Role(kind, tuple(row.tolist()), visible=i < count) for i, row in enumerate(on)]
    if rng.random() < 0.25:
        others = [other.name for other in KINDS if other.name != kind]
        parts.append(Role(others[int(rng.integers(len(others)))], (False,) * length))
    return parts


def _ensemble(rng: Rng, length: int) -> list[Role]:
    """Sample two or three twins, or two or three musicians with different instruments, who start and stop on their own.

    Nothing sounds in about a tenth of the time. A twin scene may have an object of another kind, too.
    """
    count = 3 if rng.random() < 0.4 else 2
    if rng.random() < 0.5:
        names = [AVIS_KINDS[int(rng.integers(len(AVIS_KINDS)))]] * count
        others = [kind for kind in AVIS_KINDS if kind != names[0]]
        names += [others[int(rng.integers(len(others)))]] * (rng.random() < 0.5)
    else:
        names = [MUSICIANS[i] for i in rng.choice(len(MUSICIANS), count, replace=False)]
    on = np.zeros((len(names), length), dtype=bool)
    for row in on:
        second = int(rng.integers(0, max(length // 3, 1)))
        while second < length:
            run = int(rng.integers(3, 16))
            row[second : second + run] = True
            second += run + int(rng.integers(2, 13))
    pause = max(length // 10, 1)
    start = int(rng.integers(0, length - pause + 1))
    on[:, start : start + pause] = False
    return [Role(name, tuple(row.tolist())) for name, row in zip(names, on, strict=True)]


def _animate(scene: Scene, rng: Rng, *, shaking: bool) -> Scene:
    """Make things move after their own sound, and while that is silent after one that is not in the mixture."""
    actors = []
    for actor, own in zip(scene.actors, scene.signals(), strict=True):
        other = sounds.sound_of(actor.kind, float(scene.seconds), rng)
        other[np.repeat(actor.on, sounds.RATE)] = 0.0
        actors.append(replace(actor, moves=move_with(actor.kind, own, other, rng)))
    backdrop = textured(scene.backdrop, scene.size, rng)
    camera = shaking_camera(rng) if shaking else None
    return replace(scene, actors=tuple(actors), backdrop=backdrop, texture=True, camera=camera)


def _schedule(sources: int, length: int, rng: Rng) -> list[tuple[bool, ...]]:
    """Sample the sounding seconds of each source: runs that start and stop, rarely more than two at once."""
    on = np.zeros((sources, length), dtype=bool)
    for source in range(sources):
        run = int(rng.integers(max(2, length // 3), length + 1))
        start = int(rng.integers(0, length - run + 1))
        on[source, start : start + run] = True
    if rng.random() < 0.3:
        on[:, int(rng.integers(length))] = False  # a second of silence
    for crowded in np.flatnonzero(on.sum(axis=0) > 2):
        on[int(rng.integers(sources)), crowded] = False
    for silent in np.flatnonzero(~on.any(axis=1)):  # every source sounds at least once
        on[silent, int(np.argmin(on.sum(axis=0)))] = True
    return [tuple(bool(v) for v in row) for row in on]


def _sample_names(kinds: list[Category], count: int, rng: Rng) -> list[str]:
    return [kinds[i].name for i in rng.choice(len(kinds), count, replace=False)]
