"""`openavs synth` and `openavs demo`: synthetic datasets and clips, and a run on one of them."""

from __future__ import annotations

import time
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.output import command_line, configure_logging, echo, print_result
from openavs.errors import InputError

if TYPE_CHECKING:
    from openavs.structures.types import ClipResult
    from openavs.synthetic.scenes import Scene


class LayoutName(StrEnum):
    """Layouts of a dataset, and a single clip."""

    s4 = "s4"
    ms3 = "ms3"
    avss = "avss"
    ov = "ov"
    twins = "twins"
    ref_avs = "ref-avs"
    avis = "avis"
    clip = "clip"


def synth(
    layout: Annotated[LayoutName, typer.Argument(help="Layout of the dataset; clip writes one video with sound.")],
    out: Annotated[Path, typer.Option(help="New folder; for clip, the video file.")],
    clips: Annotated[int, typer.Option(min=0, help="Number of clips of the test split.")] = 10,
    train: Annotated[int, typer.Option(min=0, help="Number of clips of the training split.")] = 0,
    val: Annotated[int, typer.Option(min=0, help="Number of clips of the validation split.")] = 0,
    seed: Annotated[int, typer.Option(min=0, max=999, help="Different seeds have no scene in common.")] = 0,
    videos: Annotated[bool, typer.Option(help="Also write the raw videos of s4 and ms3.")] = False,
    seconds: Annotated[
        int | None,
        typer.Option(min=2, help="Length in seconds; default: 5 for clip, 61 for avis.", show_default=False),
    ] = None,
    size: Annotated[str, typer.Option(help="clip: WIDTHxHEIGHT in pixels.")] = "384x288",
    fps: Annotated[float, typer.Option(min=1, max=120, help="clip: frames per second.")] = 25.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="clip: replace an existing file.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Write synthetic clips with exact masks, changing sounds and silent distractors."""
    from openavs.synthetic.datasets import write_clip, write_layout
    from openavs.synthetic.scenes import sample_scene

    if layout is LayoutName.clip:
        seconds = seconds or 5
        _check_video_path(out, overwrite)
        scene = sample_scene("clip", "test", seed, 0, size=_size(size), seconds=seconds).scene
        _make_folder(out.parent)
        write_clip(out, scene, fps)
        answer = {"out": str(out), "seconds": seconds, "sounding": [scene.sounding(s) for s in range(seconds)]}
        message = f"wrote {out}: {seconds} s"
    else:
        if seconds is not None and layout is not LayoutName.avis:
            raise InputError(f"clips of {layout.value} have the length of the benchmark's; leave --seconds out")
        _make_folder(out)
        counts = {"train": train, "val": val, "test": clips}
        written = write_layout(layout.value, out, counts, seed, videos, seconds)
        answer = {"out": str(out), "layout": layout.value, "clips": written}
        message = f"wrote {out}: " + ", ".join(f"{count} {split}" for split, count in written.items())
    print_result(answer, partial(echo, message), as_json=as_json, quiet=quiet)


def _check_video_path(video: Path, overwrite: bool) -> None:

    if video.is_dir():
        raise InputError(f"{video} is a folder; give --out the name of a video, such as {video / 'clip.mp4'}")
    if video.exists() and not overwrite:
        raise InputError(f"{video} exists; give another --out, or --overwrite to replace it")


def _make_folder(folder: Path) -> None:

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create the folder {folder} ({error.strerror}); give another --out") from error


def _size(text: str) -> tuple[int, int]:
    """Parses `WIDTHxHEIGHT`; returns (height, width)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and 16 <= int(width) <= 8192 and 16 <= int(height) <= 8192):
        raise InputError(f"--size {text!r} is not WIDTHxHEIGHT with sides from 16 to 8192, such as 384x288")
    return int(height), int(width)


def demo(
    out: Annotated[Path, typer.Option(help="Output folder; an earlier demo in it is replaced.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scene.")] = 4,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Render a synthetic scene with its sound, segment it and score the masks. Offline, in seconds."""
    from openavs.caching.build import build_pipeline
    from openavs.cli.jobs import clip_summary
    from openavs.cli.output import progress_bar
    from openavs.config.recipe import load_recipe
    from openavs.errors import InputError
    from openavs.jobs.job import REPORT_SINK, Job
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.output_dir import clear_folder, open_folder
    from openavs.jobs.progress import JobProgress
    from openavs.jobs.run import run_job
    from openavs.jobs.sample import Sample, file_size
    from openavs.jobs.shard import InlineExecutor
    from openavs.models.device import default_threads
    from openavs.results.serialization import read_result
    from openavs.synthetic.datasets import write_clip
    from openavs.synthetic.scenes import sample_scene

    configure_logging(quiet=quiet, verbose=verbose)
    _refuse_other_results(out)
    started = time.monotonic()
    recipe = load_recipe("tiny")
    scene = sample_scene("clip", "test", seed, 0, size=(288, 384), seconds=6).scene
    with progress_bar("demo", quiet) as bar:
        bar("render", 0, 1)
        clear_folder(out)
        out.mkdir(parents=True, exist_ok=True)
        write_clip(out / "scene.mp4", scene)
        sample = Sample("demo", str(out / "scene.mp4"), bytes=file_size(out / "scene.mp4"))
        request = JobRequest("demo", [sample], recipe.to_dict(), command="demo", default_threads=default_threads())
        folder, root = out.absolute(), Path.cwd()
        manifest = open_folder(folder, request)
        job = Job(folder, manifest.key, root, recipe.to_dict(), sink=REPORT_SINK, threads=manifest.threads)
        executor = InlineExecutor(lambda: build_pipeline(recipe), lambda predict: lambda clip: predict(clip, bar))
        progress = JobProgress(job, manifest, manifest.requested, {"command": command_line()})
        errors: list[str | None] = []
        progress.on_clip = lambda done: errors.append(done.detail)
        run_job(job, manifest, executor, progress)
    if errors != [None]:
        raise InputError(f"the demo failed: {errors[0] if errors else 'the clip was not run'}")
    result = read_result(out, "demo")
    answer = clip_summary(result) | {"miou": round(mean_iou(scene, result), 4)}
    answer |= {"seconds": round(time.monotonic() - started, 2), "out": str(out)}
    print_result(answer, partial(_print, answer), as_json=as_json, quiet=quiet)


def _refuse_other_results(out: Path) -> None:
    """Raise InputError if the folder holds other results than those of a demo, which a demo replaces."""
    from openavs.errors import InputError
    from openavs.jobs.manifest import LINES, read_manifest

    try:
        manifest = read_manifest(out)
        is_demo = manifest is not None and manifest.data["command"] == "demo"
    except InputError:
        is_demo = False
    named = ("clips", "labels", "predictions", "run.json", "index.jsonl", LINES)
    if not is_demo and any((out / name).exists() for name in named):
        raise InputError(f"{out} holds results of another command, which a demo would replace; give another --out")


def _print(answer: dict[str, Any]) -> None:
    from openavs.cli.jobs import in_words

    echo(f"captions: {in_words(answer['captions'])}")
    echo(f"found: {in_words(answer['found'])}")
    echo(f"why: {'; '.join([*answer['chains'], *answer['unprompted']])}")
    echo(f"mIoU with the true masks: {answer['miou']:.2f} ({answer['seconds']:.1f} s)")
    echo(f"see {answer['out']}/clips/demo/report.html and {answer['out']}/clips/demo/overlay.mp4")
    echo("The embedded models were trained on synthetic clips only; for real videos see 'openavs list recipes'.")


def mean_iou(scene: Scene, result: ClipResult) -> float:
    """Return the mean J (IoU) of AVSBench over the frames of a clip."""
    import numpy as np

    from openavs.evaluation.metrics.functional import frame_j
    from openavs.structures.masks import segments_to_mask

    scores = []
    for frame in result.frames:
        truth = np.zeros(result.size, dtype=bool)
        for mask in scene.truth(frame.time).values():
            truth |= mask
        scores.append(frame_j(segments_to_mask(frame.segments, result.size), truth))
    return float(np.mean(scores))
