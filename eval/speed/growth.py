"""Is the cost linear and the memory flat? The recipe `tiny` over more and more clips."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from standard_load import world_clips
from watching import resident_mb

from openavs.pipeline import Pipeline
from openavs.recipes import load_recipe
from openavs.types import Clip

POOL = 10  # different clips; longer runs repeat them under other ids, so that all have the same mixture


def figures(counts: list[int]) -> dict[str, Any]:
    """Clips a second and resident memory after so many clips, in one run each, in the order given."""
    pipe = Pipeline.from_recipe(load_recipe("tiny"))
    pool = world_clips(POOL)
    for _ in pipe.run(many(pool, POOL)):  # warm
        pass
    answer: dict[str, Any] = {}
    for count in counts:
        gc.collect()
        before, wall, cpu, peak = resident_mb(), time.perf_counter(), time.process_time(), 0.0
        for _ in pipe.run(many(pool, count)):
            peak = max(peak, resident_mb())
        answer[f"growth.{count}.clips_per_second"] = round(count / (time.perf_counter() - wall), 4)
        answer[f"growth.{count}.clips_per_cpu_second"] = round(count / (time.process_time() - cpu), 4)
        answer[f"growth.{count}.grown_mb"] = round(peak - before, 1)
        answer[f"growth.{count}.resident_mb"] = round(peak, 1)
    for kind in ("clips_per_second", "clips_per_cpu_second", "resident_mb"):
        own = [answer[f"growth.{count}.{kind}"] for count in counts]
        answer[f"growth.spread.{kind}"] = round(max(own) / min(own) - 1, 4)
    return answer


def many(pool: list[Clip], count: int) -> Iterator[Clip]:
    """So many clips."""
    for number in range(count):
        yield replace(pool[number % len(pool)], id=f"clip-{number}")
