"""Everyone over the same loads, in turns: ratios within a repeat, stages, memory, and counted work."""

from __future__ import annotations

import logging
from statistics import median
from typing import Any

from bench import Bench
from random_models import SMALL
from standard_load import BOXES, head
from watching import Run

log = logging.getLogger("peers")

AGAINST = ("grounded_sam2_fp32", "grounded_sam2_bf16")  # on the loads that a peer does not tell from the standard one


def figures(bench: Bench) -> dict[str, Any]:
    """Ratios on all loads; of the standard one everything else, too."""
    answer: dict[str, Any] = {}
    for load in bench.options.loads:
        usual = load == "standard"
        peers = [name for name in bench.chosen if usual or name in AGAINST]
        runs = turns(bench, load, ["ours", *peers])
        at = "" if usual else f"{load}."
        answer |= {f"ratio.{at}{name}": round(median(ratios(runs, name, bench.clock)), 3) for name in peers}
        answer |= {f"ratio_wall.{at}{name}": round(median(ratios(runs, name, "wall")), 3) for name in peers}
        answer |= {f"spread.{at}{name}": ends(ratios(runs, name, bench.clock)) for name in peers}
        if usual:
            answer |= details(runs, bench.options.frames)
            if "naive" in peers:  # a loop that encodes once for all boxes of a phrase saves these encodings
                answer["ratio.naive_encoding_per_phrase"] = round(without_encodings(runs), 3)
        else:
            answer |= {f"work.{at}ours.{what}": count for what, count in sorted(runs["ours"][-1].work.items())}
    return answer


def turns(bench: Bench, load: str, ways: list[str]) -> dict[str, list[Run]]:
    """Every way once a repeat, each time in another order; before that, a frame to warm all models up."""
    full = bench.load(load)
    for way in [way for way in ways if bench.size is SMALL or way in ("ours", *AGAINST)]:
        bench.run(way, head(full, 1))
    runs: dict[str, list[Run]] = {way: [] for way in ways}
    for repeat in range(bench.options.repeats):
        shift = repeat % len(ways)
        for way in ways[shift:] + ways[:shift]:
            runs[way].append(bench.run(way, full))
            run = runs[way][-1]
            log.info("%s, %s, repeat %d: %.2f s, %.2f CPU s, %s", load, way, repeat, run.wall, run.cpu, run.stages)
    return runs


def ratios(runs: dict[str, list[Run]], name: str, clock: str) -> list[float]:
    """A peer's seconds over ours, by repeat."""
    return [getattr(b, clock) / getattr(a, clock) for a, b in zip(runs["ours"], runs[name], strict=True)]


def ends(found: list[float]) -> list[float]:
    return [round(min(found), 3), round(max(found), 3)]


def without_encodings(runs: dict[str, list[Run]]) -> float:
    """The naive loop's ratio (by the wall clock) if the boxes of a phrase shared an encoding, from its stages."""
    return median(
        (naive.wall - naive.stages["encode"] * (1 - 1 / BOXES)) / own.wall
        for own, naive in zip(runs["ours"], runs["naive"], strict=True)
    )


def details(runs: dict[str, list[Run]], frames: int) -> dict[str, Any]:
    """Seconds a frame, stages, memory and work of every way; medians, work as it was in the last repeat."""
    answer: dict[str, Any] = {}
    for name, own in runs.items():
        answer[f"seconds.{name}"] = round(median(run.wall for run in own) / frames, 4)
        answer[f"cpu_seconds.{name}"] = round(median(run.cpu for run in own) / frames, 4)
        for stage in own[0].stages:
            answer[f"stage.{name}.{stage}"] = round(median(run.stages[stage] for run in own) / frames, 4)
        answer[f"peak_mb.{name}"] = round(median(run.peak_mb for run in own), 1)
        answer |= {f"work.{name}.{what}": count for what, count in sorted(own[-1].work.items())}
    return answer
