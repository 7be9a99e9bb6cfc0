"""`openavs segment`: masks, overlay, report and result.json of one or more videos."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    refuse_bare_keys,
    split_overrides,
)
from openavs.cli.output import configure_logging, echo, log_line, print_json, warn_tiny_models
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.caching.stagewise import StagedSchedule
    from openavs.pipeline import pipeline
    from openavs.results.run_folder import RunWriter
    from openavs.structures.types import Clip


def segment(
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="VIDEO... [KEY=VALUE...]",
            help="Videos, pictures or folders of pictures; and overrides such as filtering.box_threshold=0.3.",
        ),
    ],
    pipeline: PipelineOption = None,
    out: OutOption = Path("out"),
    audio: Annotated[Path | None, typer.Option(help="Take the sound from this file (one video only).")] = None,
    vocab: Annotated[str | None, typer.Option(help="Only these things, comma-separated: dog,cat,bell.")] = None,
    lock: LockOption = None,
    overwrite: OverwriteOption = False,
    limit: LimitOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    batch_size: BatchSizeOption = None,
    offline: OfflineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find, name and segment what makes the sound in videos."""
    from openavs.caching.stagewise import build_staged
    from openavs.config.recipe import load_recipe
    from openavs.errors import InputError
    from openavs.pipeline.lockfile import add_to_lock, build_pinned_pipeline, load_lock
    from openavs.pipeline.pipeline import Pipeline as Chain
    from openavs.results.run_folder import RunWriter
    from openavs.utils.fs import is_missing, refuse_address

    configure_logging(quiet=quiet, verbose=verbose)
    named, overrides = split_overrides(videos)
    for name in (*named, audio or ""):
        refuse_address(name)
    refuse_bare_keys(named)
    paths = [Path(name) for name in named[:limit]]
    if vocab is not None:
        overrides.append(f"vocabulary={json.dumps(vocab)}")
    for path in [*paths, audio]:
        if path is not None and is_missing(path):
            raise InputError(f"{path} does not exist; check the name")
    if not paths or (audio is not None and len(paths) > 1):
        raise InputError("--audio goes with exactly one video" if paths else "name at least one video")
    shared = recipe_overrides(overrides, device=device, dtype=dtype, batch_size=batch_size, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    classes = recipe.vocabulary or []
    if recipe.student is not None:
        from openavs.training.inference import StudentPipeline

        lock = None  # a folder needs no pin
        chain: Any = StudentPipeline.from_recipe(recipe)
        classes = list(chain.classes[1:]) if chain.classes else []
    else:
        chain = build_staged(recipe, lock) or (
            build_pinned_pipeline(recipe, load_lock(lock)) if lock else Chain.from_recipe(recipe)
        )
    answers: list[dict[str, Any]] = []
    with (
        _interruption_reported(answers, len(paths), overwrite),
        RunWriter(
            out, recipe.to_dict(), values="class" if classes else "instance", classes=classes, overwrite=overwrite
        ) as run,
    ):
        try:
            for answer in _segment_all(chain, run, paths, audio, recipe.sample.fps, quiet):
                answers.append(answer)
                if not quiet and not as_json:
                    place = f"{len(answers)} of {len(paths)}, " if len(paths) > 1 else ""
                    echo(place + _line(answer, in_words=recipe.student is None))
        finally:  # an interrupted run, too, is gone on with by the models it began with
            if lock:
                add_to_lock(lock, chain.models)
    failed = sum(answer["status"] == "failed" for answer in answers)
    if as_json:
        print_json({"out": str(out), "ok": len(answers) - failed, "failed": failed, "clips": answers})
    elif not quiet and failed < len(answers):
        warn_tiny_models(recipe)
    raise typer.Exit(1 if failed else 0)


@contextmanager
def _interruption_reported(answers: list[dict[str, Any]], clips: int, overwrite: bool) -> Iterator[None]:
    """On Ctrl-C, prints how many clips are done and how to continue."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum(answer["status"] == "ok" for answer in answers)
        how = "without --overwrite" if overwrite else "again"
        log_line(
            f"openavs: interrupted with {done} of {pluralize(clips, 'clip')} done; "
            f"run the same command {how} to continue"
        )
        raise


def _segment_all(
    chain: pipeline.Pipeline | StagedSchedule,
    run: RunWriter,
    paths: list[Path],
    audio: Path | None,
    fps: float,
    quiet: bool,
) -> Iterator[dict[str, Any]]:
    """One answer per video, as it ends; a video that cannot be worked on is recorded and the rest goes on."""
    import time

    from openavs.caching.stagewise import StagedSchedule
    from openavs.cli.work import EXTRAS, progress_bar, segment_clip, summary
    from openavs.errors import OpenAVSError
    from openavs.media import open_clip
    from openavs.results.serialization import read_result, safe_ids

    named = list(zip(paths, safe_ids(paths), strict=True))
    # before any work: it may refuse the folder
    done = {name for path, name in named if run.is_done(name, str(path), EXTRAS)}
    todo = [(path, name) for path, name in named if name not in done]
    size = chain.window if isinstance(chain, StagedSchedule) else len(todo) or 1
    windows = {todo[start][1]: todo[start : start + size] for start in range(0, len(todo), size)}
    for number, (path, name) in enumerate(named, start=1):
        if isinstance(chain, StagedSchedule) and name in windows:
            chain.prepare(_opened(windows[name], audio, fps))
        answer: dict[str, Any] = {
            "id": name,
            "source": str(path),
            "status": "ok",
            "folder": str(run.out / "clips" / name),
        }
        started = time.monotonic()
        try:
            if name in done:
                result, seconds = read_result(run.out, name), 0.0
            else:
                title = f"{number} of {len(named)}, {path.name}" if len(named) > 1 else path.name
                with progress_bar(title, quiet) as progress:
                    clip = open_clip(path, fps=fps, audio=audio, id=name)
                    result, seconds = segment_clip(chain, clip, run, progress)
            answer |= summary(result) | {"frames": len(result.frames), "warnings": list(result.warnings)}
            answer["found_frames"] = sum(bool(frame.segments) for frame in result.frames)
            answer["segments"] = sum(len(frame.segments) for frame in result.frames)
            answer["seconds"] = round(seconds, 3)
        except OpenAVSError as problem:
            reason = _naming(str(problem), path, audio)
            run.fail(name, reason, seconds=time.monotonic() - started, source=str(path))
            answer |= {"status": "failed", "reason": reason}
            log_line(f"openavs: {reason}")
        yield answer


def _opened(named: list[tuple[Path, str]], audio: Path | None, fps: float) -> Iterator[Clip]:
    """The clips that can be opened; the others are reported when it is their turn."""
    from openavs.errors import OpenAVSError
    from openavs.media import open_clip

    for path, name in named:
        with suppress(OpenAVSError):
            yield open_clip(path, fps=fps, audio=audio, id=name)


def _naming(reason: str, *paths: Path | None) -> str:
    """A sentence that names its file, for one among many; `paths` are those it may speak of, the video first."""
    return reason if any(path.name in reason for path in paths if path) else f"{paths[0]}: {reason}"


def _line(answer: dict[str, Any], in_words: bool) -> str:
    """What became of one video; students hear without words."""
    from openavs.cli.work import sentence

    if answer["status"] == "failed":
        return f"{answer['id']}: failed"
    heard = f"heard {sentence(answer['captions'])}; " if in_words else ""
    frames = pluralize(answer["frames"], "frame")
    where = f"{answer['found_frames']} of {frames}" if answer["found"] else frames
    spent = f"{answer['seconds']:.1f} s" if answer["seconds"] else "done before"
    return f"{answer['id']}: {heard}found {sentence(answer['found'])} in {where}, {spent} -> {answer['folder']}"
