"""Simulates label jobs of 10^4 to 10^8 clips on 1 to 512 GPUs from the clip times of a real job.

    python eval/bench/scale.py --times labels --json                      from the log of a result folder of `label`
    python eval/bench/scale.py --times times.json --preemptions 0.1       from a file with the same figures (`--save`)
    python eval/bench/scale.py --times small --check small large --json   predicted over real seconds of real jobs

The job runs as `openavs label` runs it. A worker for each GPU loads its models once and takes one shard after another.
While a clip is processed, the next one is opened and the last one written. A finished clip is never repeated. A clip
that crashes its worker is tried alone twice, each time in a new worker. The shard of a worker that is preempted is
continued by another one, on an object store after the lease of its claim.

Measured are the seconds from clip to clip, from the start to the first clip, and after the last clip; clip
times are drawn from them. All else is an assumption and printed as such: preemptions, poison, slow workers, the store's
latency and throughput, the price.

Prints for each job clips per second, the share of GPU time in which no clip is processed (start, waiting for the store
and for the last shards), the share of clip time that is lost to crashes and preemptions, and the cost of 10^6 clips.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from harness import argument_parser, print_figures

CLIPS, GPUS = (10**4, 10**5, 10**6, 10**7, 10**8), (1, 8, 64, 512)
SOLO_ATTEMPTS, UNDER_WAY = 2, 4  # of `executors/base.py`, and clips opened, running and unwritten of `shard.py`
LEASE = 60.0  # of `job_store.py`
BLOCK = 1 << 22  # clip times drawn at a time


@dataclass(frozen=True)
class Times:
    """The measured figures: seconds from clip to clip of a worker, to its first clip, and after the last clip."""

    periods: tuple[float, ...]
    start: float
    end: float


@dataclass(frozen=True)
class Assumptions:
    """The figures that were not measured; `latency` (s) and `throughput` (bytes/s a worker) are an object store's."""

    shard_size: int = 256
    preemptions: float = 0.0  # of a GPU in an hour
    replacement: float = 120.0  # seconds until there is another
    poison: float = 0.0  # share of clips that crash their worker
    slow: float = 0.0  # share of workers that are slower
    slowness: float = 2.0  # by this factor
    row: float = 6e-5  # seconds of plan and index for a clip: `labeling.py --only rows`, 6.1 s for 100,000
    latency: float = 0.0
    throughput: float = 50e6
    clip_bytes: float = 2e6
    result_bytes: float = 2e5
    price: float = 2.0  # of a GPU for an hour, in any currency


@dataclass(frozen=True)
class Outcome:
    """The figures of one job; seconds are of the wall clock, shares of all GPU time and of all clip time."""

    clips: int
    gpus: int
    seconds: float
    clips_per_second: float
    idle_share: float
    lost_share: float
    cost_per_million_clips: float


def main() -> None:
    """Simulate the jobs, or compare predicted with real ones."""
    parser = argument_parser(__doc__)
    parser.add_argument("--times", type=Path, required=True, help="a result folder of `label`, or a file of --save")
    parser.add_argument("--save", type=Path, help="write the measured times to a file")
    parser.add_argument("--check", type=Path, nargs="+", metavar="DIR", help="predict these finished jobs instead")
    parser.add_argument("--clips", type=int, nargs="+", default=CLIPS)
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    parser.add_argument("--seed", type=int, default=0)
    for name, value in asdict(Assumptions()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(value), default=value, help=f"assumption; default {value:g}")
    options = parser.parse_args()
    times = read_times(options.times)
    if options.save:
        options.save.write_text(json.dumps(asdict(times)))
    if options.check:
        print_figures({"check": [check(times, out, options.seed) for out in options.check]}, options.json)
        return
    assumed = Assumptions(**{name: getattr(options, name) for name in asdict(Assumptions())})
    jobs = [simulate(times, assumed, n, gpus, options.seed) for n in options.clips for gpus in options.gpus]
    measured = {"clips": len(times.periods), "mean_period": float(np.mean(times.periods)), "start": times.start}
    figures = {"measured": measured, "assumed": asdict(assumed), "jobs": [asdict(job) for job in jobs]}
    if options.json:
        print_figures(figures, as_json=True)
    else:
        print_figures({**figures, "jobs": ""}, as_json=False)
        print("\n".join(table(jobs)))


def table(jobs: Sequence[Outcome]) -> Iterator[str]:
    """Yield the jobs as rows of text."""
    yield f"{'clips':>11} {'GPUs':>5} {'hours':>10} {'clips/s':>10} {'idle':>7} {'lost':>8} {'cost/1e6':>10}"
    for job in jobs:
        cost = f"{job.cost_per_million_clips:10.2f}"
        shares = f"{job.idle_share:7.1%} {job.lost_share:8.3%}"
        yield f"{job.clips:11d} {job.gpus:5d} {job.seconds / 3600:10.2f} {job.clips_per_second:10.2f} {shares} {cost}"


# ---------------------------------------------------------------------------------------------------------- measured


def read_times(path: Path) -> Times:
    """Read the times of a finished job from its logs, or those that `--save` wrote."""
    if path.is_file():
        saved = json.loads(path.read_text())
        return Times(tuple(saved["periods"]), saved["start"], saved["end"])
    periods: list[float] = []
    starts: list[float] = []
    run = json.loads((path / "run.json").read_text())
    for log in sorted((path / "log").glob("clips-*.jsonl")):
        ends = [datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in log.open()]
        periods += np.diff(ends).tolist()
        starts.append(ends[0])
    last = max(starts) if not periods else max(ends)
    begun = datetime.fromisoformat(run["started"]).timestamp()
    after = datetime.fromisoformat(run["updated"]).timestamp() - last
    start = float(np.mean(starts)) - begun - float(np.mean(periods))
    return Times(tuple(periods), max(start, 0.0), max(after, 0.0))


