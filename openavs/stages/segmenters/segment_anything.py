"""SAM through its original package, segment-anything: boxes to masks, one encoding per image.

The package does the part that is SAM's own (normalization, encoder, decoder, upscaling); images are resized on the
device to the same bytes as by the package's transform (`models/ops/image.py`), which would need torchvision. The sizes
of the network are read from its weights, so that any checkpoint of the package's structure loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch

from openavs.errors import ModelError
from openavs.models.convert import SAM, load_state_dict_strict, read_config, read_weights
from openavs.models.device import resolve_device
from openavs.models.hub import resolve
from openavs.models.ops.image import resize_bilinear
from openavs.stages.segmenters.box_prompts import (
    MAX_BOXES,
    box_corners,
    check_image,
    check_lists,
    longest_edge_size,
    masks_per_chunk,
    select_best_mask,
)
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Box, ImageArray, Mask
from openavs.utils.optional_deps import import_optional, stub_modules

_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # the package's, for pixels of 0 to 255
_DECODER_HEADS = 8  # of every published checkpoint; cannot be read from the weights


class SegmentAnythingSegmenter:
    """Segments the object in each box. A mask's score is SAM's own estimate of its IoU, clamped to [0, 1].

    Args:
        model: folder written by `python -m openavs.models.convert sam_vit_b_01ec64.pth FOLDER` (vit_b, vit_l or vit_h).
        multimask: decode three masks per box and keep the one with the highest score.
        device, dtype, offline: as everywhere; dtype applies to the image encoder.

    Raises:
        InputError: the package is not installed.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        package = _package()
        placement = resolve_device(device, dtype)
        found = resolve(model, offline)
        read_config(found, SAM)
        self.models: dict[str, dict[str, Any]] = {model: found.describe()}
        self.multimask, self.device = multimask, placement.device
        self._ref = model
        weights = read_weights(found)
        self.model: Any = _network(package, weights, model)
        load_state_dict_strict(self.model, weights, model)
        self.model.requires_grad_(False).eval().to(self.device)
        _set_compute_dtype(self.model.image_encoder, placement.dtype)
        self._predictor: Any = package.SamPredictor(self.model)
        self.side = int(self.model.image_encoder.img_size)

    @torch.inference_mode()
    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """See `Segmenter.segment`; an image without boxes is not encoded."""
        check_lists(images, boxes, SAM)
        return [
            list(self._masks(image, own, position)) if len(own) else []
            for position, (image, own) in enumerate(zip(images, boxes, strict=True))
        ]

    def _masks(self, image: ImageArray, boxes: Sequence[Box], position: int) -> Iterator[Mask]:
        check_image(image, SAM)
        size = (int(image.shape[0]), int(image.shape[1]))
        small = longest_edge_size(size, self.side)
        scaled = _scale(boxes, size, small).to(self.device)
        pixels = resize_bilinear(image, small, self.device).permute(2, 0, 1)[None]
        self._predictor.set_torch_image(pixels, size)  # runs the encoder
        for start in range(0, len(scaled), chunk := self._boxes_per_chunk(size)):
            yield from self._decode(scaled[start : start + chunk], position)
        self._predictor.reset_image()

    def _decode(self, boxes: torch.Tensor, position: int) -> Iterator[Mask]:
        """Yield the masks of boxes `[B, 4]` of the current image."""
        logits, scores, _ = self._predictor.predict_torch(
            None, None, boxes, multimask_output=self.multimask, return_logits=True
        )  # [B, masks, H, W] at full size, [B, masks]
        best, best_scores = select_best_mask(logits, scores, f"SAM model '{self._ref}'", position)
        for mask, score in zip((best > self.model.mask_threshold).cpu().numpy(), best_scores, strict=True):
            yield Mask(mask_to_rle(mask), score)

    def _boxes_per_chunk(self, size: tuple[int, int]) -> int:
        """Return how many boxes are decoded together; the decoder upscales their masks to floats of full size."""
        masks_per_box = 3 if self.multimask else 1
        return min(max(masks_per_chunk(size, (self.side, self.side)) // masks_per_box, 1), MAX_BOXES)


@cache
def _package() -> ModuleType:
    """Import segment_anything, which imports torchvision without declaring it; the code used here does not need it."""
    with stub_modules({"torchvision": {}}):
        return import_optional("segment_anything", "segment-anything")


def _scale(boxes: Sequence[Box], size: tuple[int, int], small: tuple[int, int]) -> torch.Tensor:
    """Convert boxes of the image to float32 `[B, 4]` in pixels of the resized image."""
    scaled = box_corners(boxes, SAM) * np.array([small[1] / size[1], small[0] / size[0]])
    return torch.from_numpy(scaled.reshape(-1, 4).astype(np.float32))


def _set_compute_dtype(encoder: torch.nn.Module, dtype: torch.dtype) -> None:
    """Make the image encoder compute in a dtype, with float32 inputs and outputs."""
    if dtype == torch.float32:
        return
    encoder.to(dtype)
    encoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype),))
    encoder.register_forward_hook(lambda _, __, output: output.float())


