"""Measures `openavs index` and `openavs find` over many clips.

    python eval/bench/search.py --json                     100,000 clips
    python eval/bench/search.py --clips 2000 --keep build/search

The results are files as `openavs segment` writes them, of `--kinds` different clips: 10 frames of 640 x 360 with
CLAP's labels as captions, the lexicon's prompts, masks with tracks, and rejections. Each clip has the text of one of
them under its own id.

- `index`: wall and CPU seconds and peak memory of a new index, of an update without changes, and of one after 1 % of
  the results have changed.
- `find`: seconds of the command for each query, from the start of Python to its exit: median and maximum of the wall
  clock and median CPU time over `--repeats`. With `--evict`, the file of the index is dropped from the page cache
  before each.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from harness import ROOT, argument_parser, print_figures, run_openavs, use_one_thread, working_folder

use_one_thread()
sys.path.insert(0, str(ROOT))

import numpy as np

from openavs.config.recipe import load_recipe
from openavs.results.serialization import json_bytes, result_to_json
from openavs.stages.lexicon import lexicon
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.masks import RLE, mask_to_rle
from openavs.structures.types import Caption, ClipResult, FrameResult, Prompt, Rejection, Segment

SIZE, FRAMES = (360, 640), 10
QUERIES: dict[str, Sequence[str]] = {
    "rare": ["bagpipes"],
    "two words": ["car alarm"],
    "two sounds": ["person", "--and", "vehicle"],
    "common": ["vehicle"],
    "common, seen, without another": ["person", "--seen", "--not", "music"],
    "three common": ["animal", "--and", "person", "--not", "vehicle"],
}


def main() -> None:
    parser = argument_parser(__doc__, repeats=5)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--kinds", type=int, default=1000, help="different results")
    parser.add_argument("--only", choices=("index", "find"), help="`find` needs the index of an earlier call in --keep")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the results and the index")
    parser.add_argument("--evict", action="store_true", help="read the index from the disk (Linux)")
    options = parser.parse_args()
    with working_folder(options.keep) as folder:
        print_figures(measure(folder, options), options.json)


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of the selected parts."""
    run, out = folder / f"run-{options.clips}", folder / "sounds.db"
    figures: dict[str, Any] = {"clips": options.clips}
    if options.only != "find":
        figures |= measure_index(run, out, options)
    if options.only != "index":
        found = {name: find(words, out, options.repeats, evict=options.evict) for name, words in QUERIES.items()}
        figures["find"] = found
    return figures | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}


