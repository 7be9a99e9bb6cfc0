"""Compares the optimized modules of openavs with those of transformers, on the same random weights.

    python eval/bench/optimized_modules.py --json
    python eval/bench/optimized_modules.py --size real --repeats 3

Each network computes the same output in four variants, alternately in one process: transformers in float32,
transformers under bfloat16 autocast (as most programs run it), openavs in float32 and in bfloat16. Seconds are CPU
seconds of one forward pass on `--threads` threads, which other processes change less than the wall clock; `_wall` is
beside them. A ratio is the median over the repeats of the seconds of transformers over those of openavs, both in the
same precision. An error is the root mean square of the difference from transformers in float32, relative to that of its
output: the encoded image, which determines everything after it.

`deformable` is the sampling of one layer, against `grid_sample` of transformers; `fusion` is one layer
between image and caption, `linear` one linear layer. `--size`: `small` networks, the published ones on `reduced` images
(375 x 667 for the detector, 512 x 512 for the segmenters), or on images of their published size (`real`: 750 x 1333,
1024 x 1024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import argument_parser, print_figures, ratios, time_alternately, working_folder
from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoConfig, Sam2Model, SamModel
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoFusionLayer,
    MultiScaleDeformableAttention,
)
from workloads import PROMPTS, SIZES, Size, save_models

from openavs.models.ops.deformable_attention import build_layout, pad_levels, sample_values
from openavs.models.ops.grounding_dino import FusionLayer
from openavs.models.ops.linear import OneDnnLinear
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.segmenters.sam import Sam2Segmenter, SamSegmenter
from openavs.structures.types import ImageArray

Forward = Callable[[], torch.Tensor]
DTYPES = ("float32", "bfloat16")


def main() -> None:
    """Parse the options, measure and print."""
    parser = argument_parser(__doc__, repeats=3)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {name: getattr(options, name) for name in ("size", "repeats", "threads")}
    size = SIZES[options.size]
    image = np.random.default_rng(0).integers(0, 256, (*size.image, 3), dtype=np.uint8)
    with working_folder() as folder:
        for part in options.parts:
            figures[part] = compare(PARTS[part](folder / part, size, image), options.repeats)
    print_figures(figures, options.json)


@torch.inference_mode()
def compare(variants: dict[str, Forward], repeats: int) -> dict[str, Any]:
    """Return seconds of each variant, ratios within a precision, and errors against `library` in float32."""
    exact = variants["library"]().float()
    figures: dict[str, Any] = {"error": {}}
    for name, forward in variants.items():  # this warms up all variants, too
        figures["error"][name] = float(f"{float((forward().float() - exact).norm() / exact.norm()):.2g}")
    seconds = time_alternately(variants, repeats)
    pairs = {name: name.replace("ours", "library") for name in variants if name.startswith("ours")}
    for clock, suffix in (("cpu", ""), ("wall", "_wall")):
        medians = {name: median(getattr(own, clock) for own in runs) for name, runs in seconds.items()}
        figures[f"seconds{suffix}"] = {name: round(value, 4) for name, value in medians.items()}
        figures[f"ratio{suffix}"] = {
            ours: round(median(ratios(seconds[library], seconds[ours], clock)), 2) for ours, library in pairs.items()
        }
    return figures


def four_variants(library: Forward, ours: dict[str, Forward]) -> dict[str, Forward]:
    """Return the forward pass of transformers, the same under autocast, and ours in two dtypes."""

    def autocast() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return library()

    return {
        "library": library,
        "ours": ours["float32"],
        "library_bfloat16": autocast,
        "ours_bfloat16": ours["bfloat16"],
    }


# ------------------------------------------------------------------------------------------------------------- parts


def detector(folder: Path, size: Size, image: ImageArray) -> dict[str, Forward]:
    """Encode an image with Grounding DINO and a caption of three phrases."""
    path, _ = save_models(folder, size, "sam", image)
    ours = {dtype: GroundingDinoDetector(model=str(path), device="cpu", dtype=dtype) for dtype in DTYPES}
    one = ours["float32"]
    pixels = one._prepare([image], [one._resize_policy(image)])
    tokens = one._tokenizer(" . ".join(PROMPTS) + " .", return_tensors="pt")
    inputs = {
        "pixel_values": pixels,
        "pixel_mask": torch.ones((1, *pixels.shape[-2:]), dtype=torch.long),
        **{name: tokens[name] for name in ("input_ids", "attention_mask", "token_type_ids")},
    }

    def encode(model: Any) -> torch.Tensor:
        return model(**inputs).encoder_last_hidden_state_vision  # type: ignore[no-any-return]

    library = AutoModelForZeroShotObjectDetection.from_pretrained(path).eval()
    return four_variants(
        partial(encode, library), {dtype: partial(encode, adapter.model) for dtype, adapter in ours.items()}
    )


def segmenter(name: str, folder: Path, size: Size, image: ImageArray) -> dict[str, Forward]:
    """Encode an image with SAM or SAM 2."""
    model_class, adapter = {"sam": (SamModel, SamSegmenter), "sam2": (Sam2Model, Sam2Segmenter)}[name]
    _, path = save_models(folder, size, name, image)
    library = model_class.from_pretrained(path).eval()
    widen_weights(library.vision_encoder)
    library.save_pretrained(path)
    pixels = torch.randn(1, 3, size.square, size.square, generator=torch.Generator().manual_seed(0))

    def encode(model: Any) -> torch.Tensor:
        output = model.get_image_embeddings(pixels)
        return output if isinstance(output, torch.Tensor) else output[-1]

    ours: dict[str, Any] = {
        dtype: partial(encode, adapter(model=str(path), device="cpu", dtype=dtype).model) for dtype in DTYPES
    }
    return four_variants(partial(encode, library), ours)


@torch.no_grad()
def widen_weights(encoder: torch.nn.Module) -> None:
    """Give weights the scale of trained ones, so that attention matters: those of SAM are initialized close to 0."""
    for name, weight in encoder.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.1 if "rel_pos" in name else weight[0].numel() ** -0.5)


def deformable(folder: Path, size: Size, image: ImageArray) -> dict[str, Forward]:
    """Sample the values of one layer: every cell of the pyramid is a query, its points are a few cells away."""
    edges = [-(-edge // 8) for edge in size.edges]
    levels = [tuple(-(-edge // 2**i) for edge in edges) for i in range(4)]
    cells, heads, points, channels = sum(h * w for h, w in levels), 8, 4, 256
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1, cells, heads, channels // heads, generator=generator)
    centers = torch.cat(
        [torch.cartesian_prod(*((torch.arange(n) + 0.5) / n for n in level)).flip(-1) for level in levels]
    )
    scale = torch.tensor([[[width, height]] for height, width in levels])
    offsets = 3 * torch.randn(1, cells, heads, 4, points, 2, generator=generator) / scale
    locations = centers[None, :, None, None, None] + offsets
    weights = torch.randn(1, cells, heads, 4 * points, generator=generator).softmax(-1).view(*locations.shape[:-1])
    layout = build_layout(tuple(levels), heads, points, torch.device("cpu"))
    in_cells = (locations[0] * scale - 0.5).permute(0, 4, 1, 2, 3).flatten(2).contiguous()
    library = MultiScaleDeformableAttention()

    def ours() -> torch.Tensor:
        table = pad_levels(values.flatten(2), layout, heads)[0]
        return sample_values(table, in_cells.clone(), weights[0].flatten(1), layout, heads)

    return {
        "library": lambda: library(values, torch.tensor(levels), levels, None, locations, weights, 64)[0],
        "ours": ours,
    }


def linear(folder: Path, size: Size, image: ImageArray) -> dict[str, Forward]:
    """Apply the first layer of a feed-forward network, 256 to 2048 channels, to 4096 cells."""
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(256, 2048), torch.randn(4096, 256)
    exact, half = OneDnnLinear(layer), OneDnnLinear(copy.deepcopy(layer), torch.bfloat16)
    return four_variants(lambda: layer(inputs), {"float32": lambda: exact(inputs), "bfloat16": lambda: half(inputs)})


def fusion(folder: Path, size: Size, image: ImageArray) -> dict[str, Forward]:
    """Apply the attention of one layer between an image and a caption of nine tokens."""
    torch.manual_seed(0)
    library = GroundingDinoFusionLayer(GroundingDinoConfig()).eval()
    cells = sum(-(-size.edges[0] // step) * -(-size.edges[1] // step) for step in (8, 16, 32, 64))
    inputs = (torch.randn(1, cells, 256), torch.randn(1, 9, 256), torch.zeros(1, cells, dtype=torch.bool))
    ours = FusionLayer(library)
    return {"library": lambda: library(*inputs)[0][0], "ours": lambda: ours(*inputs)[0][0]}


PARTS: dict[str, Callable[[Path, Size, ImageArray], dict[str, Forward]]] = {
    "deformable": deformable,
    "fusion": fusion,
    "linear": linear,
    "detector": detector,
    "sam": partial(segmenter, "sam"),
    "sam2": partial(segmenter, "sam2"),
}

if __name__ == "__main__":
    main()
