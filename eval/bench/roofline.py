"""Computes lower bounds of the cost of a clip: operations and bytes of each stage of the recipes.

    python eval/bench/roofline.py                   the table
    python eval/bench/roofline.py --write           the same, written into docs/performance.md
    python eval/bench/roofline.py --measure --json  with the peaks of this CPU, measured first

The networks are built at their published sizes on torch's meta device, where tensors have shapes and no values, and run
once: floating-point operations by torch's own counter (2 for a multiply-add; grid sampling counts as none), bytes from
the inputs and outputs of every operation. Nothing is downloaded and nothing is computed.

A clip has the form of AVSBench: five frames of a 16:9 video at one per second, each with its second of sound, three
phrases in one caption, four boxes per frame. A lower bound is the greater of operations over the peak of the device and
bytes over its bandwidth, where the bytes are the weights, read once per clip. GPU figures are computed.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest.mock import patch

from harness import ROOT, argument_parser, print_figures, timed, use_one_thread

use_one_thread()

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.grounding_dino import modeling_grounding_dino
from workloads import detector_config, language_config, sam2_vision, sam_vision

PAGE = ROOT / "docs" / "performance.md"
META = torch.device("meta")
FRAMES, BOXES, CLIPS = 5, 4, 10**6
IMAGE = (750, 1333)  # input of Grounding DINO for a 16:9 video
CAPTION = 8  # tokens of three phrases of one word, with separators and special tokens
QUESTION, ANSWER = 480, 60  # tokens of a clip's request to a language model, and of the response
MFU = 0.35  # share of the peak that such pipelines reach on a GPU


def main() -> None:
    """Count, and print or write the table."""
    parser = argument_parser(__doc__)
    parser.add_argument("--recipe", action="append", choices=sorted(RECIPES), help="only this one")
    parser.add_argument("--measure", action="store_true", help="measure this CPU instead of using the page's figures")
    parser.add_argument("--cores", type=int, default=2, help="for --measure")
    parser.add_argument("--write", action="store_true", help="write the table into docs/performance.md")
    options = parser.parse_args()
    cpus = measure_cpu(options.cores) if options.measure else (CPU_FP32, CPU_BF16)
    rows = [row(name, (H200, *cpus)) for name in options.recipe or RECIPES]
    if options.write:
        PAGE.write_text(in_page(PAGE.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    elif options.json:
        peaks = {
            device.name: {"tflops": round(device.flops / 1e12, 3), "gb_s": round(device.bandwidth / 1e9, 1)}
            for device in (H200, *cpus)
        }
        print_figures({"peaks": peaks, "recipes": rows}, as_json=True)
    else:
        print(table(rows))


# ---------------------------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Cost:
    """Floating-point operations, elements that operations read and write, and parameters (each is read once)."""

    flop: float = 0.0
    traffic: float = 0.0
    parameters: float = 0.0

    def times(self, runs: float) -> Cost:
        """Return the cost of several runs of the same network."""
        return Cost(self.flop * runs, self.traffic * runs, self.parameters)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.traffic + other.traffic, self.parameters + other.parameters)


class _TrafficCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the elements that operations read and write; views of existing tensors count nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        storages = {t.untyped_storage()._cdata for t in read}
        written = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor)]
        if any(t.untyped_storage()._cdata not in storages for t in written):
            self.elements += sum(t.numel() for t in (*read, *written))
        return output


def cost(network: torch.nn.Module, run: Callable[[Any], object]) -> Cost:
    """Count the cost of `run(network)`."""
    network.requires_grad_(False).eval()
    traffic = _TrafficCounter()
    with FlopCounterMode(display=False) as counter, traffic, torch.no_grad():
        run(network)
    parameters = sum(weights.numel() for weights in network.parameters())
    return Cost(float(counter.get_total_flops()), float(traffic.elements), float(parameters))


@contextmanager
def _on_meta() -> Iterator[None]:
    """Create tensors on the meta device, without the log messages of transformers about defaults."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with META:
            yield
    finally:
        logger.setLevel(level)


