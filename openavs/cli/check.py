"""`openavs check`: is this machine ready? In sentences, each problem with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openavs.cli.options import JsonOption, OfflineOption, recipe_overrides, refuse_bare_keys, split_overrides
from openavs.cli.output import echo, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from openavs.checks import CheckResult, Diagnosis

_MARKS = {"ok": "ok      ", "absent": "-       ", "warning": "warning ", "problem": "PROBLEM "}


def check(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Judge the recipe of --pipeline with these changes, such as detector.model=FILE.",
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline", "-p", help="Judge this recipe: its name, a YAML file or student:DIR; default: tiny."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results would be written.")] = Path("."),
    download: Annotated[
        bool,
        typer.Option("--download", help="Download what is missing, then load each stage and run it once."),
    ] = False,
    video: Annotated[
        Path | None,
        typer.Option("--try", metavar="VIDEO", help="With --download: run on this video, not on a synthetic second."),
    ] = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
) -> None:
    """Say whether this machine is ready, and what to do where it is not.

    Exit code 0: the recipe can run here ([bold]tiny[/] if none is named). 1: it cannot; each reason comes with its fix.
    """
    from openavs.checks import diagnose
    from openavs.errors import InputError

    named, changes = split_overrides(overrides or ())
    refuse_bare_keys(named)
    if named:
        raise InputError(f"check takes KEY=VALUE, not {named[0]}; a recipe is named with --pipeline")
    if changes and pipeline is None:
        raise InputError(f"{changes[0]} changes a recipe; name it with --pipeline")
    if video is not None and not download:
        raise InputError("--try runs the stages, which may need downloads; add --download")
    found = diagnose(pipeline or ("tiny" if download else None), changes, offline=offline, out=out)
    answer = found.to_dict()
    if not as_json:
        _print(found)
    worked = found.ready
    if worked and download:
        for key, finding in _tried(found.judged if pipeline is None else pipeline, changes, video, offline):
            worked = worked and finding.state != "problem"
            answer.setdefault(key, []).append(finding.to_dict())
            if not as_json:
                _print_findings([finding])
        answer["ready"] = worked
    if as_json:
        print_json(answer)
    elif download and found.ready:
        echo("Every stage works." if worked else f"Not ready for {found.judged}: each PROBLEM above names its stage.")
    if not worked:
        raise typer.Exit(1)


def _tried(
    pipeline: str, changes: Sequence[str], video: Path | None, offline: bool
) -> Iterator[tuple[str, CheckResult]]:
    """The models as they are downloaded and the stages as they are tried, each with its key in the JSON."""
    from openavs.checks.downloads import fetch_models
    from openavs.checks.trial import bundled_clip, try_stages
    from openavs.config.recipe import load_recipe, override_recipe
    from openavs.errors import InputError
    from openavs.media import open_clip
    from openavs.pipeline.memory_estimate import should_offload

    recipe = load_recipe(pipeline, recipe_overrides(list(changes), offline=offline))
    if recipe.student is not None:
        raise InputError(f"--download tries the stages of a recipe, and {pipeline} is a student; leave the option out")
    clip = bundled_clip() if video is None else open_clip(video, fps=recipe.sample.fps)
    should_offload(override_recipe(recipe, ["offline=true"]))  # refuses before the download what is known not to fit
    failed: dict[str, str] = {}
    for finding in fetch_models(recipe):
        if finding.state == "problem":
            failed |= dict.fromkeys(finding.facts["stages"], finding.says)
        yield "downloads", finding
    for finding in try_stages(recipe, clip, failed):
        yield "stages", finding


def _print(found: Diagnosis) -> None:
    for title, findings in (("Machine", found.machine), ("Extras", found.extras), ("Recipes", found.recipes)):
        if findings:
            echo(title)
            _print_findings(findings)
            echo()
    if len(found.recipes) == 1:
        _print_models(found.recipes[0])
    else:
        echo("openavs check --pipeline NAME says all about one recipe, and how to download its models.")
    if not found.ready:
        echo(f"Not ready for {found.judged}: fix each PROBLEM above.")
    elif any(finding.state == "absent" for finding in found.recipes if finding.facts.get("recipe") == found.judged):
        echo(f"Ready for {found.judged}, once its models are downloaded.")
    else:
        echo(f"Ready for {found.judged}.")


def _print_findings(findings: Sequence[CheckResult]) -> None:
    for finding in findings:
        echo(f"  {_MARKS[finding.state]}{finding.says}")
        if finding.fix and not (finding.topic == "recipe" and finding.state == "absent"):
            echo(f"          -> {finding.fix}")


def _print_models(recipe: CheckResult) -> None:
    echo("Models")
    stated = recipe.facts["license"]
    if stated:
        echo(f"  licenses, as the recipe states them: {stated}")
    otherwise = "license: see above" if stated else "license not stated"
    for model in recipe.facts["models"]:
        size = "size unknown" if model["size_gb"] is None else f"{model['size_gb']:.2f} GB"
        at = f" at {model['revision'][:12]}" if model["revision"] else ""
        echo(f"  {model['state']:<9}{model['model']}{at} ({size}, {model['license'] or otherwise})")
        if model["state"] not in ("embedded", "cached", "local") and model["model"].startswith("hf:"):
            echo(f"          -> {model['download']}")
    echo()
