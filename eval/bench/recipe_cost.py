"""Measures what a recipe costs on this CPU: seconds a frame by stage, and the peak memory of `openavs segment`.

    python eval/bench/recipe_cost.py openavs-fast openavs-cpu --json                      paired, in one process
    python eval/bench/recipe_cost.py openavs-fast --set detector.shortest_edge=400 --json
    python eval/bench/recipe_cost.py openavs-fast --memory --json                         and the peak memory

The models have their published sizes and random weights (`workloads.py`; `--keep DIR` keeps the files, 2.3 GB for these
two recipes). Frames are 1280 x 720 and in memory, captions are whatever the random captioner ranks first, and every
frame gets four boxes. The recipes run alternately on one thread.

- `cpu_seconds.RECIPE`: CPU seconds a frame, the median over the repeats; `.STAGE`: of that stage.
- `ratio.RECIPE`: over those of the last recipe, the median of the ratios within a repeat; `spread.RECIPE`: the smallest
  and the largest.
- `start.RECIPE`: CPU seconds of loading the models and of the first captions, which embed the vocabulary: of three
  entries, or with `--vocabulary` of the recipe's own.
- `peak_gb.RECIPE`: peak memory of a process that segments two frames, all models in memory; `offloaded_gb.RECIPE`: one
  stage group at a time; `estimate_gb.RECIPE`: what openavs expects for both.
- `agreement.STAGE`: mean IoU of the masks of the embedded models, which are trained, with the stage's `quantize: int8`
  and without, on synthetic clips.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from harness import (
    MB,
    argument_parser,
    print_figures,
    ratios,
    run_alternately,
    run_process,
    use_one_thread,
    working_folder,
)

use_one_thread()

import torch
from compare_systems import mean_iou, packed
from workloads import REAL, Workload, save_recipe_models, standard, synthetic_clips, tiny_pipeline

from openavs.config.recipe import Recipe, load_recipe, override_recipe
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.pipeline.pipeline import Pipeline

BOXES = 4  # per frame
WORK = {"captioner": "caption", "translator": "translate", "detector": "detect", "segmenter": "segment"}
SAME_WORK = (
    "captioner.threshold=0", "captioner.min_ratio=0", "captioner.top_k=3", "detector.floor=0",
    "prompts.min_audio_visual_ratio=null", "filtering.box_threshold=0", "filtering.nms_iou=null",
    f"filtering.max_boxes={BOXES}", "device=cpu", "offline=true",
)  # fmt: skip
SMALL_VOCABULARY = "captioner.vocabulary=[dog barking, bell ringing, car passing]"
AGREEMENT_CLIPS = 30
SEGMENT = """
import sys
from openavs.pipeline import memory_estimate
from openavs.cli import main
free = int(sys.argv.pop(1))
memory_estimate.free_memory = lambda device: free
sys.exit(main())
"""


class Cost(NamedTuple):
    """CPU seconds of a run over a clip: in all, and by stage."""

    cpu: float
    stages: dict[str, float]


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--frames", type=int, default=1, help="of the clip")
    parser.add_argument("--dtype", default="auto", help="of all models: auto, float32, bfloat16")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the first recipe")
    parser.add_argument("--vocabulary", action="store_true", help="the recipes' own instead of three entries")
    parser.add_argument("--memory", action="store_true", help="measure the peak memory, too")
    parser.add_argument("--agreement", action="store_true", help="compare 8-bit masks with those in float32, only")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.agreement:
        print_figures(agreements(AGREEMENT_CLIPS), options.json)
        return
    with working_folder(options.keep) as folder:
        workload = standard(REAL.image, options.frames)
        recipes = published_recipes(options, folder, workload)
        figures: dict[str, Any] = {"frames": options.frames, "repeats": options.repeats, "dtype": options.dtype}
        if options.memory:  # first: a child starts with the memory of its parent
            figures |= memory_figures(recipes, folder)
        figures |= cost_figures(recipes, workload, options.repeats)
    print_figures(figures, options.json)


def published_recipes(options: argparse.Namespace, folder: Path, workload: Workload) -> dict[str, Recipe]:
    """Return the recipes by name, with models of their published sizes, and the same work for all."""
    recipes = {}
    for number, name in enumerate(options.recipes):
        recipe = load_recipe(name, options.set if number == 0 else [])
        overrides = save_recipe_models(recipe, folder, workload.images[0])
        vocabulary = [] if options.vocabulary else [SMALL_VOCABULARY]
        recipes[name] = override_recipe(recipe, [*overrides, *SAME_WORK, *vocabulary, f"dtype={options.dtype}"])
    return recipes


def cost_figures(recipes: dict[str, Recipe], workload: Workload, repeats: int) -> dict[str, Any]:
    """Run the recipes alternately; the first run, which embeds the vocabulary, counts as their start."""
    figures: dict[str, Any] = {}
    runs: dict[str, Callable[[], Cost]] = {}
    for name, recipe in recipes.items():
        started = time.process_time()
        pipeline = Pipeline.from_recipe(recipe)
        loaded = time.process_time() - started
        runs[name] = partial(run, pipeline, workload)
        first = runs[name]()
        figures[f"start.{name}"] = round(loaded + first.stages["captioner"], 2)
    found = run_alternately(runs, repeats)
    frames, last = len(workload.images), list(recipes)[-1]
    for name, own in found.items():
        figures[f"cpu_seconds.{name}"] = round(median(cost.cpu for cost in own) / frames, 3)
        for stage in own[0].stages:
            figures[f"cpu_seconds.{name}.{stage}"] = round(median(cost.stages[stage] for cost in own) / frames, 3)
        shares = ratios(own, found[last])
        figures[f"ratio.{name}"] = round(median(shares), 3)
        figures[f"spread.{name}"] = [round(min(shares), 3), round(max(shares), 3)]
    return figures


def run(pipeline: Pipeline, workload: Workload) -> Cost:
    """Segment the workload once.

    Raises:
        SystemExit: a frame has not four masks, so the recipes' work would differ.
    """
    stages = dict.fromkeys(WORK, 0.0)
    backends = {stage: getattr(pipeline, stage) for stage in WORK}
    plain = {stage: getattr(backend, WORK[stage]) for stage, backend in backends.items()}
    try:
        for stage, backend in backends.items():
            setattr(backend, WORK[stage], _timed(plain[stage], stages, stage))
        started = time.process_time()
        result = pipeline(workload.clip())
        cpu = time.process_time() - started
    finally:
        for stage, backend in backends.items():
            setattr(backend, WORK[stage], plain[stage])
    masks = [len(frame.segments) for frame in result.frames]
    if masks != [BOXES] * len(masks):
        raise SystemExit(f"the work is uneven: {masks} masks in the frames of {pipeline.recipe['name']}")
    return Cost(cpu, stages)


def _timed(function: Callable[..., Any], stages: dict[str, float], stage: str) -> Callable[..., Any]:
    @wraps(function)
    def call(*words: Any, **options: Any) -> Any:
        started = time.process_time()
        try:
            return function(*words, **options)
        finally:
            stages[stage] += time.process_time() - started

    return call


def memory_figures(recipes: dict[str, Recipe], folder: Path) -> dict[str, Any]:
    """Segment two frames of a video in processes of their own, with all models in memory and with one group."""
    video = folder / "video.mp4"
    form = ("--size", "1280x720", "--seconds", "2", "--fps", "2")
    run_process([sys.executable, "-m", "openavs", "synth", "clip", "--out", video, "--overwrite", *form])
    figures: dict[str, Any] = {}
    for name, recipe in recipes.items():
        together, largest = estimate_memory(recipe)
        file = folder / f"{name}.json"  # JSON is YAML
        file.with_suffix(".yaml").write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
        words = ("segment", video, "--pipeline", file.with_suffix(".yaml"), "--no-cache", "--overwrite", "--quiet")
        for title, free, estimate in (("peak_gb", 10**12, together), ("offloaded_gb", largest, largest)):
            command = [sys.executable, "-c", SEGMENT, free, *words, "--out", folder / "out"]
            figures[f"{title}.{name}"] = round(run_process(command).peak_mb * MB / 1e9, 2)
            figures[f"{title}_estimate.{name}"] = round(estimate / 1e9, 2)
    return figures


def agreements(clips: int) -> dict[str, Any]:
    """Compare the masks of the embedded models in 8 bits with those in float32."""
    inputs = synthetic_clips(clips)
    plain = ("captioner={use: oracle}", "translator={use: none}", "verifier=null", "dtype=float32")

    def masks(*overrides: str) -> list[Any]:
        pipeline = tiny_pipeline(*plain, *overrides)
        return [packed(frame) for clip in inputs for frame in pipeline.stream(clip)]

    exact = masks()
    detector, segmenter = "detector.quantize=int8", "segmenter.quantize=int8"
    variants = {"detector": (detector,), "segmenter": (segmenter,), "both": (detector, segmenter)}
    return {f"agreement.{name}": round(mean_iou(masks(*words), exact), 4) for name, words in variants.items()}


if __name__ == "__main__":
    main()
