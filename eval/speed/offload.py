"""Peak memory of `openavs segment` with real-size models, all loaded at once and in turns, beside what is predicted.

    python eval/speed/offload.py --json

CLAP with fusion, Grounding DINO tiny and SAM ViT-B at their published sizes with random weights, on a CPU, on
frames of 1280 x 720. The free memory that `openavs` sees is set by the script: enough for all models, for the largest
group of stages, and too little. Every run is a process of its own; a process on Linux starts with the peak of the one
that started it, so nothing large is imported here. `--keep DIR` keeps the models (1.5 GB) for the next run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SAVE = """
import sys
from pathlib import Path
import numpy as np
from random_models import REAL, save_clap, save_models
folder = Path(sys.argv[1])
save_clap(folder / "clap")
save_models(folder, REAL, "sam", np.random.default_rng(0).integers(0, 255, (*REAL.picture, 3), dtype=np.uint8))
"""
PREDICT = """
import json, sys
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.config.recipe import load_recipe
print(json.dumps(estimate_memory(load_recipe("openavs-cpu", sys.argv[1:]))))
"""
RUN = """
import sys
from openavs.pipeline import memory_estimate as footprint
from openavs.cli import main
free = int(sys.argv.pop(1))
footprint.free_memory = lambda place: free
sys.exit(main())
"""


def run(code: str, *words: str | Path, expected: int = 0) -> tuple[float, str]:
    """Runs code in a process; its peak memory in GB and what it printed on stdout and stderr."""
    with tempfile.TemporaryFile("w+") as said:
        child = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])},
        )
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read()
    if child.returncode != expected:
        raise SystemExit(f"exit code {child.returncode}: {text[-2000:]}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9, text


def measure(folder: Path, dtype: str, frames: int) -> dict[str, float | str]:
    """Peaks and predictions in GB, and the sentence that refuses to run in too little memory."""
    models = folder / "models"
    if not (models / "sam").is_dir():
        run(SAVE, models)
    video = folder / "video.mp4"
    length = ("--size", "1280x720", "--seconds", "2", "--fps", "2")
    run(RUN, 10**12, "synth", "clip", "--out", video, "--overwrite", *length)
    changes = [
        f"captioner.model={models / 'clap'}",
        "captioner.vocabulary=[dog barking, bell ringing, car passing]",
        "captioner.threshold=0",
        f"detector.model={models / 'grounding-dino'}",
        f"segmenter.model={models / 'sam'}",
        "filtering.box_threshold=0",
        "filtering.max_boxes=4",
        f"dtype={dtype}",
        "device=cpu",
        f"sample.fps={frames / 2}",
    ]
    together, largest = json.loads(run(PREDICT, *changes)[1].splitlines()[-1])
    words = ("segment", video, "--pipeline", "openavs-cpu", "--overwrite", *changes, "--out")
    refused, why = run(RUN, largest // 3, *words, folder / "refused", expected=2)
    print(why.strip(), file=sys.stderr)
    os.environ["OPENAVS_CACHE"] = str(folder / "cache")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    in_turns, said = run(RUN, largest, *words, folder / "in-turns")
    if "loaded in turns" not in said:
        raise SystemExit(f"the models did not take turns: {said}")
    print(f"in turns {in_turns:.2f} GB, predicted {largest / 1e9:.2f}", file=sys.stderr)
    at_once, _ = run(RUN, 10**12, *words, folder / "at-once")
    return {
        "at_once_gb": round(at_once, 2),
        "at_once_predicted_gb": round(together / 1e9, 2),
        "in_turns_gb": round(in_turns, 2),
        "in_turns_predicted_gb": round(largest / 1e9, 2),
        "in_turns_ratio": round(in_turns * 1e9 / largest, 3),
        "refused_gb": round(refused, 2),
        "refused": why.strip().splitlines()[-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto", help="of the models: auto, float32")
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the models and the results")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as passing:
        folder = (options.keep or Path(passing)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        answer = measure(folder, options.dtype, options.frames) | {"seconds": round(time.monotonic() - started, 1)}
    print(json.dumps(answer, indent=2) if options.json else ", ".join(f"{k} {v}" for k, v in answer.items()))


if __name__ == "__main__":
    main()
