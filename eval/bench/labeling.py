"""Measures the cost of a label job beside its models, and how it scales: workers, memory, rows.

    python eval/bench/labeling.py --json                       everything, with the embedded models and small data sets
    python eval/bench/labeling.py --only memory --clips 5000   one part, at another size

- `workers`: clips per second of two workers over those of one, by the wall clock from the first clip to the last.
- `memory`: the peaks of the driver and of its largest worker with `--clips` clips over those with 100; with the recipe
  `--pipeline`, or without models.
- `rows`: seconds of a job over `--rows` rows before its first clip, in a new folder and in a finished one. The
  completion files of the latter are copies of a real one with other ids, its outputs hard links to real ones.
- `overhead`: CPU seconds per clip of `run_shard` over those of two loops with the same pipeline (`tiny`) over the same
  clips: one that segments and writes results, and a bare one that discards them. They alternate in one process, on one
  thread.

The models of `memory` and `rows` are a few lines in a plug-in file, since the job itself is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from harness import (
    ROOT,
    ProcessUsage,
    argument_parser,
    print_figures,
    run_openavs,
    run_process,
    time_alternately,
    use_one_thread,
    working_folder,
)

use_one_thread()
os.environ |= {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
sys.path.insert(0, str(ROOT))

from tests.plugin_recipe import write_recipe


def main() -> None:
    """Run the selected parts, each in a folder of its own, and print their figures."""
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--pipeline", help="recipe of `memory`, such as tiny; default: a plug-in without models")
    parser.add_argument("--pool", type=int, default=24, help="clips of `overhead`; `workers` has twice as many")
    parser.add_argument("--clips", type=int, default=2000, help="of the larger job of `memory`")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for data sets and results")
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start_job(*options.start)
        return
    figures: dict[str, Any] = {}
    with working_folder(options.keep) as folder:
        for part in options.only:
            figures |= PARTS[part](folder, options)
    print_figures(figures, options.json)


def label_command(source: Path, out: Path, recipe: Path | str, *words: object) -> list[object]:
    """Return the words of an `openavs label` command without the stage cache."""
    return ["label", source, "--out", out, "--pipeline", recipe, "--quiet", "--no-cache", *words]


def synthetic_set(folder: Path, count: int) -> Path:
    """Write a test split of synthetic clips in the layout of S4, if it is missing."""
    source = folder / f"s4-{count}"
    if not source.exists():
        run_openavs("synth", "s4", "--out", source, "--clips", count)
    return source


# ------------------------------------------------------------------------------------------------------- with models


def workers(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare two workers with one, by `clips_per_second` of run.json."""
    source = synthetic_set(folder, 2 * options.pool)
    rates = {}
    for count in (1, 2):
        out = folder / f"workers{count}"
        run_openavs(*label_command(source, out, "tiny", "--overwrite", "--workers", count, "--shard-size", 4))
        rates[count] = json.loads((out / "run.json").read_text())["clips_per_second"]
    return {
        "two_workers_over_one": round(rates[2] / rates[1], 3),
        "clips_per_second": rates,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def overhead(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compare `run_shard` with two loops over the same clips; medians."""
    from openavs.config.recipe import load_recipe
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.evaluation.evaluator import recipe_predictor
    from openavs.jobs.job import Job
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.output_dir import open_folder
    from openavs.jobs.shard import run_shard
    from openavs.labeling.open import open_source
    from openavs.media.clip import open_images
    from openavs.results.serialization import write_result

    source = open_source(str(synthetic_set(folder, options.pool)))
    predictor = recipe_predictor(load_recipe("tiny"), source.datasets[0], load_benchmark("s4"))
    segment: Any = predictor.build()
    outs = (folder / f"overhead{number}" for number in range(10**6))  # a new folder per run

    def loop(out: Path | None) -> None:
        for item in source.samples:
            frames = [source.root / frame for frame in item.frames]
            result = segment(open_images(frames, id=item.id, audio=source.root / str(item.audio)))
            if out is not None:
                write_result(out, result)

    def shard(out: Path) -> None:
        plan = open_folder(out, JobRequest("s4", source.samples, predictor.recipe))
        sink = "openavs.evaluation.job_io:LabelSink"
        run_shard(next(plan.specs(Job(out, plan.key, source.root, predictor.recipe, sink=sink), [0])), segment)

    loop(None)  # warm up
    variants = {"bare": lambda: loop(None), "writing": lambda: loop(next(outs)), "shard": lambda: shard(next(outs))}
    seconds = time_alternately(variants, options.repeats)
    figures: dict[str, Any] = {"clips": len(source.samples), "turns": options.repeats}
    for clock in ("cpu", "wall"):
        middle = {name: median(getattr(run, clock) for run in own) for name, own in seconds.items()}
        figures[f"{clock}_overhead"] = round(middle["shard"] / middle["writing"] - 1, 4)
        figures[f"{clock}_overhead_over_bare_loop"] = round(middle["shard"] / middle["bare"] - 1, 4)
        figures |= {f"{name}_{clock}_s_per_clip": round(own / len(source.samples), 4) for name, own in middle.items()}
    return figures


# --------------------------------------------------------------------------------------------------- the job by itself


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peaks of driver and worker over a few clips and over many."""
    recipe = options.pipeline or write_recipe(folder)
    peaks = {}
    for count in (100, options.clips):
        words = label_command(manifest(folder, count), folder / f"memory{count}", recipe, "--overwrite", "--workers", 1)
        peaks[count] = driver_and_worker_peaks([sys.executable, "-m", "openavs", *map(str, words)])
    few, many = peaks[100], peaks[options.clips]
    return {
        "memory_clips": options.clips,
        "driver_mb": [few["driver"], many["driver"]],
        "worker_mb": [few["worker"], many["worker"]],
        "driver_ratio": round(many["driver"] / few["driver"], 3),
        "worker_ratio": round(many["worker"] / few["worker"], 3),
    }


def driver_and_worker_peaks(command: list[str]) -> dict[str, float]:
    """Return the peaks of resident memory in MB of a job's driver and of its worker (Linux).

    Both are the values of the last sample before the process ended.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    driver = worker = 0.0
    while process.poll() is None:
        children = read(f"/proc/{process.pid}/task/{process.pid}/children").split()
        worker = max([worker, *map(peak_mb, children)])
        driver = max(driver, peak_mb(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]}: exit code {process.returncode}")
    return {"driver": round(driver, 1), "worker": round(worker, 1)}


def peak_mb(pid: int | str) -> float:
    """Return the peak memory of a process so far in MB; 0 if it has ended."""
    lines = read(f"/proc/{pid}/status").splitlines()
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), 0.0)


def read(path: str) -> str:
    """Return the text of a file of /proc; empty if the process has ended."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def rows(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the start-up time of a job over many rows, in a new folder and in a finished one."""
    recipe, few, out = write_recipe(folder), folder / "few", folder / "rows"
    run_openavs(*label_command(manifest(folder, 256), few, recipe, "--overwrite", "--workers", 1))
    source = manifest(folder, options.rows)
    command = [sys.executable, __file__, "--start", source, out, recipe]
    start = run_process(command)
    copy_completion_files(few, out)
    scan = run_process(command)
    again = run_openavs(*label_command(source, out, recipe, "--workers", 1))

    def seconds(usage: ProcessUsage) -> dict[str, float]:
        return {"cpu": round(usage.cpu, 2), "wall": round(usage.wall, 2)}

    return {
        "rows": options.rows,
        "start_up_s": seconds(start),
        "resume_scan_s": seconds(scan),
        "resume_and_index_s": seconds(again),
        "rows_driver_mb": round(again.peak_mb, 1),
    }


def start_job(source: str, out: str, recipe: str) -> None:
    """Do everything that `openavs label` does before it starts its first worker, imports included."""
    import openavs.cli  # noqa: F401
    from openavs.config.recipe import load_recipe
    from openavs.jobs.job import Job
    from openavs.jobs.manifest import JobRequest
    from openavs.jobs.output_dir import open_folder, reopen_changed
    from openavs.jobs.progress import JobProgress
    from openavs.labeling.open import open_source

    loaded, opened = load_recipe(recipe), open_source(source)
    plan = open_folder(Path(out), JobRequest(opened.kind, opened.samples, loaded.to_dict()))
    job = Job(Path(out), plan.key, opened.root, loaded.to_dict(), base=loaded.base)
    reopen_changed(job.out, plan.key, range(plan.shards))
    JobProgress(job, plan, range(plan.shards), {}).save("running")


def copy_completion_files(few: Path, out: Path) -> None:
    """Write completion files for all shards of a job: copies of a real one, with the ids of the plan."""
    completion = json.loads((few / "work/shards/000000.json").read_bytes())
    plan = json.loads((out / "work/manifest.json").read_bytes())
    lines = (out / "manifest.jsonl").read_bytes().splitlines()
    (out / "work/shards").mkdir(exist_ok=True)
    at = 0
    for number, (_, _, count) in enumerate(plan["shards"]):
        ids = [json.loads(line)["id"] for line in lines[at : at + count]]
        at += count
        own = [{**row, "id": id} for row, id in zip(completion["rows"], ids, strict=False)]
        files = {
            id: link_files(few, out, row["id"], id, completion["files"][row["id"]])
            for row, id in zip(completion["rows"], ids, strict=False)
        }
        copy = {
            **completion,
            "shard": number,
            "key": plan["key"],
            "counts": {"ok": count},
            "rows": own,
            "files": files,
        }
        (out / f"work/shards/{number:06d}.json").write_text(json.dumps(copy, separators=(",", ":")))


def link_files(few: Path, out: Path, old_id: str, new_id: str, files: dict[str, str]) -> dict[str, str]:
    """Hard-link the files of a clip under another id; return their stamps by path."""
    links = {path.replace(f"/{old_id}/", f"/{new_id}/"): stamp for path, stamp in files.items()}
    for folder in {os.path.dirname(path) for path in links}:
        os.makedirs(out / folder, exist_ok=True)
    for old, new in zip(files, links, strict=True):
        os.link(few / old, out / new)
    return links


def manifest(folder: Path, count: int) -> Path:
    """Write a manifest with one small video under many ids."""
    video = folder / "v.mp4"
    if not video.exists():
        run_openavs("synth", "clip", "--out", video, "--size", "64x48", "--seconds", 2, "--fps", 4)
    path = folder / f"rows{count}.jsonl"
    path.write_text("".join(json.dumps({"id": f"clip{n:07}", "path": video.name}) + "\n" for n in range(count)))
    return path


PARTS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "workers": workers,
    "memory": memory,
    "rows": rows,
    "overhead": overhead,  # last: it loads models here, and child processes start with the peak memory of this one
}


if __name__ == "__main__":
    main()
