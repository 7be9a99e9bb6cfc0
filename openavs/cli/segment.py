"""`openavs segment`: masks, overlay, report and result.json of one or more videos."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.options import default_pipeline, recipe_overrides, refuse_bare_keys, split_overrides
from openavs.cli.output import command_line, configure_logging, echo, log_line, print_json, warn_tiny_models
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.cli.output import ProgressBar
    from openavs.config.recipe import Recipe
    from openavs.jobs.job import ClipFinished
    from openavs.jobs.progress import JobProgress
    from openavs.structures.types import Clip


def segment(
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO... [KEY=VALUE...]",
            help="Videos, folders of videos, images or folders of images; and recipe overrides such as "
            "filtering.nms_iou=0.5.",
        ),
    ],
    pipeline: opt.Pipeline = None,
    out: opt.Out = Path("out"),
    audio: Annotated[Path | None, typer.Option(help="Use the sound of this file (one video only).")] = None,
    vocab: Annotated[str | None, typer.Option(help="Find only these objects, comma-separated: dog,cat,bell.")] = None,
    refer: Annotated[
        str | None,
        typer.Option(help='Find only what a sentence chooses: --refer "the instrument that plays first".'),
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least score of a box, 0 to 1; lower finds more. Default: from the recipe.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames per second to segment. Default: from the recipe.")] = None,
    track: Annotated[
        bool,
        typer.Option("--track", help="Number each object through the clip (tracker iou, unless the recipe has one)."),
    ] = False,
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
    """Find, name and segment the sounding objects in videos."""
    from openavs.config import resources
    from openavs.config.recipe import load_recipe, override_recipe
    from openavs.errors import InputError
    from openavs.utils.fs import is_missing, refuse_address, safe_ids

    configure_logging(quiet=quiet, verbose=verbose)
    named, overrides = split_overrides(videos)
    for name in (*named, audio or ""):
        refuse_address(name)
    refuse_bare_keys(named)
    words = None if vocab is None else json.dumps(vocab)
    own = {"vocabulary": words, "filtering.box_threshold": threshold, "sample.fps": fps}
    overrides += [f"{key}={value}" for key, value in own.items() if value is not None]
    for path in [*map(Path, named), audio]:
        if path is not None and is_missing(path):
            is_recipe = str(path) in resources.names("pipelines")
            advice = f"the recipe is named with --pipeline {path}" if is_recipe else "check the name"
            raise InputError(f"{path} does not exist; {advice}")
    paths = _videos(map(Path, named), quiet)[:limit]
    if not paths or (audio is not None and len(paths) > 1):
        raise InputError("--audio goes with exactly one video" if paths else "name at least one video")
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    if track and recipe.tracker is None:
        recipe = override_recipe(recipe, ["tracker={use: iou}"])
    named_paths = dict(zip(safe_ids(paths), paths, strict=True))
    if refer is not None and (not refer.strip() or recipe.student is not None):
        reason = (
            "is empty; write a sentence" if not refer.strip() else "goes with a recipe; a student reads no sentences"
        )
        raise InputError(f"--refer {reason}")
    report = _Report(out, named_paths, audio, with_captions=recipe.student is None, silent=quiet or as_json)
    with _interruption_reported(report, overwrite):
        _run(recipe, report, refer=refer, workers=workers, cache=cache, lock=lock, overwrite=overwrite, quiet=quiet)
    answers = report.in_order()
    failed = sum(answer["status"] == "failed" for answer in answers)
    if as_json:
        print_json({"out": str(out), "ok": len(answers) - failed, "failed": failed, "clips": answers})
    elif not quiet and failed < len(answers):
        warn_tiny_models(recipe)
    raise typer.Exit(1 if failed else 0)


def _videos(paths: Iterable[Path], quiet: bool) -> list[Path]:
    """Return the videos that arguments name: a folder of videos stands for those below it."""
    from openavs.labeling.files import videos_below

    found: list[Path] = []
    for path in paths:
        inside = videos_below(path) if os.path.isdir(path) else [path]  # `Path.is_dir` raises where it is refused
        if inside != [path]:
            log_line(f"openavs: {path} holds {pluralize(len(inside), 'video')}", quiet=quiet)
        found += inside
    return found


@contextmanager
def _interruption_reported(report: _Report, overwrite: bool) -> Iterator[None]:
    """On Ctrl-C, print how many clips are done and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum(answer["status"] == "ok" for answer in report.answers.values())
        how = "without --overwrite" if overwrite else "again"
        kept = f", their results are in {report.out}" if done else ""
        log_line(
            f"openavs: interrupted with {done} of {pluralize(len(report.paths), 'clip')} done{kept}; "
            f"run the same command {how} to continue"
        )
        raise


