"""Measures a training step of the students at real size, against the published implementations; random weights.

    python eval/bench/training_step.py --json
    python eval/bench/training_step.py --only tpavi --backbones pvt_v2_b5 --repeats 1
    python eval/bench/training_step.py --small --json      small networks, in seconds, as a test of the script

- `tpavi-BACKBONE`: a training step (losses, gradients, Adam) of one clip of five frames at 224 x 224, one of which is
  labeled as in S4. The attention is `ours` (an order of products that needs a 128 x 128 matrix per clip) or `quadratic`
  (the affinity of every pixel with every other, as published); `all frames` is ours, but decodes every frame.
- `avsegformer-BACKBONE`: the same step of AVSegFormer (AdamW), of the labeled frame (`ours`) or of all (as published).
- `sama-avs-SIZE`: the same step of SAMA-AVS on a SAM of 1024 x 1024, with its attention in one product (`ours`), the
  encoder's activations computed again in the backward pass (`recompute`), or the library's attention, whose products
  are the published ones (`library attention`; with `--published` the authors' code instead).
- With `--published` also a step of the authors' AVSegFormer (`published_students.py`).
- `attention`: the attention alone, forward and backward, in the finest of the four stages, where it is largest.
- `naming`: the ViT-B/16 of OV-AVSS classifies 100 queries in five frames of 360 x 640: all of them (as in the paper),
  or the tenth with the highest objectness (`model.objectness`). `--queries` sets their number; the cost is linear.

One thread. The variants alternate in one process; `*_cpu_s` are medians of CPU seconds, `*_over_*` medians of the
ratio within a repeat. `*_peak_mb` is the peak memory of a process that runs one step of one variant (Linux). With
`--device cuda` seconds are by the wall clock, and the peaks are those of the GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from harness import (
    MB,
    argument_parser,
    print_figures,
    ratios,
    run_process,
    time_alternately,
    use_one_thread,
    working_folder,
)

use_one_thread()

import torch
from profiler import synchronize
from published_students import avsegformer_step, find_checkout, sama_avs_step
from torch import Tensor
from transformers import SamConfig, SamModel, SamVisionConfig
from workloads import save_clip

from openavs.evaluation.datasets.tables import CLASSES
from openavs.models.hub import resolve
from openavs.training.base import Student, StudentBatch
from openavs.training.models.avsegformer import AvSegFormer, AvSegFormerConfig, AvSegFormerOutput
from openavs.training.models.ov_avss.classifier import MaskClassifier
from openavs.training.models.sama_avs import SamaAvs, SamaAvsConfig
from openavs.training.models.tpavi import FrameGroups, Interaction, Tpavi, TpaviConfig

FRAMES = 5
Work = Callable[[], object]


def main() -> None:
    """Measure and print."""
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("--only", nargs="+", default=["tpavi", "avsegformer", "sama-avs", "attention", "naming"])
    parser.add_argument("--backbones", nargs="+", default=["resnet50", "pvt_v2_b5"])
    parser.add_argument("--sams", nargs="+", default=["base"], choices=list(SAMS))
    parser.add_argument("--published", nargs="*", type=Path, default=[], help="checkouts of the authors' code")
    parser.add_argument("--queries", type=int, default=100, help="of naming")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="small networks and images")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        name, variant = options.peak
        print(json.dumps(peak_of(name, variant, options)))
        return
    figures: dict[str, Any] = {name: getattr(options, name) for name in ("repeats", "device", "small")}
    backbones = ["resnet_tiny", "pvt_v2_tiny"] if options.small else options.backbones
    students = [student for student in ("tpavi", "avsegformer") if student in options.only]
    names = [f"{student}-{backbone}" for student in students for backbone in backbones]
    names += [f"sama-avs-{size}" for size in options.sams if "sama-avs" in options.only]
    for name in names + [name for name in ("attention", "naming") if name in options.only]:
        figures[name] = compare(name, options)
    print_figures(figures, options.json)


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the variants alternately, then the peak of each in a separate process."""
    variants = build_variants(name, options)
    on_cpu = options.device == "cpu"
    works = variants if on_cpu else {variant: partial(synchronized, work) for variant, work in variants.items()}
    seconds = time_alternately(works, options.repeats)
    clock, suffix = ("cpu", "_cpu_s") if on_cpu else ("wall", "_s")
    del variants, works
    first, *others = seconds
    figures: dict[str, Any] = {}
    for variant, own in seconds.items():
        figures[f"{variant}{suffix}"] = round(median(getattr(run, clock) for run in own), 3)
        command = [sys.executable, __file__, "--peak", name, variant]
        command += ["--device", options.device, "--queries", str(options.queries), *["--small"] * options.small]
        command += ["--published", *map(str, options.published)]
        figures[f"{variant}_peak_mb"] = float(run_process(command).output.splitlines()[-1])
    for variant in others:
        figures[f"{variant}_over_{first}"] = round(median(ratios(seconds[variant], seconds[first], clock)), 2)
    return figures


