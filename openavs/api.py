"""Python API: `openavs.load("openavs")` returns a pipeline that opens videos and whose results can be saved and shown.

`Pipeline` does no I/O and takes clips; `VideoPipeline` opens files at the recipe's frame rate and returns `Result`s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from openavs.caching.build import load_pipeline
from openavs.config.recipe import Recipe, load_recipe, override_recipe
from openavs.media.clip import open_clip
from openavs.pipeline.context import RunContext
from openavs.pipeline.memory_estimate import choose_recipe
from openavs.pipeline.pipeline import Pipeline, Progress
from openavs.results.result import Result
from openavs.structures.types import Clip, FrameResult
from openavs.utils.concurrency import prefetch
from openavs.utils.text import split_list

Source = str | os.PathLike[str] | Clip
"""Path of a video, an image or a folder of images, or an open clip."""


def load(
    recipe: str | Path | Recipe | None = None,
    *overrides: str,
    vocabulary: str | Sequence[str] | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offline: bool = False,
) -> VideoPipeline:
    """Build the pipeline of a recipe and load its models, which are downloaded on first use.

    Models that do not fit into memory together are loaded one group at a time, again for each clip.

    Args:
        recipe: its name (see `openavs list`), its YAML file, or the recipe itself; None: the one for this
            machine (`memory_estimate.choose_recipe`).
        overrides: changes such as `"filtering.box_threshold=0.3"`, as on the command line.
        vocabulary: the closed set of labels; a list, or a text with commas.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`; the recipe's if None.
        dtype: `auto`, `float32`, `bfloat16`, `float16`; the recipe's if None.
        offline: use only files on this disk.

    Raises:
        InputError: no such recipe, an unknown key, a wrong value, or too little memory.
        ModelError: a model cannot be downloaded or loaded.
    """
    changes = list(overrides)
    if vocabulary is not None:
        changes.append(f"vocabulary={json.dumps(split_list(vocabulary))}")
    settings = {"device": device, "dtype": dtype, "offline": "true" if offline else None}
    changes += [f"{key}={value}" for key, value in settings.items() if value is not None]
    if isinstance(recipe, Recipe):
        chosen = override_recipe(recipe, changes)
    else:
        chosen = load_recipe(recipe or choose_recipe(changes).name, changes)
    return load_pipeline(VideoPipeline, chosen)


class VideoPipeline(Pipeline):
    """A pipeline that takes paths as well as clips; see `load`."""

    def __call__(
        self, clip: Source, progress: Progress | None = None, *, audio: str | os.PathLike[str] | None = None
    ) -> Result:
        """Segment one video.

        Args:
            clip: a video or clip.
            progress: called as `progress(step, done, total)` with the steps `caption`, `translate` and `localize`.
            audio: a file with the audio, in place of the video's.

        Raises:
            InputError: the video cannot be used: absent, damaged, without audio.
        """
        opened = self.open(clip, audio)
        return Result.of(super().__call__(opened, progress), opened)

    def stream(
        self,
        clip: Source,
        progress: Progress | None = None,
        context: RunContext | None = None,
        *,
        audio: str | os.PathLike[str] | None = None,
    ) -> Iterator[FrameResult]:
        """Yield one result per frame, in order; memory does not grow with the video's length."""
        return super().stream(self.open(clip, audio), progress, context)

    def run(self, clips: Iterable[Source], progress: Progress | None = None) -> Iterator[Result]:
        """Segment videos one by one; the next one is opened while the models work."""
        for clip in prefetch((self.open(source) for source in clips), depth=1):
            yield self(clip, progress)

    def open(self, source: Source, audio: str | os.PathLike[str] | None = None) -> Clip:
        """Open a path as a clip at the recipe's frame rate; an open clip is returned unchanged."""
        if isinstance(source, Clip):
            return source
        sound = None if audio is None else Path(audio)
        return open_clip(Path(source), fps=self.fps, audio=sound)
