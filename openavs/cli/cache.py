"""`openavs cache`: what the stage cache holds, and making it smaller."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import JsonOption, QuietOption
from openavs.cli.output import configure_logging, echo, print_result

if TYPE_CHECKING:
    from openavs.caching.store import StageCache

Folder = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The cache; default: stages in $OPENAVS_CACHE, or in ~/.cache/openavs."),
]
Prune = Annotated[
    str | None,
    typer.Option(metavar="SIZE|all", help="Remove what was used longest ago until so much is left, as in 2GB."),
]
Limit = Annotated[str | None, typer.Option(metavar="SIZE", help="Let it grow to this size, as in 20GB, from now on.")]


def cache(
    folder: Folder = None,
    prune: Prune = None,
    limit: Limit = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what stages have answered before and is kept, and make it smaller."""
    from openavs.caching.store import StageCache, size_to_bytes

    configure_logging(quiet=quiet)
    wanted = None if prune is None else 0 if prune == "all" else size_to_bytes(prune)
    store = StageCache(folder)
    if limit is not None:
        store.set_limit(size_to_bytes(limit))
    removed = None if wanted is None else store.prune(wanted)
    facts = _facts(store)
    if removed is not None:
        facts["removed"] = {"entries": len(removed), "bytes": sum(entry.size for entry in removed)}
    print_result(facts, partial(_print, facts), as_json=as_json, quiet=quiet)


def _facts(store: StageCache) -> dict[str, Any]:
    entries, sizes = Counter[str](), Counter[str]()
    for entry in store.entries():
        entries[entry.stage] += 1
        sizes[entry.stage] += entry.size
    return {
        "folder": str(store.folder),
        "entries": entries.total(),
        "bytes": sizes.total(),
        "limit": store.limit,
        "stages": {stage: {"entries": entries[stage], "bytes": sizes[stage]} for stage in sorted(entries)},
    }


def _print(facts: dict[str, Any]) -> None:
    from openavs.caching.store import size_to_text
    from openavs.utils.text import pluralize

    def line(entries: int, size: int) -> str:
        return f"{pluralize(entries, 'answer')}, {size_to_text(size)}"

    if "removed" in facts:
        echo(f"removed {line(facts['removed']['entries'], facts['removed']['bytes'])}")
    echo(f"{facts['folder']}: {line(facts['entries'], facts['bytes'])} of {size_to_text(facts['limit'])}")
    for stage, own in facts["stages"].items():
        echo(f"  {stage:<11} {line(own['entries'], own['bytes'])}")
