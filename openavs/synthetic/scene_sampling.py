"""Which things a scene of each benchmark holds, which of them sound when, and which only stand there.

Every scene follows from (layout, split, seed, index) alone: see `scene_of`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from openavs.errors import InputError
from openavs.synthetic.categories import KINDS, Category
from openavs.synthetic.scenes import Role, Scene, plan_scene, scene_rng
from openavs.synthetic.shapes import Rng

LAYOUTS = ("clip", "s4", "ms3", "v2")
"""`clip`: a free scene; `s4`, `ms3`: AVSBench-object; `v2`: the ten-second clips of AVSBench-semantic."""


@dataclass(frozen=True, eq=False)
class SceneSpec:
    """A scene, and the name of the subset and (for S4) of the category it belongs to."""

    scene: Scene
    category: str | None = None

    @property
    def distractors(self) -> tuple[str, ...]:
        """The kinds that are in the picture and never sound."""
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
) -> SceneSpec:
    """The scene of one clip. `base_only` leaves out the novel kinds of the open-vocabulary benchmark."""
    if layout not in LAYOUTS:
        raise InputError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    rng = scene_rng(split, LAYOUTS.index(layout), seed, index)
    kinds = [kind for kind in KINDS if not (base_only and kind.novel)]
    if layout == "s4":
        kinds = [kind for kind in kinds if kind.category]
    length = seconds or (10 if layout == "v2" else 5)
    parts = _single(kinds, rng, length) if layout == "s4" else _several(kinds, rng, length)
    order = rng.permutation(len(parts))  # who stands in front has nothing to do with who sounds
    scene = plan_scene([parts[i] for i in order], rng, length, size)
    source = next(kind for kind in KINDS if kind.name == parts[0].kind)
    return SceneSpec(scene, source.category if layout == "s4" else None)


def _single(kinds: list[Category], rng: Rng, length: int) -> list[Role]:
    """One source that sounds throughout, beside up to two things that are silent."""
    others = int(rng.choice([0, 1, 2], p=[0.35, 0.4, 0.25]))
    names = _draw(kinds, 1, rng) + _draw(list(KINDS), others + 1, rng)
    silent = [name for name in names[1:] if name != names[0]][:others]
    return [Role(names[0], (True,) * length)] + [Role(name, (False,) * length) for name in silent]


def _several(kinds: list[Category], rng: Rng, length: int) -> list[Role]:
    """One to three sources that start and stop, now and then one off the screen, beside up to one silent thing."""
    sources = int(rng.choice([1, 2, 3], p=[0.2, 0.65, 0.15]))
    names = _draw(kinds, sources + 1, rng)
    schedule = _schedule(sources, length, rng)
    hidden = int(rng.integers(sources)) if sources > 1 and rng.random() < 0.2 else -1
    parts = [Role(names[i], schedule[i], visible=i != hidden) for i in range(sources)]
    if rng.random() < 0.5:
        parts.append(Role(names[-1], (False,) * length))
    return parts


def _schedule(sources: int, length: int, rng: Rng) -> list[tuple[bool, ...]]:
    """Who sounds in which second: runs that start and stop, seldom more than two at once, now and then nobody."""
    on = np.zeros((sources, length), dtype=bool)
    for source in range(sources):
        run = int(rng.integers(max(2, length // 3), length + 1))
        start = int(rng.integers(0, length - run + 1))
        on[source, start : start + run] = True
    if rng.random() < 0.3:
        on[:, int(rng.integers(length))] = False  # a second of silence
    for crowded in np.flatnonzero(on.sum(axis=0) > 2):
        on[int(rng.integers(sources)), crowded] = False
    for unheard in np.flatnonzero(~on.any(axis=1)):  # everybody sounds at least once
        on[unheard, int(np.argmin(on.sum(axis=0)))] = True
    return [tuple(bool(v) for v in row) for row in on]


def _draw(kinds: list[Category], count: int, rng: Rng) -> list[str]:
    return [kinds[i].name for i in rng.choice(len(kinds), count, replace=False)]
