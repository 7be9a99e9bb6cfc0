"""What every system is given: pictures of a scene, three phrases, two boxes of each, with sound or without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from random_models import PHRASES

from openavs.structures.types import Clip, Frame, ImageArray, Waveform
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scene_sampling import sample_scene
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

PROMPTS = PHRASES[:3]
BOXES = 2  # of each phrase in each frame
_RATE = 16_000


@dataclass(frozen=True, eq=False)
class Load:
    """Frames to work on and the phrases to look for; `sounding[i]` says whether anything is heard at frame i.

    Only a system that listens can make use of the latter: peers that are given pictures and words look at all frames.
    """

    name: str
    images: tuple[ImageArray, ...]
    sounding: tuple[bool, ...]
    phrases: tuple[str, ...] = PROMPTS

    def clip(self) -> Clip:
        """The same as a clip in memory at one frame a second: noise where there is sound, else digital silence."""
        times = tuple(i + 0.5 for i in range(len(self.images)))

        def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
            for i, image in enumerate(self.images):
                if wanted is None or i in wanted:
                    yield Frame(i, times[i], image)

        height, width = self.images[0].shape[:2]
        return Clip(self.name, times, 1.0, (height, width), frames, _sound(self.sounding), labels=self.phrases)


def standard(picture: tuple[int, int], frames: int) -> Load:
    """A moving scene that sounds throughout."""
    return Load("standard", tuple(_pictures(picture, frames)), (True,) * frames)


def silent_half(picture: tuple[int, int], frames: int) -> Load:
    """The same, silent from the middle on."""
    return Load("silent_half", tuple(_pictures(picture, frames)), tuple(i < (frames + 1) // 2 for i in range(frames)))


def static(picture: tuple[int, int], frames: int) -> Load:
    """A camera that looks at a still scene: every frame has the same pixels (and is an array of its own)."""
    still = next(_pictures(picture, 1))
    return Load("static", tuple(still.copy() for _ in range(frames)), (True,) * frames)


def head(load: Load, frames: int) -> Load:
    """Its first frames."""
    return replace(load, images=load.images[:frames], sounding=load.sounding[:frames])


LOADS = {"standard": standard, "silent_half": silent_half, "static": static}


def world_clips(count: int) -> list[Clip]:
    """Clips of five frames of the world that the embedded models know, with their labels for who does not listen."""
    scenes = [sample_scene("ms3", "test", 501, index).scene for index in range(count)]
    kinds = [tuple(dict.fromkeys(actor.kind for actor in scene.actors)) for scene in scenes]
    clips = [scene_to_clip(scene, f"world-{index}") for index, scene in enumerate(scenes)]
    return [replace(painted(clip), labels=labels) for clip, labels in zip(clips, kinds, strict=True)]


def painted(clip: Clip) -> Clip:
    """A clip whose pictures lie in memory, so that painting them is no part of a figure."""
    pictures = list(clip.frames(None))
    return replace(clip, frames=lambda wanted: (frame for frame in pictures if wanted is None or frame.index in wanted))


def _pictures(picture: tuple[int, int], count: int) -> Iterator[ImageArray]:
    parts = [Role(name, (True,) * count) for name in PROMPTS]
    scene = plan_scene(parts, scene_rng("test", 501), count, picture)
    return (scene.picture(i + 0.5)[0] for i in range(count))


def _sound(sounding: Sequence[bool]) -> Waveform:
    rng = np.random.default_rng(0)
    seconds = [0.1 * rng.standard_normal(_RATE) if on else np.zeros(_RATE) for on in sounding]
    return Waveform(np.concatenate(seconds).clip(-1, 1).astype(np.float32), _RATE)
