"""`openavs ablate`: evaluates the variants of a study on a benchmark and prints one table."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.evaluate import Builder, parse_benchmark, report_failures
from openavs.cli.jobs import stage_cache
from openavs.cli.options import default_pipeline, recipe_overrides
from openavs.cli.output import command_line, configure_logging, echo, log_line, print_result


def ablate(
    words: opt.Benchmark = None,
    study: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="A study (see [bold]openavs list studies[/]) or its YAML file."),
    ] = None,
    root: opt.DataRoot = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            "-p",
            help="The recipe that is varied; default: the study's, else the one for this machine.",
            show_default=False,
        ),
    ] = None,
    out: opt.Out = Path("out"),
    variants: Annotated[str | None, typer.Option(metavar="A,B", help="Only these variants of the study.")] = None,
    split: opt.Split = "test",
    protocol: opt.Protocol = opt.ProtocolName.official,
    clips_per_batch: opt.ClipsPerBatch = None,
    negatives: opt.Negatives = None,
    allow_missing: opt.AllowMissing = False,
    cache: opt.Cache = True,
    lock: opt.Lock = None,
    overwrite: opt.Overwrite = False,
    limit: opt.Limit = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_size: opt.BatchSize = None,
    offline: opt.Offline = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Evaluate the variants of a study side by side."""
    from openavs.errors import InputError
    from openavs.evaluation.ablation import load_study, run_study, study_recipes
    from openavs.evaluation.benchmark import load_benchmark, open_dataset
    from openavs.evaluation.negatives import parse_kinds

    configure_logging(quiet=quiet, verbose=verbose)
    kinds = () if negatives is None else parse_kinds(negatives)
    benchmark, overrides, root = parse_benchmark(words, root)
    if study is None:
        raise InputError("name a study with --study, such as threshold (see 'openavs list studies')")
    chosen = load_study(study).select([word.strip() for word in variants.split(",")] if variants else None)
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipes = study_recipes(chosen, pipeline or chosen.pipeline or default_pipeline(shared, quiet=quiet), shared)
    card, dataset = load_benchmark(benchmark), open_dataset(benchmark, root, split)
    with _ProgressBars(quiet) as bars:
        result = run_study(
            chosen,
            recipes,
            dataset,
            card,
            out,
            protocol=protocol.value,
            clips_per_batch=clips_per_batch,
            limit=limit,
            allow_missing=allow_missing,
            overwrite=overwrite,
            negatives=kinds,
            command=command_line(),
            build=Builder(lock, stage_cache(cache)),
            progress=bars.start,
        )
    clips = len(dataset.clips[:limit])
    for row in result["variants"]:
        if row["failed"]:
            log_line(f"openavs: the variant {row['name']}:")
            failed = {item["id"]: item["reason"] for item in row["failed"]}
            report_failures(failed, clips, out / row["name"], scored=row["metrics"] is not None)
    print_result({**result, "out": str(out)}, partial(_print_study, result, out), as_json=as_json, quiet=quiet)
    raise typer.Exit(1 if any(row["failed"] for row in result["variants"]) else 0)


class _ProgressBars:
    """Progress bars of the variants, one at a time."""

    def __init__(self, quiet: bool) -> None:
        from contextlib import ExitStack

        self._quiet, self._current = quiet, ExitStack()

    def start(self, variant: str) -> Any:
        from openavs.cli.output import progress_bar

        self._current.close()
        return self._current.enter_context(progress_bar(variant, self._quiet))

    def __enter__(self) -> _ProgressBars:
        return self

    def __exit__(self, *error: object) -> None:
        self._current.close()


def _print_study(result: dict[str, Any], out: Path) -> None:
    from openavs.cli.tables import table_text
    from openavs.evaluation.ablation import main_figures
    from openavs.evaluation.benchmark import figure_name, protocol_name, title_of
    from openavs.utils.text import pluralize

    figures = main_figures(result["task"], result["benchmark"])
    names = [figure_name(name, result["task"]) for name in figures]
    kinds = list(dict.fromkeys(kind for row in result["variants"] for kind in row.get("negatives", ())))
    names += [f"FPR, {kind}" for kind in kinds]
    rows = [_row(row, figures, kinds, result["baseline"]) for row in result["variants"]]
    with_published = any(row["published"] for row in result["variants"])
    clips = pluralize(result["clips"] or 0, "clip")
    echo(f"{result['title']} on {title_of(result['benchmark'])}, {result['split']}: {clips}")
    echo(f"percent, {protocol_name(result, result['protocol'])}; per clip: the paired difference [95 %]\n")
    head = ["variant", *names, f"per clip, against {result['baseline']}", "published J, F"]
    echo(table_text(head, rows) if with_published else table_text(head[:-1], [row[:-1] for row in rows]))
    if result["mirrors"]:
        echo(f"\nafter {result['mirrors']}")
    echo(f"\nwrote {out / 'ablation.json'}")


def _row(row: dict[str, Any], figures: Any, kinds: list[str], baseline: str) -> list[str]:
    from openavs.evaluation.benchmark import percent
    from openavs.utils.text import pluralize

    if row["metrics"] is None:
        shown, change = ["–"] * (len(figures) + len(kinds)), f"{pluralize(len(row['failed']), 'clip')} failed"
    else:
        shown = [percent(row["metrics"].get(name)) for name in figures]
        shown += [percent(row["negatives"][kind]["fpr"]) for kind in kinds]
        change = "" if row["name"] == baseline else _change(row["difference"])
    published = row["published"]
    return [row["name"], *shown, change, f"{published['j']:g}, {published['f']:g}" if published else ""]


def _change(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "–"
    score = difference["score"]
    low, high = score["interval"]
    return f"{100 * score['difference']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
