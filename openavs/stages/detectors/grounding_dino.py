"""Grounding DINO and MM-Grounding-DINO (transformers): all phrases of a frame in one forward.

This is the model's side; `grounding.py` holds what every adapter of Grounding DINO does around it.
"""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoImageProcessorPil,
)

from openavs.errors import ModelError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.models.ops.grounding_dino import optimize_grounding_dino
from openavs.stages.detectors.grounding import (
    PHRASES_PER_CAPTION,
    BaseGroundingDino,
    CaptionLimits,
    ImagePreprocessing,
    check_phrases_per_caption,
    check_tokenizer,
    encode,
)
from openavs.stages.detectors.postprocess import check_options

_KINDS = ("grounding-dino", "mm-grounding-dino")
_PROBE = 128  # pixels; a multiple of every stride that a backbone of this family has


class GroundingDinoDetector(BaseGroundingDino):
    """Boxes for phrases with a Grounding DINO checkpoint.

    Args:
        model: reference of a checkpoint whose model type is `grounding-dino` or `mm-grounding-dino`.
        floor: candidates that score less are not returned, in [0, 1].
        phrases_per_caption: phrases that one caption holds at most; 1 grounds one phrase at a time. The answers differ.
        max_candidates: how many candidates a frame keeps, best first; each phrase's best one always stays.
        batch_size: frames in one forward; only frames of one resized shape with the same phrases go together.
            None: 8 on a GPU, 1 on a CPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the large products of matrices. Coordinates, scores, the
            text and its fusion with the picture are float32 in any case.
        offline: use only what is already on this machine.

    Raises:
        ModelError: the reference cannot be had, or is a model of another kind.
        InputError: an option outside its range.
    """

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.05,
        phrases_per_caption: int = PHRASES_PER_CAPTION,
        max_candidates: int = 300,
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        check_phrases_per_caption(phrases_per_caption)
        found = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: found.describe()}
        self.floor, self.phrases_per_caption = floor, phrases_per_caption
        self.max_candidates = max_candidates
        self._reference = model
        self._place = resolve_device(device, dtype)
        self.batch_size = frames_per_batch(batch_size, self._place.device)
        config: Any = load_processor(AutoConfig, found)
        if config.model_type not in _KINDS:
            raise ModelError(
                f"{model} is a {config.model_type} model; give the detector grounding-dino one of type "
                f"{' or '.join(_KINDS)}"
            )
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        check_tokenizer(self._tokenizer, model)
        self._pixels = _pixel_rules(load_processor(GroundingDinoImageProcessorPil, found), model)
        self.model: Any = load_pretrained(AutoModelForZeroShotObjectDetection, found, torch.float32, self._place.device)
        optimize_grounding_dino(
            self.model, resolve_matmul_dtype(self._place, dtype, self.model.num_parameters(), "Grounding DINO")
        )
        self._limits = CaptionLimits(
            # BERT restarts its positions at each phrase, yet no caption may be longer than its position table.
            tokens=min(config.max_text_len, config.text_config.max_position_embeddings),
            queries=config.num_queries,
            levels=config.num_feature_levels,
            strides=_measure_strides(self.model, self._place.device),
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return encode(self._tokenizer, texts)

    def _answer(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(
            pixel_values=pixels,
            pixel_mask=torch.ones((len(pixels), *pixels.shape[-2:]), dtype=torch.long, device=pixels.device),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        )
        return output.logits, output.pred_boxes


def _pixel_rules(processor: Any, ref: str) -> ImagePreprocessing:
    """What a checkpoint's preprocessor_config.json says of its pictures."""
    size = processor.size
    if not (size["shortest_edge"] and size["longest_edge"]):
        raise ModelError(
            f"the preprocessor_config.json of {ref} has no shortest_edge and longest_edge; copy the one that came "
            f"with the checkpoint"
        )
    return ImagePreprocessing(
        shortest=int(size["shortest_edge"]),
        longest=int(size["longest_edge"]),
        filter=PIL.Image.Resampling(int(processor.resample)),
        scale=float(processor.rescale_factor),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


@torch.inference_mode()
def _measure_strides(network: Any, device: torch.device) -> tuple[int, ...]:
    """Pixels per cell at each level of the backbone, finest first; measured, since backbones name it differently."""
    pixels = torch.zeros((1, 3, _PROBE, _PROBE), device=device)
    mask = torch.ones((1, _PROBE, _PROBE), dtype=torch.long, device=device)
    levels = network.model.backbone.conv_encoder(pixels, mask)
    return tuple(_PROBE // features.shape[-2] for features, _ in levels)
