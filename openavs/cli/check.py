"""`openavs check`: whether a recipe can run on this machine, with the fix for each problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openavs.cli import options as opt
from openavs.cli.options import recipe_overrides, refuse_bare_keys, split_overrides
from openavs.cli.output import echo, print_json
from openavs.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openavs.checks import CheckResult
    from openavs.checks.diagnosis import Diagnosis

_MARKS = {"ok": "ok      ", "absent": "-       ", "warning": "warning ", "problem": "PROBLEM "}


def check(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [KEY=VALUE...]",
            help="A recipe, as with --pipeline, and overrides of it, such as detector.model=FILE.",
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline", "-p", help="Recipe to check: a name, a YAML file or student:DIR. Default: tiny, and a list."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results, to check its disk.")] = Path("."),
    download: Annotated[
        bool, typer.Option("--download", help="Download missing models, then load each stage and run it once.")
    ] = False,
    video: Annotated[
        Path | None,
        typer.Option("--try", metavar="VIDEO", help="With --download: video to run on instead of a synthetic second."),
    ] = None,
    offline: opt.Offline = False,
    as_json: opt.Json = False,
) -> None:
    """Check whether this machine can run a recipe, and print the fix for each problem.

    Exit code 0: the recipe ([bold]tiny[/] by default) can run. 1: it cannot.
    """
    from openavs.checks.diagnosis import diagnose

    inputs, changes = split_overrides(overrides or ())
    refuse_bare_keys(inputs)
    if len(inputs) + (pipeline is not None) > 1:
        raise InputError(f"check takes one recipe, not {' and '.join(filter(None, (pipeline, *inputs)))}")
    pipeline = inputs[0] if inputs else pipeline
    if changes and pipeline is None:
        raise InputError(f"{changes[0]} changes a recipe; name it with --pipeline")
    if video is not None and not download:
        raise InputError("--try runs the stages, which may need downloads; add --download")
    diagnosis = diagnose(pipeline or ("tiny" if download else None), changes, offline=offline, out=out)
    report = diagnosis.to_dict()
    if not as_json:
        _print_diagnosis(diagnosis)
    ready = diagnosis.ready
    if ready and download:
        for key, result in _download_and_try(pipeline or diagnosis.recipe, changes, video, offline):
            ready = ready and result.state != "problem"
            report.setdefault(key, []).append(result.to_dict())
            if not as_json:
                _print_results([result])
        report["ready"] = ready
    if as_json:
        print_json(report)
    elif download and diagnosis.ready:
        echo("Every stage works." if ready else f"Not ready for {diagnosis.recipe}: fix each PROBLEM above.")
    if not ready:
        raise typer.Exit(1)


def _download_and_try(
    pipeline: str, overrides: Sequence[str], video: Path | None, offline: bool
) -> Iterator[tuple[str, CheckResult]]:
    """Yields the results of the downloads and of the stages, each with its key in the JSON."""
    from openavs.checks.plan import fetch_models
    from openavs.checks.trial import bundled_clip, try_stages
    from openavs.config.recipe import load_recipe, override_recipe
    from openavs.media.clip import open_clip
    from openavs.pipeline.memory_estimate import should_offload

    recipe = load_recipe(pipeline, recipe_overrides(list(overrides), offline=offline))
    if recipe.student is not None:
        raise InputError(f"--download tries the stages of a recipe, and {pipeline} is a student; omit the option")
    clip = bundled_clip() if video is None else open_clip(video, fps=recipe.sample.fps)
    should_offload(override_recipe(recipe, ["offline=true"]))  # raises before the download if the models do not fit
    failed: dict[str, str] = {}
    for result in fetch_models(recipe):
        if result.state == "problem":
            failed |= dict.fromkeys(result.facts["stages"], result.message)
        yield "downloads", result
    for result in try_stages(recipe, clip, failed):
        yield "stages", result


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    from openavs.pipeline.memory_estimate import choose_recipe

    is_one = len(diagnosis.recipes) == 1  # an extra that it needs is among the problems of the recipe
    extras = [result for result in diagnosis.extras if not is_one or result.state != "absent"]
    if len(diagnosis.recipes) > 1:
        choice = choose_recipe()
        echo(f"The default recipe of this machine is {choice.name} ({choice.reason}): openavs segment VIDEO\n")
    groups = {"Machine": diagnosis.machine, "Extras": extras, "Recipes": diagnosis.recipes}
    for title, results in groups.items():
        if results:
            echo(title)
            _print_results(results)
            echo()
    if is_one:
        _print_models(diagnosis.recipes[0])
    else:
        echo("Details of one recipe, with its download commands: openavs check --pipeline NAME")
    if not diagnosis.ready:
        echo(f"Not ready for {diagnosis.recipe}: fix each PROBLEM above.")
    elif any(result.state == "absent" and result.facts["recipe"] == diagnosis.recipe for result in diagnosis.recipes):
        echo(f"Ready for {diagnosis.recipe} after the download of its models.")
    else:
        echo(f"Ready for {diagnosis.recipe}.")


def _print_results(results: Sequence[CheckResult]) -> None:
    for result in results:
        echo(f"  {_MARKS[result.state]}{result.message}")
        # The downloads of a recipe are printed below it, one per model.
        if result.fix and not (result.topic == "recipe" and result.state == "absent"):
            echo(f"          -> {result.fix}")


def _print_models(recipe: CheckResult) -> None:
    from openavs.caching.store import size_to_text

    echo("Models")
    stated = recipe.facts["license"]
    if stated:
        echo(f"  licenses stated by the recipe: {stated}")
    for model in recipe.facts["models"]:
        size = "size unknown" if model["size_gb"] is None else size_to_text(round(model["size_gb"] * 1e9))
        commit = f" at {model['revision'][:12]}" if model["revision"] else ""
        license = model["license"] or ("license: see above" if stated else "license not stated")
        echo(f"  {model['state']:<9}{model['model']}{commit} ({size}, {license})")
        if model["state"] in ("partial", "missing") and model["model"].startswith("hf:"):
            echo(f"          -> {model['download']}")
    echo()