def synchronized(work: Work) -> None:
    """Call `work` and wait for the GPU."""
    work()
    synchronize()


def peak_of(name: str, variant: str, options: argparse.Namespace) -> float:
    """Return the peak memory of this process in MB after one step."""
    build_variants(name, options, only=variant)[variant]()
    if options.device == "cpu":  # getrusage would start with the peak of the parent process
        status = Path("/proc/self/status").read_text()
        return round(int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024, 1)
    return round(torch.cuda.max_memory_allocated() / MB, 1)


def build_variants(name: str, options: argparse.Namespace, only: str | None = None) -> dict[str, Work]:
    """Return the work of each variant by its name; `only` builds a single variant of a student."""
    if name == "attention":
        return attention(options)
    if name == "naming":
        return naming(options)
    if name.startswith("sama-avs-"):
        return sama_avs(name.removeprefix("sama-avs-"), options, [only] if only else None)
    student, _, backbone = name.partition("-")
    if student == "avsegformer":
        return avsegformer(backbone, options, [only] if only else None)
    return tpavi(backbone, options, [only] if only else ["ours", "quadratic", "all frames"])


# ------------------------------------------------------------------------------------------------------------- TPAVI


class QuadraticInteraction(Interaction):
    """The published order of products: an affinity of every pixel of a clip with every other."""

    def attend(self, maps: Tensor, audio: Tensor, clips: FrameGroups) -> Tensor:
        """Return the attended maps; see `Interaction.attend`."""
        spread = audio[:, :, None, None].expand(-1, -1, *maps.shape[-2:])
        outputs = []
        for clip in range(len(clips.member)):
            rows = clips.index == clip
            theta, phi, g = (
                layer(values[rows]).permute(0, 2, 3, 1).flatten(0, 2)
                for layer, values in ((self.theta, maps), (self.phi, spread), (self.g, maps))
            )
            affinity = theta @ phi.T / len(theta)
            attended = (affinity @ g).reshape(int(rows.sum()), *maps.shape[-2:], -1)
            outputs.append(attended.permute(0, 3, 1, 2))
        return torch.cat(outputs)


class AllFramesTpavi(Tpavi):
    """TPAVI that decodes every frame, labeled or not."""

    def _frames_to_decode(self, labeled: Tensor) -> Tensor:
        return torch.ones_like(labeled)


def tpavi(backbone: str, options: argparse.Namespace, variants: Sequence[str]) -> dict[str, Work]:
    """Return a training step by variant."""
    side, channels, inner = (64, 32, 16) if options.small else (224, 256, 128)
    batch = random_clip(side).to(options.device)
    steps: dict[str, Work] = {}
    for variant in variants:
        torch.manual_seed(0)
        model_class = AllFramesTpavi if variant == "all frames" else Tpavi
        config = TpaviConfig(backbone=backbone, side=side, channels=channels, inner=inner)
        student = model_class(config).to(options.device).train()
        if variant == "quadratic":
            for layer in student.interactions:
                layer.__class__ = QuadraticInteraction
        steps[variant] = partial(training_step, student, batch, torch.optim.Adam(student.parameters(), lr=1e-4))
    return steps


class AllFramesAvSegFormer(AvSegFormer):
    """AVSegFormer that computes every frame, labeled or not."""

    def forward(self, batch: StudentBatch) -> AvSegFormerOutput:
        """Compute the logits of all present frames."""
        return super().forward(replace(batch, labeled=batch.present))


def avsegformer(backbone: str, options: argparse.Namespace, variants: Sequence[str] | None) -> dict[str, Work]:
    """Return a training step by variant; None for all of them."""
    checkout = find_checkout(options.published, "model/head/AVSegHead.py")
    variants = variants or ["ours", "all frames", *(["published"] if checkout else [])]
    side = 64 if options.small else 224
    small = {"channels": 32, "queries": 10, "ffn": 32, "query_ffn": 32, "mask_ffn": 32}
    sizes: dict[str, Any] = small if options.small else {}
    batch = random_clip(side).to(options.device)
    steps: dict[str, Work] = {}
    for variant in variants:
        torch.manual_seed(0)
        if variant == "published" and checkout:
            clip = (batch.frames[0], batch.audio[0], batch.masks[0])
            steps[variant] = avsegformer_step(checkout, backbone, *clip)
            continue
        model_class = AllFramesAvSegFormer if variant == "all frames" else AvSegFormer
        config = AvSegFormerConfig(backbone=backbone, side=side, dropout=0.0, **sizes)
        student = model_class(config).to(options.device).train()
        steps[variant] = partial(training_step, student, batch, torch.optim.AdamW(student.parameters(), lr=2e-5))
    return steps


