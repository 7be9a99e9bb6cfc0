"""`openavs demo`: a scene of the synthetic world, heard and segmented by the embedded models, offline."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli.options import JsonOption, QuietOption, VerboseOption
from openavs.cli.output import configure_logging, echo, print_result

if TYPE_CHECKING:
    from openavs.structures.types import ClipResult
    from openavs.synthetic.scenes import Scene


def demo(
    out: Annotated[Path, typer.Option(help="The result folder; an earlier demo in it is replaced.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another number, another scene.")] = 4,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Render a synthetic scene with its sound, segment it, and say how well that went. Offline, in seconds."""
    from openavs.cli.work import progress_bar, segment_clip, summary
    from openavs.config.recipe import load_recipe
    from openavs.media import open_clip
    from openavs.pipeline.pipeline import Pipeline
    from openavs.results.run_folder import RunWriter
    from openavs.synthetic.datasets import write_clip
    from openavs.synthetic.scenes import sample_scene

    configure_logging(quiet=quiet, verbose=verbose)
    _refuse_other_results(out)
    started = time.monotonic()
    recipe = load_recipe("tiny")
    scene = sample_scene("clip", "test", seed, 0, size=(288, 384), seconds=6).scene
    with RunWriter(out, recipe.to_dict(), overwrite=True) as run, progress_bar("demo", quiet) as progress:
        progress("render", 0, 1)
        write_clip(out / "scene.mp4", scene)
        pipe = Pipeline.from_recipe(recipe)
        result, _ = segment_clip(pipe, open_clip(out / "scene.mp4", fps=recipe.sample.fps, id="demo"), run, progress)
    answer = summary(result) | {"miou": round(mean_iou(scene, result), 4)}
    answer |= {"seconds": round(time.monotonic() - started, 2), "out": str(out)}
    print_result(answer, partial(_print, answer), as_json=as_json, quiet=quiet)


def _refuse_other_results(out: Path) -> None:
    """A demo replaces what an earlier demo left, and no other results."""
    from openavs.errors import InputError

    clips = {path.name for path in (out / "clips").glob("[!.]*")}
    is_demo = clips <= {"demo"} and (not clips or (out / "scene.mp4").is_file())
    if not is_demo or (out / "plan.jsonl").exists():
        raise InputError(f"{out} holds results that are no demo's, which a demo would replace; give another --out")


def _print(answer: dict[str, Any]) -> None:
    from openavs.cli.work import sentence

    echo(f"heard: {sentence(answer['captions'])}")
    echo(f"found: {sentence(answer['found'])}")
    echo(f"mIoU with the true masks: {answer['miou']:.2f} ({answer['seconds']:.1f} s)")
    echo(f"look at {answer['out']}/clips/demo/report.html and {answer['out']}/clips/demo/overlay.mp4")
    echo("These embedded models know only this synthetic world; for real videos see 'openavs list recipes'.")


def mean_iou(scene: Scene, result: ClipResult) -> float:
    """AVSBench's J of the clip: what was segmented against the true pixels of what sounds, frame by frame."""
    import numpy as np

    from openavs.evaluation.metrics.functional import frame_j
    from openavs.structures.types import segments_to_mask

    scores = []
    for frame in result.frames:
        truth = np.zeros(result.size, dtype=bool)
        for mask in scene.truth(frame.time).values():
            truth |= mask
        scores.append(frame_j(segments_to_mask(frame.segments, result.size), truth))
    return float(np.mean(scores))
