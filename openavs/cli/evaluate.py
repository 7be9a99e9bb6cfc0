"""`openavs evaluate` runs a recipe on a benchmark and scores it, or compares two runs; `openavs score` scores files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.options import default_pipeline, recipe_overrides, split_overrides
from openavs.cli.output import command_line, configure_logging, echo, log_line, print_json, warn_tiny_models

if TYPE_CHECKING:
    from openavs.caching.build import StagedSchedule
    from openavs.caching.store import CachePlace
    from openavs.config.recipe import Recipe
    from openavs.evaluation.evaluator import Evaluation
    from openavs.evaluation.predictor import Failures
    from openavs.pipeline.pipeline import Pipeline
    from openavs.registry import BackendCache


def evaluate(
    words: opt.Benchmark = None,
    root: opt.DataRoot = None,
    pipeline: opt.Pipeline = None,
    out: opt.Out = Path("out"),
    split: opt.Split = "test",
    protocol: opt.Protocol = opt.ProtocolName.official,
    clips_per_batch: opt.ClipsPerBatch = None,
    allow_missing: opt.AllowMissing = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two finished runs (folders or report.json) instead of running."),
    ] = None,
    negatives: opt.Negatives = None,
    workers: opt.Workers = 1,
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
    """Run a recipe on a benchmark and score it, beside published results."""
    from openavs.cli.jobs import print_plan, stage_cache
    from openavs.cli.output import progress_bar
    from openavs.config.recipe import load_recipe
    from openavs.evaluation.benchmark import load_benchmark, open_dataset
    from openavs.evaluation.evaluator import adapt_recipe, evaluate as run_evaluation, recipe_predictor
    from openavs.evaluation.negatives import parse_kinds
    from openavs.jobs.executors.local import LocalExecutor
    from openavs.models.device import memory_share, visible_gpus

    configure_logging(quiet=quiet, verbose=verbose)
    if compare is not None:
        print_comparison(*compare, as_json)
        return
    kinds = () if negatives is None else parse_kinds(negatives)
    benchmark, overrides, root = parse_benchmark(words, root)
    card, dataset = load_benchmark(benchmark), open_dataset(benchmark, root, split)
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    executor = LocalExecutor(workers, visible_gpus(recipe.device)) if workers > 1 else None
    if recipe.student is None:
        folder, builder = stage_cache(cache), Builder(lock, stage_cache(cache))
        is_new = overwrite or not (out / "run.json").exists()
        frames = sum(len(clip.truth) for clip in dataset.clips[:limit]) * (1 + len(kinds)) if is_new else None

        def build(fit: Recipe) -> Pipeline | StagedSchedule:
            print_plan(fit, frames, lock=lock, quiet=quiet)
            return builder(fit)

        predictor = recipe_predictor(recipe, dataset, card, build, lock=lock, cache=folder)
        if executor is not None and is_new:  # its workers build the pipeline themselves
            share = memory_share(workers, executor.devices)
            print_plan(adapt_recipe(recipe, dataset, card), frames, share, lock=lock, quiet=quiet)
    else:
        from openavs.training.inference import student_predictor

        predictor = student_predictor(recipe, dataset)
    with progress_bar(card.name, quiet) as progress:
        done = run_evaluation(
            predictor,
            dataset,
            out,
            protocol=protocol.value,
            clips_per_batch=clips_per_batch,
            limit=limit,
            allow_missing=allow_missing,
            overwrite=overwrite,
            executor=executor,
            negatives=kinds,
            command=command_line(),
            progress=progress,
        )
    report_failures(done.failed, len(dataset.clips[:limit]), out, scored=done.report is not None)
    report_corrected(0 if done.report is None else done.report["corrected"])
    if as_json:
        print_json(_answer(done, card.name, split, protocol.value, clips_per_batch or dataset.clips_per_batch))
    elif done.report is not None and not quiet:
        _print_report(done.report, out)
        warn_tiny_models(recipe)
    raise typer.Exit(1 if done.failed else 0)


def parse_benchmark(words: list[str] | None, root: Path | None) -> tuple[str, list[str], Path]:
    """Return the benchmark, the overrides and the root of the data; InputError if one is missing."""
    from openavs.errors import InputError

    named, overrides = split_overrides(words or ())
    if len(named) != 1:
        raise InputError("name one benchmark, such as s4 (see 'openavs list benchmarks')")
    if root is None:
        raise InputError(f"give the folder of {named[0]}'s data with --root DIR")
    return named[0], overrides, root


class Builder:
    """Builds a recipe's pipeline: pinned by a lock file, with the stage cache, offloaded where memory is short."""

    def __init__(self, lock: Path | None, cache: CachePlace | None) -> None:
        from openavs.pipeline.lockfile import load_lock

        if lock is not None:
            load_lock(lock)  # refuses a lock file that cannot be used before anything is run
        self.lock, self.cache = lock, cache

    def __call__(self, recipe: Recipe, held: BackendCache | None = None) -> Pipeline | StagedSchedule:
        """Build the pipeline of a recipe (`held`: see `build_backends`)."""
        from openavs.caching.build import build_pipeline
        from openavs.pipeline.lockfile import add_to_lock

        built, _ = build_pipeline(recipe, lock=self.lock, cache=self.cache, held=held)
        if self.lock is not None:
            add_to_lock(self.lock, built.models)
        return built


def report_failures(failed: Failures, clips: int, out: Path, *, scored: bool) -> None:
    """Name the clips that failed and the consequence on stderr."""
    from openavs.utils.text import pluralize

    for clip, reason in failed.items():
        log_line(f"openavs: clip {clip}: {reason}")
    share = f"{len(failed)} of {pluralize(clips, 'clip')}"
    if failed and scored:
        log_line(f"openavs: {share} failed and count as empty in the figures")
    elif failed:
        log_line(
            f"openavs: {share} failed, so nothing was scored; fix them and run the same command again "
            f"(what is done in {out} stays), or count them as empty with --allow-missing"
        )


