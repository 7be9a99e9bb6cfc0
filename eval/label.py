"""What a label job costs beside its models, and how it grows: overhead, workers, memory, rows.

    python eval/label.py --json                       all of it with the embedded models and small pools
    python eval/label.py --only memory --clips 5000   one figure, at another size

- `overhead`: CPU seconds a clip of `run_shard` over those of two loops with the same pipeline (`tiny`) over the same
  clips: one that segments and writes results, and a bare one that throws them away. All in one process and in turns;
  CPU seconds, because other work on the machine changes the wall clock; one thread.
- `workers`: clips a second of two workers over those of one, by the wall clock between the first clip and the last.
- `memory`: the peaks of the driver and of its largest worker, at `--clips` over those at 100; with the recipe
  `--pipeline`, or without models.
- `rows`: seconds that a job over `--rows` rows takes before its first clip, at the start and when everything is done.
  The marks of the second are copies of a real one under other ids, and their files hard links to real ones.

Every measurement is a process of its own. The models of `memory` and `rows` are a few lines in a plug-in file: what is
measured there is the job.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {
    **os.environ,
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
}


def run(command: Sequence[str | Path]) -> dict[str, float]:
    """Runs a command to its end: wall and CPU seconds of it and its children, and the largest process's peak in MB."""
    started = time.monotonic()
    child = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))[:200]} failed with exit code {child.returncode}")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "wall": time.monotonic() - started,
        "cpu": usage.ru_utime + usage.ru_stime,
        "mb": usage.ru_maxrss / scale,
    }


def label(source: Path, out: Path, *words: str | Path) -> dict[str, float]:
    """Runs `openavs label` without the stage cache."""
    return run(
        [sys.executable, "-m", "openavs", "label", source, "--out", out, "--quiet", "--no-cache", "--overwrite", *words]
    )


# ------------------------------------------------------------------------------------------------- with the models


