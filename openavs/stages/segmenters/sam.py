"""SAM, SAM-HQ, SAM 2 and EdgeTAM (transformers): boxes to masks, one encoding per image.

Pre- and post-processing are our own, on the model's device: the pixels equal those of the library's processor bit for
bit (`models/ops/image.py`), and masks are upscaled and thresholded before they leave the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import interpolate, pad
from transformers import EdgeTamModel, Sam2Model, SamHQModel, SamModel
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from openavs.errors import InputError, ModelError
from openavs.models.hub import ResolvedModel, load_processor
from openavs.models.ops.image import normalize_bytes, resize_bilinear
from openavs.stages.segmenters.box_prompts import (
    BoxPromptSegmenter,
    SquareResize,
    box_corners,
    check_image,
    longest_edge_size,
    masks_per_chunk,
)
from openavs.structures.types import BoolMask, Box, ImageArray


class SamSegmenter(BoxPromptSegmenter):
    """Segments the object in each box with a SamModel checkpoint.

    Only images of one shape are encoded together, so that no result depends on the batch. See `BoxPromptSegmenter` for
    the options.
    """

    name, title, model_class = "sam", "SAM", SamModel

    def _image_transform(self, resolved: ResolvedModel) -> LongestEdgeResize:
        return LongestEdgeResize(resolved, int(self.model.config.vision_config.image_size), self.device)

    def _batch_key(self, image: ImageArray) -> Any:
        return image.shape

    def _encode(self, images: Sequence[ImageArray]) -> list[torch.Tensor]:
        """Return the embedding `[1, C, h, w]` of each image."""
        pixels = torch.stack([self.pixels.prepare(image) for image in images]).to(self._input_dtype)
        return list(self.model.get_image_embeddings(pixels).float()[:, None])


class SamHqSegmenter(SamSegmenter):
    """Segments the object in each box with a SamHQModel checkpoint: SAM with finer edges.

    The decoder also reads the first global layer of the image encoder, without which the library decodes coarser masks
    silently. See `BoxPromptSegmenter` for the options.
    """

    name, title, model_class = "sam-hq", "SAM-HQ", SamHQModel

    def _encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """Return the embedding `[1, C, h, w]` and the first global layer `[1, h, w, D]` of each image."""
        pixels = torch.stack([self.pixels.prepare(image) for image in images]).to(self._input_dtype)
        output = self.model.vision_encoder(pixels)
        parts = (output.last_hidden_state, output.intermediate_embeddings[0])
        return list(zip(*(part.float().split(1) for part in parts), strict=True))

    def _decoder_inputs(self, encoding: Any) -> Mapping[str, Any]:
        embedding, layer = encoding
        return {"image_embeddings": embedding, "intermediate_embeddings": [layer]}


class LongestEdgeResize:
    """SAM's image processing: resize the longest edge, normalize, pad at the right and bottom.

    Args:
        resolved: the model's folder, with its preprocessor file.
        expected: edge of the model's input in pixels.
        device: where images are processed.

    Raises:
        ModelError: the preprocessor file does not fit the model.
    """

    def __init__(self, resolved: ResolvedModel, expected: int, device: torch.device) -> None:
        settings: Any = load_processor(SamImageProcessorPil, resolved)
        self.device = device
        self.longest = int(settings.size["longest_edge"])
        self.padded = (int(settings.pad_size["height"]), int(settings.pad_size["width"]))
        if not settings.do_resize or settings.resample != 2 or self.longest > min(self.padded):
            raise ModelError(
                f"the preprocessor of '{resolved.ref}' is not SAM's (a bilinear resize of the longest edge, then "
                "padding); use the preprocessor_config.json that was saved with the model"
            )
        if self.padded != (expected, expected):
            raise ModelError(
                f"the model '{resolved.ref}' takes images of {expected} pixels but its preprocessor makes "
                f"{self.padded}; use the preprocessor_config.json that was saved with it"
            )
        self.values = _normalization_table(settings).to(device)

    def prepare(self, image: ImageArray) -> torch.Tensor:
        """Convert uint8 `[H, W, 3]` to float32 `[3, padded, padded]` on the device."""
        check_image(image, "sam")
        height, width = longest_edge_size((int(image.shape[0]), int(image.shape[1])), self.longest)
        pixels = normalize_bytes(self.values, resize_bilinear(image, (height, width), self.device))
        return pad(pixels, (0, self.padded[1] - width, 0, self.padded[0] - height))

    def scale_boxes(self, boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
        """Convert boxes of the image to `[1, boxes, 4]` in pixels of the resized image."""
        height, width = longest_edge_size(size, self.longest)
        scaled = box_corners(boxes, "sam") * np.array([width / size[1], height / size[0]])
        # float64 as in the library's processor; MPS has no float64
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        return torch.from_numpy(scaled.reshape(1, -1, 4)).to(self.device, dtype)

    def enlarge(self, masks: torch.Tensor, size: tuple[int, int]) -> Iterator[BoolMask]:
        """Convert mask logits `[boxes, h, w]` to boolean masks `[H, W]` on the CPU, a bounded number at a time."""
        height, width = longest_edge_size(size, self.longest)
        for start in range(0, len(masks), chunk := masks_per_chunk(size, self.padded)):
            part = masks[start : start + chunk, None]
            part = interpolate(part, self.padded, mode="bilinear", align_corners=False)[..., :height, :width]
            part = interpolate(part, size, mode="bilinear", align_corners=False)
            yield from (part[:, 0] > 0.0).cpu().numpy()


def _normalization_table(settings: Any) -> torch.Tensor:
    """Return the value of each byte, `[3, 256]` float32, by the processor's own arithmetic (for equality of bits)."""
    values = np.tile(np.arange(256, dtype=np.uint8), (3, 1))[..., None]  # [3, 256, 1], channels first
    if settings.do_rescale:
        values = settings.rescale(values, settings.rescale_factor)
    if settings.do_normalize:
        values = settings.normalize(values, settings.image_mean, settings.image_std)
    return torch.from_numpy(np.ascontiguousarray(values[..., 0], dtype=np.float32))


