"""Our pipeline on the same weights: the real adapters from a recipe. What is heard is given: no ear blurs a figure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from random_models import PHRASES
from standard_load import BOXES, Load

from openavs.config.recipe import load_recipe, override_recipe, recipe_from_dict
from openavs.pipeline.context import RunContext
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import FrameResult


class Ours:
    """The pipeline with one detector and one segmenter, as a way beside those of the peers.

    `joint=False` asks one phrase at a time, as the naive loop and lang-sam do: to compare masks with theirs.
    """

    def __init__(
        self, detector: Path, segmenter: Path, *, dtype: str, device: str = "cpu", joint: bool = True, batch: int = 1
    ) -> None:
        kind = segmenter.name
        queries = 900 * len(PHRASES)  # all candidates go on, for the random scores of any phrase may be low
        recipe: dict[str, Any] = {
            "name": f"{kind}-{dtype}",
            "captioner": {"use": "oracle"},
            "translator": {"use": "none"},
            "detector": {"use": "grounding-dino", "model": str(detector), "floor": 0.0, "max_candidates": queries},
            "segmenter": {"use": kind, "model": str(segmenter)},
            "filtering": {"box_threshold": 0.0, "nms_iou": None, "max_boxes": 100, "max_per_phrase": BOXES},
            "batch": {"frames": batch},
            "device": device,
            "dtype": dtype,
            "offline": True,
        }
        recipe["detector"] |= {"phrases_per_caption": 8 if joint else 1, "batch_size": batch}
        recipe["segmenter"] |= {"batch_size": batch}
        self.pipeline = Pipeline.from_recipe(recipe_from_dict(recipe))

    def __call__(self, load: Load, notes: RunContext) -> Iterator[FrameResult]:
        """One result per frame: masks as run-length codes, the reasons for all of it, the stages' seconds."""
        yield from self.pipeline.stream(load.clip(), context=notes)


def tiny(dtype: str) -> Pipeline:
    """The embedded models, which were trained: their answers have the margins that random weights have not."""
    recipe = override_recipe(
        load_recipe("tiny"), ["captioner={use: oracle}", "translator={use: none}", f"dtype={dtype}"]
    )
    return Pipeline.from_recipe(recipe)
