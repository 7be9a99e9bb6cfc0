"""`openavs label`: pseudo-labels of a whole collection, resumable."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openavs.cli import options as opt
from openavs.cli.options import default_pipeline, recipe_overrides, split_overrides
from openavs.cli.output import command_line, configure_logging, echo, log_line, print_json, warn_tiny_models

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe
    from openavs.jobs.job import Executor
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.progress import JobProgress
    from openavs.labeling.base import Source


class ExecutorName(StrEnum):
    """Executors of a label job."""

    local = "local"
    ray = "ray"


class ScheduleName(StrEnum):
    """Schedules of a worker."""

    auto = "auto"
    per_clip = "per-clip"
    per_stage = "per-stage"


MAX_NAMED = 20
"""Failed clips that are printed."""

Words = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE [KEY=VALUE...]",
        help="A folder, a glob in quotes, a list (.txt), a manifest (.jsonl, .csv, .parquet), tars, an AVSBench root; "
        "and recipe overrides such as filtering.box_threshold=0.3 or label_filter.min_area=0.01.",
        show_default=False,
    ),
]


def label(
    words: Words,
    out: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="Output folder, or its address on an object store (s3://, gs://). The same command again resumes it.",
        ),
    ],
    pipeline: opt.Pipeline = None,
    executor: Annotated[ExecutorName, typer.Option(help="local: processes on this machine; ray: a cluster.")] = (
        ExecutorName.local
    ),
    workers: Annotated[
        int | None, typer.Option(min=1, help="Worker processes; default: one for each GPU, or for two cores.")
    ] = None,
    shard_range: Annotated[
        str | None, typer.Option(metavar="I/N", help="Run only this part of the job, such as 3/8 (for job arrays).")
    ] = None,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Clips completed together; default 256.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads of each worker; default 1.")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="s4, ms3, avss, ov, v3 or a YAML file; default: known by its tables."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the benchmark; default: all.")] = None,
    overwrite: opt.Overwrite = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed clips again.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare finished files with their hashes, not only their sizes.")
    ] = False,
    stall_timeout: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds without a finished clip after which a worker is killed; default: none."),
    ] = None,
    cache: opt.Cache = True,
    schedule: Annotated[
        ScheduleName,
        typer.Option(
            help="per-clip: one clip after the other, all models in memory; per-stage: a window of clips stage by "
            "stage, models one group at a time; auto: by available memory. Results are the same."
        ),
    ] = ScheduleName.auto,
    window: Annotated[
        int | None, typer.Option(min=1, help="Clips of a window of --schedule per-stage; default 256.")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print the seconds of each stage.")] = False,
    lock: opt.Lock = None,
    limit: opt.Limit = None,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    batch_size: opt.BatchSize = None,
    offline: opt.Offline = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Label a collection with masks: planned, in shards, resumable."""
    from openavs.caching.build import WINDOW
    from openavs.cli.jobs import print_plan, report_changed, run_stoppable, stage_cache
    from openavs.config.recipe import load_recipe, recipe_from_dict
    from openavs.jobs.job import PIPELINE_BUILDER, STUDENT_BUILDER, Job
    from openavs.jobs.manifest import IDENTITY
    from openavs.jobs.output_dir import open_folder, reopen_changed
    from openavs.jobs.progress import JobProgress
    from openavs.jobs.run import parse_shard_range, shards_of
    from openavs.labeling.open import open_source

    configure_logging(quiet=quiet, verbose=verbose)
    name, overrides = _source_name(words)
    part = None if shard_range is None else parse_shard_range(shard_range)
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    with result_folder(out) as (folder, store, owner):
        source = open_source(name, benchmark=benchmark, split=split)
        for note in source.notes:
            log_line(f"openavs: {note}", quiet=quiet)
        request, root = _request(source, recipe, shard_size, threads, limit), source.root
        chosen = _executor(executor, workers, recipe.device, stall_timeout)
        share = _memory_share(chosen)
        full = recipe_from_dict(dict(request.recipe), recipe.base)

        def plan() -> None:
            print_plan(full, share=share, lock=lock, quiet=quiet)

        is_planned = executor is ExecutorName.local and recipe.student is None
        is_new = not os.path.lexists(folder / IDENTITY)
        if is_planned and is_new:  # a recipe that cannot run leaves no folder
            plan()
        manifest = open_folder(folder, request, overwrite=overwrite, retry_failed=retry_failed)
        job = Job(
            folder,
            manifest.key,
            root,
            request.recipe,
            base=recipe.base,
            sink="openavs.evaluation.job_io:LabelSink",
            builder=PIPELINE_BUILDER if recipe.student is None else STUDENT_BUILDER,
            classes=request.classes,
            threads=manifest.threads,
            lock=None if lock is None else lock.absolute(),
            cache=stage_cache(cache),
            schedule=schedule.value,
            window=window or WINDOW,
            share=share,
            source=source.url,
            store=store,
            owner=owner,
        )
        del source, request  # the manifest is on disk: memory is not to hold a sample for every clip
        numbers = shards_of(manifest, part)
        report_changed(reopen_changed(folder, manifest.key, numbers, verify=verify), quiet)
        about = {"command": command_line(), "executor": executor.value, "source": name, "root": job.source or str(root)}
        progress = JobProgress(job, manifest, numbers, about)
        if is_planned and not is_new and progress.left:
            plan()
        problem = run_stoppable(job, manifest, chosen, progress, quiet, parquet=True)
        _finish(progress, problem, recipe, as_json=as_json, quiet=quiet, stats=stats)


