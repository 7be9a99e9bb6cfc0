"""`openavs cache`: contents and size of the stage cache."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.output import configure_logging, echo, print_result
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.caching.store import StageCache


def cache(
    folder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Cache folder or address. Default: stages in $OPENAVS_CACHE or ~/.cache/openavs."
        ),
    ] = None,
    prune: Annotated[
        str | None,
        typer.Option(metavar="SIZE|all", help="Remove the least recently used entries down to this size, such as 2GB."),
    ] = None,
    limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Set the maximum size of the cache, such as 20GB.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Show the cached outputs of stages, remove old ones, or set the maximum size."""
    from openavs.caching.store import StageCache, size_to_bytes

    configure_logging(quiet=quiet)
    target = None if prune is None else 0 if prune == "all" else size_to_bytes(prune)
    store = StageCache(folder)
    if limit is not None:
        store.set_limit(size_to_bytes(limit))
    removed = None if target is None else store.prune(target)
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
        "folder": str(store.place),
        "entries": entries.total(),
        "bytes": sizes.total(),
        "limit": store.limit,
        "stages": {stage: {"entries": entries[stage], "bytes": sizes[stage]} for stage in sorted(entries)},
    }


def _print(facts: dict[str, Any]) -> None:
    from openavs.caching.store import size_to_text

    def line(entries: int, size: int) -> str:
        return f"{pluralize(entries, 'entry', 'entries')}, {size_to_text(size)}"

    if "removed" in facts:
        echo(f"removed {line(facts['removed']['entries'], facts['removed']['bytes'])}")
    limit = "" if facts["limit"] is None else f" of {size_to_text(facts['limit'])}"
    echo(f"{facts['folder']}: {line(facts['entries'], facts['bytes'])}{limit}")
    for stage, counts in facts["stages"].items():
        echo(f"  {stage:<11} {line(counts['entries'], counts['bytes'])}")
