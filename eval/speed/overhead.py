"""What our pipeline costs beside its models: the run as it is, against the forward passes that it is made of."""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import Any

import torch
from bench import Bench, models_of
from standard_load import Load, world_clips
from watching import Models, Run, synchronize, watch

from openavs.config.recipe import load_recipe
from openavs.pipeline.pipeline import Pipeline

CLIPS = 6  # of the embedded models' world


def figures(bench: Bench) -> dict[str, Any]:
    """Overhead at the bench's size and with the embedded models, and where it goes."""
    load = bench.load()
    runs = [bench.run("ours", load) for _ in range(bench.options.repeats + 1)][1:]
    answer = both_clocks("overhead", runs, bench.clock)
    answer["overhead.replayed"] = round(replayed(bench, load), 4)
    answer |= where("overhead.ms", runs, len(load.images))
    return answer | of_tiny(bench)


def both_clocks(name: str, runs: list[Run], clock: str) -> dict[str, Any]:
    """A run's seconds over those inside of its models, minus 1; the median over the runs."""
    found = {
        "cpu": median(run.cpu / run.inside_cpu - 1 for run in runs),
        "wall": median(run.wall / run.inside - 1 for run in runs),
    }
    return {name: round(found[clock], 4), f"{name}.wall": round(found["wall"], 4)}


def of_tiny(bench: Bench) -> dict[str, Any]:
    """The recipe `tiny` as it is, over clips of five frames."""
    pipe = Pipeline.from_recipe(load_recipe("tiny"))
    clips = world_clips(CLIPS)
    models = models_of(pipe)
    passes = []
    for _ in range(bench.options.repeats + 1):
        passes.append([watch(partial(pipe_stream, pipe, clip), models, len_of_segments) for clip in clips])
    runs = [total(own) for own in passes[1:]]
    answer = both_clocks("overhead.tiny", runs, bench.clock)
    answer |= where("overhead.tiny.ms", runs, sum(len(clip.times) for clip in clips))
    return answer | {f"work.tiny.{what}": count for what, count in sorted(runs[-1].work.items())}


def pipe_stream(pipe: Pipeline, clip: Any, notes: Any) -> Any:
    return pipe.stream(clip, context=notes)


def len_of_segments(frame: Any) -> int:
    return len(frame.segments)


def total(runs: list[Run]) -> Run:
    """Several runs as one."""
    whole = Run()
    for run in runs:
        for name in ("wall", "cpu", "inside", "inside_cpu"):
            setattr(whole, name, getattr(whole, name) + getattr(run, name))
        whole.work.update(run.work)
        for stage, seconds in run.stages.items():
            whole.stages[stage] = whole.stages.get(stage, 0.0) + seconds
    return whole


def where(name: str, runs: list[Run], frames: int) -> dict[str, float]:
    """Milliseconds a frame: in the models, in the rest, in the stages (models and what is around them)."""
    parts = {
        "models": median(run.inside for run in runs),
        "rest": median(run.wall - run.inside for run in runs),
        **{f"stage.{stage}": median(run.stages[stage] for run in runs) for stage in runs[0].stages},
    }
    return {f"{name}.{part}": round(1000 * seconds / frames, 3) for part, seconds in parts.items()}


def replayed(bench: Bench, load: Load) -> float:
    """CPU seconds of our run over those of its recorded forward passes alone, in turns; median, minus 1."""
    record: list[Any] = []
    models = models_of(bench.ours.pipeline)
    with models.watched(Run(), record):
        for _ in bench.ours.pipeline.stream(load.clip()):
            pass
    found = []
    for _ in range(bench.options.repeats):
        run = watch(partial(bench.ours, load), Models(), len_of_segments)
        found.append(run.cpu / bare(record) - 1)
    return median(found)


@torch.inference_mode()
def bare(record: list[Any]) -> float:
    """CPU seconds of the recorded calls, one after the other, nothing between them."""
    started = time.process_time()
    for module, args, kwargs in record:
        module(*args, **kwargs)
    synchronize()
    return time.process_time() - started
