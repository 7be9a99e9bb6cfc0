"""`openavs demo`: segments a synthetic scene with the embedded models, offline."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import JsonOption, QuietOption, VerboseOption
from openavs.cli.output import command_line, configure_logging, echo, print_result

if TYPE_CHECKING:
    from openavs.structures.types import ClipResult
    from openavs.synthetic.scenes import Scene


def demo(
    out: Annotated[Path, typer.Option(help="Output folder; an earlier demo in it is replaced.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the scene.")] = 4,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Render a synthetic scene with its sound, segment it and score the masks. Offline, in seconds."""
    from openavs.caching.build import build_pipeline
    from openavs.cli.jobs import clip_summary
    from openavs.cli.progress import progress_bar
    from openavs.config.recipe import load_recipe
    from openavs.errors import InputError
    from openavs.jobs.executors.inline import InlineExecutor
    from openavs.jobs.job import Job
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.output_dir import clear_folder, open_folder
    from openavs.jobs.progress import JobProgress
    from openavs.jobs.run import run_job
    from openavs.jobs.sample import Sample, file_size
    from openavs.jobs.save import REPORT_SINK
    from openavs.jobs.worker import default_threads
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
