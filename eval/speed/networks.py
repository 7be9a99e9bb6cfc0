"""What the networks of the recipes compute, counted on the library's own classes without their weights.

Each network is built at its published size on torch's meta device, where tensors have shapes and no numbers, and run
once: floating-point operations by torch's own counter (2 for a multiplication with its addition; sampling a grid counts
as none), bytes by what every operation reads and writes. Nothing is downloaded and nothing is computed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

META = torch.device("meta")
PICTURE = (750, 1333)  # of a 16:9 video as Grounding DINO takes it
CAPTION = 8  # tokens of three phrases of one word, with their dots and borders

_SAM = {  # width, layers, heads, layers with global attention
    "base": (768, 12, 12, [2, 5, 8, 11]),
    "large": (1024, 24, 16, [5, 11, 17, 23]),
    "huge": (1280, 32, 16, [7, 15, 23, 31]),
}
_SAM2 = {  # width, heads, blocks, windows, blocks with global attention, edge of the position table
    "tiny": (96, 1, [1, 2, 7, 2], [8, 4, 14, 7], [5, 7, 9], 7),
    "base-plus": (112, 2, [2, 3, 16, 3], [8, 4, 14, 7], [12, 16, 20], 14),
    "large": (144, 2, [2, 6, 36, 4], [8, 4, 16, 8], [23, 33, 43], 7),
}


@dataclass(frozen=True)
class Cost:
    """Of one run: floating-point operations, numbers that operations read and write, and the parameters (all of them
    are read once)."""

    flop: float = 0.0
    traffic: float = 0.0
    parameters: float = 0.0

    def times(self, runs: float) -> Cost:
        """So many runs of the same network."""
        return Cost(self.flop * runs, self.traffic * runs, self.parameters)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.traffic + other.traffic, self.parameters + other.parameters)


class _Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the elements that operations read and write; a view of what is there moves nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        stores = {t.untyped_storage()._cdata for t in read}
        written = [t for t in tree_leaves(made) if isinstance(t, torch.Tensor)]
        if any(t.untyped_storage()._cdata not in stores for t in written):
            self.numbers += sum(t.numel() for t in (*read, *written))
        return made


def cost(network: torch.nn.Module, run: Callable[[Any], object]) -> Cost:
    """Of `run(network)`."""
    network.requires_grad_(False).eval()
    traffic = _Traffic()
    with FlopCounterMode(display=False) as counter, traffic, torch.no_grad():
        run(network)
    parameters = sum(weights.numel() for weights in network.parameters())
    return Cost(float(counter.get_total_flops()), float(traffic.numbers), float(parameters))


def detector_config(size: str) -> Any:
    """Grounding DINO's: `tiny` with Swin-T, `base` with Swin-B."""
    from transformers import GroundingDinoConfig, SwinConfig

    base = SwinConfig(
        embed_dim=128, depths=[2, 2, 18, 2], num_heads=[4, 8, 16, 32], window_size=12, image_size=384,
        out_indices=[2, 3, 4],
    )  # fmt: skip
    return GroundingDinoConfig(backbone_config=base) if size == "base" else GroundingDinoConfig()


def sam_vision(size: str) -> dict[str, Any]:
    """The image encoder of SAM: `base`, `large` or `huge`."""
    width, layers, heads, everywhere = _SAM[size]
    return {
        "hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "mlp_dim": 4 * width,
        "global_attn_indexes": everywhere,
    }  # fmt: skip


def sam2_vision(size: str) -> dict[str, Any]:
    """The image encoder of SAM 2.1: `tiny`, `base-plus` or `large`."""
    width, heads, blocks, windows, everywhere, edge = _SAM2[size]
    widths = [width * 2**stage for stage in range(4)]
    backbone = {
        "model_type": "sam2_hiera_det_model", "hidden_size": width, "num_attention_heads": heads,
        "blocks_per_stage": blocks, "embed_dim_per_stage": widths, "window_size_per_stage": windows,
        "num_attention_heads_per_stage": [heads * 2**stage for stage in range(4)],
        "global_attention_blocks": everywhere, "window_positional_embedding_background_size": [edge, edge],
    }  # fmt: skip
    return {"backbone_config": backbone, "backbone_channel_list": widths[::-1]}


def language_config() -> Any:
    """Qwen3-4B's."""
    from transformers import Qwen3Config

    return Qwen3Config(
        hidden_size=2560, num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        intermediate_size=9728, vocab_size=151936, tie_word_embeddings=True,
    )  # fmt: skip


