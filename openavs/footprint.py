"""How much memory a recipe's models take, from their files alone, and whether they fit together.

Weights are counted from the headers of the safetensors files (or, where a model is not downloaded yet, from the table
of known ones). Working memory is an estimate: see `_working`.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import Any

from openavs.device import Placement, resolve_device
from openavs.hub import resolve
from openavs.known_models import count_parameters, known_model
from openavs.recipes import Recipe, Stage
from openavs.turns import TURNS
from openavs.types import OpenAVSError

log = logging.getLogger(__name__)

SPARE = 0.9
"""This part of the free memory is reckoned with: allocators waste some."""

_IMAGE_MODEL = 1_500_000_000  # working memory of SAM ViT-B or Grounding DINO tiny, one frame at full size (measured)
_SOUND_MODEL = 500_000_000
_TOKENS = 2048  # of a question and its answer
_FLOAT32 = ("clap", "audio-tagger", "laion-clap")  # `auto` is float32 for these


@dataclass(frozen=True)
class Footprint:
    """Bytes that a stage takes: its weights for good, and working memory while it runs."""

    weights: int
    working: int


def footprints(recipe: Recipe) -> dict[str, Footprint]:
    """By stage; stages without a model on this machine take nothing. Models are downloaded, as they are to be run."""
    found = {}
    for stage, reference in recipe.models().items():
        section = recipe.stages()[stage]
        place = _place(recipe, section)
        parameters, config = _measure(reference, recipe.offline)
        each = place.dtype.itemsize
        weights = parameters * each
        found[stage] = Footprint(weights, _working(stage, section, config, each, weights))
    return found


def needed(recipe: Recipe) -> tuple[int, int]:
    """Bytes that all models together take, and that the largest of the turns takes."""
    found = footprints(recipe)
    turns = [[found[stage] for stage in turn if stage in found] for turn in TURNS]
    together = sum(own.weights for own in found.values()) + max((own.working for own in found.values()), default=0)
    return together, max(sum(f.weights for f in turn) + max((f.working for f in turn), default=0) for turn in turns)


def in_turns(recipe: Recipe, schedule: str, share: float = 1.0) -> bool:
    """Whether a recipe's models are to take turns: as `schedule` says (`clip`: no, `stage`: yes), or for `auto` when
    they do not fit together into a worker's share of the free memory of its device."""
    if schedule != "auto":
        return schedule == "stage"
    together, turn = needed(recipe)
    if not together:
        return False  # no model: there is no need of torch, either
    free = int(free_memory(resolve_device(recipe.device, recipe.dtype)) * share * SPARE)
    alone = "; the largest of the turns is %.1f" % (turn / 1e9) if together > free else ""
    log.info("the models take %.1f GB together and there are %.1f%s", together / 1e9, free / 1e9, alone)
    if turn > free:
        log.warning("%.1f GB of memory are hardly enough for these models, which take %.1f", free / 1e9, turn / 1e9)
    return together > free


def free_memory(place: Placement) -> int:
    """Bytes that are free on a device."""
    if place.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(place.device)[0])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system says
        return 4 << 30


def _place(recipe: Recipe, section: Stage) -> Placement:
    device = str(section.options.get("device", recipe.device))
    dtype = str(section.options.get("dtype", recipe.dtype))
    return resolve_device(device, "float32" if dtype == "auto" and section.use in _FLOAT32 else dtype)


def _measure(reference: str, offline: bool) -> tuple[int, dict[str, Any]]:
    """A model's number of parameters and its configuration; what cannot be had is for its stage to refuse."""
    try:
        folder = resolve(reference, offline).path
        return count_parameters(folder), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OpenAVSError, ValueError, KeyError, OSError) as problem:
        log.debug("the size of %s is not known from its files: %s", reference, problem)
        known = known_model(reference)
        return round(known.parameters * 1e6) if known else 0, {}


def _working(stage: str, section: Stage, config: dict[str, Any], each: int, weights: int) -> int:
    """Bytes beside the weights: of a language model the keys and values of a batch; of SAM, whose global attention has
    a bias for each pair of tokens, twice that; of others what was measured, or ten times the weights of small ones."""
    if stage == "translator":
        return _keys_and_values(config) * each * int(section.options.get("batch_size", 8))
    batch = int(section.options.get("batch_size", 1))
    if stage == "captioner":
        return min(_SOUND_MODEL, 10 * weights)
    vision = config.get("vision_config", {})
    if config.get("model_type") == "sam" and "image_size" in vision:
        tokens = (int(vision["image_size"]) // int(vision.get("patch_size", 16))) ** 2
        return 2 * int(vision.get("num_attention_heads", 12)) * tokens**2 * each * batch
    return min(_IMAGE_MODEL, 10 * weights) * batch


def _keys_and_values(config: dict[str, Any]) -> int:
    """Numbers that a language model remembers of a question and its answer; 0 where its configuration is not known."""
    text = config.get("text_config", config)
    layers, heads = int(text.get("num_hidden_layers", 0)), int(text.get("num_attention_heads", 1))
    width = int(text.get("head_dim") or int(text.get("hidden_size", 0)) // heads)
    return 2 * layers * int(text.get("num_key_value_heads") or heads) * width * _TOKENS
