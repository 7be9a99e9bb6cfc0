"""Whether a recipe can run here: its weights, extras, server, device, memory and disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from openavs.checks.finding import CheckResult, State
from openavs.checks.weights import WeightsStatus, find_plugin_weights, find_weights
from openavs.errors import InputError, OpenAVSError

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe

Obstacle = tuple[str, str]
"""Why a recipe cannot run, and what to do."""


@dataclass(frozen=True)
class RecipeCheck:
    """One recipe: what stands in its way now, and what would with `--offline`."""

    recipe: Recipe
    weights: tuple[WeightsStatus, ...]
    obstacles: tuple[Obstacle, ...]
    offline_obstacles: tuple[Obstacle, ...]
    remarks: tuple[str, ...]

    @property
    def finding(self) -> CheckResult:
        """The verdict in a sentence."""
        if self.obstacles:
            says = "; ".join(says for says, _ in self.obstacles)
            fix = "; ".join(dict.fromkeys(fix for _, fix in self.obstacles if fix))
            return self._finding("problem", f"{says}.", fix)
        absent = [model for model in self.weights if not model.here]
        if absent:
            says = f"{_number(absent, self.weights)} not here; the first use downloads {_sizes(absent)}."
            return self._finding("absent", says, " && ".join(model.download for model in absent))
        return self._finding("warning" if self.remarks else "ok", f"{_whereabouts(self.weights)}.", "")

    def _finding(self, state: State, says: str, fix: str) -> CheckResult:
        says = " ".join([f"{self.recipe.name}: {says}", *self.remarks])
        return CheckResult("recipe", state, says, fix, self._facts())

    def _facts(self) -> dict[str, Any]:
        absent = [model for model in self.weights if not model.here]
        return {
            "recipe": self.recipe.name,
            "ready": not self.obstacles,
            "offline": not self.offline_obstacles,
            "license": self.recipe.license,
            "download_gb": _total(absent),
            "models": [model.to_dict() for model in self.weights],
        }


def check_recipe(recipe: Recipe, cache: Path, offline: bool = False) -> RecipeCheck:
    """Looks at everything a recipe names. `cache` is where downloads go; `offline` forbids them."""
    weights = _weights(recipe)
    offline = offline or recipe.offline
    always = [
        *_damaged(weights),
        *_missing_extras(recipe),
        *_plugins(recipe),
        *_device(recipe),
        *_too_little_memory(recipe),
    ]
    online = [*always, *_server(recipe, False), *_gated(weights), *_too_large(weights, cache)]
    alone = [*always, *_server(recipe, True), *_not_here(weights)]
    remarks = tuple(_remarks(recipe, weights))
    return RecipeCheck(recipe, weights, tuple(alone if offline else online), tuple(alone), remarks)


def _weights(recipe: Recipe) -> tuple[WeightsStatus, ...]:
    """Each model that the recipe names, once."""
    from openavs.registry import local_path
    from openavs.utils.plugins import is_file_reference

    stages = recipe.stages()
    found: dict[str, WeightsStatus] = {}
    for stage, model in recipe.models().items():
        reference = local_path(model, recipe.base)
        if reference not in found:
            plugin = stage in stages and is_file_reference(stages[stage].use)
            found[reference] = find_plugin_weights(reference, stage) if plugin else find_weights(reference)
    return tuple(found.values())


# ---------------------------------------------------------------------------------------------------- obstacles


def _damaged(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    """What no download mends: an embedded model or a folder that is not there or not whole."""
    for model in weights:
        if not model.here and not model.model.startswith("hf:"):
            says, _, fix = model.why.rpartition("; ")
            yield says, fix


def _not_here(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    absent = [model for model in weights if not model.here and model.model.startswith("hf:")]
    if absent:
        yield (
            f"{_number(absent, weights)} not here, and offline nothing is downloaded ({_sizes(absent)})",
            " && ".join(model.download for model in absent),
        )


def _gated(weights: Sequence[WeightsStatus]) -> Iterator[Obstacle]:
    """Without a log-in the hub refuses gated weights; whether the owner has consented only the hub knows."""
    from huggingface_hub import get_token

    from openavs.models.hub import GATED

    absent = [model for model in weights if model.gated and not model.here]
    if absent and not get_token():
        names = ", ".join(model.model for model in absent)
        pages = ", ".join(
            f"https://huggingface.co/{model.model.removeprefix('hf:').partition('@')[0]}" for model in absent
        )
        yield f"{names} is gated and nobody is logged in", f"ask for access at {pages}, {GATED}, then: hf auth login"


def _too_large(weights: Sequence[WeightsStatus], cache: Path) -> Iterator[Obstacle]:
    needed = _total([model for model in weights if not model.here]) or 0.0
    folder = cache.expanduser().absolute()
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free / 1e9
    if needed > free:
        says = f"its download of {needed:.1f} GB does not fit into the {free:.1f} GB that are free in {cache}"
        yield says, "free some, or set HF_HOME to a larger disk"


def _missing_extras(recipe: Recipe) -> Iterator[Obstacle]:
    from openavs.registry import Registry
    from openavs.utils.optional_deps import EXTRAS
    from openavs.utils.plugins import is_file_reference

    for stage, section in recipe.stages().items():
        if is_file_reference(section.use):
            continue
        try:
            entry = Registry(stage).entry(section.use)
        except InputError as problem:
            yield str(problem), ""
            continue
        extra = EXTRAS.get(entry.extra) if entry.extra else None
        if extra is not None and extra.version() is None:
            yield f"its {stage} {section.use} needs the extra {extra.name}, which is not installed", extra.command


def _plugins(recipe: Recipe) -> Iterator[Obstacle]:
    """Files that the recipe names; they are looked for, not run."""
    from openavs.utils.plugins import find_file, is_file_reference

    for section in recipe.stages().values():
        if is_file_reference(section.use):
            try:
                find_file(section.use, recipe.base)
            except InputError as problem:
                yield str(problem), ""


def _server(recipe: Recipe, offline: bool) -> Iterator[Obstacle]:
    """The key and the address of a chat server; it is not asked."""
    from openavs.stages.translators.endpoint import OPENAI, find_endpoint

    if "translator" not in recipe.stages() or recipe.translator.use != "openai":
        return
    options = recipe.translator.options
    try:
        find_endpoint(str(options.get("base_url") or OPENAI), options.get("api_key_env"), offline)
    except OpenAVSError as problem:
        says, _, fix = str(problem).rpartition("; ")
        yield says, fix


def _too_little_memory(recipe: Recipe) -> Iterator[Obstacle]:
    sizes = _memory(recipe)
    if sizes is not None and sizes.largest > sizes.room:
        yield (
            f"its models need {sizes.largest / 1e9:.1f} GB even if they are loaded in turns, and {sizes.where} has "
            f"{sizes.room / 1e9:.1f} GB",
            "use a smaller recipe, such as openavs-cpu, or a machine with more memory",
        )


def _device(recipe: Recipe) -> Iterator[Obstacle]:
    from openavs.models.device import resolve_device

    try:
        resolve_device(recipe.device, recipe.dtype)
    except InputError as problem:
        says, _, fix = str(problem).rpartition("; ")
        yield says, fix


# ------------------------------------------------------------------------------------------------------ remarks


def _remarks(recipe: Recipe, weights: Sequence[WeightsStatus]) -> Iterator[str]:
    """What does not stop it but should be known: licenses that forbid uses, and memory."""
    from huggingface_hub import get_token

    from openavs.models.hub import GATED

    for model in weights:
        if model.permissive == "no":
            yield f"{model.model} is not under a permissive license ({model.license})."
        if model.converted:
            yield f"{model.model} has no safetensors on main; the hub converter's pull request is used."
        if model.gated and not model.here and get_token():
            yield f"{model.model} is gated: access is asked for at its page, {GATED}."
    sizes = _memory(recipe)
    if sizes is not None and sizes.largest <= sizes.room < sizes.together:
        yield (
            f"Its models take about {sizes.together / 1e9:.1f} GB together and {sizes.where} has "
            f"{sizes.room / 1e9:.1f} GB, so they are loaded in turns."
        )


class _Memory(NamedTuple):
    """Bytes of all models, of the largest group of stages, and of the device that is named by `where`."""

    together: int
    largest: int
    room: int
    where: str


def _memory(recipe: Recipe) -> _Memory | None:
    """What the recipe needs and has, used or free; None where the device is wrong or the system does not say."""
    import torch

    from openavs.config.recipe import override_recipe
    from openavs.models.device import resolve_device
    from openavs.models.memory import total_memory
    from openavs.pipeline.memory_estimate import estimate_memory

    if recipe.student is not None:
        return None
    try:
        chosen = resolve_device(recipe.device, recipe.dtype).device
        together, largest = estimate_memory(override_recipe(recipe, ["offline=true"]))
    except InputError:
        return None
    if chosen.type == "cuda":
        return _Memory(together, largest, torch.cuda.mem_get_info(chosen)[1], "the GPU")
    total = total_memory()
    return None if total is None else _Memory(together, largest, total, "this machine")


# ------------------------------------------------------------------------------------------------------ wording


def _number(some: Sequence[WeightsStatus], of: Sequence[WeightsStatus]) -> str:
    return f"{len(some)} of {len(of)} models {'is' if len(some) == 1 else 'are'}"


def _whereabouts(weights: Sequence[WeightsStatus]) -> str:
    if not weights:
        return "it needs no weights"
    places = {model.state for model in weights}
    where = "embedded in openavs" if places == {"embedded"} else "on this disk"
    return "its model is " + where if len(weights) == 1 else f"its {len(weights)} models are {where}"


def _sizes(absent: Sequence[WeightsStatus]) -> str:
    total = _total(absent)
    return "models of unknown size" if total is None else f"about {total:.1f} GB"


def _total(weights: Sequence[WeightsStatus]) -> float | None:
    """GB of several models; None where one is unknown."""
    sizes = [model.size_gb for model in weights]
    return None if None in sizes else round(sum(size for size in sizes if size is not None), 3)


def hub_cache() -> Path:
    """Where the hub's downloads go; its default place where its package is missing."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path("~/.cache/huggingface/hub")
    return Path(constants.HF_HUB_CACHE)


def environment_offline() -> bool:
    """Whether the environment forbids downloads (HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
