"""Measures the peak memory of `openavs segment`: over the length of a video, and with one stage group at a time.

    python eval/bench/memory.py length --json
    python eval/bench/memory.py offload --json

`length`: memory must be bounded by the batch and not by the length of the video: ten minutes may take 1.3 times the
memory of one minute. With `--keep DIR` the videos are kept for the next run.

`offload`: CLAP with fusion, Grounding DINO tiny and SAM ViT-B at their published sizes with random weights, on a CPU,
on frames of 1280 x 720, with all models in memory and with one stage group at a time, beside the estimates. The script
sets the free memory that openavs detects: enough for all models, for the largest group, and too little. `--keep DIR`
keeps the models (1.5 GB).

Every measurement is a separate process, and so is everything that writes videos and models: a process on Linux starts
with the peak memory of its parent, so this script imports nothing large.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import MB, ROOT, argument_parser, print_figures, run_openavs, run_process, working_folder

NAMES = {60: "one_minute_mb", 600: "ten_minutes_mb"}  # other lengths are seconds_N_mb
SAVE_MODELS = """
import sys
from pathlib import Path
import numpy as np
from workloads import REAL, save_clap, save_models
folder = Path(sys.argv[1])
save_clap(folder / "clap")
save_models(folder, REAL, "sam", np.random.default_rng(0).integers(0, 255, (*REAL.image, 3), dtype=np.uint8))
"""
ESTIMATE = """
import json, sys
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.config.recipe import load_recipe
print(json.dumps(estimate_memory(load_recipe("openavs-cpu", sys.argv[1:]))))
"""
RUN = """
import sys
from openavs.pipeline import memory_estimate
from openavs.cli import main
free = int(sys.argv.pop(1))
memory_estimate.free_memory = lambda device: free
sys.exit(main())
"""


def main() -> None:
    """Run the selected measurement and print it."""
    parser = argument_parser(__doc__)
    parser.add_argument("what", choices=("length", "offload"))
    parser.add_argument("--lengths", type=int, nargs=2, default=[60, 600], metavar="SECONDS", help="of two videos")
    parser.add_argument("--size", default="1280x720", metavar="WIDTHxHEIGHT", help="of the videos of `length`")
    parser.add_argument("--fps", type=float, default=4.0, help="of the videos of `length`; 1 per second is processed")
    parser.add_argument("--pipeline", default="tiny", help="the recipe of `length`")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of that recipe")
    parser.add_argument("--dtype", default="auto", help="of the models of `offload`: auto, float32")
    parser.add_argument("--frames", type=int, default=2, help="of `offload`")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for inputs and results")
    options = parser.parse_args()
    started = time.monotonic()
    with working_folder(options.keep) as folder:
        figures = (measure_length if options.what == "length" else measure_offload)(folder, options)
    print_figures(figures | {"seconds": round(time.monotonic() - started, 1)}, options.json)


def measure_length(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the peaks for a short and a long video in MB, and their ratio."""
    peaks = []
    for seconds in options.lengths:
        video = folder / f"{seconds}s.mp4"
        if not video.exists():
            part = folder / f"part-{seconds}s.mp4"
            form = ("--size", options.size, "--seconds", seconds, "--fps", options.fps)
            run_openavs("synth", "clip", "--out", part, "--overwrite", *form)
            part.rename(video)
        words = ("segment", video, "--quiet", "--pipeline", options.pipeline, "--overwrite", "--out", folder / "out")
        peaks.append(run_openavs(*words, *options.set).peak_mb)
    names = [NAMES.get(seconds, f"seconds_{seconds}_mb") for seconds in options.lengths]
    return {name: round(peak, 1) for name, peak in zip(names, peaks, strict=True)} | {
        "ratio": round(peaks[1] / peaks[0], 3)
    }


def measure_offload(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return peaks and estimates in GB, and the message that refuses to run in too little memory.

    Raises:
        SystemExit: all models are loaded at once.
    """
    models = folder / "models"
    if not (models / "sam").is_dir():
        run_code(SAVE_MODELS, models, env={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT)])})
    video = folder / "video.mp4"
    run_openavs("synth", "clip", "--out", video, "--overwrite", "--size", "1280x720", "--seconds", "2", "--fps", "2")
    overrides = [
        f"captioner.model={models / 'clap'}",
        "captioner.vocabulary=[dog barking, bell ringing, car passing]",
        "captioner.threshold=0",
        f"detector.model={models / 'grounding-dino'}",
        f"segmenter.model={models / 'sam'}",
        "filtering.box_threshold=0",
        "filtering.max_boxes=4",
        f"dtype={options.dtype}",
        "device=cpu",
        f"sample.fps={options.frames / 2}",
    ]
    together, largest = json.loads(run_code(ESTIMATE, *overrides)[1].splitlines()[-1])
    words = ("segment", video, "--pipeline", "openavs-cpu", "--overwrite", *overrides, "--out")
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    os.environ["OPENAVS_CACHE"] = str(cache)
    refused, reason = run_code(RUN, largest // 3, *words, folder / "refused", exit_codes=(2,))
    offloaded, log = run_code(RUN, largest, *words, folder / "offloaded")
    if "one group at a time" not in log:
        raise SystemExit(f"the models were not loaded one group at a time: {log}")
    at_once, _ = run_code(RUN, 10**12, *words, folder / "at-once")
    return {
        "at_once_gb": round(at_once, 2),
        "at_once_predicted_gb": round(together / 1e9, 2),
        "offloaded_gb": round(offloaded, 2),
        "offloaded_predicted_gb": round(largest / 1e9, 2),
        "offloaded_ratio": round(offloaded * 1e9 / largest, 3),
        "refused_gb": round(refused, 2),
        "refused": reason.strip().splitlines()[-1],
    }


def run_code(code: str, *words: object, **options: Any) -> tuple[float, str]:
    """Run Python code in a process; return its peak memory in GB, and its stdout and stderr."""
    usage = run_process([sys.executable, "-c", code, *words], stderr=subprocess.STDOUT, **options)
    return usage.peak_mb * MB / 1e9, usage.output


if __name__ == "__main__":
    main()