SAMS: dict[str, dict[str, Any]] = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "huge": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}


def sama_avs(size: str, options: argparse.Namespace, variants: Sequence[str] | None) -> dict[str, Work]:
    """Return a training step by variant, of a SAM with random weights; None for all of them."""
    checkout = find_checkout(options.published, "models/mmseg/models/sam/image_encoder.py")
    variants = variants or ["ours", "recompute", "published" if checkout else "library attention"]
    depth = SAMS[size]["num_hidden_layers"]
    globals_ = [depth * (i + 1) // 4 - 1 for i in range(4)]
    vision = SamVisionConfig(**SAMS[size], mlp_dim=4 * SAMS[size]["hidden_size"], global_attn_indexes=globals_)
    settings = SamConfig(vision_config=vision)
    if options.small:
        settings = SamModel.config_class.from_pretrained(resolve("openavs:tiny/sam").path)
    side = settings.vision_config.image_size
    batch = random_clip(side).to(options.device)
    steps: dict[str, Work] = {}
    with working_folder() as folder:
        SamModel(settings).save_pretrained(folder)
        for variant in variants:
            torch.manual_seed(0)
            if variant == "published" and checkout:  # it reads the labeled frame only
                clip = (batch.frames[0, :1], batch.audio[0, :1], batch.masks[0, :1])
                steps[variant] = sama_avs_step(checkout, settings, *clip)
                continue
            config = SamaAvsConfig(backbone=str(folder), side=side, recompute=variant == "recompute")
            student = SamaAvs(config).to(options.device).train()
            if variant == "library attention":
                for layer in student.backbone.library.layers:  # type: ignore[union-attr]
                    layer.attn = layer.attn.library
            trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
            steps[variant] = partial(training_step, student, batch, torch.optim.AdamW(trained, lr=2e-4))
    return steps


def training_step(student: Student, batch: StudentBatch, optimizer: torch.optim.Optimizer) -> float:
    """Run one step and return its loss."""
    loss = student.loss(student(batch), batch)["loss"]
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def random_clip(side: int) -> StudentBatch:
    """Return one random clip with a label for its first frame."""
    generator = torch.Generator().manual_seed(0)
    labeled = torch.arange(FRAMES)[None] == 0
    return StudentBatch(
        ids=("clip",),
        frames=torch.randint(0, 256, (1, FRAMES, 3, side, side), dtype=torch.uint8, generator=generator),
        audio=torch.rand(1, FRAMES, 128, generator=generator),
        present=torch.ones(1, FRAMES, dtype=torch.bool),
        masks=torch.randint(0, 2, (1, FRAMES, side, side), dtype=torch.uint8, generator=generator),
        labeled=labeled,
        weight=labeled.float(),
        inner=((side, side),),
        sizes=((side, side),),
    )


def attention(options: argparse.Namespace) -> dict[str, Work]:
    """Return forward and backward of the attention of the finest stage, by variant."""
    channels, inner, side = (32, 16, 16) if options.small else (256, 128, 56)
    clips = FrameGroups.of(torch.ones(1, FRAMES, dtype=torch.bool, device=options.device))
    maps = torch.rand(FRAMES, channels, side, side, device=options.device, requires_grad=True)
    audio = torch.rand(FRAMES, channels, device=options.device)

    def attend(layer: Interaction) -> None:
        layer.attend(maps, audio, clips).sum().backward()  # type: ignore[no-untyped-call]

    variants = {"ours": Interaction, "quadratic": QuadraticInteraction}
    return {name: partial(attend, layer(channels, inner, 128).to(options.device)) for name, layer in variants.items()}


# ------------------------------------------------------------------------------------------------------------ naming


def naming(options: argparse.Namespace) -> dict[str, Work]:
    """Return the classification of all masks and of a tenth of them."""
    height, width, queries = (64, 96, 20) if options.small else (360, 640, options.queries)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (FRAMES, 3, height, width), dtype=torch.uint8, generator=generator)
    masks = torch.randn(queries, FRAMES, height // 4, width // 4, generator=generator)
    classifier = (
        MaskClassifier("openavs:tiny/clip", options.device) if options.small else vit_classifier(options.device)
    )
    names = CLASSES[1:]
    classifier.embed_names(names)  # once per vocabulary, so not part of the cost of a clip
    return {
        "surest tenth": lambda: classifier.classify(frames, masks[: queries // 10], names),
        "all queries": lambda: classifier.classify(frames, masks, names),
    }


def vit_classifier(device: str) -> MaskClassifier:
    """Build a classifier with the ViT-B/16 of CLIP and random weights."""
    with working_folder() as folder:
        return MaskClassifier(str(save_clip(folder)), device)


if __name__ == "__main__":
    main()
