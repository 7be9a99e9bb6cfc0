"""The least that a clip can cost: operations and bytes of each stage of each recipe, and the floors they set.

    python eval/speed/roofline.py                   the table
    python eval/speed/roofline.py --write           the same, into docs/performance.md
    python eval/speed/roofline.py --measure --json  with the peaks of this CPU, measured first

A clip is AVSBench's: five frames of a 16:9 video at one a second, each with its second of sound, three phrases in one
caption, four boxes a frame. A floor is the greater of operations over the device's peak and bytes over its bandwidth,
where the bytes are the weights, read once a clip, and nothing else: no clip can be faster. GPU figures are computed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import networks as net
import torch
from networks import Cost

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
FRAMES, BOXES, CLIPS = 5, 4, 10**6
MFU = 0.35  # of the peak that such pipelines are known to reach on a GPU
QUESTION, ANSWER = 480, 60  # tokens of a clip's question to a language model and of its answer


@dataclass(frozen=True)
class Device:
    """Peaks: operations and bytes a second. `each` is the size of a number in bytes."""

    name: str
    flops: float
    bandwidth: float
    each: int

    def floor(self, cost: Cost) -> float:
        """Seconds that no run can be below."""
        return max(cost.flop / self.flops, cost.parameters * self.each / self.bandwidth)


H200 = Device("H200, bf16", 790e12, 4.8e12, 2)  # 989e12 by its data sheet, 790e12 in large matrix products
CPU_FP32 = Device("2 cores, fp32", 0.19e12, 36e9, 4)  # as `--measure` found them on 2026-11-21, see the page
CPU_BF16 = Device("2 cores, bf16", 0.78e12, 36e9, 2)


def recipes() -> dict[str, Callable[[], dict[str, Cost]]]:
    """By recipe, the cost of a clip by stage; `sam3`, whose weights are gated, is not counted."""
    clap = lambda: net.clap().times(FRAMES)  # noqa: E731
    ask = lambda: net.language_model(QUESTION, ANSWER)  # noqa: E731
    audio = lambda: net.audio_language_model(3, 30, 40, 1.0).times(FRAMES)  # noqa: E731

    def stages(
        hear: Callable[[], Cost], asked: Callable[[], Cost], size: str, segment: Callable[[str, int], Cost], model: str
    ) -> Callable[[], dict[str, Cost]]:
        return lambda: {
            "caption": hear(),
            "translate": asked(),
            "detect": net.detector(size).times(FRAMES),
            "segment": segment(model, BOXES).times(FRAMES),
        }

    return {
        "openavs-cpu": stages(clap, Cost, "tiny", net.sam, "base"),
        "openavs": stages(clap, ask, "base", net.sam2, "large"),
        "box-prompt": stages(clap, Cost, "base", net.sam, "huge"),
        "paper": stages(audio, Cost, "base", net.sam, "huge"),
        "paper-sam2": stages(audio, Cost, "base", net.sam2, "large"),
    }


def row(name: str, devices: tuple[Device, Device, Device]) -> dict[str, Any]:
    """One recipe's figures."""
    gpu, fp32, bf16 = devices
    stages = recipes()[name]()
    total = sum(stages.values(), Cost())
    seconds = sum(gpu.floor(cost) for cost in stages.values())
    return {
        "recipe": name,
        "gflop": {stage: round(cost.flop / 1e9, 1) for stage, cost in stages.items()},
        "tflop": round(total.flop / 1e12, 2),
        "weights_gb": round(total.parameters * gpu.each / 1e9, 2),
        "traffic_gb": round(total.traffic * gpu.each / 1e9, 1),
        "gpu_floor_ms": round(seconds * 1e3, 2),
        "gpu_hours_floor": round(seconds * CLIPS / 3600, 1),
        "gpu_hours": round(seconds * CLIPS / MFU / 3600, 1),
        "cpu_fp32_s": round(sum(fp32.floor(cost) for cost in stages.values()), 1),
        "cpu_bf16_s": round(sum(bf16.floor(cost) for cost in stages.values()), 1),
    }


def as_cells(found: dict[str, Any]) -> list[str]:
    """A row of the table."""
    flop = [f"{found['gflop'][stage]:,.0f}" for stage in ("caption", "translate", "detect", "segment")]
    rest = [f"{found[key]:,}" for key in ("tflop", "weights_gb", "traffic_gb", "gpu_floor_ms", "gpu_hours_floor")]
    return [
        f"`{found['recipe']}`",
        *flop,
        *rest,
        *(f"{found[key]:,}" for key in ("gpu_hours", "cpu_fp32_s", "cpu_bf16_s")),
    ]


HEAD = (
    "recipe", "listen, GFLOP", "translate", "detect", "segment", "all, TFLOP", "weights, GB", "read and written, GB",
    "H200 floor, ms", "10^6 clips: hours at the floor", f"at {MFU:.0%} of the peak", "2 cores fp32, s", "bf16, s",
)  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [HEAD, ("---",) * len(HEAD), *map(as_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_page(text: str, made: str) -> str:
    """The page with the table between its markers."""
    return re.sub(r"(<!-- roofline -->\n).*?(<!-- /roofline -->)", rf"\g<1>{made}\n\g<2>", text, flags=re.DOTALL)


def measure(cores: int) -> tuple[Device, Device]:
    """The peaks of a CPU in products of large matrices and in copying memory: what one thread does in a CPU second, so
    that other work on the machine counts little, times the cores (they share the memory, whose bandwidth is not
    multiplied)."""
    torch.set_num_threads(1)
    copied = torch.zeros(1 << 26)
    target = torch.empty_like(copied)
    bandwidth = 2 * copied.numel() * 4 / best(lambda: target.copy_(copied))
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        one, two = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
        found[dtype] = cores * 2 * 1536**3 / best(lambda one=one, two=two: one @ two)  # type: ignore[misc]
    name = f"{cores} cores"
    return (
        Device(f"{name}, fp32", found[torch.float32], bandwidth, 4),
        Device(f"{name}, bf16", found[torch.bfloat16], bandwidth, 2),
    )


def best(work: Callable[[], object], repeats: int = 20) -> float:
    """CPU seconds of the fastest of some runs: what the machine can do when it is left alone."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def main() -> None:
    """Counts, and prints or writes."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", action="append", choices=sorted(recipes()), help="only this one")
    options.add_argument("--measure", action="store_true", help="measure this CPU instead of taking the page's figures")
    options.add_argument("--cores", type=int, default=2, help="for --measure")
    options.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    cpus = measure(chosen.cores) if chosen.measure else (CPU_FP32, CPU_BF16)
    rows = [row(name, (H200, *cpus)) for name in chosen.recipe or recipes()]
    if chosen.write:
        PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    if chosen.json:
        peaks = {
            d.name: {"tflops": round(d.flops / 1e12, 3), "gb_s": round(d.bandwidth / 1e9, 1)} for d in (H200, *cpus)
        }
        print(json.dumps({"peaks": peaks, "recipes": rows}, indent=1))
    elif not chosen.write:
        print(table(rows))


if __name__ == "__main__":
    main()
