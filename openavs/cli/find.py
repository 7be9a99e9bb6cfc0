"""`openavs index` and `openavs find`: search the results of any number of runs by what sounds."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.options import recipe_names
from openavs.cli.output import configure_logging, echo, log_line, print_result, progress_bar
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.search.query import SearchResult
    from openavs.search.sound_index import IndexSummary


def index(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The index, a SQLite file.")],
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULTS...",
            help="Output folders of segment, label or evaluate. They are added to those that FILE has.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="Also store text embeddings by the captioner of this recipe (CLAP), for 'find --similar'.",
            autocompletion=recipe_names,
        ),
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Index what sounds when in the results of any number of runs, for 'openavs find'.

    Only new and changed results are read, also of the runs that FILE has from earlier calls.
    """
    from openavs.search.sound_index import update_index

    configure_logging(quiet=quiet, verbose=verbose)
    with progress_bar("index", quiet or as_json) as bar:
        summary = update_index(out, results or (), encoder=encoder, progress=bar)
    for note in summary.notes:
        log_line(f"openavs: {note}")
    facts: dict[str, Any] = {"index": str(out), **vars(summary)}
    print_result(facts, partial(_print_summary, out, summary), as_json=as_json, quiet=quiet)
    if summary.broken:
        raise typer.Exit(1)


def _print_summary(out: Path, summary: IndexSummary) -> None:
    changes = f"{summary.new:,} new, {summary.changed:,} changed, {summary.removed:,} removed"
    echo(f"{out}: {pluralize(summary.clips, 'clip')} ({changes}), {pluralize(summary.spans, 'span')}")


def find(
    query: Annotated[str, typer.Argument(help="Words for the sound, such as 'dog barking'.", show_default=False)],
    index: Annotated[Path, typer.Option(metavar="FILE", help="The file of 'openavs index'.")],
    both: Annotated[
        list[str] | None,
        typer.Option("--and", metavar="QUERY", help="Only if this sounds at the same time. Repeatable."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--not", metavar="QUERY", help="Only if this does not sound at the same time. Repeatable."),
    ] = None,
    within: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.0, help="Time between the sounds of --and and --not; inf: anywhere in the clip."
        ),
    ] = 0.0,
    seen: Annotated[bool, typer.Option("--seen", help="Only things that are segmented, too.")] = False,
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Only this result folder, by name or path. Repeatable.")
    ] = None,
    similar: Annotated[
        float | None,
        typer.Option(
            metavar="COSINE",
            min=-1.0,
            max=1.0,
            help="Also texts of at least this similarity, such as 0.7; needs an index with --encoder.",
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of spans.")] = 20,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page with pictures of the spans, DIR/index.html.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Find the spans of an index in which something sounds, best first."""
    from openavs.search.query import SoundIndex

    configure_logging(quiet=quiet)
    with SoundIndex(index) as opened:
        result = opened.find(
            query,
            both=both or (),
            without=without or (),
            seen=seen,
            runs=run or (),
            within=within,
            similar=similar,
            limit=limit,
        )
        if not result.total:
            others = opened.find(query, limit=1).total
            reason = f"{pluralize(others, 'span')} without the conditions" if others else opened.suggestion(query)
            log_line(f"openavs: nothing matches {query!r}; {reason}", quiet=quiet)
        if out is not None:
            from openavs.search.page import write_search_page

            conditions = [*(f"and {text}" for text in both or ()), *(f"not {text}" for text in without or ())]
            page = write_search_page(out, result, " ".join([query, *conditions]), opened)
            log_line(f"openavs: the page is {page}", quiet=quiet)
    rows = [hit.to_dict() for hit in result.hits]
    print_result(rows, partial(_print_hits, result), as_json=as_json, quiet=quiet)


def _print_hits(result: SearchResult) -> None:
    for hit in result.hits:
        place = os.path.relpath(hit.folder)
        echo(
            f"{place}  {clock(hit.start)}-{clock(hit.end)}  {hit.phrase} {hit.score:.2f}{'  seen' if hit.seen else ''}"
        )
    if len(result.hits) < result.total:
        echo(f"{len(result.hits)} of {pluralize(result.total, 'span')}; --limit shows more")


def clock(seconds: float) -> str:
    """Return a time as `m:ss.s`."""
    minutes, rest = divmod(round(seconds * 10), 600)
    return f"{minutes}:{rest / 10:04.1f}"