def _network(package: ModuleType, weights: Mapping[str, torch.Tensor], ref: str) -> Any:
    """Build a network with the sizes of these weights, not yet loaded."""
    try:
        encoder, prompts, decoder = infer_sizes(weights)
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(
            f"the weights of the model '{ref}' are not segment-anything's (no {error}); convert the checkpoint again"
        ) from error
    parts = package.modeling
    width = encoder["out_chans"]
    return parts.Sam(
        image_encoder=parts.ImageEncoderViT(
            **encoder, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), qkv_bias=True, use_rel_pos=True
        ),
        prompt_encoder=parts.PromptEncoder(embed_dim=width, **prompts),
        mask_decoder=parts.MaskDecoder(
            transformer_dim=width,
            transformer=parts.TwoWayTransformer(
                depth=decoder.pop("depth"),
                embedding_dim=width,
                mlp_dim=decoder.pop("mlp_dim"),
                num_heads=_DECODER_HEADS,
            ),
            **decoder,
        ),
        pixel_mean=_MEAN,
        pixel_std=_STD,
    )


def infer_sizes(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Infer the arguments of the image encoder, prompt encoder and mask decoder from the weights' shapes.

    A block's table of relative positions has 2 s - 1 rows if it attends within s x s cells, and as many columns as an
    attention head has channels; a block attends globally if s is the whole grid.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    width, _, _, patch = shape["image_encoder.patch_embed.proj.weight"]
    grid = shape["image_encoder.pos_embed"][1]
    depth = _count(shape, r"image_encoder\.blocks\.(\d+)\.")
    tables = [shape[f"image_encoder.blocks.{block}.attn.rel_pos_h"] for block in range(depth)]
    spans = [(rows + 1) // 2 for rows, _ in tables]
    windows = sorted({span for span in spans if span != grid})
    encoder = {
        "img_size": grid * patch,
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // tables[0][1],
        "mlp_ratio": shape["image_encoder.blocks.0.mlp.lin1.weight"][0] / width,
        "out_chans": shape["image_encoder.neck.0.weight"][0],
        "window_size": windows[0] if windows else 0,
        "global_attn_indexes": tuple(block for block, span in enumerate(spans) if span == grid),
    }
    prompts = {
        "image_embedding_size": (grid, grid),
        "input_image_size": (grid * patch, grid * patch),
        "mask_in_chans": shape["prompt_encoder.mask_downscaling.3.weight"][0],
    }
    decoder = {
        "depth": _count(shape, r"mask_decoder\.transformer\.layers\.(\d+)\."),
        "mlp_dim": shape["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
        "num_multimask_outputs": shape["mask_decoder.mask_tokens.weight"][0] - 1,
        "iou_head_depth": _count(shape, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        "iou_head_hidden_dim": shape["mask_decoder.iou_prediction_head.layers.0.weight"][0],
    }
    return encoder, prompts, decoder


def _count(names: Mapping[str, Any], pattern: str) -> int:
    """Return the number of numbered submodules whose names match a pattern."""
    numbers = [int(found.group(1)) for name in names if (found := re.match(pattern, name))]
    if not numbers:
        raise KeyError(pattern)
    return max(numbers) + 1
