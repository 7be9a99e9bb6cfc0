"""`openavs label`: pseudo-labels of a whole collection, resumable."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import (
    BatchSizeOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    LimitOption,
    LockOption,
    OfflineOption,
    OutOption,
    OverwriteOption,
    PipelineOption,
    QuietOption,
    VerboseOption,
    default_pipeline,
    recipe_overrides,
    split_overrides,
)
from openavs.cli.output import command_line, configure_logging, echo, log_line, print_json, warn_tiny_models

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe
    from openavs.labeling.executors.base import Executor
    from openavs.labeling.job import Job
    from openavs.labeling.manifest import JobRequest, Manifest
    from openavs.labeling.progress import JobProgress
    from openavs.labeling.readers.open import Source


class ExecutorName(StrEnum):
    """Executors of a label job."""

    local = "local"
    ray = "ray"


class ScheduleName(StrEnum):
    """How a worker goes through its clips."""

    auto = "auto"
    per_clip = "per-clip"
    per_stage = "per-stage"


NAMED = 20  # failed clips that are printed

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE [KEY=VALUE...]",
        help="A folder, a glob in quotes, a list (.txt), a manifest (.jsonl, .csv, .parquet), tars, an AVSBench root; "
        "and overrides such as filtering.box_threshold=0.3 or label_filter.min_area=0.01.",
        show_default=False,
    ),
]


def label(
    words: Words,
    out: OutOption,
    pipeline: PipelineOption = None,
    executor: Annotated[ExecutorName, typer.Option(help="local: processes on this machine; ray: a cluster.")] = (
        ExecutorName.local
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one for each GPU, or for two cores.")
    ] = None,
    shard_range: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only this part of the job, such as 3/8: for job arrays.")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Clips committed together; default 256.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker; default 1.")] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="What the folder is: s4, ms3, avss, ov, v3 or a card; default: by its tables.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="The split of the benchmark; default: all.")] = None,
    overwrite: OverwriteOption = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run the clips that failed again.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare finished files with their hashes, not with their sizes alone.")
    ] = False,
    stall_timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds without a finished clip after which a worker is killed; default: none."),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="The stage cache of what was heard and asked before.")
    ] = True,
    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="per-clip: one after another, all models in memory; per-stage: a window of clips stage by stage, "
            "models one group at a time; auto: by available memory. Results are the same."
        ),
    ] = ScheduleName.auto,
    window: Annotated[
        int | None, typer.Option(min=1, help="Clips of a window of --schedule per-stage; default 256.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print where the time went, by stage.")] = False,
    lock: LockOption = None,
    limit: LimitOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Label a collection with masks: planned, in shards, resumable."""
    from openavs.caching.stagewise import WINDOW
    from openavs.caching.store import cache_folder
    from openavs.config.recipe import load_recipe
    from openavs.labeling.job import Job
    from openavs.labeling.output_dir import open_folder
    from openavs.labeling.progress import JobProgress
    from openavs.labeling.readers.open import open_source
    from openavs.labeling.run import parse_part, shards_of

    configure_logging(quiet=quiet, verbose=verbose)
    name, overrides = _words(words)
    part = None if shard_range is None else parse_part(shard_range)
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    source = open_source(name, benchmark=benchmark, split=split)
    for note in source.notes:
        log_line(f"openavs: {note}", quiet=quiet)
    wish, root = _wish(source, recipe, shard_size, threads, limit), source.root
    out = out.absolute()
    plan = open_folder(out, wish, overwrite=overwrite, retry_failed=retry_failed)
    made = _engine(executor, workers, recipe.device, stall_timeout)
    job = Job(
        out,
        plan.key,
        root,
        wish.recipe,
        base=recipe.base,
        classes=wish.classes,
        threads=plan.data["threads"],
        lock=None if lock is None else lock.absolute(),
        cache=cache_folder() if cache else None,
        schedule=schedule.value,
        window=window or WINDOW,
        share=_share(made),
    )
    del source, wish  # the plan is on the disk: memory is not to hold a line for every clip
    numbers = shards_of(plan, part)
    _check_files(out, plan, numbers, verify, quiet)
    about = {"command": command_line(), "executor": executor.value, "source": name, "root": str(root)}
    board = JobProgress(job, plan, numbers, about)
    problem = _run(job, plan, made, board, quiet)
    _finish(board, problem, recipe, as_json=as_json, quiet=quiet, stats=stats)


def _words(words: list[str]) -> tuple[str, list[str]]:
    from openavs.errors import InputError

    named, overrides = split_overrides(words)
    if len(named) != 1:
        raise InputError(f"name one source, not {len(named)} (a glob goes in quotes)")
    return named[0], overrides


