"""Train all tiny models: `python -m scripts.train_tiny --out openavs/assets/tiny`.

Each model is trained by a separate process with one thread, two at a time, so the weights do not depend on the load of
the machine. The first four took 118 minutes of CPU time, 106 minutes on two busy cores, and equal the committed weights
bit for bit (2026-11-21, AMD EPYC, 2 cores, torch 2.13.0). The detector's last two stages were added later and each was
run once, from the weights before (500 and 600 steps of about one second). VGGish takes three more minutes, the ResNet
seven, the Mask2Former ten, the CLIP ten and the PE-A-Frame about 60 (its four trainings were run once each).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LANES = (
    (("grounding_dino", "grounding-dino"), ("lm", "lm")),
    (
        ("sam", "sam"),
        ("clap", "clap"),
        ("vggish", "vggish"),
        ("resnet", "resnet"),
        ("mask2former", "mask2former"),
        ("clip", "clip"),
        ("pe_a_frame", "pe-a-frame"),
    ),
)
"""Script and folder of each model. The lanes run in parallel and take about equally long."""


def run_lane(lane: tuple[tuple[str, str], ...], out: Path) -> None:
    """Train the models of a lane one after the other."""
    for script, folder in lane:
        print(f"training {folder}", flush=True)
        command = [sys.executable, "-m", f"scripts.train_tiny.{script}", "--out", str(out / folder)]
        subprocess.run(command, check=True)


def main() -> None:
    """Train all models into a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("openavs/assets/tiny"))
    out = parser.parse_args().out
    with ThreadPoolExecutor(len(LANES)) as pool:
        for done in [pool.submit(run_lane, lane, out) for lane in LANES]:
            done.result()


if __name__ == "__main__":
    main()
