"""What a step of the students costs at real size, beside the ways that the published code goes; random weights.

    python eval/speed/students.py --json
    python eval/speed/students.py --only tpavi --backbones pvt_v2_b5 --repeats 1
    python eval/speed/students.py --small --json       small networks: whether it runs, in seconds

- `tpavi-BACKBONE`: a training step (losses, gradients, Adam) of one clip of five frames at 224 x 224, one of which is
  labelled as in S4, with the attention `ours` (in the order that needs a 128 x 128 matrix a clip) and `quadratic` (the
  affinity of every pixel with every other, as published). Besides `all frames`: ours, but decoding every frame.
- `attention`: the attention alone, forward and backward, at the finest of the four stages, where it is largest.
- `naming`: OV-AVSS's ViT-B/16 names 100 queries in five frames of 360 x 640: all of them (the paper's way), or the
  tenth of them that is surest to be an object (`model.objectness`). `--queries` takes fewer; costs grow with them.

One thread. The variants take turns in one process; `*_cpu_s` are medians of CPU seconds and ratios those of pairs.
`*_peak_mb` is the peak of memory of a process that makes one step of one variant and nothing else (Linux tells). On a
machine with a GPU add `--device cuda`: then the seconds are of the clock, between synchronisations, and the peaks are
the GPU's.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from openavs.training.base import StudentBatch
from openavs.training.models.tpavi.layers import FrameGroups, Interaction
from openavs.training.models.tpavi.model import Tpavi, TpaviConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FRAMES = 5
Work = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["tpavi", "attention", "naming"])
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "pvt_v2_b5"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--queries", type=int, default=100, help="of naming")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="small networks and pictures")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        name, variant = options.peak
        print(json.dumps(peak_of(name, variant, options)))
        return 0
    answer: dict[str, Any] = {"repeats": options.repeats, "device": options.device, "small": options.small}
    for name in names(options):
        answer[name] = compare(name, options)
    print(json.dumps(answer, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in answer.items()))
    return 0


def names(options: argparse.Namespace) -> list[str]:
    """What is measured."""
    backbones = ["resnet_tiny", "pvt_v2_tiny"] if options.small else options.backbones
    found = [f"tpavi-{backbone}" for backbone in backbones] if "tpavi" in options.only else []
    return found + [name for name in ("attention", "naming") if name in options.only]


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The variants in turns, then the peak of each in a process of its own."""
    variants = variants_of(name, options)
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    for turn in range(options.repeats):
        order = list(variants)
        for variant in order[turn % len(order) :] + order[: turn % len(order)]:
            seconds[variant].append(timed(variants[variant], options.device))
    del variants
    first, *others = seconds
    answer: dict[str, Any] = {}
    for variant, own in seconds.items():
        answer[f"{variant}_cpu_s" if options.device == "cpu" else f"{variant}_s"] = round(median(own), 3)
        answer[f"{variant}_peak_mb"] = peak_in_a_process(name, variant, options)
    for variant in others:
        pairs = [b / a for a, b in zip(seconds[first], seconds[variant], strict=True)]
        answer[f"{variant}_over_{first}"] = round(median(pairs), 2)
    return answer


def timed(work: Work, device: str) -> float:
    """CPU seconds of the process; on a GPU those of the clock."""
    if device == "cpu":
        started = time.process_time()
        work()
        return time.process_time() - started
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def peak_in_a_process(name: str, variant: str, options: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--peak", name, variant, "--device", options.device]
    command += ["--queries", str(options.queries)]
    command += ["--small"] if options.small else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak_of(name: str, variant: str, options: argparse.Namespace) -> float:
    """MB, after one step."""
    variants_of(name, options, variant)[variant]()
    if options.device != "cpu":
        return round(torch.cuda.max_memory_allocated() / 2**20, 1)
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would begin with the peak of who started it
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10, 1)


def variants_of(name: str, options: argparse.Namespace, only: str | None = None) -> dict[str, Work]:
    """What to run, by variant; they share their weights where they are made together."""
    if name == "attention":
        return attention(options)
    if name == "naming":
        return naming(options)
    return tpavi(name.removeprefix("tpavi-"), options, [only] if only else ["ours", "quadratic", "all frames"])


# --------------------------------------------------------------------------------------------------------------- TPAVI