def _run(
    recipe: Recipe,
    report: _Report,
    *,
    refer: str | None,
    workers: int,
    cache: bool,
    lock: Path | None,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Run the job of a command."""
    from openavs.cli.jobs import missing_listed, print_plan, report_changed, stage_cache
    from openavs.cli.output import job_progress, progress_bar
    from openavs.jobs.executors.local import LocalExecutor
    from openavs.jobs.job import PIPELINE_BUILDER, REPORT_SINK, STUDENT_BUILDER, Executor, Job, import_name
    from openavs.jobs.loader import count_frames
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.output_dir import open_folder, pending_samples, reopen_changed
    from openavs.jobs.progress import JobProgress
    from openavs.jobs.run import run_job
    from openavs.jobs.run_page import NAME as PAGE, write_run_page
    from openavs.jobs.sample import Sample, file_size
    from openavs.jobs.shard import InlineExecutor, no_pipeline
    from openavs.models.device import default_threads, memory_share, visible_gpus
    from openavs.pipeline.lockfile import load_lock, pin_recipe

    classes = tuple(recipe.vocabulary or ())
    folder, is_student = stage_cache(cache), recipe.student is not None
    builder = STUDENT_BUILDER if is_student else PIPELINE_BUILDER
    out, root = report.out.absolute(), Path.cwd()
    audio = None if report.audio is None else str(report.audio)
    samples = [
        Sample(id, str(path), bytes=file_size(path), audio=audio, expression=refer) for id, path in report.paths.items()
    ]
    built: Any = None
    if is_student:  # its classes are known once it is built
        built = import_name(builder)(recipe, lock=lock, cache=folder)
        classes = tuple(built[0].classes[1:]) if built[0].classes else ()
        lock = None  # a folder needs no pin
    request = JobRequest(
        "segment",
        samples,
        recipe.to_dict(),
        classes,
        command="segment",
        default_threads=default_threads(workers),
    )
    # Before the folder is made: neither a bad file nor a model that cannot be loaded leaves one behind.
    todo = samples if overwrite else pending_samples(out, request, names=FILES)
    report.frames, broken = count_frames(todo, root, recipe.sample.fps)
    if len(broken) == len(todo):
        built, workers = (no_pipeline, None), 1
    elif built is None:
        share = memory_share(workers, visible_gpus(recipe.device) if workers > 1 else ())
        pinned = pin_recipe(recipe, load_lock(lock)) if lock else recipe
        print_plan(pinned, sum(report.frames.values()), share, quiet=quiet)
        if workers == 1:
            with missing_listed(pinned):
                built = import_name(builder)(recipe, lock=lock, cache=folder)
    manifest = open_folder(out, request, overwrite=overwrite)
    devices = visible_gpus(recipe.device) if workers > 1 else ()
    job = Job(
        out,
        manifest.key,
        root,
        recipe.to_dict(),
        recipe.base,
        sink=REPORT_SINK,
        builder=builder,
        classes=classes,
        threads=manifest.threads,
        lock=None if lock is None else lock.absolute(),
        cache=folder,
        schedule="auto",
        share=memory_share(workers, devices),
    )
    report_changed(reopen_changed(out, manifest.key, manifest.requested, names=FILES), quiet)
    about = {"command": command_line(), "executor": "local" if workers > 1 else "inline"}
    progress = JobProgress(job, manifest, manifest.requested, about)
    report.begin(progress)
    try:
        if workers > 1 and todo:
            executor: Executor = LocalExecutor(workers, devices)
            with job_progress(progress, quiet):
                run_job(job, manifest, executor, progress)
        else:
            with progress_bar("", quiet) as bar:
                executor = InlineExecutor(lambda: built, lambda predict: report.with_bar(predict, bar))
                run_job(job, manifest, executor, progress)
    except KeyboardInterrupt:
        write_run_page(out)
        raise
    report.end()
    page = write_run_page(out) if progress.worked or not (out / PAGE).exists() else out / PAGE
    if page is not None:
        log_line(f"openavs: all clips of {report.out}: {report.out / PAGE}", quiet=quiet)


FILES = ("overlay.mp4", "report.html", "video.mp4")


class _Report:
    """The answers of a command, one per video, printed as clips finish."""

    def __init__(
        self, out: Path, paths: dict[str, Path], audio: Path | None, *, with_captions: bool, silent: bool
    ) -> None:
        self.out, self.paths, self.audio = out, paths, audio
        self.with_captions, self.silent = with_captions, silent
        self.answers: dict[str, dict[str, Any]] = {}
        self.frames: dict[str, int] = {}  # of the clips to process, as far as known
        self._done: deque[str] = deque()  # finished by an earlier run, and not printed yet
        self._began = 0.0

    def begin(self, progress: JobProgress) -> None:
        """Note which clips are finished already, and report the others when they are."""
        self._progress, self._began = progress, time.monotonic()
        self._shards = dict(zip(self.paths, progress.manifest.requested, strict=True))
        self._done = deque(clip for clip, number in self._shards.items() if number in progress.shards)
        progress.on_clip = self.finished
        self._print_done()

    def finished(self, done: ClipFinished) -> None:
        """Report a clip that this run has finished."""
        self._add(done.clip, done.detail, done.seconds)
        self._print_done()

    def end(self) -> None:
        """Report the remaining clips: those that crashed their worker, or that another process has finished."""
        from openavs.jobs.checkpoint import read_completion

        for clip, number in self._shards.items():
            completion = read_completion(self._progress.job.out, number, self._progress.manifest.key)
            if clip not in self.answers and completion is not None:
                self._add(clip, completion["rows"][0]["detail"], 0.0)

    def in_order(self) -> list[dict[str, Any]]:
        """Return the answers in the order of the videos."""
        return [self.answers[clip] for clip in self.paths if clip in self.answers]

    def with_bar(self, predict: Any, bar: ProgressBar) -> Callable[[Clip], Any]:
        """Return the pipeline as a function of a clip that shows its steps."""

        def run(clip: Clip) -> Any:
            name = self.paths[clip.id].name
            place = f"clip {len(self.answers) + 1} of {len(self.paths)}, " if len(self.paths) > 1 else ""
            left = self._left()
            bar.title = f"{place}{name}" + (f" ({left} left)" if left else "")
            return predict(clip, bar)

        return run

    def _print_done(self) -> None:
        """Report clips of an earlier run as soon as all before them are reported."""
        order = list(self.paths)
        while self._done and all(clip in self.answers for clip in order[: order.index(self._done[0])]):
            self._add(self._done.popleft(), None, 0.0)

    def _add(self, clip: str, failure: str | None, seconds: float) -> None:
        from openavs.cli.jobs import clip_summary
        from openavs.results.serialization import read_result

        path = self.paths[clip]
        answer: dict[str, Any] = {"id": clip, "source": str(path), "status": "ok"}
        answer["folder"] = str(self.out / "clips" / clip)
        if failure is None:
            result = read_result(self.out, clip)
            answer |= clip_summary(result) | {"frames": len(result.frames), "warnings": list(result.warnings)}
            answer["found_frames"] = sum(bool(frame.segments) for frame in result.frames)
            answer["segments"] = sum(len(frame.segments) for frame in result.frames)
            answer["seconds"] = round(seconds, 3)
        else:
            reason = _naming(failure, path, self.audio)
            answer |= {"status": "failed", "reason": reason}
            log_line(f"openavs: {reason}")
        self.answers[clip] = answer
        if not self.silent:
            place = f"clip {len(self.answers)} of {len(self.paths)}, " if len(self.paths) > 1 else ""
            line, *caveats = _lines(answer, self.with_captions)
            left = self._left() if seconds else ""
            echo("\n".join([place + line + (f" ({left} left)" if left else ""), *caveats]))

    def _left(self) -> str:
        """Return the time that the remaining clips take at the rate so far, such as `4 min`; empty if unknown."""
        done = sum(self.frames.get(id, 0) for id, answer in self.answers.items() if answer.get("seconds"))
        left = sum(count for id, count in self.frames.items() if id not in self.answers)
        if not done or not left:
            return ""
        seconds = (time.monotonic() - self._began) * left / done
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _naming(reason: str, *paths: Path | None) -> str:
    """Return a sentence that names its file; `paths` are those that it may name, the video first."""
    return reason if any(path.name in reason for path in paths if path) else f"{paths[0]}: {reason}"


def _lines(answer: dict[str, Any], with_captions: bool) -> list[str]:
    """Return the line of one video, and one per caveat; students have no captions."""
    from openavs.cli.jobs import in_words
    from openavs.visualization.reasons import caveat_texts

    if answer["status"] == "failed":
        return [f"{answer['id']}: failed"]
    captions = f"captions {in_words(answer['captions'])}; " if with_captions else ""
    frames = pluralize(answer["frames"], "frame")
    where = f"{answer['found_frames']} of {frames}" if answer["found"] else frames
    spent = f"{answer['seconds']:.1f} s" if answer["seconds"] else "already done"
    line = f"{answer['id']}: {captions}found {in_words(answer['found'])} in {where}, {spent} -> {answer['folder']}"
    why = [*answer["chains"], *answer["unprompted"]] if with_captions else []
    texts = [f"why: {'; '.join(why)}"] if why else []
    texts += [f"nothing found: {answer['remedy']}"] if answer["remedy"] and with_captions else []
    texts += caveat_texts(answer["caveats"], answer["frames"])
    return [line, *(f"{answer['id']}: {text}" for text in texts)]
