"""Our pipeline beside its peers on the same weights: who asks how much of the models, and what it costs.

    python eval/speed/peers.py --json                                small networks: seconds, what tests and CI run
    python eval/speed/peers.py --size real --reduced --json          published networks, reduced pictures: an hour
    python eval/speed/peers.py --size real --frames 1 --json         published networks and sizes
    python eval/speed/peers.py --only growth --clips 10,100,1000     is the cost linear and the memory flat?

All run in one process, in turns, on one thread unless told otherwise, on random weights that a seed fixes
(`random_models.py`), over the same pictures in memory (`standard_load.py`): three phrases, two boxes of each. Peers are
short imitations (`imitations.py` says of what), and the detection pipeline of transformers, which is the real one.

- `ratio.X`: seconds of X over those of our pipeline, the median over the repeats of the ratio within a repeat, and
  `spread.X`: the least and the greatest. On one thread of a CPU these are CPU seconds, which other work on the machine
  changes little; `ratio_wall.X` is by the wall clock. `ratio.silent_half.X` and `ratio.static.X`: on a clip of which
  one half is silent, and on one that stands still.
- `agreement`: IoU of our masks in the type that our pipeline was run in (bfloat16 where that was float32) with our own
  in float32, on two frames of the load. Random scores have near ties, which either type may break: `.same_boxes` is IoU
  where both chose the same boxes, `.same_boxes_share` how many they are. `agreement.tiny` is that of the embedded
  models, which were trained; `agreement.grounded_sam2_bf16` that of this peer's autocast with its own float32. Of the
  other peers `agreement.X` is IoU with our masks, both in float32 and asking in the same way: 1 says that the imitation
  and we compute the same thing.
- `overhead`: seconds of our run over those inside of its models' forward passes, minus 1; `overhead.tiny` the same of
  the recipe `tiny` with its ear and its language model; `overhead.replayed`: CPU seconds of our run over those of the
  same forward passes by themselves, on the recorded tensors, minus 1.
- `seconds.X`, `cpu_seconds.X`, `stage.X.*`: of a frame; `peak_mb.X`: memory above that at the start of the run.
- `growth.N.*`: rates and memory over N clips of `tiny`; `.relative`: clips per CPU second over those of runs of the
  fewest clips, made right beside each block of ten; `growth.spread.*`: the largest over the smallest, minus 1;
  `growth.early_over_late`: what the first half of the longest run has in `.relative` over its second.
- `work.X.*`: what X asked for: pictures through the detector, pictures through the image encoder, boxes through the
  decoder, and how many calls that took.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "--threads" not in sys.argv:
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import tempfile
from logging import basicConfig
from pathlib import Path
from typing import Any

LOADS = ("standard", "silent_half", "static")
PARTS = ("ratios", "agreement", "overhead", "growth")


def main() -> None:
    options = parsed(sys.argv[1:])
    import torch
    from transformers.utils import logging

    basicConfig(level="INFO" if options.verbose else "WARNING", format="%(message)s", stream=sys.stderr)
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as passing:
        answer |= measured(options, options.keep or Path(passing))
    print(json.dumps(answer, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in answer.items()))


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("small", "real"), default="small")
    parser.add_argument("--reduced", action="store_true", help="with real: pictures of half the edge for the networks")
    parser.add_argument("--segmenter", choices=("sam", "sam2"), default="sam")
    parser.add_argument("--frames", type=int, default=10, help="of a load")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", help="ours; float32 for small networks on a CPU, else bfloat16")
    parser.add_argument("--batch", type=int, default=1, help="frames that our pipeline gives its models at once")
    parser.add_argument("--peers", nargs="*", help="which of them; all unless told")
    parser.add_argument("--loads", nargs="*", choices=LOADS, default=LOADS, help="of the ratios; all unless told")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--clips", default="10,100", help="with growth: how many clips, in tens, rising")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="a folder for the models")
    parser.add_argument("--verbose", action="store_true", help="tell of every run on stderr")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    small_on_cpu = options.size == "small" and options.device == "cpu"
    options.dtype = options.dtype or ("float32" if small_on_cpu else "bfloat16")
    return options


def measured(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures that were asked for, under their printed names."""
    import agreement
    import growth
    import overhead
    import ratios
    from bench import Bench

    answer: dict[str, Any] = {"size": "reduced" if options.reduced else options.size, "frames": options.frames}
    answer |= {name: getattr(options, name) for name in ("repeats", "segmenter", "threads", "device", "dtype")}
    if set(options.only) - {"growth"}:
        bench = Bench(options, folder)
        if "ratios" in options.only:
            answer |= ratios.figures(bench)
        if "agreement" in options.only:
            answer |= agreement.figures(bench)
        if "overhead" in options.only:
            answer |= overhead.figures(bench)
    if "growth" in options.only:
        answer |= growth.figures([int(count) for count in options.clips.split(",")])
    return answer


if __name__ == "__main__":
    main()
