"""SAM 2 (transformers Sam2Model): boxes to masks, one encoding per image.

Pre- and post-processing are our own, on the model's device (`preprocess.py`). A checkpoint that was saved as the video
model is accepted, too, since it contains the image model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Sam2Model

from openavs.models.hub import ResolvedModel
from openavs.stages.segmenters.box_prompts import BoxPromptSegmenter
from openavs.stages.segmenters.preprocess import SquareResize
from openavs.structures.types import ImageArray

Encoding = list[torch.Tensor]
"""Input of the mask decoder for one image: feature maps `[1, C, h, w]`, finest first, in float32."""


class Sam2Segmenter(BoxPromptSegmenter):
    """Segments the object in each box with a Sam2Model or Sam2VideoModel checkpoint.

    All images are resized to one square, so any may be encoded together. See `BoxPromptSegmenter` for the options.
    """

    name, title, model_class = "sam2", "SAM 2", Sam2Model
    pixels: SquareResize

    def _image_transform(self, resolved: ResolvedModel) -> SquareResize:
        edge = self.model.config.prompt_encoder_config.image_size
        return SquareResize(resolved, int(edge if isinstance(edge, int) else edge[0]), self.device, self.name)

    def _batch_key(self, image: ImageArray) -> Any:
        return None

    def _encode(self, images: Sequence[ImageArray]) -> list[Encoding]:
        pixels = torch.stack([self.pixels.prepare(image) for image in images]).to(self._input_dtype)
        levels = self.model.get_image_embeddings(pixels)
        return [[level[i : i + 1].float() for level in levels] for i in range(len(images))]
