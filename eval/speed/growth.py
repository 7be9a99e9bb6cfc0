"""Is the cost linear and the memory flat? The recipe `tiny` over more and more clips."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any, NamedTuple

from standard_load import world_clips
from watching import resident_mb

from openavs.config.recipe import load_recipe
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import Clip, ClipResult

POOL = 10  # different clips, which longer runs repeat under other ids: every block of so many is the same work
LEAST = 5  # blocks by which a rate is judged; a short run is repeated until it has them


class Block(NamedTuple):
    """What `POOL` clips of a run cost."""

    wall: float
    cpu: float
    resident_mb: float


class Pair(NamedTuple):
    """A block of a long run, and a whole run of the fewest clips right beside it: what the machine does, both feel."""

    short: Block
    long: Block

    def relative(self) -> float:
        """Clips per CPU second in the long run over those of the short one."""
        return self.short.cpu / self.long.cpu


def figures(counts: list[int]) -> dict[str, Any]:
    """Rates and resident memory over runs of so many clips (rising multiples of ten)."""
    pipe, pool = Pipeline.from_recipe(load_recipe("tiny")), world_clips(POOL)
    next_block(pipe.run(many(pool, POOL)))  # warm
    gc.collect()
    answer: dict[str, Any] = {}
    relatives, memories = [], []
    for count in counts:
        pairs = [pair for _ in range(max(1, LEAST * POOL // count)) for pair in paired(pipe, pool, count, counts[0])]
        relatives.append(median(pair.relative() for pair in pairs))
        memories.append(max(pair.long.resident_mb for pair in pairs))
        answer |= {
            f"growth.{count}.clips_per_second": round(POOL / median(pair.long.wall for pair in pairs), 4),
            f"growth.{count}.clips_per_cpu_second": round(POOL / median(pair.long.cpu for pair in pairs), 4),
            f"growth.{count}.relative": round(relatives[-1], 4),
            f"growth.{count}.resident_mb": round(memories[-1], 1),
        }
    half = len(pairs) // 2  # of the longest run
    early, late = (median(pair.relative() for pair in part) for part in (pairs[:half], pairs[half:]))
    return answer | {
        "growth.spread.relative": round(max(relatives) / min(relatives) - 1, 4),
        "growth.spread.resident_mb": round(max(memories) / min(memories) - 1, 4),
        "growth.early_over_late": round(early / late, 4),
    }


def paired(pipe: Pipeline, pool: list[Clip], count: int, fewest: int) -> Iterator[Pair]:
    """A run of so many clips in blocks, and after each of them a run of the fewest."""
    run = pipe.run(many(pool, count))
    for _ in range(count // POOL):
        long = next_block(run)
        yield Pair(next_block(pipe.run(many(pool, fewest))), long)


def next_block(run: Iterator[ClipResult]) -> Block:
    """The next `POOL` clips of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    resident = max(resident_mb() for _ in islice(run, POOL))
    return Block(time.perf_counter() - wall, time.process_time() - cpu, resident)


def many(pool: list[Clip], count: int) -> Iterator[Clip]:
    """So many clips."""
    for number in range(count):
        yield replace(pool[number % len(pool)], id=f"clip-{number}")
