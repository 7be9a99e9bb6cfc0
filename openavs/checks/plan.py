"""Plan of a run, printed before models are loaded: its downloads, memory and time; and the downloads themselves."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.caching.store import size_to_text
from openavs.checks import CheckResult
from openavs.checks.recipe_check import RecipeCheck, check_recipe, hub_cache, is_environment_offline
from openavs.config.recipe import Recipe, load_recipe, override_recipe
from openavs.errors import InputError, ModelError
from openavs.models.catalog import WeightsStatus, count_parameters
from openavs.models.chat_api.endpoint import OPENAI, SERVER_BACKENDS, find_endpoint
from openavs.models.device import resolve_device
from openavs.models.hub import resolve, split_reference
from openavs.pipeline import memory_estimate
from openavs.registry import local_path
from openavs.utils.plugins import is_file_reference
from openavs.utils.text import pluralize

# CPU seconds of a frame with the bfloat16 products of a new processor, and in float32 (docs: detectors, segmenters and
# captioners, "Cost and memory"; AMD EPYC, Zen 5; masks of ten boxes included).
_FRAME_SECONDS = {
    "IDEA-Research/grounding-dino-tiny": (4.5, 6.4),
    "iSEE-Laboratory/llmdet_tiny": (4.5, 6.4),
    "facebook/sam-vit-base": (6.2, 10.4),
    "facebook/sam2.1-hiera-tiny": (5.2, 5.4),
    "laion/clap-htsat-fused": (0.2, 0.4),
}

_FAST_SECONDS = 3.0  # of the smaller images and 8-bit products of openavs-fast (pipelines/openavs-fast.yaml)


@dataclass(frozen=True)
class RunPlan:
    """The check of a recipe, and its memory in bytes (None: not known).

    Attributes:
        check: of the recipe on this machine.
        memory: of the models and the process, as they are loaded.
        free: of the device.
        seconds: lowest and highest CPU seconds of a frame; None if a model's are not measured, or on a GPU.
    """

    check: RecipeCheck
    memory: int | None
    free: int | None
    seconds: tuple[float, float] | None

    @property
    def missing(self) -> list[WeightsStatus]:
        """The models that are not on this disk."""
        return [model for model in self.check.weights if not model.available]

    def lines(self, frames: int | None = None) -> Iterator[str]:
        """Yield the plan as text; nothing for a recipe without models of the hub or a server.

        Args:
            frames: number of frames to process; None if unknown.
        """
        weights = [model for model in self.check.weights if model.model.startswith("hf:")]
        yield from (f"the recipe {self.check.recipe.name} sends {what}" for what in _servers(self.check.recipe))
        if not weights:
            return
        present = [model for model in weights if model.available]
        if self.missing:
            cache = hub_cache().expanduser()
            free = shutil.disk_usage(next(place for place in (cache, *cache.parents) if place.exists())).free
            size = _sizes(self.missing)
            yield f"the recipe {self.check.recipe.name} downloads {size} into {cache} ({_gb(free)} free)"
            yield from (f"  to download: {_describe(model)}" for model in self.missing)
            yield from (f"  on this disk: {_describe(model)}" for model in present)
        else:
            count = pluralize(len(weights), "model")
            yield f"the recipe {self.check.recipe.name}: {count} on this disk ({_sizes(weights)})"
        if self.memory and self.free:
            yield f"  memory: about {_gb(self.memory)} of the {_gb(self.free)} that are free"
        if self.seconds and frames:
            low, high = (second * frames / 60 for second in self.seconds)
            yield (
                f"  time: about {_minutes(low, high)} for {pluralize(frames, 'frame')} on one core of a new processor; "
                "older ones take longer, several cores less"
            )
        elif self.seconds:
            low, high = (round(second, 1) for second in self.seconds)
            span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            yield f"  time: about {span} s for each frame on one core of a new processor; several cores take less"
        elif frames:
            yield f"  time: not measured for these models; {pluralize(frames, 'frame')} to process"

    def refuse(self) -> Iterator[str]:
        """Yield what keeps the recipe from running, with the fixes; nothing if it can run."""
        recipe = self.check.recipe.name
        for reason, fix in self.check.obstacles:
            commands = fix.split(" && ") if fix.startswith("hf download") else []
            yield f"the recipe {recipe} cannot run: {reason}" + (f"; {fix}" if fix and not commands else "")
            yield from (f"  {command}" for command in commands)


def plan_run(recipe: Recipe, share: float = 1.0) -> RunPlan:
    """Check a recipe before a run; nothing is loaded or downloaded.

    Args:
        recipe: to run.
        share: part of the device's free memory that each worker may use.

    Raises:
        InputError: the device does not exist, or not even the largest group of models fits into its free memory.
    """
    check = check_recipe(recipe, hub_cache(), hub_offline=is_environment_offline())
    if recipe.student is not None or not recipe.models():
        return RunPlan(check, None, None, None)
    try:
        place = resolve_device(recipe.device, recipe.dtype)
    except InputError:  # an obstacle of the check
        return RunPlan(check, None, None, None)
    free = memory_estimate.free_memory(place)
    if free is None:
        return RunPlan(check, None, None, _seconds(recipe))
    together, largest = memory_estimate.check_fit(override_recipe(recipe, ["offline=true"]), free, share)
    return RunPlan(
        check,
        together if together <= free * memory_estimate.MEMORY_FRACTION else largest,
        free,
        _seconds(recipe) if place.device.type == "cpu" else None,
    )


def download_lines(recipe: Recipe) -> list[str]:
    """Return the shell commands that download what is missing of a recipe now."""
    weights = check_recipe(recipe, hub_cache()).weights
    return [model.download for model in weights if not model.available and model.model.startswith("hf:")]


def _seconds(recipe: Recipe) -> tuple[float, float] | None:
    """Return the lowest and highest CPU seconds of a frame; None for models or image sizes that are not measured."""
    fast = load_recipe("openavs-fast")
    if (recipe.detector, recipe.segmenter) == (fast.detector, fast.segmenter):
        return _FAST_SECONDS, _FAST_SECONDS
    sections = [section for section in (recipe.detector, recipe.segmenter) if section is not None]
    if any(key in section.options for section in sections for key in ("shortest_edge", "image_size", "quantize")):
        return None
    total = [0.0, 0.0]
    for stage, model in recipe.models().items():
        known = _FRAME_SECONDS.get(split_reference(model)[0])
        if known is None:
            return None
        area = memory_estimate.relative_area(recipe.stages()[stage])
        total = [spent + own * area for spent, own in zip(total, known, strict=True)]
    return (total[0], total[1]) if recipe.models() else None


def _servers(recipe: Recipe) -> Iterator[str]:
    """Yield the data that the recipe's chat servers get, with their addresses and keys."""
    for stage, section in recipe.stages().items():
        if section.use in SERVER_BACKENDS:
            endpoint = find_endpoint(str(section.options.get("base_url") or OPENAI), section.options.get("api_key_env"))
            data = "audio" if stage == "captioner" else "captions"
            key = f" with the API key in {endpoint.variable}" if endpoint.variable else ""
            yield f"{data} to {endpoint.url} ({stage} {section.use}){key}"