def measure_index(run: Path, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Make the index and update it twice."""
    out.unlink(missing_ok=True)
    figures: dict[str, Any] = {"megabytes": write_run(run, options.clips, options.kinds)}
    figures["index"] = index(run, out)
    figures["no_change"] = index(run, out)
    for path in [path / "result.json" for path in sorted((run / "clips").iterdir())][::100]:
        path.write_bytes(path.read_bytes() + b" ")
    figures["one_percent_changed"] = index(run, out)
    figures["index_megabytes"] = round(out.stat().st_size / 1e6)
    return figures


def index(run: Path, out: Path) -> dict[str, Any]:
    """Run `openavs index` and return its figures."""
    usage = run_openavs("index", run, "--out", out, "--json")
    summary = json.loads(usage.output)
    counts = {name: summary[name] for name in ("new", "changed", "spans", "texts")}
    return {"wall": round(usage.wall, 2), "cpu": round(usage.cpu, 2), "peak_mb": round(usage.peak_mb), **counts}


def find(words: Sequence[str], out: Path, repeats: int, *, evict: bool) -> dict[str, Any]:
    """Run `openavs find` several times and return its figures."""
    walls, cpus, lines = [], [], 0
    for _ in range(repeats):
        if evict:
            with out.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        usage = run_openavs("find", *words, "--index", out)
        walls.append(usage.wall)
        cpus.append(usage.cpu)
        lines = len(usage.output.splitlines())
    last = usage.output.splitlines()[-1] if lines else ""
    seconds = {"wall": median(walls), "max_wall": max(walls), "cpu": median(cpus)}
    return {name: round(value, 3) for name, value in seconds.items()} | {"found": last if " of " in last else lines}


# ----------------------------------------------------------------------------------------------------------- results


def write_run(run: Path, count: int, kinds: int) -> float:
    """Write a result folder with `count` clips, if it is missing; return its megabytes."""
    if not (run / "run.json").exists():
        texts = [json_bytes(result_to_json(make_result(kind))) for kind in range(min(kinds, count))]
        for number in range(count):
            name = f"clip{number:06d}"
            place = run / "clips" / name
            place.mkdir(parents=True)
            own = texts[number % len(texts)].replace(b'"clip": "CLIP"', f'"clip": "{name}"'.encode())
            (place / "result.json").write_bytes(own)
        (run / "run.json").write_text("{}\n")
        time.sleep(2.5)  # a file that is younger is read again
    return round(sum(path.stat().st_size for path in (run / "clips").glob("*/result.json")) / 1e6)


def make_result(seed: int) -> ClipResult:
    """Return a clip with one to three sounds, of which most are seen; frequent sounds have low numbers."""
    chance = random.Random(seed)
    labels = load_vocabulary("audioset-things")
    weights = [1 / (place + 5) for place in range(len(labels))]
    order = random.Random(0).sample(labels, len(labels))
    sounds = []
    for label in dict.fromkeys(chance.choices(order, weights, k=chance.randint(1, 3))):
        start = chance.randrange(FRAMES)
        sounds.append((label, range(start, chance.randint(start + 1, FRAMES)), chance.random() < 0.7))
    return ClipResult(
        "CLIP",
        SIZE,
        tuple(make_frame(index, sounds, chance) for index in range(FRAMES)),
        "videos/CLIP.mp4",
        load_recipe("openavs").to_dict(),
    )


def make_frame(index: int, sounds: Sequence[tuple[str, range, bool]], chance: random.Random) -> FrameResult:
    captions, prompts, segments, rejected = [], [], [], []
    for track, (label, span, seen) in enumerate(sounds, start=1):
        if index not in span:
            continue
        caption = Caption(label, chance.uniform(0.2, 0.95), float(index), index + 1.0, "This is a sound of {}.")
        captions.append(caption)
        for thing in lexicon(label)[:1]:
            prompts.append(Prompt(thing, None, "lexicon", (caption,)))
            if seen:
                segments.append(make_segment(thing, track, index, chance))
            box = (chance.uniform(0, 300), chance.uniform(0, 150), chance.uniform(320, 640), chance.uniform(180, 360))
            rejected.append(Rejection(thing, "below threshold", chance.uniform(0.02, 0.25), box))
    return FrameResult(
        index, index + 0.5, not captions, tuple(captions), tuple(prompts), tuple(segments), tuple(rejected)
    )


def make_segment(phrase: str, track: int, index: int, chance: random.Random) -> Segment:
    """Return a thing that moves from frame to frame."""
    y, x, radius = 80 * track + 5 * index, 120 * track + 20 * index, chance.choice((30, 50, 70, 90))
    box = (x - 1.2 * radius, y - 1.2 * radius, x + 1.2 * radius, y + 1.2 * radius)
    mask = make_mask(y, x, radius)
    return Segment(mask, box, phrase, chance.uniform(0.25, 0.9), chance.uniform(0.6, 1.0), track=track)


@cache
def make_mask(y: int, x: int, radius: int) -> RLE:
    """Return an ellipse with a rough outline."""
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    angle = np.arctan2(rows - y, columns - x)
    return mask_to_rle(np.hypot(rows - y, columns - x) < radius * (1 + 0.15 * np.sin(7 * angle + y)))


if __name__ == "__main__":
    main()
