"""What the parts of the bench share: the models, the ways through them, and a run of a way over a load."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from imitations import Answer, Peers
from ours import Ours
from random_models import REAL, REDUCED, SMALL, save_models
from standard_load import BOXES, LOADS, Load
from watching import Models, Run, watch

from openavs.pipeline.context import RunContext
from openavs.structures.types import RLE, Box, FrameResult, mask_to_rle

Kept = list[tuple[str, Box, RLE]]
"""One frame of an answer, its masks packed."""


class Bench:
    """Models on the disk, peers and our pipeline with those weights in memory.

    `clock`: CPU seconds wherever they are the whole cost, since other work on the machine changes them little; else
    those of the wall.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.size = SMALL if options.size == "small" else REDUCED if options.reduced else REAL
        picture = self.load().images[0]
        self.detector, self.segmenter = save_models(folder / self.size.name, self.size, options.segmenter, picture)
        self.peers = Peers(self.detector, self.segmenter, options.device)
        self.ours = self.our_way(options.dtype)
        self.clock = "cpu" if options.threads == 1 and options.device == "cpu" else "wall"
        self.chosen = [name for name in self.peers.ways() if name in (options.peers or self.peers.ways())]

    def our_way(self, dtype: str, joint: bool = True) -> Ours:
        """Our pipeline in a type."""
        place = {"device": self.options.device, "joint": joint, "batch": self.options.batch}
        return Ours(self.detector, self.segmenter, dtype=dtype, **place)

    def load(self, name: str = "standard") -> Load:
        """A load of the size that was asked for."""
        return LOADS[name](self.size.picture, self.options.frames)

    def run(self, way: str | Ours, load: Load) -> Run:
        """One pass of a way: `ours`, a pipeline of ours, or a peer by its name."""
        mine = self.ours if way == "ours" else way if isinstance(way, Ours) else None
        if mine is not None:
            models = models_of(mine.pipeline)
            return self._checked(watch(partial(mine, load), models, kept), load, load.sounding)
        walk: Callable[[Load, RunContext], Iterator[Answer]] = self.peers.ways()[str(way)]
        models = Models(detector=self.peers.detector, segmenter=self.peers.predictor.model)
        return self._checked(watch(partial(walk, load), models, kept), load, (True,) * len(load.images))

    def _checked(self, run: Run, load: Load, looked_at: tuple[bool, ...]) -> Run:
        """Every way does the whole load: two boxes of each phrase wherever it looks."""
        counts = [len(answer) for answer in run.answers]
        if counts != [BOXES * len(load.phrases) * looked for looked in looked_at]:
            raise SystemExit(f"the load is uneven: {counts} boxes in its frames; choose another seed")
        return run


def models_of(pipeline: Any) -> Models:
    """The networks of a pipeline's stages."""
    stages = ("captioner", "translator", "detector", "segmenter")
    return Models(**{stage: getattr(getattr(pipeline, stage), "model", None) for stage in stages})


def kept(answer: Answer | FrameResult) -> Kept:
    """An answer with packed masks."""
    if isinstance(answer, FrameResult):
        return [(segment.phrase, segment.box, segment.mask) for segment in answer.segments]
    return [(phrase, box, mask_to_rle(mask > 0)) for phrase, box, mask in answer]