_STRIDE = 32  # pixels per cell of the coarsest level

Encoding = list[torch.Tensor]
"""Input of the mask decoder for one image: feature maps `[1, C, h, w]`, finest first, in float32."""


class Sam2Segmenter(BoxPromptSegmenter):
    """Segments the object in each box with a Sam2Model or Sam2VideoModel checkpoint.

    All images are resized to one square, so any may be encoded together.

    Args:
        image_size: edge of that square in pixels, a multiple of 32 up to the checkpoint's own. None: the checkpoint's
            own, 1024. Time falls faster than the area, and so does the detail of masks.
        model, batch_size, multimask, quantize, device, dtype, offline: as for `BoxPromptSegmenter`.

    Raises:
        InputError: an option is out of range.
    """

    name, title, model_class = "sam2", "SAM 2", Sam2Model
    pixels: SquareResize

    def __init__(
        self,
        *,
        model: str,
        batch_size: int | None = None,
        multimask: bool = False,
        image_size: int | None = None,
        quantize: Literal["int8"] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        super().__init__(
            model=model,
            batch_size=batch_size,
            multimask=multimask,
            quantize=quantize,
            device=device,
            dtype=dtype,
            offline=offline,
        )
        if image_size is not None:
            if image_size % _STRIDE or not 0 < image_size <= self.pixels.size:
                raise InputError(
                    f"{self.name}: image_size is a multiple of {_STRIDE} from {_STRIDE} to {self.pixels.size}, "
                    f"not {image_size}"
                )
            self._set_image_size(image_size)

    def _set_image_size(self, edge: int) -> None:
        """Make the model take another square: its positions are interpolated, and no weight depends on the size."""
        trained, prompts = self.pixels.size, self.model.prompt_encoder
        self.pixels.size = prompts.input_image_size = edge
        prompts.image_embedding_size, prompts.mask_input_size = (
            (side * edge // trained, side * edge // trained)
            for side, _ in (prompts.image_embedding_size, prompts.mask_input_size)
        )
        self.model.backbone_feature_sizes = [
            [side * edge // trained for side in sides] for sides in self.model.backbone_feature_sizes
        ]

    def _image_transform(self, resolved: ResolvedModel) -> SquareResize:
        edge = self.model.config.prompt_encoder_config.image_size
        return SquareResize(resolved, int(edge if isinstance(edge, int) else edge[0]), self.device, self.name)

    def _batch_key(self, image: ImageArray) -> Any:
        return None

    def _encode(self, images: Sequence[ImageArray]) -> list[Encoding]:
        pixels = torch.stack([self.pixels.prepare(image) for image in images]).to(self._input_dtype)
        levels = self.model.get_image_embeddings(pixels)
        return [[level[i : i + 1].float() for level in levels] for i in range(len(images))]


class EdgeTamSegmenter(Sam2Segmenter):
    """Segments the object in each box with an EdgeTamModel or EdgeTamVideoModel checkpoint: SAM 2 with timm's RepViT.

    A config.json without the backbone makes transformers build a ResNet-50, which strict loading refuses. See
    `BoxPromptSegmenter` for the options.
    """

    name, title, model_class, needs_timm = "edgetam", "EdgeTAM", EdgeTamModel, True
