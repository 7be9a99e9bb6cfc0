"""Check of a recipe: its weights, extras, server, device, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openavs.checks import CheckResult, State
from openavs.errors import InputError, OpenAVSError
from openavs.models.catalog import WeightsStatus, find_plugin_weights, find_weights

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe

Obstacle = tuple[str, str]
"""Reason why a recipe cannot run, and the fix."""


@dataclass(frozen=True)
class RecipeCheck:
    """Check of one recipe.

    Attributes:
        weights: every model of the recipe, once.
        obstacles: reasons why it cannot run now.
        offline_obstacles: reasons why it cannot run with `--offline`.
        remarks: sentences about licenses, gated models and memory.
    """

    recipe: Recipe
    weights: tuple[WeightsStatus, ...]
    obstacles: tuple[Obstacle, ...]
    offline_obstacles: tuple[Obstacle, ...]
    remarks: tuple[str, ...]

    @property
    def result(self) -> CheckResult:
        """The check as one result."""
        missing = [model for model in self.weights if not model.available]
        state: State = "warning" if self.remarks else "ok"
        fix = ""
        if self.obstacles:
            state = "problem"
            message = "; ".join(reason for reason, _ in self.obstacles)
            fix = "; ".join(dict.fromkeys(fix for _, fix in self.obstacles if fix))
        elif missing:
            state = "absent"
            message = f"{_count(missing, self.weights)} not on this disk; the first run downloads {_size(missing)}"
            fix = " && ".join(model.download for model in missing)
        elif not self.weights:
            message = "no model weights are needed"
        else:
            place = "embedded in openavs" if {model.state for model in self.weights} == {"embedded"} else "on this disk"
            count = len(self.weights)
            message = f"its model is {place}" if count == 1 else f"its {count} models are {place}"
        facts: dict[str, Any] = {
            "recipe": self.recipe.name,
            "ready": not self.obstacles,
            "offline": not self.offline_obstacles,
            "license": self.recipe.license,
            "download_gb": _total_gb(missing),
            "models": [model.to_dict() for model in self.weights],
        }
        return CheckResult("recipe", state, " ".join([f"{self.recipe.name}: {message}.", *self.remarks]), fix, facts)


def check_recipe(recipe: Recipe, cache: Path, offline: bool = False, hub_offline: bool = False) -> RecipeCheck:
    """Check everything that a recipe names.

    Args:
        recipe: to check.
        cache: folder of the hub's downloads.
        offline: whether the network is forbidden.
        hub_offline: whether downloads alone are forbidden (HF_HUB_OFFLINE=1).
    """
    weights = _weights(recipe)
    common = [
        *_broken_models(weights),
        *_missing_extras(recipe),
        *_missing_plugins(recipe),
        *_device(recipe),
        *_memory_shortage(recipe),
    ]
    gated, absent = [*_gated_models(weights)], [*_not_downloaded(weights)]
    hub = [*gated, *(absent if hub_offline else _disk_shortage(weights, cache))]
    with_network = [*common, *_server(recipe, False), *hub]
    without_network = [*common, *_server(recipe, True), *gated, *absent]
    obstacles = without_network if offline or recipe.offline else with_network
    return RecipeCheck(recipe, weights, tuple(obstacles), tuple(without_network), tuple(_remarks(recipe, weights)))


def _weights(recipe: Recipe) -> tuple[WeightsStatus, ...]:
    """Each model that the recipe names, once."""
    from openavs.registry import local_path

    stages = recipe.stages()
    found: dict[str, WeightsStatus] = {}
    for stage, model in recipe.models().items():
        reference = local_path(model, recipe.base)
        if reference not in found:
            plugin = stage in stages and _is_plugin(stage, stages[stage].use)
            found[reference] = find_plugin_weights(reference, stage) if plugin else find_weights(reference)
    return tuple(found.values())


def _is_plugin(stage: str, use: str) -> bool:
    """Return whether a backend is not one of openavs, so that its model may be any file."""
    from openavs.config.recipe import stage_of
    from openavs.registry import Registry
    from openavs.utils.plugins import is_file_reference

    entries = {entry.name: entry.origin for entry in Registry(stage_of(stage)).entries()}
    return is_file_reference(use) or entries.get(use, "openavs") != "openavs"


# ---------------------------------------------------------------------------------------------------- obstacles


def _broken_models(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    """Embedded models and local folders that are missing or incomplete; no download fixes them."""
    for model in weights:
        if not model.available and not model.model.startswith("hf:"):
            yield _split_fix(model.reason)


def _not_downloaded(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    missing = [model for model in weights if not model.available and model.model.startswith("hf:")]
    if missing:
        reason = f"{_count(missing, weights)} not on this disk, and offline mode forbids downloads ({_size(missing)})"
        yield reason, " && ".join(model.download for model in missing)


def _gated_models(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    """Gated models without a login; only the hub knows whether the owner has consented."""
    from huggingface_hub import get_token

    from openavs.models.hub import GATED, split_reference

    missing = [model.model for model in weights if model.gated and not model.available]
    if missing and not get_token():
        pages = [f"https://huggingface.co/{split_reference(model)[0]}" for model in missing]
        fix = f"request access at {', '.join(pages)}, {GATED}, then run: hf auth login"
        yield f"{', '.join(missing)} is gated and this machine is not logged in to the hub", fix


def _disk_shortage(weights: Sequence[WeightsStatus], cache: Path) -> Iterator[Obstacle]:
    needed = _total_gb([model for model in weights if not model.available]) or 0.0
    folder = cache.expanduser().absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free / 1e9
    if needed > free:
        reason = f"its download of {needed:.1f} GB does not fit into the {free:.1f} GB that are free in {cache}"
        yield reason, "free disk space, or set HF_HOME to a folder on a larger disk"


def _missing_extras(recipe: Recipe) -> Iterator[Obstacle]:
    from openavs.config.recipe import stage_of
    from openavs.registry import Registry
    from openavs.utils.optional_deps import EXTRAS
    from openavs.utils.plugins import is_file_reference

    for stage, section in recipe.stages().items():
        if is_file_reference(section.use):
            continue
        try:
            entry = Registry(stage_of(stage)).entry(section.use)
        except InputError as error:
            yield str(error), ""
            continue
        extra = EXTRAS.get(entry.extra) if entry.extra else None
        if extra is not None and extra.version() is None:
            yield f"its {stage} {section.use} needs the extra {extra.name}, which is not installed", extra.command


def _missing_plugins(recipe: Recipe) -> Iterator[Obstacle]:
    """Plug-in files that do not exist; they are not executed."""
    from openavs.utils.plugins import find_file, is_file_reference

    for section in recipe.stages().values():
        if is_file_reference(section.use):
            try:
                find_file(section.use, recipe.base)
            except InputError as error:
                yield str(error), ""


def _server(recipe: Recipe, offline: bool) -> Iterator[Obstacle]:
    """The address and the API key of a chat server; no request is sent."""
    from openavs.models.chat_api.endpoint import OPENAI, SERVER_BACKENDS, find_endpoint

    for section in recipe.stages().values():
        if section.use in SERVER_BACKENDS:
            options = section.options
            try:
                find_endpoint(str(options.get("base_url") or OPENAI), options.get("api_key_env"), offline)
            except OpenAVSError as error:
                yield _split_fix(str(error))


def _memory_shortage(recipe: Recipe) -> Iterator[Obstacle]:
    memory = _memory(recipe)
    if memory is not None and memory.largest > memory.total:
        yield (
            f"its models need {memory.largest / 1e9:.1f} GB even with offloading, and {memory.device} has "
            f"{memory.total / 1e9:.1f} GB",
            "use a smaller recipe, such as openavs-cpu, or a machine with more memory",
        )


def _device(recipe: Recipe) -> Iterator[Obstacle]:
    from openavs.models.device import resolve_device

    try:
        resolve_device(recipe.device, recipe.dtype)
    except InputError as error:
        yield _split_fix(str(error))


def _split_fix(sentence: str) -> Obstacle:
    """An error message as its reason and its fix, which follows the last semicolon."""
    reason, _, fix = sentence.rpartition("; ")
    return reason, fix


# ------------------------------------------------------------------------------------------------------ remarks


def _remarks(recipe: Recipe, weights: Sequence[WeightsStatus]) -> Iterator[str]:
    """Sentences about licenses, unusual weights and offloading."""
    from huggingface_hub import get_token

    from openavs.models.hub import GATED

    for model in weights:
        if model.permissive == "no":
            yield f"{model.model} is not under a permissive license ({model.license})."
        if model.converted:
            yield f"{model.model} has no safetensors on main; the hub converter's pull request is used."
        if model.gated and not model.available and get_token():
            yield f"{model.model} is gated: request access at its page, {GATED}."
    memory = _memory(recipe)
    if memory is not None and memory.largest <= memory.total < memory.together:
        yield (
            f"Its models take about {memory.together / 1e9:.1f} GB together and {memory.device} has "
            f"{memory.total / 1e9:.1f} GB, so they are offloaded between stages."
        )


class _Memory(NamedTuple):
    """Bytes of all models together, of the largest group of stages, and of the named device."""

    together: int
    largest: int
    total: int
    device: str


def _memory(recipe: Recipe) -> _Memory | None:
    """Memory of the models and of the device; None if unknown.

    The total of the device counts, because the free memory of this moment may differ from that of a later run.
    """
    from openavs.config.recipe import override_recipe
    from openavs.models.device import resolve_device
    from openavs.pipeline.memory_estimate import estimate_memory, total_memory_of

    if recipe.student is not None:
        return None
    try:
        chosen = resolve_device(recipe.device, recipe.dtype)
        together, largest = estimate_memory(override_recipe(recipe, ["offline=true"]))
    except InputError:
        return None
    total = total_memory_of(chosen)
    where = "the GPU" if chosen.device.type == "cuda" else "this machine"
    return None if total is None else _Memory(together, largest, total, where)


def _count(some: Sequence[WeightsStatus], weights: Sequence[WeightsStatus]) -> str:
    return f"{len(some)} of {len(weights)} models {'is' if len(some) == 1 else 'are'}"


def _size(weights: Sequence[WeightsStatus]) -> str:
    total = _total_gb(weights)
    return "models of unknown size" if total is None else f"about {total:.1f} GB"


def _total_gb(weights: Sequence[WeightsStatus]) -> float | None:
    """GB of several models; None if the size of one is unknown."""
    sizes = [model.size_gb for model in weights]
    return None if None in sizes else round(sum(size for size in sizes if size is not None), 3)


# ---------------------------------------------------------------------------------------------------- vocabulary


def check_vocabulary(recipe: Recipe) -> str:
    """Return a sentence about labels that are not in the lexicon, or "".

    Applies to custom vocabularies with the lexicon translator; language models are not limited to its entries.

    Raises:
        InputError: the lexicon has none of the labels, so no prompt can ever result.
    """
    from openavs.registry import local_path
    from openavs.stages.lexicon import lexicon, names_nothing
    from openavs.stages.vocabulary import AUDIOSET, THINGS, load_vocabulary
    from openavs.utils.text import pluralize

    spec = local_path(recipe.captioner.options.get("vocabulary"), recipe.base)
    custom = isinstance(spec, list) or (isinstance(spec, str) and spec not in (AUDIOSET, THINGS))
    if not custom or recipe.translator.use != "lexicon":
        return ""
    labels = load_vocabulary(spec)
    unknown = [label for label in labels if not lexicon(label) and not names_nothing(label)]
    if not unknown:
        return ""
    message = (
        f"{len(unknown)} of {pluralize(len(labels), 'label')} of the vocabulary are not in the lexicon "
        f"(such as '{unknown[0]}') and yield no prompts; rename them, or use the translator llm"
    )
    if len(unknown) == len(labels):
        raise InputError(message)
    return f"{message}."


def hub_cache() -> Path:
    """Return the folder of the hub's downloads."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path("~/.cache/huggingface/hub")
    return Path(constants.HF_HUB_CACHE)


def is_environment_offline() -> bool:
    """Return whether the environment forbids downloads (HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
