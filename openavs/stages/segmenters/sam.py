"""SAM (transformers SamModel): boxes -> masks, one encoding per image.

Pre- and post-processing are our own tensors on the model's device: the pixels equal those of the library's processor
bit for bit (models/ops/resize.py), masks are scaled up and thresholded on the device and leave it as booleans. Only the
image encoder takes the requested dtype: in bfloat16 the prompt encoder would round box corners to several pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from openavs.errors import InputError, ModelError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.models.ops.resize import resize_bilinear
from openavs.models.ops.sam import prepare_encoder
from openavs.stages.segmenters.box_prompts import box_corners, check_image, check_lists, decode_boxes
from openavs.structures.types import Box, ImageArray, Mask

_PIXELS_AT_ONCE = 1 << 26  # float32 pixels of enlarged masks held together: 256 MB, or one mask


class SamSegmenter:
    """Segments what is in each box. A mask's score is SAM's own estimate of its IoU, clamped to [0, 1].

    Args:
        model: reference of a SamModel checkpoint.
        batch_size: images encoded together; only images of one shape are, so no result hangs on its batch mates.
            None: 8 on a GPU, 1 on a CPU.
        multimask: ask for SAM's three answers per box and keep the one it trusts most, instead of the single answer
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
            raise InputError(f"sam: batch_size is at least 1, not {batch_size}")
        self.multimask = multimask
        placement = resolve_device(device, dtype)
        self.device = placement.device
        self.batch_size = frames_per_batch(batch_size, self.device)
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self._pixels = _Pixels(resolved, self.device)
        self.model: Any = load_pretrained(SamModel, resolved, torch.float32, self.device)
        encoder = self.model.vision_encoder
        self.dtype = resolve_matmul_dtype(placement, dtype, encoder.num_parameters(), "SAM's image encoder")
        self._takes = prepare_encoder(encoder, encoder, self.dtype, self.device)
        expected = int(self.model.config.vision_config.image_size)
        if self._pixels.padded != (expected, expected):
            raise ModelError(
                f"the model '{model}' takes images of {expected} pixels but its preprocessor makes "
                f"{self._pixels.padded}; use the preprocessor_config.json that was saved with it"
            )

    @torch.inference_mode()
    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """One mask per box, in the box's order and the image's size; images without boxes are not encoded."""
        check_lists(images, boxes, "sam")
        masks: list[list[Mask]] = [[] for _ in images]
        for group in self._groups(images, boxes):
            embeddings = self._encode([images[i] for i in group])
            for i, embedding in zip(group, embeddings, strict=True):
                size = (int(images[i].shape[0]), int(images[i].shape[1]))
                masks[i] = list(self._masks(embedding[None], boxes[i], size, i))
        return masks

    def _groups(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> Iterator[list[int]]:
        """Indices of images that have boxes, by shape, in parts of at most `batch_size`."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            if len(boxes[i]):
                by_shape.setdefault(image.shape, []).append(i)
        for alike in by_shape.values():
            for start in range(0, len(alike), self.batch_size):
                yield alike[start : start + self.batch_size]

    def _encode(self, images: Sequence[ImageArray]) -> torch.Tensor:
        """Image embeddings `[B, C, h, w]` in float32, one pass of the encoder."""
        pixels = torch.stack([self._pixels.prepare(image) for image in images]).to(self._takes)
        embeddings: torch.Tensor = self.model.get_image_embeddings(pixels)
        return embeddings.float()

    def _masks(
        self, embedding: torch.Tensor, boxes: Sequence[Box], size: tuple[int, int], position: int
    ) -> Iterator[Mask]:
        yield from decode_boxes(
            self.model,
            embedding,
            self._pixels.scale_boxes(boxes, size),
            lambda logits: self._pixels.enlarge(logits, size),
            multimask=self.multimask,
            name=f"SAM model '{self._ref}'",
            position=position,
        )


class _Pixels:
    """The geometry and arithmetic of SAM's processor: resize the longest edge, normalise, pad at right and bottom."""

    def __init__(self, resolved: ResolvedModel, device: torch.device) -> None:
        settings: Any = load_processor(SamImageProcessorPil, resolved)
        self.device = device
        self.longest = int(settings.size["longest_edge"])
        self.padded = (int(settings.pad_size["height"]), int(settings.pad_size["width"]))
        if not settings.do_resize or settings.resample != 2 or self.longest > min(self.padded):
            raise ModelError(
                f"the preprocessor of '{resolved.ref}' is not SAM's (a bilinear resize of the longest edge, then "
                "padding); use the preprocessor_config.json that was saved with the model"
            )
        self.values = _value_table(settings).to(device)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width after the longest edge became `longest`; never below one pixel."""
        scale = self.longest * 1.0 / max(size)
        return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)

    def prepare(self, image: ImageArray) -> torch.Tensor:
        """uint8 `[H, W, 3]` -> float32 `[3, padded, padded]` on the device."""
        check_image(image, "sam")
        height, width = self.resized((int(image.shape[0]), int(image.shape[1])))
        small = resize_bilinear(image, (height, width), self.device).permute(2, 0, 1).long()
        pixels = torch.stack([table[channel] for table, channel in zip(self.values, small, strict=True)])
        return pad(pixels, (0, self.padded[1] - width, 0, self.padded[0] - height))

    def scale_boxes(self, boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
        """Boxes of the original image -> `[1, boxes, 4]` in pixels of the resized one."""
        height, width = self.resized(size)
        scaled = box_corners(boxes, "sam") * np.array([width / size[1], height / size[0]])
        # float64 like the library's processor; Apple's GPUs have none
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.from_numpy(scaled.reshape(1, -1, 4)).to(self.device, dtype)

    def enlarge(self, logits: torch.Tensor, size: tuple[int, int]) -> Iterator[np.ndarray[Any, np.dtype[np.bool_]]]:
        """Low-resolution logits `[boxes, h, w]` -> boolean masks `[H, W]` on the host, a bounded number at a time."""
        height, width = self.resized(size)
        for start in range(0, len(logits), chunk := masks_at_once(size, self.padded)):
            part = logits[start : start + chunk, None]
            part = interpolate(part, self.padded, mode="bilinear", align_corners=False)[..., :height, :width]
            part = interpolate(part, size, mode="bilinear", align_corners=False)
            yield from (part[:, 0] > 0.0).cpu().numpy()


def masks_at_once(size: tuple[int, int], padded: tuple[int, int]) -> int:
    """How many masks may be enlarged together, so that an 8K frame with many boxes needs no more than a small one."""
    return max(_PIXELS_AT_ONCE // max(size[0] * size[1], padded[0] * padded[1]), 1)


def _value_table(settings: Any) -> torch.Tensor:
    """What each byte becomes, `[3, 256]` float32: rescaled and normalised with the processor's own arithmetic."""
    values = np.tile(np.arange(256, dtype=np.uint8), (3, 1))[..., None]  # [3, 256, 1], channels first
    if settings.do_rescale:
        values = settings.rescale(values, settings.rescale_factor)
    if settings.do_normalize:
        values = settings.normalize(values, settings.image_mean, settings.image_std)
    return torch.from_numpy(np.ascontiguousarray(values[..., 0], dtype=np.float32))
