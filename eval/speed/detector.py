"""How fast the adapters' networks are beside the library's own forward pass, on the same random weights.

    python eval/speed/detector.py --json
    python eval/speed/detector.py --size real --repeats 3

Each network answers the same question four ways in turns within one process: the library in float32, the library under
bfloat16 autocast (as most programs run it), our adapter's in float32 and in bfloat16. Seconds are CPU seconds of one
forward pass on `--threads` threads, which other work on the machine changes less than the clock on the wall; `_wall` is
beside them. A ratio is the median over the repeats of the library's seconds over ours, both in the same precision. An
error is the root mean square of what differs from the library's float32 answer, over that of the answer: of the encoded
picture, upon which everything else rests.

`deformable` is one layer's sampling alone, against the library's `grid_sample`; `fusion` is one layer's attention
between picture and caption, `linear` one linear layer. `--size`: `small` networks, the published ones on `reduced`
pictures (375 x 667 for the detector, 512 for the segmenters), or on pictures of the size they were published for
(`real`: 750 x 1333, 1024).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from random_models import PHRASES, REAL, REDUCED, SMALL, Size, save_models
from transformers import AutoModelForZeroShotObjectDetection, GroundingDinoConfig, Sam2Model, SamModel
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoBiMultiHeadAttention,
    MultiScaleDeformableAttention,
)

from openavs.models.ops.deformable_attention import build_layout, pad_levels, sample_values
from openavs.models.ops.grounding_dino import FusionAttention
from openavs.models.ops.linear import OneDnnLinear
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.stages.segmenters.sam import SamSegmenter
from openavs.stages.segmenters.sam2 import Sam2Segmenter
from openavs.structures.types import ImageArray

Way = Callable[[], torch.Tensor]
SIZES = {"small": SMALL, "reduced": REDUCED, "real": REAL}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    answer: dict[str, Any] = {"size": options.size, "repeats": options.repeats, "threads": options.threads}
    size = SIZES[options.size]
    picture = np.random.default_rng(0).integers(0, 256, (*size.picture, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            ways = PARTS[part](Path(folder) / part, size, picture)
            answer[part] = compare(ways, options.repeats)
    print(json.dumps(answer, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in answer.items()))
    return 0


@torch.inference_mode()
def compare(ways: dict[str, Way], repeats: int) -> dict[str, Any]:
    """Seconds of each way, ratios of those in the same precision, and errors against the library's float32."""
    exact = ways["library"]().float()
    answer: dict[str, Any] = {"error": {}}
    for name, way in ways.items():  # and all are warm
        answer["error"][name] = float(f"{float((way().float() - exact).norm() / exact.norm()):.2g}")
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name in list(ways)[:: -1 if turn % 2 else 1]:
            clocks = time.process_time(), time.perf_counter()
            ways[name]()
            cpu[name].append(time.process_time() - clocks[0])
            wall[name].append(time.perf_counter() - clocks[1])
    answer["seconds"] = {name: round(median(times), 4) for name, times in cpu.items()}
    answer["seconds_wall"] = {name: round(median(times), 4) for name, times in wall.items()}
    pairs = [(name, name.replace("ours", "library")) for name in ways if name.startswith("ours")]
    for clock, times in (("ratio", cpu), ("ratio_wall", wall)):
        answer[clock] = {
            ours: round(median(b / a for a, b in zip(times[ours], times[library], strict=True)), 2)
            for ours, library in pairs
        }
    return answer


# ------------------------------------------------------------------------------------------------------------- parts


def detector(folder: Path, size: Size, picture: ImageArray) -> dict[str, Way]:
    """Grounding DINO asked for three phrases: its encoded picture."""
    path, _ = save_models(folder, size, "sam", picture)
    lean = {
        dtype: GroundingDinoDetector(model=str(path), device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")
    }
    one = lean["float32"]
    pixels = one._prepare([picture], [one._fit(picture)])
    words = one._tokenizer(" . ".join(PHRASES[:3]) + " .", return_tensors="pt")
    asked = {
        "pixel_values": pixels,
        "pixel_mask": torch.ones((1, *pixels.shape[-2:]), dtype=torch.long),
        **{name: words[name] for name in ("input_ids", "attention_mask", "token_type_ids")},
    }
    library = AutoModelForZeroShotObjectDetection.from_pretrained(path).eval()
    return four_ways(
        lambda: library(**asked).encoder_last_hidden_state_vision,
        {dtype: lambda d=d: d.model(**asked).encoder_last_hidden_state_vision for dtype, d in lean.items()},
    )


def segmenter(name: str) -> Callable[[Path, Size, ImageArray], dict[str, Way]]:
    """A segmenter's encoding of a picture."""
    model_class, adapter = {"sam": (SamModel, SamSegmenter), "sam2": (Sam2Model, Sam2Segmenter)}[name]

    def ways(folder: Path, size: Size, picture: ImageArray) -> dict[str, Way]:
        _, path = save_models(folder, size, name, picture)
        library = model_class.from_pretrained(path).eval()
        widen(library.vision_encoder)
        library.save_pretrained(path)
        pixels = torch.randn(1, 3, size.square, size.square, generator=torch.Generator().manual_seed(0))
        lean = {dtype: adapter(model=str(path), device="cpu", dtype=dtype).model for dtype in ("float32", "bfloat16")}
        return four_ways(
            lambda: encoded(library, pixels), {dtype: lambda m=m: encoded(m, pixels) for dtype, m in lean.items()}
        )

    return ways


@torch.no_grad()
def widen(encoder: torch.nn.Module) -> None:
    """Weights as wide as trained ones, so that attention matters: SAM's are drawn as next to nothing."""
    for name, weight in encoder.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=0.1 if "rel_pos" in name else weight[0].numel() ** -0.5)


