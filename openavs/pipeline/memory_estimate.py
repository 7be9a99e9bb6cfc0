"""Memory estimate of a recipe: whether its models fit together, one group after the other, or not at all.

`choose_recipe` picks the default recipe of this machine by that estimate.

Weights are counted from the headers of the safetensors files (or, where a model is not downloaded yet, from the table
of known models). Working memory is an estimate, see `_working`; `eval/bench/memory.py` compares it with a run.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from openavs.config.recipe import STAGE_GROUPS, Recipe, StageConfig, load_recipe, override_recipe, stage_of
from openavs.errors import InputError, OpenAVSError
from openavs.models.catalog import count_parameters, find_known_model, stored_dtype
from openavs.models.chat_api.endpoint import SERVER_BACKENDS
from openavs.models.device import (
    DeviceConfig,
    available_memory,
    has_gpu,
    is_bfloat16_fast,
    resolve_device,
    resolve_language_dtype,
    total_memory,
)
from openavs.models.hub import resolve
from openavs.models.vision_chat import MAX_PIXELS

logger = logging.getLogger(__name__)

MEMORY_FRACTION = 0.9
"""Largest part of the free memory that models may fill: allocators waste some."""

PROCESS = 500_000_000  # on a CPU: Python, torch and the libraries (measured)
_IMAGE_MODEL = 1_500_000_000  # working memory of SAM ViT-B or Grounding DINO tiny on a GPU, a frame at full size
_IMAGE_MODEL_CPU = 900_000_000  # the same on a CPU in float32 (measured)
_IMAGE_MODEL_BFLOAT16 = 450_000_000  # the same on a CPU that multiplies bfloat16 copies of the weights (measured)
_AUDIO_MODEL = 500_000_000
_AUDIO_WINDOW = 30_000_000  # working memory of CLAP for each window of a batch (measured on a CPU)
_TEXT_ENCODER = 0.81  # part of CLAP's weights; only in memory while the vocabulary is embedded
_FILM = 600_000_000  # working memory of PE-AV large for each film of 16 frames (measured on a CPU)
_CODEC_RATE = 48_000  # samples a second, of PE-A-Frame
_TOKENS = 2048  # of a question and its answer
_QUESTIONS = 4  # of the length above, in a question with a picture and thirty candidates
_UNKNOWN_KEYS = 2_400_000_000  # of a language model that is not downloaded yet: 8 questions to Qwen3-4B
_FLOAT32 = ("clap", "audio-tagger", "laion-clap", "pe-a-frame", "pe-av")  # `auto` is float32 for these
_LANGUAGE = ("llm", "vlm", "audio-llm", "vllm", "reasoner")  # `auto` keeps 16-bit checkpoints in 16 bits
# Backends that are float32 between matrix products, whose dtype `auto` sets, and the part of their weights that is
# multiplied in it: not the text encoders.
_OPTIMIZED = {"grounding-dino": 0.5, "omdet-turbo": 0.25, "sam": 1.0, "sam-hq": 1.0, "sam2": 1.0, "edgetam": 0.0}
_OWN_EDGES = {"shortest_edge": 800, "image_size": 1024}  # of the published checkpoints, by the option that changes it
_LAPTOP = 4_000_000_000  # most memory of a recipe for laptops, all models at once
_GPUS = (8, 12, 16, 24, 48, 80, 141)  # GB of common GPUs
_GPU_WORKING = 2_500_000_000  # on a GPU beside weights in 16 bits: keys and values of a language model, or an image
_FALLBACKS = ("openavs-cpu", "openavs-fast", "tiny")  # suggested in place of a recipe that does not fit
_DEFAULTS = {"gpu": ("openavs", "openavs-cpu"), "cpu": ("openavs-cpu", "openavs-fast")}  # the best first


@dataclass(frozen=True)
class MemoryFootprint:
    """Bytes of a stage: its weights, and its working memory while it runs."""

    weights: int
    working: int


@dataclass(frozen=True)
class _Model:
    """Facts from a model's files: parameters, their stored dtype, config.json, parameters of CLAP's text encoder."""

    parameters: int
    stored: str
    config: dict[str, Any]
    texts: int = 0


def measure_footprints(recipe: Recipe) -> dict[str, MemoryFootprint]:
    """Return the footprint of every stage with a model by its key; downloads the models unless offline."""
    found = {}
    for stage, reference in recipe.models().items():
        section = recipe.stages()[stage]
        model = _measure(reference, recipe.offline)
        place = _place(recipe, section, model)
        each = place.dtype.itemsize
        quantized = _quantized(section, place, model)
        weights = model.parameters * each + quantized  # the file of the others stays mapped into memory
        copies = 0
        if not quantized:
            copies = _copies(section, place, model, str(section.options.get("dtype", recipe.dtype)))
        image = _IMAGE_MODEL_BFLOAT16 if copies else _IMAGE_MODEL_CPU if place.device.type == "cpu" else _IMAGE_MODEL
        image = int(image * relative_area(section))
        try:
            working = _working(stage, section, place, model, image)
        except (AttributeError, TypeError, ValueError, ArithmeticError):  # a config.json that the stage will refuse
            working = _working(stage, section, place, replace(model, config={}), image)
        if section.use == "clap" and recipe.vocabulary is None:  # released once the vocabulary is embedded
            weights, working = weights - model.texts * each, max(working, model.texts * each)
        found[stage] = MemoryFootprint(weights + copies, working)
    return found


def estimate_memory(recipe: Recipe) -> tuple[int, int]:
    """Return the bytes of all models together and of the largest stage group; on a CPU with those of the process."""
    found = measure_footprints(recipe)
    if not found:
        return 0, 0
    process = 0 if resolve_device(recipe.device, recipe.dtype).device.type == "cuda" else PROCESS
    groups = [[own for key, own in found.items() if stage_of(key) in group] for group in STAGE_GROUPS]
    together, *single = (
        process + sum(own.weights for own in group) + max((own.working for own in group), default=0)
        for group in (list(found.values()), *groups)
    )
    return together, max(single)


def should_offload(recipe: Recipe, schedule: str = "auto", share: float = 1.0) -> bool:
    """Return whether the stage groups are loaded one after the other instead of all at once.

    Nothing is loaded for the answer, and models known to be too large are not downloaded.

    Args:
        recipe: the recipe.
        schedule: `per-clip` (no), `per-stage` (yes), or `auto`: if the models do not fit together.
        share: this process's share of its device's free memory, in (0, 1].

    Raises:
        InputError: for `auto`, not even the largest group fits.
    """
    if schedule != "auto":
        return schedule == "per-stage"
    if recipe.student is not None or not recipe.models():
        return False  # decided without importing torch
    free = free_memory(resolve_device(recipe.device, recipe.dtype))
    if free is None:
        logger.info("free memory is unknown on this system; all models are loaded at once")
        return False
    if not recipe.offline:
        check_fit(override_recipe(recipe, ["offline=true"]), free, share)
    together, largest = check_fit(recipe, free, share)
    free = int(free * share)
    if together <= free * MEMORY_FRACTION:
        logger.info("the models take %.1f GB and %.1f GB are free", together / 1e9, free / 1e9)
        return False
    logger.warning(
        "the models take %.1f GB together and %.1f GB are free, "
        "so they are loaded one group at a time (at most %.1f GB)",
        together / 1e9,
        free / 1e9,
        largest / 1e9,
    )
    return True


def check_fit(recipe: Recipe, whole: int, share: float = 1.0) -> tuple[int, int]:
    """Return `estimate_memory`; raise InputError with a recipe that fits if the largest group exceeds the share.

    Args:
        recipe: the recipe; one that is offline downloads nothing.
        whole: free bytes of the device.
        share: the part of them that may be used.
    """
    together, largest = estimate_memory(recipe)
    free = int(whole * share)
    if largest <= free:
        return together, largest
    place = resolve_device(recipe.device, recipe.dtype).device
    where = "of this machine's memory" if place.type == "cpu" else f"of the memory of {place}"
    shared = [f"device={recipe.device}", "offline=true"]
    others = {name: estimate_memory(load_recipe(name, shared))[1] for name in _FALLBACKS if name != recipe.name}
    fitting = next((name for name, size in others.items() if size <= free), None)
    fix = f"use --pipeline {fitting}, which needs {others[fitting] / 1e9:.1f} GB" if fitting else "free some memory"
    if share < 1:
        where += " for each worker"
        fix = "use fewer --workers" if largest <= whole else fix
    raise InputError(
        f"the recipe {recipe.name} needs {largest / 1e9:.1f} GB even if its models are loaded one group at a time, and "
        f"{free / 1e9:.1f} GB {where} are free; {fix}"
    )


@dataclass(frozen=True)
class RecipeChoice:
    """The default recipe of a machine, and the facts that decide: such as `no GPU, 16.0 GB of memory`."""

    name: str
    reason: str


def choose_recipe(overrides: Sequence[str] = ()) -> RecipeChoice:
    """Return the default recipe: of those for a CUDA GPU, or for a CPU, the first that fits the device's memory.

    Nothing is downloaded. A recipe fits if its largest stage group does, because groups can be loaded one by one.

    Args:
        overrides: the overrides of the recipe; `device=` decides instead of the machine.
    """
    devices = [override.removeprefix("device=") for override in overrides if override.startswith("device=")]
    device = devices[-1] if devices else "auto"
    on_gpu = has_gpu() if device == "auto" else device.startswith("cuda")
    names = _DEFAULTS["gpu" if on_gpu else "cpu"]
    total = _total_gpu_memory(device) if on_gpu else total_memory()
    name = next((name for name in names[:-1] if total is None or _fits(name, device, total)), names[-1])
    size = "" if total is None else f"{total / 1e9:.1f} GB"
    if on_gpu:
        return RecipeChoice(name, f"a GPU with {size}" if size else "a GPU")
    return RecipeChoice(name, f"no GPU, {size} of memory" if size else "no GPU")


def _fits(name: str, device: str, total: int) -> bool:
    try:
        recipe = load_recipe(name, [f"device={device}", "offline=true"])
        return estimate_memory(recipe)[1] <= total * MEMORY_FRACTION
    except InputError:  # a device that does not exist is reported when the recipe is built
        return True


def _total_gpu_memory(device: str) -> int | None:
    """Return the bytes of a GPU; None if torch cannot use it."""
    try:
        return total_memory_of(resolve_device("cuda" if device == "auto" else device, "auto"))
    except InputError:
        return None


def total_memory_of(place: DeviceConfig) -> int | None:
    """Return the bytes of a device, used ones included; None where the system does not report them."""
    if place.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(place.device)[1])
    return total_memory()


def free_memory(place: DeviceConfig) -> int | None:
    """Return the free bytes of a device; None where the system does not report them."""
    if place.device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(place.device)[0])
    return available_memory()


def _place(recipe: Recipe, section: StageConfig, model: _Model) -> DeviceConfig:
    device = str(section.options.get("device", recipe.device))
    dtype = str(section.options.get("dtype", recipe.dtype))
    place = resolve_device(device, "float32" if dtype == "auto" and section.use in _FLOAT32 else dtype)
    if section.use in _LANGUAGE:
        return replace(place, dtype=resolve_language_dtype(place, dtype, model.stored))
    if section.use in _OPTIMIZED and place.device.type == "cpu":
        return replace(place, dtype=resolve_device(device, "float32").dtype)
    return place


def _quantized(section: StageConfig, place: DeviceConfig, model: _Model) -> int:
    """Return the number of float32 parameters that the option `quantize` stores in 8 bits."""
    if section.options.get("quantize") != "int8" or section.use not in _OPTIMIZED or place.device.type != "cpu":
        return 0
    from openavs.models.ops.linear import supports_int8

    if not supports_int8():
        return 0
    return int(_OPTIMIZED[section.use] * model.parameters)


def relative_area(section: StageConfig) -> float:
    """Return the area of a model's input, as its options set it, over that of the checkpoint's own input size."""
    edges = ((section.options.get(name), own) for name, own in _OWN_EDGES.items())
    return math.prod((edge / own) ** 2 for edge, own in edges if isinstance(edge, int))


def _copies(section: StageConfig, place: DeviceConfig, model: _Model, dtype: str) -> int:
    """Return the bytes of the bfloat16 copies of weights that a CPU multiplies with."""
    if section.use not in _OPTIMIZED or place.device.type != "cpu":
        return 0
    in_bfloat16 = is_bfloat16_fast(place, model.parameters) if dtype == "auto" else dtype in ("bfloat16", "bf16")
    return int(2 * _OPTIMIZED[section.use] * model.parameters) if in_bfloat16 else 0


def _measure(reference: str, offline: bool) -> _Model:
    """Read a model's facts from its files or the catalog; errors are left to the stage, which reports them."""
    try:
        folder = resolve(reference, offline).path
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        texts = count_parameters(folder, "text_model.")
        return _Model(count_parameters(folder), stored_dtype(folder), config, texts)
    except (OpenAVSError, ValueError, KeyError, OSError) as error:
        logger.debug("the size of %s is not known from its files: %s", reference, error)
        known = find_known_model(reference)
        if known is None:
            return _Model(0, "float32", {})
        parameters = round(known.parameters * 1e6)
        return _Model(parameters, known.stored, {}, round(_TEXT_ENCODER * parameters))


