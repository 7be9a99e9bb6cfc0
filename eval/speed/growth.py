"""Is the cost linear and the memory flat? The recipe `tiny` over more and more clips."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import Any

from standard_load import world_clips
from watching import resident_mb

from openavs.pipeline import Pipeline
from openavs.recipes import load_recipe
from openavs.types import Clip

POOL = 10  # different clips, which longer runs repeat under other ids: every block of so many is the same work
LEAST = 5  # blocks by which a rate is judged; a short run is repeated until it has them


def figures(counts: list[int]) -> dict[str, Any]:
    """Clips a second and resident memory over runs of so many clips (multiples of ten), by the median block of ten."""
    pipe = Pipeline.from_recipe(load_recipe("tiny"))
    pool = world_clips(POOL)
    one_run(pipe, pool, POOL)  # warm
    answer: dict[str, Any] = {}
    blocks: list[tuple[float, float]] = []
    for count in counts:
        gc.collect()
        before = resident_mb()
        runs = [one_run(pipe, pool, count) for _ in range(max(1, LEAST * POOL // count))]
        blocks = [block for run, _ in runs for block in run]
        rates = [POOL / median(block[clock] for block in blocks) for clock in (0, 1)]
        peak = max(peak for _, peak in runs)
        answer |= {
            f"growth.{count}.clips_per_second": round(rates[0], 4),
            f"growth.{count}.clips_per_cpu_second": round(rates[1], 4),
            f"growth.{count}.grown_mb": round(peak - before, 1),
            f"growth.{count}.resident_mb": round(peak, 1),
        }
    for kind in ("clips_per_second", "clips_per_cpu_second", "resident_mb"):
        own = [answer[f"growth.{count}.{kind}"] for count in counts]
        answer[f"growth.spread.{kind}"] = round(max(own) / min(own) - 1, 4)
    half = len(blocks) // 2  # of the longest run
    early, late = (median(cpu for _, cpu in part) for part in (blocks[:half], blocks[half:]))
    return answer | {"growth.late_over_early": round(late / early, 4)}


def one_run(pipe: Pipeline, pool: list[Clip], count: int) -> tuple[list[tuple[float, float]], float]:
    """Wall and CPU seconds of every block of a run, and the most resident memory in MB that was seen after a clip."""
    blocks, peak = [], 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for number, _ in enumerate(pipe.run(many(pool, count)), start=1):
        peak = max(peak, resident_mb())
        if number % POOL == 0:
            blocks.append((time.perf_counter() - wall, time.process_time() - cpu))
            wall, cpu = time.perf_counter(), time.process_time()
    return blocks, peak


def many(pool: list[Clip], count: int) -> Iterator[Clip]:
    """So many clips."""
    for number in range(count):
        yield replace(pool[number % len(pool)], id=f"clip-{number}")