def encoded(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    answer = model.get_image_embeddings(pixels)
    return answer if isinstance(answer, torch.Tensor) else answer[-1]


def four_ways(library: Way, ours: dict[str, Way]) -> dict[str, Way]:
    """The library's forward pass, the same under autocast, and ours."""

    def rounded() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return library()

    return {
        "library": library,
        "ours": ours["float32"],
        "library_bfloat16": rounded,
        "ours_bfloat16": ours["bfloat16"],
    }


def deformable(folder: Path, size: Size, picture: ImageArray) -> dict[str, Way]:
    """One layer's sampling: every cell of the pyramid asks, points a few cells away."""
    edges = [-(-edge // 8) for edge in size.edges]
    levels = [tuple(-(-edge // 2**i) for edge in edges) for i in range(4)]
    cells, heads, points, channels = sum(h * w for h, w in levels), 8, 4, 256
    chance = torch.Generator().manual_seed(0)
    value = torch.randn(1, cells, heads, channels // heads, generator=chance)
    own = torch.cat([torch.cartesian_prod(*((torch.arange(n) + 0.5) / n for n in level)).flip(-1) for level in levels])
    scale = torch.tensor([[[width, height]] for height, width in levels])
    offsets = 3 * torch.randn(1, cells, heads, 4, points, 2, generator=chance) / scale
    places = own[None, :, None, None, None] + offsets
    weights = torch.randn(1, cells, heads, 4 * points, generator=chance).softmax(-1).view(*places.shape[:-1])
    layout = build_layout(tuple(levels), heads, points, torch.device("cpu"))
    in_cells = (places[0] * scale - 0.5).permute(0, 4, 1, 2, 3).flatten(2).contiguous()
    library = MultiScaleDeformableAttention()

    def ours() -> torch.Tensor:
        table = pad_levels(value.flatten(2), layout, heads)[0]
        return sample_values(table, in_cells.clone(), weights[0].flatten(1), layout, heads)

    return {
        "library": lambda: library(value, torch.tensor(levels), levels, None, places, weights, 64)[0],
        "ours": ours,
    }


def linear(folder: Path, size: Size, picture: ImageArray) -> dict[str, Way]:
    """The first layer of a feed-forward network, 256 to 2048 channels, for 4096 cells."""
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(256, 2048), torch.randn(4096, 256)
    lean, half = OneDnnLinear(layer), OneDnnLinear(copy.deepcopy(layer), torch.bfloat16)
    return four_ways(lambda: layer(inputs), {"float32": lambda: lean(inputs), "bfloat16": lambda: half(inputs)})


def fusion(folder: Path, size: Size, picture: ImageArray) -> dict[str, Way]:
    """Attention between a picture and a caption of nine tokens, in one layer."""
    torch.manual_seed(0)
    library = GroundingDinoBiMultiHeadAttention(GroundingDinoConfig()).eval()
    cells = sum(-(-size.edges[0] // step) * -(-size.edges[1] // step) for step in (8, 16, 32, 64))
    asked = (torch.randn(1, cells, 256), torch.randn(1, 9, 256), torch.zeros(1, cells, dtype=torch.bool))
    lean = FusionAttention(library)
    return {"library": lambda: library(*asked)[0][0], "ours": lambda: lean(*asked)[0][0]}


PARTS: dict[str, Callable[[Path, Size, ImageArray], dict[str, Way]]] = {
    "deformable": deformable,
    "fusion": fusion,
    "linear": linear,
    "detector": detector,
    "sam": segmenter("sam"),
    "sam2": segmenter("sam2"),
}

if __name__ == "__main__":
    sys.exit(main())