@contextmanager
def result_folder(out: str) -> Iterator[tuple[Path, str | None, str]]:
    """Yield the folder that this machine works in, and the address and this run's name if `out` is on a store.

    Raises:
        InputError: the store cannot be used.
    """
    from openavs.errors import InputError
    from openavs.jobs.job_store import scratch_of
    from openavs.utils.fs import refuse_address
    from openavs.utils.objects import is_object_url

    if not is_object_url(out):
        refuse_address(out)
        yield Path(out).absolute(), None, ""
    elif out.startswith("memory:"):
        raise InputError(f"{out} would end with this process; give a folder, or an object store such as s3://")
    else:
        with scratch_of(out) as store:
            yield store.out, store.url, store.owner


def _source_name(words: list[str]) -> tuple[str, list[str]]:
    """Return the source and the recipe overrides."""
    from openavs.errors import InputError

    named, overrides = split_overrides(words)
    if len(named) != 1:
        raise InputError(f"name one source, not {len(named)} (a glob goes in quotes)")
    return named[0], overrides


def _request(
    source: Source, recipe: Recipe, shard_size: int | None, threads: int | None, limit: int | None
) -> JobRequest:
    """Return the contents of the manifest; a benchmark is run as `evaluate` runs it, at its frames and classes."""
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.evaluation.evaluator import recipe_predictor
    from openavs.jobs.manifest import JobRequest

    fit, classes, data = recipe.to_dict(), tuple(recipe.vocabulary or ()), {}
    if source.datasets:
        data = {"benchmark": source.kind}
        if recipe.student is not None:
            from openavs.training.inference import student_predictor

            predictor = student_predictor(recipe, source.datasets[0])
        else:
            predictor = recipe_predictor(recipe, source.datasets[0], load_benchmark(source.kind))
        fit, classes = dict(predictor.recipe), predictor.labels
    return JobRequest(
        source.kind, source.samples, fit, classes, data, shard_size=shard_size, threads=threads, limit=limit
    )


def _executor(name: ExecutorName, workers: int | None, device: str, stall_timeout: float | None) -> Executor:
    from openavs.jobs.executors.local import LocalExecutor
    from openavs.jobs.executors.ray import RayExecutor
    from openavs.models.device import default_workers, visible_gpus

    if name is ExecutorName.ray:
        return RayExecutor(workers, stall_timeout=stall_timeout)
    devices = visible_gpus(device)
    return LocalExecutor(workers or default_workers(devices), devices, stall_timeout)


def _memory_share(executor: Executor) -> float:
    """Return the part of its device's memory that a worker may use; Ray assigns whole devices or known parts."""
    from openavs.jobs.executors.local import LocalExecutor
    from openavs.models.device import memory_share

    return memory_share(executor.workers, executor.devices) if isinstance(executor, LocalExecutor) else 1.0


def _finish(
    progress: JobProgress, problem: str | None, recipe: Recipe, *, as_json: bool, quiet: bool, stats: bool
) -> None:
    """Print the result of the job and end with its exit code."""
    from openavs.cli.jobs import failed_clips, print_stages, result_line
    from openavs.cli.output import reasons
    from openavs.jobs.checkpoint import stage_times
    from openavs.utils.text import pluralize

    failed = failed_clips(progress, MAX_NAMED)
    for clip, reason, detail in failed:
        log_line(f"openavs: clip {clip}: {detail} ({reason})")
    count = progress.status["failed"]
    if count > len(failed):
        more = pluralize(count - len(failed), "more clip")
        log_line(f"openavs: and {more} failed ({reasons(progress)}); see {progress.job.place}/index.jsonl")
    if problem:
        log_line(f"openavs: {problem}")
    times = stage_times(progress.job.out) if stats else None
    if as_json:
        answer = {"out": progress.job.place, "problem": problem, **progress.summary()}
        print_json(answer if times is None else {**answer, "stages": times.stages})
    elif not quiet:
        echo(result_line(progress))
        if progress.status["ok"]:
            warn_tiny_models(recipe)
        if times is not None:
            print_stages(times)
    raise typer.Exit(1 if count or problem or progress.missing else 0)