def _working(stage: str, section: StageConfig, place: DeviceConfig, model: _Model, image: int) -> int:
    """Estimate the bytes beside the weights.

    Language models: the keys and values of a batch. The library's SAM on a GPU: twice the attention bias, which has an
    entry for each pair of tokens. Others: the measured value (`image`), or ten times the weights of small models.
    Default batches of frames count as one frame, because a batch that does not fit is halved.
    """
    config, each, batch = model.config, place.dtype.itemsize, _batch_size(section, 1)
    weights = model.parameters * each
    if section.use == "vlm" and config:
        return (_keys_and_values(config) + _picture_features(section, config)) * each * _batch_size(section, 4)
    if stage == "translator":
        return _keys_and_values(config) * each * _batch_size(section, 8) if config else min(_UNKNOWN_KEYS, weights)
    if stage == "reasoner":
        keys = _keys_and_values(config) * _QUESTIONS + _picture_features(section, config) if config else 0
        return keys * each or min(_UNKNOWN_KEYS, weights)
    if section.use == "clap":
        return min(_AUDIO_WINDOW * _batch_size(section, 32), 10 * weights)
    if section.use == "pe-av":
        return min(_FILM, 10 * weights) * batch
    if section.use == "pe-a-frame" and "audio_config" in config:
        return _codec_features(section, config) * each * batch
    if stage == "captioner":
        return min(_AUDIO_MODEL, 10 * weights)
    vision = config.get("vision_config", {})
    if place.device.type != "cpu" and config.get("model_type") in ("sam", "sam_hq") and "image_size" in vision:
        tokens = (int(vision["image_size"]) // int(vision.get("patch_size", 16))) ** 2
        return 2 * int(vision.get("num_attention_heads", 12)) * tokens**2 * each * batch
    return min(image, 10 * weights) * batch


def _batch_size(section: StageConfig, default: int) -> int:
    """Return the option of the stage; the default for an invalid value, which is refused when the stage is built."""
    value = section.options.get("batch_size")
    return value if isinstance(value, int) else default


def _codec_features(section: StageConfig, config: dict[str, Any]) -> int:
    """Return the number of values of a piece of audio in PE-A-Frame's codec, at its full rate: five copies of them."""
    codec = config["audio_config"].get("dac_config", {})
    seconds = float(section.options.get("piece_seconds", 30.0))
    return round(5 * seconds * _CODEC_RATE) * int(codec.get("encoder_hidden_size", 64))


def _picture_features(section: StageConfig, config: dict[str, Any]) -> int:
    """Return the number of values of a picture in one block of the vision encoder, and of its keys and values."""
    vision = config.get("vision_config", {})
    side = int(vision.get("patch_size", 14))
    pixels = int(section.options.get("max_pixels", MAX_PIXELS))
    patches = (int(vision["image_size"]) if "image_size" in vision else round(pixels**0.5)) ** 2 // side**2
    tokens = patches // int(vision.get("spatial_merge_size", 1)) ** 2
    block = 6 * int(vision.get("hidden_size", 0)) + 2 * int(vision.get("intermediate_size", 0))
    return patches * block + tokens * _keys_and_values(config) // _TOKENS


def _keys_and_values(config: dict[str, Any]) -> int:
    """Return the number of cached keys and values of a question and its answer; 0 without a known configuration."""
    text = config.get("text_config", config)
    layers, heads = int(text.get("num_hidden_layers", 0)), int(text.get("num_attention_heads", 1))
    width = int(text.get("head_dim") or int(text.get("hidden_size", 0)) // heads)
    return 2 * layers * int(text.get("num_key_value_heads") or heads) * width * _TOKENS


def recipe_machine(recipe: Recipe) -> str:
    """Return the least machine of a recipe: `laptop CPU`, `GPU with 16 GB`, or `server` if it sends requests to one.

    Derived from the memory of its known models; nothing is loaded or downloaded.
    """
    if any(section.use in SERVER_BACKENDS for section in recipe.stages().values()):
        return "server"
    if estimate_memory(override_recipe(recipe, ["device=cpu", "offline=true"]))[0] <= _LAPTOP:
        return "laptop CPU"
    known = [find_known_model(model) for model in dict.fromkeys(recipe.models().values())]
    needed = _GPU_WORKING + sum(model.parameters * 2e6 for model in known if model)
    sizes = [size for size in _GPUS if needed <= MEMORY_FRACTION * size * 1e9]
    return f"GPU with {min(sizes, default=_GPUS[-1])} GB"


def recipe_license(recipe: Recipe) -> str:
    """Return the strictest class of its models' licenses: `gated`, `research only`, `see model cards`, `permissive`."""
    known = [find_known_model(model) for model in recipe.models().values()]
    if any(model and model.gated for model in known):
        return "gated"
    if any(model and model.permissive == "no" for model in known):
        return "research only"
    if any(model is None or model.permissive == "unknown" for model in known):
        return "see model cards"
    return "permissive"
