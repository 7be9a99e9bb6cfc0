"""SAM and SAM 2 behind the two calls that their packages offer: encode pictures, then ask for the masks of boxes.

As there, masks leave as float32 arrays of the picture's full size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate
from transformers import Sam2Model, SamImageProcessorPil, SamModel

from openavs.structures.types import Box, ImageArray

Masks = npt.NDArray[np.float32]


class Predictor(Protocol):
    """What the imitations need of a segmenter; `model` is the network."""

    model: Any

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """Encodings of some images of one shape, by one pass of the encoder."""
        ...

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        """The masks of all boxes of one image by one pass of the decoder, float32 `[boxes, H, W]` of 0 and 1."""
        ...


def open_predictor(folder: Path, device: torch.device) -> Predictor:
    """The one that a model's folder is for."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return SamPredictor(folder, device) if kind == "sam" else Sam2Predictor(folder, device)


class SamPredictor:
    """SAM: the long edge is resized, the rest padded."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model: Any = SamModel.from_pretrained(folder).eval().to(device)
        self.processor: Any = SamImageProcessorPil.from_pretrained(folder)
        self.device = device

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        inputs = self.processor(list(images), return_tensors="pt")
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        shapes = inputs["reshaped_input_sizes"].tolist()
        return [(embedding[None], shape) for embedding, shape in zip(embeddings, shapes, strict=True)]

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        embedding, shape = encoding
        scale = torch.tensor([shape[1] / size[1], shape[0] / size[0]] * 2)
        scaled = (torch.tensor(boxes).reshape(1, -1, 4) * scale).to(self.device)
        answer = self.model(image_embeddings=embedding, input_boxes=scaled, multimask_output=False)
        masks = self.processor.post_process_masks([answer.pred_masks[0]], [tuple(size)], [tuple(shape)])[0]
        return masks[:, 0].float().cpu().numpy()  # type: ignore[no-any-return]


class Sam2Predictor:
    """SAM 2: the picture becomes a float tensor and is stretched to a square."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model: Any = Sam2Model.from_pretrained(folder).eval().to(device)
        settings = json.loads((folder / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(settings[f"image_{key}"]).view(3, 1, 1) for key in ("mean", "std"))
        self.side = int(settings["size"]["height"])
        self.device = device

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        batch = torch.stack([self._prepare(image) for image in images]).to(self.device)
        levels = self.model.get_image_embeddings(batch)
        return [[level[i : i + 1] for level in levels] for i in range(len(images))]

    def _prepare(self, image: ImageArray) -> torch.Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        square = (self.side, self.side)
        small = interpolate(pixels[None], square, mode="bilinear", align_corners=False, antialias=True)[0]
        return (small - self.mean) / self.std

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        scale = torch.tensor([self.side / size[1], self.side / size[0]] * 2)
        scaled = (torch.tensor(boxes).reshape(1, -1, 4) * scale).to(self.device)
        answer = self.model(image_embeddings=encoding, input_boxes=scaled, multimask_output=False)
        masks = interpolate(answer.pred_masks[0].float(), tuple(size), mode="bilinear", align_corners=False)
        return (masks[:, 0] > 0).float().cpu().numpy()
