"""`openavs check`: is this machine ready? In sentences, each problem with its fix."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openavs.cli.common import Json, Offline, echo, print_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from openavs.checks import Diagnosis, Finding

_MARKS = {"ok": "ok      ", "absent": "-       ", "warning": "warning ", "problem": "PROBLEM "}


def check(
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline", "-p", help="Judge this recipe: its name, a YAML file or student:DIR; default: tiny."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results would be written.")] = Path("."),
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Say whether this machine is ready, and what to do where it is not.

    Exit code 0: the recipe can run here ([bold]tiny[/] if none is named). 1: it cannot; each reason comes with its fix.
    """
    from openavs.checks import diagnose

    found = diagnose(pipeline, offline=offline, out=out)
    if as_json:
        print_json(found.to_dict())
    else:
        _print(found)
    if not found.ready:
        raise typer.Exit(1)


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
        echo(f"Not ready for {found.judged}: mend each PROBLEM above.")
    elif any(finding.state == "absent" for finding in found.recipes if finding.facts.get("recipe") == found.judged):
        echo(f"Ready for {found.judged}, once its models are downloaded.")
    else:
        echo(f"Ready for {found.judged}.")


def _print_findings(findings: Sequence[Finding]) -> None:
    for finding in findings:
        echo(f"  {_MARKS[finding.state]}{finding.says}")
        if finding.fix and not (finding.topic == "recipe" and finding.state == "absent"):
            echo(f"          -> {finding.fix}")


def _print_models(recipe: Finding) -> None:
    echo("Models")
    stated = recipe.facts["licence"]
    if stated:
        echo(f"  licences, as the recipe states them: {stated}")
    otherwise = "licence: see above" if stated else "licence not stated"
    for model in recipe.facts["models"]:
        size = "size unknown" if model["size_gb"] is None else f"{model['size_gb']:.2f} GB"
        at = f" at {model['revision'][:12]}" if model["revision"] else ""
        echo(f"  {model['state']:<9}{model['model']}{at} ({size}, {model['licence'] or otherwise})")
        if model["state"] not in ("embedded", "cached", "local") and model["model"].startswith("hf:"):
            echo(f"          -> {model['download']}")
    echo()