class Quadratic(Interaction):
    """The published order: every pixel of a clip looks at every other."""

    def attend(self, maps: Tensor, heard: Tensor, clips: FrameGroups) -> Tensor:
        spread = heard[:, :, None, None].expand(-1, -1, *maps.shape[-2:])
        answers = []
        for clip in range(len(clips.member)):
            rows = clips.index == clip
            theta, phi, g = (
                layer(values[rows]).permute(0, 2, 3, 1).flatten(0, 2)
                for layer, values in ((self.theta, maps), (self.phi, spread), (self.g, maps))
            )
            affinity = theta @ phi.T / len(theta)
            attended = (affinity @ g).reshape(int(rows.sum()), *maps.shape[-2:], -1)
            answers.append(attended.permute(0, 3, 1, 2))
        return torch.cat(answers)


class AllFrames(Tpavi):
    """Decodes every frame, whether it has a label or not."""

    def _wanted(self, labelled: Tensor) -> Tensor:
        return torch.ones_like(labelled)


def tpavi(backbone: str, options: argparse.Namespace, wanted: list[str]) -> dict[str, Work]:
    """A training step by variant."""
    side, channels, inner = (64, 32, 16) if options.small else (224, 256, 128)
    batch = clip(side).to(options.device)
    found: dict[str, Work] = {}
    for variant in wanted:
        torch.manual_seed(0)
        kind = AllFrames if variant == "all frames" else Tpavi
        student = (
            kind(TpaviConfig(backbone=backbone, side=side, channels=channels, inner=inner)).to(options.device).train()
        )
        if variant == "quadratic":
            for layer in student.interactions:
                layer.__class__ = Quadratic
        found[variant] = training_step(student, batch)
    return found


def training_step(student: Tpavi, batch: StudentBatch) -> Work:
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-4)

    def step() -> float:
        loss = student.loss(student(batch), batch)["loss"]
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        return float(loss.detach())

    return step


def clip(side: int) -> StudentBatch:
    """One random clip; its first frame is labelled."""
    generator = torch.Generator().manual_seed(0)
    labelled = torch.arange(FRAMES)[None] == 0
    return StudentBatch(
        ids=("clip",),
        frames=torch.randint(0, 256, (1, FRAMES, 3, side, side), dtype=torch.uint8, generator=generator),
        audio=torch.rand(1, FRAMES, 128, generator=generator),
        present=torch.ones(1, FRAMES, dtype=torch.bool),
        masks=torch.randint(0, 2, (1, FRAMES, side, side), dtype=torch.uint8, generator=generator),
        labelled=labelled,
        weight=labelled.float(),
        inner=((side, side),),
        sizes=((side, side),),
    )


def attention(options: argparse.Namespace) -> dict[str, Work]:
    """The attention of the finest stage by itself."""
    channels, inner, side = (32, 16, 16) if options.small else (256, 128, 56)
    clips = FrameGroups.of(torch.ones(1, FRAMES, dtype=torch.bool, device=options.device))
    maps = torch.rand(FRAMES, channels, side, side, device=options.device, requires_grad=True)
    heard = torch.rand(FRAMES, channels, device=options.device)

    def work(layer: Interaction) -> Work:
        def step() -> None:
            layer.attend(maps, heard, clips).sum().backward()  # type: ignore[no-untyped-call]

        return step

    return {
        name: work(kind(channels, inner, 128).to(options.device))
        for name, kind in (("ours", Interaction), ("quadratic", Quadratic))
    }


# -------------------------------------------------------------------------------------------------------------- naming


def naming(options: argparse.Namespace) -> dict[str, Work]:
    """A random CLIP names all masks, or a tenth of them."""
    from openavs.evaluation.datasets.classes import CLASSES
    from openavs.training.models.ov_avss.classifier import MaskClassifier

    height, width, queries = (64, 96, 20) if options.small else (360, 640, options.queries)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (FRAMES, 3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.randn(queries, FRAMES, height // 4, width // 4, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        save_clip(Path(folder), options.small)
        classifier = MaskClassifier(folder, options.device)
    classifier.texts(CLASSES[1:])  # once for every vocabulary, so not part of what a clip costs
    return {
        "surest tenth": lambda: classifier.classify(frames, masks[: queries // 10], CLASSES[1:]),
        "all queries": lambda: classifier.classify(frames, masks, CLASSES[1:]),
    }


def save_clip(folder: Path, small: bool) -> None:
    """ViT-B/16 with random weights; the tokenizer is that of the tests, as words cost nothing here."""
    from transformers import CLIPConfig, CLIPModel

    from tests.stages.verifiers.tiny_clip import make_clip

    make_clip(folder)
    if small:
        return
    words = CLIPConfig.from_pretrained(folder).text_config
    vision = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12}
    vision |= {"num_attention_heads": 12, "intermediate_size": 3072}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=words.to_dict(), vision_config=vision, projection_dim=512)).save_pretrained(folder)


if __name__ == "__main__":
    raise SystemExit(main())