def _describe(model: WeightsStatus) -> str:
    size = "size unknown" if model.size_gb is None else size_to_text(round(model.size_gb * 1e9))
    gate = ", needs access and `hf auth login`" if model.gated and not model.available else ""
    return f"{model.model} ({size}, {model.license or 'license not known'}{gate})"


def _sizes(models: Sequence[WeightsStatus]) -> str:
    sizes = [model.size_gb for model in models]
    known = sum(size for size in sizes if size is not None)
    return f"{'at least ' if None in sizes else 'about '}{known:.1f} GB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _minutes(low: float, high: float) -> str:
    if high == low:
        return f"{max(1, round(low * 60))} s" if high < 2 else f"{low:.0f} minutes"
    if high < 2:
        return f"{max(1, round(low * 60))} to {max(1, round(high * 60))} s"
    if high < 120:
        return f"{max(1, round(low))} to {round(high)} minutes"
    return f"{low / 60:.1f} to {high / 60:.1f} hours"


def fetch_models(recipe: Recipe) -> Iterator[CheckResult]:
    """Download the missing models of a recipe; yields one result per model.

    The header of every weight file is read. The facts are `model`, the `stages` that use it, `seconds`, `size_gb` (on
    this disk) and `parameters_m` (millions). Models of plug-ins are skipped, because they may be any file.
    """
    sections = recipe.stages()
    stages: dict[str, list[str]] = {}
    for stage, model in recipe.models().items():
        if not is_file_reference(sections[stage].use):
            stages.setdefault(local_path(model, recipe.base), []).append(stage)
    for model, users in stages.items():
        yield _fetch(model, users, recipe.offline)


def _fetch(model: str, stages: list[str], offline: bool) -> CheckResult:
    facts: dict[str, Any] = {"model": model, "stages": stages}
    started = time.monotonic()
    try:
        found = resolve(model, offline)
        parameters = open_headers(found.path, model)
    except ModelError as error:
        return CheckResult("model", "problem", f"{error}.", facts=facts)
    files = [*found.path.glob("*.safetensors")]
    size = sum(file.stat().st_size for file in files)
    facts |= {"seconds": round(time.monotonic() - started, 2), "size_gb": round(size / 1e9, 3)}
    facts |= {"parameters_m": round(parameters / 1e6, 3)}
    counts = f"{pluralize(len(files), 'weight file')}, {size_to_text(size)}, {parameters / 1e6:.1f} million parameters"
    return CheckResult("model", "ok", f"{model}: {counts}.", facts=facts)


def open_headers(folder: Path, reference: str) -> int:
    """Open the safetensors files of a folder and return the number of parameters.

    No tensor is read.

    Raises:
        ModelError: a header is damaged, or a file does not have the size that its header states.
    """
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"the weights {file} of the model '{reference}' are damaged ({error}); delete the file and download it "
                "again"
            ) from error
    return count_parameters(folder)