def _wish(source: Source, recipe: Recipe, shard_size: int | None, threads: int | None, limit: int | None) -> JobRequest:
    """What to plan: a benchmark's clips are taken as `evaluate` takes them, at its frames and with its classes."""
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.evaluation.evaluator import recipe_predictor
    from openavs.labeling.manifest import JobRequest

    data, classes = recipe.to_dict(), tuple(recipe.vocabulary or ())
    if source.datasets and recipe.student is not None:
        from openavs.training.inference import student_predictor

        system = student_predictor(recipe, source.datasets[0])
        data, classes = dict(system.recipe), system.labels
    elif source.datasets:
        system = recipe_predictor(recipe, source.datasets[0], load_benchmark(source.kind))
        data, classes = dict(system.recipe), system.labels
    return JobRequest(source.kind, source.items, data, classes, shard_size, threads, limit)


def _check_files(out: Path, plan: Manifest, shards: list[int], verify: bool, quiet: bool) -> None:
    """Reopens the shards whose files were lost or changed since they were committed, and says so."""
    from openavs.labeling.verification import reopen_changed
    from openavs.utils.text import pluralize

    again = reopen_changed(out, plan.key, shards, verify=verify)
    if again:
        lost = (
            f"the files of {pluralize(len(again), 'finished clip')} were lost or changed, such as those of {again[0]}"
        )
        log_line(f"openavs: {lost}; they are made again", quiet=quiet)


def _engine(name: ExecutorName, workers: int | None, device: str, patience: float | None) -> Executor:
    from openavs.labeling.executors.local import LocalExecutor
    from openavs.labeling.executors.ray import RayExecutor
    from openavs.labeling.executors.workers import default_workers, gpus

    if name is ExecutorName.ray:
        return RayExecutor(workers, patience=patience)
    devices = gpus(device)
    return LocalExecutor(workers or default_workers(devices), devices, patience)


def _share(engine: Executor) -> float:
    """The part of its device's memory that a worker has; Ray gives out whole devices, or says itself what it gave."""
    from openavs.labeling.executors.local import LocalExecutor
    from openavs.labeling.executors.workers import share_of_memory

    return share_of_memory(engine.workers, engine.devices) if isinstance(engine, LocalExecutor) else 1.0


def _run(job: Job, plan: Manifest, engine: Executor, board: JobProgress, quiet: bool) -> str | None:
    """Runs the job; returns the sentence for what ended it, if it was not its end.

    Raises:
        InputError: the result folder is no longer there.
    """
    from openavs.cli.job_errors import system_error
    from openavs.cli.job_progress import showing
    from openavs.labeling.run import run_job

    try:
        with _interrupts(board), showing(board, quiet):
            run_job(job, plan, engine, board)
    except KeyboardInterrupt:
        return "stopped at once; run the same again to go on"
    except OSError as problem:
        return system_error(problem, job.out)
    return "stopped; run the same again to go on" if board.stop else None


@contextmanager
def _interrupts(board: JobProgress) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) lets the clips at work end, the second ends at once."""

    def handle(number: int, frame: Any) -> None:
        if board.stop:
            raise KeyboardInterrupt
        board.stop = True
        log_line("openavs: stopping when the clips at work are done; once more to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(
    board: JobProgress, problem: str | None, recipe: Recipe, *, as_json: bool, quiet: bool, stats: bool
) -> None:
    """Says what became of the job and ends with its exit code."""
    from openavs.cli.job_progress import failed_clips, print_stages, reasons, result_line
    from openavs.labeling.stage_timings import stage_times
    from openavs.utils.text import pluralize

    failed = failed_clips(board, NAMED)
    for clip, reason, detail in failed:
        log_line(f"openavs: clip {clip}: {detail} ({reason})")
    count = board.status["failed"]
    if count > len(failed):
        more = pluralize(count - len(failed), "more clip")
        log_line(f"openavs: and {more} failed ({reasons(board)}); see {board.job.out}/index.jsonl")
    if problem:
        log_line(f"openavs: {problem}")
    times = stage_times(board.job.out) if stats else None
    if as_json:
        answer = {"out": str(board.job.out), "problem": problem, **board.summary()}
        print_json(answer if times is None else {**answer, "stages": times.stages})
    elif not quiet:
        echo(result_line(board))
        if board.status["ok"]:
            warn_tiny_models(recipe)
        if times is not None:
            print_stages(times)
    raise typer.Exit(1 if count or problem or board.missing else 0)
