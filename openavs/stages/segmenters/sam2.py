"""SAM 2 (transformers Sam2Model): boxes -> masks, one encoding per image.

Pre- and post-processing are our own tensors on the model's device (preprocess.py). Only the backbone
of the image encoder takes the requested dtype: in bfloat16 the prompt encoder would round box corners to several
pixels and the memory's position codes would run together. A checkpoint saved as the video model serves as well, since
the image model is a part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Sam2Model

from openavs.errors import InputError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import load_pretrained, resolve
from openavs.models.ops.sam import prepare_encoder
from openavs.stages.segmenters.box_prompts import check_lists, decode_boxes
from openavs.stages.segmenters.preprocess import SquareResize
from openavs.structures.types import Box, ImageArray, Mask

Encoding = list[torch.Tensor]
"""What the decoder needs of one image: feature maps `[1, C, h, w]`, finest first, in float32."""


class Sam2Segmenter:
    """Segments what is in each box. A mask's score is SAM 2's own estimate of its IoU, clamped to [0, 1].

    Args:
        model: reference of a Sam2Model or Sam2VideoModel checkpoint.
        batch_size: images encoded together (all are stretched to one square, so any may be); None: 8 on a
            GPU, 1 on a CPU.
        multimask: ask for SAM 2's three answers per box and keep the one it trusts most, instead of the single answer
            (which suits boxes, the less ambiguous prompt).
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    def __init__(
        self,
        *,
        model: str,
        batch_size: int | None = None,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"sam2: batch_size is at least 1, not {batch_size}")
        self.multimask = multimask
        placement = resolve_device(device, dtype)
        self.device = placement.device
        self.batch_size = frames_per_batch(batch_size, self.device)
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.model: Any = load_pretrained(Sam2Model, resolved, torch.float32, self.device)
        encoder = self.model.vision_encoder
        self.dtype = resolve_matmul_dtype(placement, dtype, encoder.num_parameters(), "SAM 2's image encoder")
        self._takes = prepare_encoder(encoder, encoder.backbone, self.dtype, self.device)
        self.pixels = SquareResize(resolved, image_edge(self.model), self.device, "sam2")

    @torch.inference_mode()
    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One mask per box, in the box's order and the image's size; images without boxes are not encoded."""
        check_lists(images, boxes, "sam2")
        masks: list[list[Mask]] = [[] for _ in images]
        wanted = [i for i in range(len(images)) if len(boxes[i])]
        for start in range(0, len(wanted), self.batch_size):
            part = wanted[start : start + self.batch_size]
            for i, encoding in zip(part, self._encode([images[i] for i in part]), strict=True):
                masks[i] = list(self.decode(encoding, boxes[i], (images[i].shape[0], images[i].shape[1]), i))
        return masks

    def _encode(self, images: Sequence[ImageArray]) -> list[Encoding]:
        """The encodings of some images, one pass of the encoder."""
        pixels = torch.stack([self.pixels.prepare(image) for image in images]).to(self._takes)
        levels = self.model.get_image_embeddings(pixels)
        return [[level[i : i + 1].float() for level in levels] for i in range(len(images))]

    @torch.inference_mode()
    def decode(
        self, encoding: Encoding, boxes: Sequence[Box], size: tuple[int, int], position: int = 0
    ) -> Iterator[Mask]:
        """The masks of some boxes of one encoded image of a size (height, width)."""
        yield from decode_boxes(
            self.model,
            encoding,
            self.pixels.scale_boxes(boxes, size),
            lambda logits: self.pixels.enlarge(logits, size),
            multimask=self.multimask,
            name=f"SAM 2 model '{self._ref}'",
            position=position,
        )


def image_edge(model: Any) -> int:
    """Pixels of an edge of the square that a SAM 2 model takes."""
    edge = model.config.prompt_encoder_config.image_size
    return int(edge if isinstance(edge, int) else edge[0])
