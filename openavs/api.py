"""`openavs.load("openavs")`: a pipeline that opens videos itself and whose results can be saved and shown.

`Pipeline` does no I/O: it takes clips. This one opens what it is given at the recipe's frame rate and wraps what comes
out, and is otherwise the same.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from openavs.config.recipe import Recipe, default_recipe, load_recipe, override_recipe
from openavs.media import open_clip
from openavs.pipeline.context import RunContext
from openavs.pipeline.memory_estimate import should_offload
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline, Progress
from openavs.results.result import Result
from openavs.structures.types import Clip, FrameResult
from openavs.utils.concurrency import prefetch
from openavs.utils.text import join_words

Source = str | os.PathLike[str] | Clip
"""A video, a picture, a folder of pictures (by its path), or a clip that is open already."""


def load(
    recipe: str | Path | Recipe | None = None,
    *overrides: str,
    vocabulary: str | Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
) -> VideoPipeline:
    """Builds the pipeline that a recipe describes and loads its models; they are downloaded on first use.

    Args:
        recipe: its name (`openavs list` names them), its YAML file, or the recipe itself; None: `openavs` on a CUDA
            GPU, else `openavs-cpu`.
        overrides: changes such as `"filtering.box_threshold=0.3"`, as on the command line.
        vocabulary: look for these things only, and label what is found with them; a list, or a text with commas.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; the recipe's if None.
        dtype: `auto`, `float32`, `bfloat16`, `float16`; the recipe's if None.
        offline: use only what is on this disk.

    Models that do not fit into memory together are loaded one group at a time, for each clip anew.

    Raises:
        InputError: no such recipe, an unknown key or a wrong value, or too little memory.
        ModelError: a model cannot be had or loaded.
    """
    changes = list(overrides)
    if vocabulary is not None:
        changes.append(f"vocabulary={json.dumps(join_words(vocabulary))}")
    settings = {"device": device, "dtype": dtype, "offline": "true" if offline else None}
    changes += [f"{key}={value}" for key, value in settings.items() if value is not None]
    if isinstance(recipe, Recipe):
        asked = override_recipe(recipe, changes)
    else:
        asked = load_recipe(recipe or default_recipe(changes), changes)
    return VideoPipeline.from_recipe(asked, lazy_stages(asked)[1] if should_offload(asked) else None)


class VideoPipeline(Pipeline):
    """A pipeline that takes paths as well as clips. `load` makes one."""

    def __call__(
        self, clip: Source, progress: Progress | None = None, *, audio: str | os.PathLike[str] | None = None
    ) -> Result:
        """Segments one video; `audio` is a file to take the sound from instead.

        `progress(stage, done, total)` is told the stages `listen`, `ask` and `look`.

        Raises:
            InputError: the video cannot be used: absent, damaged, without sound.
        """
        opened = self.open(clip, audio)
        return Result.of(super().__call__(opened, progress), opened)

    def stream(
        self,
        clip: Source,
        progress: Progress | None = None,
        notes: RunContext | None = None,
        *,
        audio: str | os.PathLike[str] | None = None,
    ) -> Iterator[FrameResult]:
        """One result per frame, in order, as soon as it is there; memory does not grow with the video's length."""
        return super().stream(self.open(clip, audio), progress, notes)

    def run(self, clips: Iterable[Source], progress: Progress | None = None) -> Iterator[Result]:
        """Segments videos one by one; the next one is opened while the models work."""
        for clip in prefetch((self.open(source) for source in clips), depth=1):
            yield self(clip, progress)

    def open(self, source: Source, audio: str | os.PathLike[str] | None = None) -> Clip:
        """The clip of a path, with frames sampled at the recipe's rate; a clip is returned as it is."""
        if isinstance(source, Clip):
            return source
        sound = None if audio is None else Path(audio)
        return open_clip(Path(source), fps=self.fps, audio=sound)

    @property
    def fps(self) -> float:
        """Frames to sample per second, as the recipe says; 1 for a pipeline made without one."""
        return float(self.recipe.get("sample", {}).get("fps", 1.0))