def report_corrected(clips: int) -> None:
    """Warn on stderr if a person corrected predictions that were scored."""
    from openavs.utils.text import pluralize

    if clips:
        log_line(
            f"openavs: the predictions of {pluralize(clips, 'clip')} are corrected by a person, so the figures are not "
            "those of the recipe"
        )


def print_comparison(first: Path, second: Path, as_json: bool) -> None:
    """Print two finished runs side by side."""
    from openavs.cli import tables
    from openavs.evaluation.compare import compare, read_report

    reports = read_report(first), read_report(second)
    answer = compare(*reports)
    if as_json:
        print_json({"a": str(first), "b": str(second), **answer})
    else:
        tables.print_comparison(answer)


_SHOWN = (
    *("benchmark", "task", "split", "protocol", "clips_per_batch", "clips", "frames", "metrics", "figures"),
    *("intervals", "groups", "silence", "missing", "limit", "corrected", "incomparable"),
)
_ADDED = ("negatives", "robustness")  # with --negatives


def _answer(done: Evaluation, benchmark: str, split: str, protocol: str, clips_per_batch: int) -> dict[str, Any]:
    """Return the object of --json: the report without its long tables; `metrics` is null if nothing was scored."""
    known: dict[str, Any] = {"benchmark": benchmark, "split": split, "protocol": protocol}
    known |= {"clips_per_batch": clips_per_batch, "metrics": None}
    if done.report is not None:
        known |= {key: done.report[key] for key in (*_SHOWN, *(key for key in _ADDED if key in done.report))}
        known |= {"recipe": done.report["recipe"]["name"], "seconds": done.report["timings"]["seconds"]}
    failed = [{"id": clip, "reason": reason} for clip, reason in done.failed.items()]
    return {**known, "failed": failed, "out": str(done.out)}


def _print_report(report: dict[str, Any], out: Path) -> None:
    from openavs.cli import tables
    from openavs.evaluation.leaderboard import comparable_results

    tables.print_scores(report)
    if report["incomparable"]:
        echo(f"\nThese figures do not compare with published ones: {report['incomparable']}.")
    elif rows := comparable_results(report["benchmark"], report["split"]):
        echo()
        tables.print_published(rows, limit=5, protocol=report["protocol"])
    echo(f"\nwrote {out / 'report.html'}")


def score(
    benchmark: Annotated[
        str,
        typer.Argument(metavar="BENCHMARK", help="A name of 'openavs list benchmarks', such as s4, or a card's file."),
    ],
    root: Annotated[Path, typer.Option(help="The folder that holds the benchmark's table of clips.")],
    predictions: Annotated[
        Path,
        typer.Option(help="The predicted masks (PNG) as in the truth or as published scripts write them, or one file."),
    ],
    split: opt.Split = "test",
    protocol: opt.Protocol = opt.ProtocolName.official,
    clips_per_batch: opt.ClipsPerBatch = None,
    allow_missing: opt.AllowMissing = False,
    numbering: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="The number of a clip's first mask in file names, if it differs from the benchmark's.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize masks of another size (nearest pixel) instead of failing.")
    ] = False,
    negatives: Annotated[
        str | None,
        typer.Option(
            metavar="KIND=DIR,...",
            help="Also score masks that were predicted with other sounds: silence, noise, offscreen or room, each with "
            "its folder of predictions.",
        ),
    ] = None,
    limit: opt.Limit = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json and per_clip.csv to this folder.")] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Score the predictions of any system on a benchmark."""
    from openavs import __version__
    from openavs.cli.output import progress_bar
    from openavs.cli.tables import print_scores
    from openavs.evaluation.benchmark import open_dataset
    from openavs.evaluation.evaluator import count_corrected
    from openavs.evaluation.job_io import folder_names
    from openavs.evaluation.negatives import negative_split, negatives_report, parse_folders, score_negatives
    from openavs.evaluation.scorer import score as score_masks, write_scores

    configure_logging(quiet=quiet, verbose=verbose)
    folders = {} if negatives is None else parse_folders(negatives)
    dataset = open_dataset(benchmark, root, split)
    options: dict[str, Any] = {"protocol": protocol.value, "clips_per_batch": clips_per_batch, "limit": limit}
    options |= {"allow_missing": allow_missing, "numbering": numbering, "resize": resize}
    with progress_bar(benchmark, quiet) as progress:
        scores = score_masks(dataset, predictions, progress=progress, **options)
    others = {
        kind: score_negatives(negative_split(dataset, kind, sounds=False), folder, **options)
        for kind, folder in folders.items()
    }
    read = {"predictions": str(predictions), "numbering": numbering, "resize": resize}
    origin = {"root": str(root), **read, "versions": {"openavs": __version__}}
    report: dict[str, Any] = scores.to_dict() | {"missing_clips": list(scores.missing)} | origin
    report |= negatives_report(scores.per_clip, others)
    names = folder_names(dataset.clips)
    scored = (names[clip.id] for clip in dataset.clips[:limit])
    report["corrected"] = count_corrected((predictions.absolute().parent,), scored)  # OUT of OUT/predictions
    report_corrected(report["corrected"])
    if out is not None:
        write_scores(out, report)
        log_line(f"wrote {out / 'report.json'} and {out / 'per_clip.csv'}", quiet=quiet)
    if as_json:
        print_json({key: value for key, value in report.items() if key not in ("per_clip", "curve")})  # --out has them
    elif not quiet:
        print_scores(report)