@cache
def detector(network: str) -> Cost:
    """Count Grounding DINO on one image. The attention of the openavs adapter needs less than that of transformers."""
    ids = torch.zeros(1, CAPTION, dtype=torch.long, device=META)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    inputs["pixel_values"] = torch.zeros(1, 3, *IMAGE, device=META)
    inputs["pixel_mask"] = torch.ones(1, *IMAGE, dtype=torch.long, device=META)

    def text_masks(ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(*ids.shape, ids.shape[1], dtype=torch.bool, device=META), torch.zeros_like(ids)

    # Grounding DINO reads its token ids and checks shapes, but the meta device has no values.
    without_values = patch.multiple(
        modeling_grounding_dino,
        generate_masks_with_special_tokens_and_transfer_map=text_masks,
        torch_compilable_check=lambda *_, **__: None,
    )
    with _on_meta(), without_values:
        model = transformers.GroundingDinoForObjectDetection(detector_config(network)).to(META)
        return cost(model, lambda m: m(**inputs))


@cache
def sam(network: str, boxes: int) -> Cost:
    """Count SAM: one image encoded, and the masks of some boxes."""
    with _on_meta():
        config = transformers.SamConfig(vision_config=sam_vision(network))
        return cost(transformers.SamModel(config), partial(_segment, boxes=boxes))


@cache
def sam2(network: str, boxes: int) -> Cost:
    """Count SAM 2.1: one image encoded, and the masks of some boxes."""
    with _on_meta():
        config = transformers.Sam2Config(vision_config=sam2_vision(network))
        return cost(transformers.Sam2Model(config), partial(_segment, boxes=boxes))


def _segment(model: Any, boxes: int) -> None:
    embeddings = model.get_image_embeddings(torch.zeros(1, 3, 1024, 1024))
    model(image_embeddings=embeddings, input_boxes=torch.zeros(1, boxes, 4), multimask_output=False)


@cache
def clap() -> Cost:
    """Count the audio tower of CLAP (HTSAT) on one window, which is always padded or cut to ten seconds."""
    with _on_meta():
        mel, is_longer = torch.zeros(1, 1, 1001, 64), torch.zeros(1, 1, dtype=torch.bool)
        model = transformers.ClapModel(transformers.ClapConfig())
        return cost(model, lambda m: m.get_audio_features(input_features=mel, is_longer=is_longer))


@cache
def language_model() -> Cost:
    """Count Qwen3-4B on a request and its response: every token passes once, read or written."""
    length = QUESTION + ANSWER
    with _on_meta():
        tokens, mask = torch.zeros(1, length, dtype=torch.long), torch.zeros(1, 1, length, length)
        model = transformers.Qwen3ForCausalLM(language_config())
        return cost(model, lambda m: m(input_ids=tokens, attention_mask=mask, logits_to_keep=ANSWER, use_cache=False))


@cache
def audio_language_model(questions: int, prompt: int, answer: int, seconds: float) -> Cost:
    """Count Qwen2-Audio 7B on one window.

    The sound is encoded once (its encoder pads it to 30 s), then each question is read with the embeddings of the sound
    (25 per second) and answered.
    """
    encoder = {
        "model_type": "qwen2_audio_encoder", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "num_mel_bins": 128,
    }  # fmt: skip
    decoder = {
        "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156032,
    }  # fmt: skip
    length = math.ceil(25 * seconds) + prompt + answer
    config = transformers.Qwen2AudioConfig(audio_config=encoder, text_config=decoder)
    with _on_meta():
        model = transformers.Qwen2AudioForConditionalGeneration(config)
        embeddings, mask = torch.zeros(questions, length, 4096), torch.zeros(questions, 1, length, length)
        return (
            cost(model.model.audio_tower, lambda m: m(torch.zeros(1, 128, 3000)))
            + cost(
                model.model.language_model,
                lambda m: m(inputs_embeds=embeddings, attention_mask=mask, use_cache=False),
            )
            + cost(model.lm_head, lambda m: m(torch.zeros(questions, answer, 4096)))
        )


# ------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class Device:
    """Peaks of a device: operations and bytes per second; `element_size` is the size of a number in bytes."""

    name: str
    flops: float
    bandwidth: float
    element_size: int

    def lower_bound(self, cost: Cost) -> float:
        """Return the seconds that every run takes at least."""
        return max(cost.flop / self.flops, cost.parameters * self.element_size / self.bandwidth)


H200 = Device("H200, bf16", 790e12, 4.8e12, 2)  # 989e12 in its data sheet, 790e12 in large matrix products
CPU_FP32 = Device("2 cores, fp32", 0.19e12, 36e9, 4)  # from `--measure` on 2026-11-21, see the page
CPU_BF16 = Device("2 cores, bf16", 0.78e12, 36e9, 2)


def _audio_llm() -> Cost:
    return audio_language_model(3, 30, 40, 1.0).times(FRAMES)


def _clap() -> Cost:
    return clap().times(FRAMES)


RECIPES: dict[str, tuple[Callable[[], Cost], Callable[[], Cost], str, Callable[[str, int], Cost], str]] = {
    "openavs-cpu": (_clap, Cost, "tiny", sam, "base"),
    "openavs": (_clap, language_model, "base", sam2, "large"),
    "box-prompt": (_clap, Cost, "base", sam, "huge"),
    "paper": (_audio_llm, Cost, "base", sam, "huge"),
    "paper-sam2": (_audio_llm, Cost, "base", sam2, "large"),
}
"""Captioner, translator, detector and segmenter of a clip by recipe; the gated `sam3` is not counted."""


def stage_costs(recipe: str) -> dict[str, Cost]:
    """Return the cost of a clip by stage."""
    captioner, translator, detector_size, segmenter, segmenter_size = RECIPES[recipe]
    return {
        "caption": captioner(),
        "translate": translator(),
        "detect": detector(detector_size).times(FRAMES),
        "segment": segmenter(segmenter_size, BOXES).times(FRAMES),
    }


def row(recipe: str, devices: tuple[Device, Device, Device]) -> dict[str, Any]:
    """Return the figures of one recipe."""
    gpu, fp32, bf16 = devices
    stages = stage_costs(recipe)
    total = sum(stages.values(), Cost())
    seconds = sum(gpu.lower_bound(cost) for cost in stages.values())
    return {
        "recipe": recipe,
        "gflop": {stage: round(cost.flop / 1e9, 1) for stage, cost in stages.items()},
        "tflop": round(total.flop / 1e12, 2),
        "weights_gb": round(total.parameters * gpu.element_size / 1e9, 2),
        "traffic_gb": round(total.traffic * gpu.element_size / 1e9, 1),
        "gpu_floor_ms": round(seconds * 1e3, 2),
        "gpu_hours_floor": round(seconds * CLIPS / 3600, 1),
        "gpu_hours": round(seconds * CLIPS / MFU / 3600, 1),
        "cpu_fp32_s": round(sum(fp32.lower_bound(cost) for cost in stages.values()), 1),
        "cpu_bf16_s": round(sum(bf16.lower_bound(cost) for cost in stages.values()), 1),
    }


COLUMNS = {
    "tflop": "total, TFLOP", "weights_gb": "weights, GB", "traffic_gb": "read and written, GB",
    "gpu_floor_ms": "H200 lower bound, ms", "gpu_hours_floor": "10^6 clips: hours at the lower bound",
    "gpu_hours": f"at {MFU:.0%} of the peak", "cpu_fp32_s": "2 cores fp32, s", "cpu_bf16_s": "bf16, s",
}  # fmt: skip
HEAD = ("recipe", "caption, GFLOP", "translate", "detect", "segment", *COLUMNS.values())


def as_cells(figures: dict[str, Any]) -> list[str]:
    """Format a row of the table."""
    flop = [f"{value:,.0f}" for value in figures["gflop"].values()]
    return [f"`{figures['recipe']}`", *flop, *(f"{figures[name]:,}" for name in COLUMNS)]


def table(rows: list[dict[str, Any]]) -> str:
    """Format the Markdown table."""
    lines = [HEAD, ("---",) * len(HEAD), *map(as_cells, rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def in_page(text: str, written: str) -> str:
    """Return the page with the table between its markers."""
    return re.sub(r"(<!-- roofline -->\n).*?(<!-- /roofline -->)", rf"\g<1>{written}\n\g<2>", text, flags=re.DOTALL)


def measure_cpu(cores: int) -> tuple[Device, Device]:
    """Measure the peaks of a CPU in products of large matrices and in copying memory.

    One thread is measured by CPU seconds, so that other processes matter little. Operations are multiplied by the
    cores; they share the memory, so the bandwidth is not.
    """
    torch.set_num_threads(1)
    source = torch.zeros(1 << 26)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() * 4 / fastest(lambda: target.copy_(source))
    devices = []
    for name, dtype, size in (("fp32", torch.float32, 4), ("bf16", torch.bfloat16, 2)):
        one, two = (torch.randn(1536, 1536).to(dtype) for _ in range(2))
        flops = cores * 2 * 1536**3 / fastest(lambda one=one, two=two: one @ two)  # type: ignore[misc]
        devices.append(Device(f"{cores} cores, {name}", flops, bandwidth, size))
    return devices[0], devices[1]


def fastest(work: Callable[[], object], repeats: int = 20) -> float:
    """Return the CPU seconds of the fastest of several runs."""
    return min(timed(work).cpu for _ in range(repeats))


if __name__ == "__main__":
    main()