@cache
def detector(size: str, picture: tuple[int, int] = PICTURE, tokens: int = CAPTION) -> Cost:
    """Grounding DINO (`tiny`: Swin-T, `base`: Swin-B) on one picture. The adapter's own attentions do less than this
    count of the library's."""
    from transformers import GroundingDinoForObjectDetection

    ids = torch.zeros(1, tokens, dtype=torch.long, device=META)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    pixels = {
        "pixel_values": torch.zeros(1, 3, *picture, device=META),
        "pixel_mask": torch.ones(1, *picture, dtype=torch.long, device=META),
    }
    with _quiet(), _without_numbers(), META:
        return cost(
            GroundingDinoForObjectDetection(detector_config(size)).to(META), lambda network: network(**pixels, **inputs)
        )


@cache
def sam(size: str, boxes: int) -> Cost:
    """SAM: one picture encoded, and the masks of some boxes."""
    from transformers import SamConfig, SamModel

    def run(network: Any) -> None:
        embedding = network.get_image_embeddings(torch.zeros(1, 3, 1024, 1024))
        network(image_embeddings=embedding, input_boxes=torch.zeros(1, boxes, 4), multimask_output=False)

    with _quiet(), META:
        return cost(SamModel(SamConfig(vision_config=sam_vision(size))), run)


@cache
def sam2(size: str, boxes: int) -> Cost:
    """SAM 2.1: one picture encoded, and the masks of some boxes."""
    from transformers import Sam2Config, Sam2Model

    def run(network: Any) -> None:
        levels = network.get_image_embeddings(torch.zeros(1, 3, 1024, 1024))
        network(image_embeddings=levels, input_boxes=torch.zeros(1, boxes, 4), multimask_output=False)

    with _quiet(), META:
        return cost(Sam2Model(Sam2Config(vision_config=sam2_vision(size))), run)


@cache
def clap() -> Cost:
    """CLAP's audio tower (HTSAT) on one window; whatever its length, it is brought to ten seconds."""
    from transformers import ClapConfig, ClapModel

    mel, longer = torch.zeros(1, 1, 1001, 64, device=META), torch.zeros(1, 1, dtype=torch.bool, device=META)
    with _quiet(), META:
        return cost(ClapModel(ClapConfig()), lambda m: m.get_audio_features(input_features=mel, is_longer=longer))


@cache
def language_model(question: int, answer: int) -> Cost:
    """Qwen3-4B: a question and its answer in tokens. Every token passes once, whether it is read or written."""
    from transformers import Qwen3ForCausalLM

    tokens = torch.zeros(1, question + answer, dtype=torch.long, device=META)
    seen = torch.zeros(1, 1, question + answer, question + answer, device=META)
    with _quiet(), META:
        network = Qwen3ForCausalLM(language_config())
        return cost(network, lambda m: m(input_ids=tokens, attention_mask=seen, logits_to_keep=answer, use_cache=False))


@cache
def audio_language_model(questions: int, prompt: int, answer: int, seconds: float) -> Cost:
    """Qwen2-Audio 7B on one window: the sound is encoded once (padded to 30 s, as its encoder wants), then each
    question is read with the sound's vectors (25 a second) and answered."""
    from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

    hears = {
        "model_type": "qwen2_audio_encoder", "d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
        "encoder_ffn_dim": 5120, "num_mel_bins": 128,
    }  # fmt: skip
    speaks = {
        "model_type": "qwen2", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 156032,
    }  # fmt: skip
    length = math.ceil(25 * seconds) + prompt + answer
    with _quiet(), META:
        whole = Qwen2AudioForConditionalGeneration(Qwen2AudioConfig(audio_config=hears, text_config=speaks))
        tower = cost(whole.model.audio_tower, lambda m: m(torch.zeros(1, 128, 3000)))
        words, seen = torch.zeros(questions, length, 4096), torch.zeros(questions, 1, length, length)
        said = cost(whole.model.language_model, lambda m: m(inputs_embeds=words, attention_mask=seen, use_cache=False))
        head = cost(whole.lm_head, lambda m: m(torch.zeros(questions, answer, 4096)))
    return tower + said + head


@contextmanager
def _without_numbers() -> Iterator[None]:
    """Grounding DINO looks into its tokens and checks its shapes, for which the meta device has no numbers."""
    from transformers.models.grounding_dino import modeling_grounding_dino as module

    def masks(ids: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones(*ids.shape, ids.shape[1], dtype=torch.bool, device=META), torch.zeros_like(ids)

    names = ("generate_masks_with_special_tokens_and_transfer_map", "torch_compilable_check")
    before = [getattr(module, name) for name in names]
    for name, put in zip(names, (masks, lambda *_, **__: None), strict=True):
        setattr(module, name, put)
    try:
        yield
    finally:
        for name, old in zip(names, before, strict=True):
            setattr(module, name, old)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library says which defaults it takes."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