def overhead(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`run_shard` over loops with the same pipeline in the same process, in turns; medians of CPU seconds."""
    source = scenes(folder, options.pool)
    command = [sys.executable, __file__, "--turns", source, folder / "turns", str(options.repeats)]
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, env=ENVIRONMENT, text=True, check=True
    )
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def turns(source_folder: str, folder: str, repeats: str) -> None:
    """Prints what a shard costs beside a bare loop and beside one that writes its results."""
    from openavs.config.recipe import load_recipe
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.evaluation.evaluator import recipe_predictor
    from openavs.labeling.job import Job
    from openavs.labeling.manifest import JobRequest
    from openavs.labeling.output_dir import open_folder
    from openavs.labeling.readers.open import open_source
    from openavs.labeling.shard import run_shard
    from openavs.media import open_images
    from openavs.results.serialization import write_result

    source = open_source(source_folder)
    system = recipe_predictor(load_recipe("tiny"), source.datasets[0], load_benchmark("s4"))
    segment: Any = system.build()

    def loop(out: Path | None) -> None:
        for item in source.items:
            frames = [source.root / frame for frame in item.frames]
            result = segment(open_images(frames, id=item.id, audio=source.root / str(item.audio)))
            if out is not None:
                write_result(out, result)

    def shard(out: Path) -> None:
        plan = open_folder(out, JobRequest("s4", source.items, system.recipe))
        run_shard(next(plan.specs(Job(out, plan.key, source.root, system.recipe), [0])), segment)

    loop(None)  # warm
    costs: dict[str, list[tuple[float, float]]] = {"bare": [], "writing": [], "shard": []}
    for turn in range(int(repeats)):
        work: list[tuple[str, Callable[[], None]]] = [
            ("bare", lambda: loop(None)),
            ("writing", lambda turn=turn: loop(Path(folder, f"loop{turn}"))),  # type: ignore[misc]
            ("shard", lambda turn=turn: shard(Path(folder, f"shard{turn}").absolute())),  # type: ignore[misc]
        ]
        for name, do in work[turn % 3 :] + work[: turn % 3]:
            before = time.process_time(), time.monotonic()
            do()
            costs[name].append((time.process_time() - before[0], time.monotonic() - before[1]))
    answer: dict[str, Any] = {"clips": len(source.items), "turns": int(repeats)}
    for place, kind in enumerate(("cpu", "wall")):
        middle = {name: statistics.median(cost[place] for cost in own) for name, own in costs.items()}
        answer[f"{kind}_overhead"] = round(middle["shard"] / middle["writing"] - 1, 4)
        answer[f"{kind}_overhead_over_bare_loop"] = round(middle["shard"] / middle["bare"] - 1, 4)
        answer |= {f"{name}_{kind}_s_per_clip": round(cost / len(source.items), 4) for name, cost in middle.items()}
    print(json.dumps(answer))


def workers(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Two workers over one, by `clips_per_second` of run.json."""
    source = scenes(folder, 2 * options.pool)
    rates = {}
    for count in (1, 2):
        out = folder / f"workers{count}"
        label(source, out, "--pipeline", "tiny", "--workers", str(count), "--shard-size", "4")
        rates[count] = json.loads((out / "run.json").read_text())["clips_per_second"]
    return {
        "two_workers_over_one": round(rates[2] / rates[1], 3),
        "clips_per_second": rates,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def scenes(folder: Path, count: int) -> Path:
    """The synthetic world in S4's layout."""
    source = folder / f"s4-{count}"
    if not source.exists():
        run([sys.executable, "-m", "openavs", "synth", "s4", "--out", source, "--clips", str(count)])
    return source


# ---------------------------------------------------------------------------------------------- the job by itself


def memory(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Peaks of driver and workers over a few clips and over many."""
    recipe, video = plugin(folder)
    found = {}
    for count in (100, options.clips):
        manifest = rows(folder, count, video)
        found[count] = peaks(label_command(manifest, folder / f"memory{count}", options.pipeline or recipe))
    few, many = found[100], found[options.clips]
    return {
        "memory_clips": options.clips,
        "driver_mb": [few["driver"], many["driver"]],
        "worker_mb": [few["worker"], many["worker"]],
        "driver_ratio": round(many["driver"] / few["driver"], 3),
        "worker_ratio": round(many["worker"] / few["worker"], 3),
    }


def label_command(source: Path, out: Path, recipe: Path | str) -> list[str]:
    return [
        *(sys.executable, "-m", "openavs", "label", str(source), "--out", str(out), "--pipeline", str(recipe)),
        *("--quiet", "--no-cache", "--overwrite", "--workers", "1"),
    ]


def peaks(command: list[str]) -> dict[str, float]:
    """The peaks of resident memory of a job's driver and of its worker, in MB; Linux, which remembers peaks.

    Both as they were seen last before they ended.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    driver = worker = 0.0
    while process.poll() is None:
        children = read(f"/proc/{process.pid}/task/{process.pid}/children").split()
        worker = max([worker, *map(peak, children)])
        driver = max(driver, peak(process.pid))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed with exit code {process.returncode}")
    return {"driver": round(driver, 1), "worker": round(worker, 1)}


def peak(pid: int | str) -> float:
    """The peak so far of a process, in MB; 0 if it has ended."""
    lines = read(f"/proc/{pid}/status").splitlines()
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM")), 0.0)


def read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:  # the process has ended meanwhile
        return ""


def many_rows(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What a job over many rows takes before its first clip, and when all is done."""
    recipe, video = plugin(folder)
    out = folder / "rows"
    few = rows(folder, 256, video)
    label(few, folder / "few", "--pipeline", recipe, "--workers", "1")
    manifest = rows(folder, options.rows, video)
    command = [sys.executable, __file__, "--start", manifest, out, recipe]
    start = run(command)
    copy_marks(folder / "few", out)
    scan = run(command)
    again = run([*label_command(manifest, out, recipe)[:-3], "--workers", "1"])
    return {
        "rows": options.rows,
        "start_up_s": seconds(start),
        "resume_scan_s": seconds(scan),
        "resume_and_index_s": seconds(again),
        "driver_mb": round(again["mb"], 1),
    }


def seconds(usage: dict[str, float]) -> dict[str, float]:
    return {"cpu": round(usage["cpu"], 2), "wall": round(usage["wall"], 2)}


def start(manifest: str, out: str, recipe: str) -> None:
    """All that `openavs label` does before it starts its first worker, interpreter and imports included."""
    import openavs.cli  # noqa: F401
    from openavs.config.recipe import load_recipe
    from openavs.labeling.job import Job
    from openavs.labeling.manifest import JobRequest
    from openavs.labeling.output_dir import open_folder
    from openavs.labeling.progress import JobProgress
    from openavs.labeling.readers.open import open_source
    from openavs.labeling.verification import reopen_changed

    made, source = load_recipe(recipe), open_source(manifest)
    plan = open_folder(Path(out), JobRequest(source.kind, source.items, made.to_dict()))
    job = Job(Path(out), plan.key, source.root, made.to_dict(), base=made.base)
    reopen_changed(job.out, plan.key, range(plan.shards))
    JobProgress(job, plan, range(plan.shards), {}).save("running")


def copy_marks(few: Path, out: Path) -> None:
    """Marks for all shards of a job: those of a real shard, its rows under the ids of the plan."""
    mark = json.loads((few / "shards/000000.json").read_bytes())
    plan = json.loads((out / "plan.json").read_bytes())
    lines = (out / "plan.jsonl").read_bytes().splitlines()
    (out / "shards").mkdir(exist_ok=True)
    at = 0
    for number, (_, _, count) in enumerate(plan["shards"]):
        ids = [json.loads(line)["id"] for line in lines[at : at + count]]
        at += count
        own = [{**row, "id": id} for row, id in zip(mark["rows"], ids, strict=False)]
        files = {
            id: linked(few, out, row["id"], id, mark["files"][row["id"]])
            for row, id in zip(mark["rows"], ids, strict=False)
        }
        copy = {**mark, "shard": number, "plan": plan["key"], "counts": {"ok": count}, "rows": own, "files": files}
        (out / f"shards/{number:06d}.json").write_text(json.dumps(copy, separators=(",", ":")))


def linked(few: Path, out: Path, was: str, id: str, files: dict[str, str]) -> dict[str, str]:
    """The files of a clip under another id, which are made as hard links, and their stamps."""
    made = {path.replace(f"/{was}/", f"/{id}/"): stamp for path, stamp in files.items()}
    for folder in {os.path.dirname(path) for path in made}:
        os.makedirs(out / folder, exist_ok=True)
    for old, new in zip(files, made, strict=True):
        os.link(few / old, out / new)
    return made


def plugin(folder: Path) -> tuple[Path, Path]:
    """The plug-in recipe and one small video."""
    sys.path.insert(0, str(ROOT))
    from tests.media_files import grey, make_media, tone
    from tests.plugin_recipe import write_recipe

    video = folder / "v.mp4"
    if not video.exists():
        make_media(video, [grey(3)] * 8, fps=4, sound=tone(2))
    return write_recipe(folder), video


def rows(folder: Path, count: int, video: Path) -> Path:
    """A manifest in which one video stands under many ids."""
    path = folder / f"rows{count}.jsonl"
    path.write_text("".join(json.dumps({"id": f"clip{n:07}", "path": video.name}) + "\n" for n in range(count)))
    return path


FIGURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "overhead": overhead,
    "workers": workers,
    "memory": memory,
    "rows": many_rows,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FIGURES, nargs="+", default=list(FIGURES))
    parser.add_argument("--pipeline", help="of memory, such as tiny; without it a recipe of a few lines, no models")
    parser.add_argument("--pool", type=int, default=24, help="clips for overhead, half as many as for workers")
    parser.add_argument("--repeats", type=int, default=5, help="of overhead")
    parser.add_argument("--clips", type=int, default=2000, help="clips of the larger pool for memory")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for pools and results")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--start", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--turns", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start or options.turns:
        turns(*options.turns) if options.turns else start(*options.start)
        return
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as passing:
        folder = (options.keep or Path(passing)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.only:
            answer |= FIGURES[name](folder, options)
    print(json.dumps(answer, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in answer.items()))


if __name__ == "__main__":
    main()
