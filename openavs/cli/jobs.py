"""Shared parts of the commands that run jobs: options, interruption, system errors, and results as text."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.cli.output import echo, job_progress, log_line
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.caching.store import CachePlace
    from openavs.config.recipe import Recipe
    from openavs.jobs.checkpoint import StageTimes
    from openavs.jobs.job import Executor, Job
    from openavs.jobs.manifest import Manifest
    from openavs.jobs.progress import JobProgress
    from openavs.structures.types import ClipResult

# Errors of the system when another process has removed or replaced a file.
REMOVED = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


def stage_cache(wanted: bool) -> CachePlace | None:
    """Return the folder or the address of the stage cache, if it is wanted."""
    from openavs.caching.store import cache_place

    return cache_place() if wanted else None


# ------------------------------------------------------------------------------------------------------------- plan


def print_plan(
    recipe: Recipe, frames: int | None = None, share: float = 1.0, *, lock: Path | None = None, quiet: bool
) -> None:
    """Print what a run downloads and takes.

    Args:
        recipe: to run.
        frames: number of frames to process; None if unknown.
        share: part of the device's free memory that each worker may use.
        lock: a file of pinned model commits.
        quiet: print what keeps the recipe from running only.

    Raises:
        InputError: the recipe cannot run on this machine.
    """
    from openavs.checks.plan import plan_run
    from openavs.errors import InputError
    from openavs.pipeline.lockfile import load_lock, pin_recipe

    plan = plan_run(pin_recipe(recipe, load_lock(lock)) if lock else recipe, share)
    refusal = list(plan.refuse())
    if len(refusal) == 1:
        raise InputError(refusal[0])
    if refusal:
        for line in refusal:
            log_line(line if line.startswith(" ") else f"openavs: {line}")
        raise InputError(
            f"nothing was loaded; 'openavs check --pipeline {recipe.name}' has the details, 'openavs list recipes' "
            "other recipes"
        )
    for line in plan.lines(frames):
        log_line(line if line.startswith(" ") else f"openavs: {line}", quiet=quiet)


@contextmanager
def missing_listed(recipe: Recipe) -> Iterator[None]:
    """If a download fails, print the commands for all models that are still missing."""
    from openavs.checks.plan import download_lines
    from openavs.errors import ModelError

    try:
        yield
    except ModelError:
        commands = download_lines(recipe)
        if commands:
            log_line(f"openavs: models of the recipe {recipe.name} that are not on this disk can be downloaded with")
            for command in commands:
                log_line(f"  {command}")
        raise


# ------------------------------------------------------------------------------------------------------ running a job


def run_stoppable(
    job: Job, manifest: Manifest, executor: Executor, progress: JobProgress, quiet: bool, *, parquet: bool = False
) -> str | None:
    """Run a job with its progress on stderr; returns the sentence for what ended it early, if anything did.

    Raises:
        InputError: the result folder no longer exists.
    """
    from openavs.jobs.run import run_job

    try:
        with _stop_on_signals(progress), job_progress(progress, quiet):
            run_job(job, manifest, executor, progress, parquet=parquet)
    except KeyboardInterrupt:
        return "stopped at once; run the same command again to resume"
    except OSError as error:
        return system_error(error, job.out)
    return "stopped; run the same command again to resume" if progress.stop else None


@contextmanager
def _stop_on_signals(progress: JobProgress) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the job after the clips under way, the second ends it at once."""

    def handle(number: int, frame: Any) -> None:
        if progress.stop:
            raise KeyboardInterrupt
        progress.stop = True
        log_line("openavs: stopping after the clips under way; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def system_error(error: OSError, out: Path) -> str:
    """Return the sentence for a system error that ended a job.

    Raises:
        InputError: the result folder no longer exists.
        OSError: `error`, if its cause is not known.
    """
    from openavs.cli.app import REFUSALS
    from openavs.errors import InputError
    from openavs.jobs.manifest import IDENTITY
    from openavs.utils.fs import FATAL_ERRNOS

    if error.errno in REMOVED and not (out / IDENTITY).is_file():
        raise InputError(
            f"{out} was removed while the job ran, and its results are lost; remove what is left of it and run again"
        ) from error
    path = str(error.filename or "")
    name = path if os.path.isabs(path) else f"a file of {out}"
    own = name != path or Path(path).is_relative_to(out)
    if error.errno in REMOVED and own:
        return (
            f"{name} was removed or replaced while the job ran ({error.strerror}), by hand or by another job that "
            "the file system's locks did not keep out; run the same command again to make it again"
        )
    if error.errno not in REFUSALS | FATAL_ERRNOS:
        raise error
    verb = "read or written" if own else "read"
    return f"{name} cannot be {verb} ({error.strerror}); free disk space or change its permissions, then run it again"


def report_changed(again: Sequence[str], quiet: bool) -> None:
    """Name the finished clips whose files were lost or changed."""
    if again:
        clips = pluralize(len(again), "finished clip")
        lost = f"the files of {clips} were lost or changed, such as those of {again[0]}"
        log_line(f"openavs: {lost}; they are made again", quiet=quiet)


# --------------------------------------------------------------------------------------------------- a job as text


def result_line(progress: JobProgress) -> str:
    """Return the result of a label job in a line or two."""
    counts = progress.status
    segments, clips = _rejections(progress)
    line = f"{counts['ok']} of {pluralize(progress.manifest.clips, 'clip')} labeled"
    line += f", {counts['filtered']} filtered ({clips})" if counts["filtered"] else ""
    line += f", {counts['failed']} failed" if counts["failed"] else ""
    left = progress.manifest.clips - counts.total()
    line += f", {left} not done yet" if left else ""
    line += f"\nrejected in frames: {segments}" if segments else ""
    return f"{line}\n-> {progress.job.place}"


def _rejections(progress: JobProgress) -> tuple[str, str]:
    """Return the rejected prompts and segments by reason, and the clips dropped as a whole by filter."""
    from openavs.results.filters import CLIP_RULES

    whole = {f"label_filter.{rule}" for rule in CLIP_RULES}
    parts = [
        ", ".join(
            f"{reason} {count}" for reason, count in progress.rejected.most_common() if (reason in whole) is of_clips
        )
        for of_clips in (False, True)
    ]
    return parts[0], parts[1]


def failed_clips(progress: JobProgress, most: int) -> list[tuple[str, str, str]]:
    """Return the first clips that failed: id, reason, sentence."""
    from openavs.jobs.checkpoint import read_completion

    found: list[tuple[str, str, str]] = []
    if not progress.reasons:
        return found
    for shard in sorted(progress.shards):
        completion = read_completion(progress.job.out, shard, progress.manifest.key)
        rows = completion["rows"] if completion is not None and completion["reasons"] else []
        found += [(row["id"], row["reason"], row["detail"]) for row in rows if row["status"] == "failed"]
        if len(found) >= most:
            break
    return found[:most]


def print_stages(times: StageTimes) -> None:
    """Print the table of seconds by stage."""
    from openavs.cli.tables import table_text

    clips, total = max(times.clips, 1), times.seconds or 1.0
    stages = {**times.stages, "read and write": max(0.0, times.seconds - sum(times.stages.values()))}
    rows = [[stage, f"{s:.1f}", f"{s / clips:.3f}", f"{s / total:.0%}"] for stage, s in stages.items()]
    echo(table_text(["stage", "seconds", "s/clip", "share"], rows))


# --------------------------------------------------------------------------------------------------- a clip as text


def clip_summary(result: ClipResult) -> dict[str, Any]:
    """Return the captions and found objects of a clip, each with its best score, best first, with the reasons."""
    from openavs.visualization.colors import palette_of
    from openavs.visualization.reasons import chain_texts, count_caveats, remedy_text, unprompted_texts

    palette = palette_of(result.frames)
    captions: dict[str, float | None] = {}
    found: dict[str, float] = {}
    for frame in result.frames:
        for caption in frame.captions:
            captions[caption.text] = max(captions.get(caption.text) or 0.0, caption.score or 0.0) or None
        for segment in frame.segments:
            found[palette.name(segment)] = max(found.get(palette.name(segment), 0.0), segment.score)
    frames = result.frames
    why = {
        "chains": chain_texts([palette.shown(frame) for frame in frames]),
        "unprompted": unprompted_texts(frames),
        "remedy": remedy_text(frames),
    }
    return {"captions": _ranked(captions), "found": _ranked(found), "caveats": count_caveats(frames), **why}


def _ranked(scores: dict[str, Any]) -> list[dict[str, Any]]:
    order = sorted(scores, key=lambda text: -(scores[text] or 0.0))
    return [{"text": text, "score": None if scores[text] is None else round(scores[text], 4)} for text in order]


def in_words(items: list[dict[str, Any]]) -> str:
    """Return `dog barking (0.81), bell ringing (0.40)`, or `nothing`."""
    shown = [f"{i['text']} ({i['score']:.2f})" if i["score"] is not None else str(i["text"]) for i in items]
    return ", ".join(shown) or "nothing"