def check(times: Times, out: Path, seed: int) -> dict[str, Any]:
    """Compare the predicted with the real seconds of a finished job with the local executor."""
    run = json.loads((out / "run.json").read_text())
    workers = len(list((out / "log").glob("clips-*.jsonl")))
    size = -(-run["clips"] // run["shards"]["planned"])
    predicted = simulate(times, Assumptions(shard_size=size), run["clips"], workers, seed).seconds
    begun, ended = (datetime.fromisoformat(run[name]).timestamp() for name in ("started", "updated"))
    real = ended - begun
    return {
        "clips": run["clips"],
        "workers": workers,
        "predicted": round(predicted, 1),
        "real": round(real, 1),
        "ratio": round(predicted / real, 3),
    }


# --------------------------------------------------------------------------------------------------------- simulated


def simulate(times: Times, assumed: Assumptions, clips: int, gpus: int, seed: int) -> Outcome:
    """Simulate one job; the same seed gives the same outcome."""
    if clips < 1 or gpus < 1:
        raise ValueError("a job has at least one clip and one GPU")
    rng = np.random.default_rng(seed)
    pace = np.where(rng.random(gpus) < assumed.slow, assumed.slowness, 1.0)
    life = 3600.0 / assumed.preemptions if assumed.preemptions else np.inf
    end_of_life = rng.exponential(life, gpus) if assumed.preemptions else np.full(gpus, np.inf)
    periods = np.maximum(np.asarray(times.periods), stored_period(assumed))
    mean = float(periods.mean())
    # workers by the time at which they are free
    free = [(times.start, worker) for worker in range(gpus)]
    shards = shard_seconds(rng, periods, assumed, clips)
    resumed: deque[tuple[float, float]] = (
        deque()
    )  # when a preempted shard may be continued, and its seconds that are left
    worked, lost, ended, fresh = 0.0, 0.0, 0.0, next(shards, None)
    while fresh is not None or resumed:
        now, worker = heapq.heappop(free)
        if fresh is not None and not (resumed and resumed[0][0] <= now):
            (seconds, poisoned), fresh = fresh, next(shards, None)
        else:
            ready, seconds = resumed.popleft()
            poisoned, now = 0, max(now, ready)
        crashes = poisoned * (1 + SOLO_ATTEMPTS)
        again = poisoned * (UNDER_WAY / 2 + 1 + SOLO_ATTEMPTS) * mean  # clips that were under way, and the attempts
        wait = crashes * times.start + shard_wait(assumed)
        took = (seconds + again) * pace[worker] + wait
        if now + took > end_of_life[worker]:
            done = max(0.0, end_of_life[worker] - now) / took
            left = min(seconds, seconds * (1 - done) + mean * UNDER_WAY / 2)
            worked += (seconds * done) * pace[worker]
            lost += min(seconds * done, mean * UNDER_WAY / 2) * pace[worker]
            held = LEASE if assumed.latency else 0.0
            resumed.append((end_of_life[worker] + held, left))
            back = end_of_life[worker] + assumed.replacement
            end_of_life[worker] = back + rng.exponential(life)
            heapq.heappush(free, (back + times.start, worker))
            continue
        worked += (seconds + again) * pace[worker]
        lost += again * pace[worker]
        ended = max(ended, now + took)
        heapq.heappush(free, (now + took, worker))
    seconds = ended + times.end + assumed.row * clips
    gpu_seconds = seconds * gpus
    cost = gpu_seconds / 3600 * assumed.price / clips * 1e6
    return Outcome(clips, gpus, seconds, clips / seconds, 1 - worked / gpu_seconds, lost / worked, cost)


def shard_seconds(
    rng: np.random.Generator, periods: np.ndarray, assumed: Assumptions, clips: int
) -> Iterator[tuple[float, int]]:
    """Yield the seconds of each shard and the number of its clips that crash their worker."""
    size = assumed.shard_size
    whole, rest = divmod(clips, size)
    step = max(1, BLOCK // size)
    for first in range(0, whole, step):
        count = min(step, whole - first)
        drawn = periods[rng.integers(len(periods), size=(count, size))].sum(axis=1)
        yield from zip(drawn.tolist(), rng.binomial(size, assumed.poison, count).tolist(), strict=True)
    if rest:
        drawn = periods[rng.integers(len(periods), size=rest)].sum()
        yield float(drawn), int(rng.binomial(rest, assumed.poison))


def stored_period(assumed: Assumptions) -> float:
    """Return the least seconds from clip to clip on an object store: opening and writing run beside the models."""
    if not assumed.latency:
        return 0.0
    opened = 3 * assumed.latency + assumed.clip_bytes / assumed.throughput  # journal, size, content
    written = 2 * assumed.latency + assumed.result_bytes / assumed.throughput  # files, journal
    return max(opened, written)


def shard_wait(assumed: Assumptions) -> float:
    """Return the seconds of a shard's own requests: claim, journal, completion, logs; its journal, 16 at a time."""
    return assumed.latency * (10 + assumed.shard_size / 16)


if __name__ == "__main__":
    main()
