"""Downloads of missing models, with a check of the headers of all weight files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openavs.caching.store import size_to_text
from openavs.checks import CheckResult
from openavs.config.recipe import Recipe
from openavs.errors import ModelError
from openavs.models.catalog import count_parameters
from openavs.models.hub import resolve
from openavs.registry import local_path
from openavs.utils.plugins import is_file_reference
from openavs.utils.text import pluralize


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
