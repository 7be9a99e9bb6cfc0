"""Short re-implementations of other systems, from frames and phrases to masks, on the models of transformers.

Each reproduces what determines the cost of a system: how often something is computed, in which dtype, in which batches,
and in which form masks are returned. The choice of boxes is the same for all: the two best of every phrase, by the
scores of its own tokens. Models and processors are those of transformers, unchanged (the processors on Pillow; that of
SAM 2 requires torchvision and is written out here).

- `naive`: the detector for every phrase of every frame; an encoding and a decoding for every box.
- `hf_pipeline`: the detection pipeline of transformers, which encodes an image for every phrase; then SAM with one
  encoding per frame and one decoding per box, as in autodistill-grounded-sam.
- `lang_sam`: the frame is repeated for every phrase; pairs of frame and phrase go through the detector as one batch,
  then the repeated frames through the image encoder as one batch; the decoder processes them one by one.
- `grounded_sam2_fp32`, `grounded_sam2_bf16`: one caption with all phrases and one encoding per frame, all of its boxes
  in one decoding. The demos of Grounded-SAM-2 run under bfloat16 autocast.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import (
    BertTokenizer,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    Sam2Model,
    SamImageProcessorPil,
    SamModel,
    ZeroShotObjectDetectionPipeline,
)
from workloads import BOXES, Workload

from openavs.pipeline.context import RunContext
from openavs.structures.types import Box, ImageArray

Masks = npt.NDArray[np.float32]
"""Masks of one image, `[boxes, H, W]`, 0 or 1."""

Found = list[tuple[str, Box, Masks]]
"""The output for one frame: phrase, box and mask `[H, W]`."""

_PERIOD = 1012  # BERT's token id of the separator of phrases
_MIN_SCORE = 0.4  # below it no box leaves the pipeline of transformers, which builds a dictionary of each that does


class Baselines:
    """The systems on one detector and one segmenter, which they share; `systems` has them by name."""

    def __init__(self, detector: Path, segmenter: Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.image_processor = GroundingDinoImageProcessorPil.from_pretrained(detector)
        self.processor: Any = GroundingDinoProcessor(self.image_processor, BertTokenizer.from_pretrained(detector))
        self.detector: Any = GroundingDinoForObjectDetection.from_pretrained(detector).eval().to(self.device)
        self.predictor = open_predictor(segmenter, self.device)
        self._pipeline: Any = None
        self.systems: dict[str, Callable[[Workload, RunContext], Iterator[Found]]] = {
            "naive": self.naive,
            "hf_pipeline": self.hf_pipeline,
            "lang_sam": self.lang_sam,
            "grounded_sam2_fp32": partial(self.grounded_sam2, autocast=False),
            "grounded_sam2_bf16": partial(self.grounded_sam2, autocast=True),
        }

    @torch.no_grad()
    def naive(self, load: Workload, context: RunContext) -> Iterator[Found]:
        """Run one detection per phrase, one encoding and one decoding per box."""
        for image in load.images:
            found: Found = []
            for phrase in load.phrases:
                with context.timed("detect"):
                    boxes = self.detect([image], [[phrase]])[0][phrase]
                for box in boxes:
                    found += self._segment(image, {phrase: [box]}, context)
            yield found

    def hf_pipeline(self, load: Workload, context: RunContext) -> Iterator[Found]:
        """Run the detection pipeline of transformers, then one encoding per frame and one decoding per box."""
        for image in load.images:
            with context.timed("detect"), torch.no_grad():
                boxes = self._detect_with_pipeline(image, load.phrases)
            with torch.no_grad():
                yield self._segment(image, boxes, context, together=False)

    @torch.no_grad()
    def lang_sam(self, load: Workload, context: RunContext) -> Iterator[Found]:
        """Run the pairs of frame and phrase as one batch, in the image encoder, too."""
        for image in load.images:
            repeated = [image] * len(load.phrases)
            with context.timed("detect"):
                boxes = self.detect(repeated, [[phrase] for phrase in load.phrases])
            with context.timed("encode"):
                encodings = self.predictor.encode(repeated)
            with context.timed("decode"):
                masks = [
                    self.predictor.decode(encoding, own[phrase], image.shape[:2])
                    for encoding, own, phrase in zip(encodings, boxes, load.phrases, strict=True)
                ]
            yield [
                (phrase, box, mask)
                for phrase, own, own_masks in zip(load.phrases, boxes, masks, strict=True)
                for box, mask in zip(own[phrase], own_masks, strict=True)
            ]

    @torch.no_grad()
    def grounded_sam2(self, load: Workload, context: RunContext, *, autocast: bool) -> Iterator[Found]:
        """Run one caption, one encoding and one decoding per frame."""
        for image in load.images:
            with torch.autocast(self.device.type, torch.bfloat16) if autocast else nullcontext():
                with context.timed("detect"):
                    boxes = self.detect([image], [load.phrases])[0]
                found = self._segment(image, boxes, context)
            yield found

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[dict[str, list[Box]]]:
        """Return the best boxes of every phrase in each image, by one forward pass."""
        texts = [". ".join(own) + "." for own in phrases]
        inputs = self.processor(
            images=[Image.fromarray(image) for image in images], text=texts, padding=True, return_tensors="pt"
        ).to(self.device)
        outputs = self.detector(**inputs)
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        return [
            best_boxes(logits[i], boxes[i], inputs.input_ids[i].tolist(), own, images[i].shape[:2])
            for i, own in enumerate(phrases)
        ]

    def _detect_with_pipeline(self, image: ImageArray, phrases: Sequence[str]) -> dict[str, list[Box]]:
        if self._pipeline is None:
            self._pipeline = ZeroShotObjectDetectionPipeline(
                model=self.detector, image_processor=self.image_processor, tokenizer=self.processor.tokenizer
            )
        labels = [f"{phrase}." for phrase in phrases]
        detections = self._pipeline(Image.fromarray(image), candidate_labels=labels, threshold=_MIN_SCORE)
        boxes: dict[str, list[Box]] = {phrase: [] for phrase in phrases}
        for detection in detections:  # best first
            own = boxes[detection["label"].rstrip(".")]
            if len(own) < BOXES:
                own.append(tuple(float(detection["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")))  # type: ignore[arg-type]
        return boxes

    def _segment(
        self, image: ImageArray, boxes: dict[str, list[Box]], context: RunContext, *, together: bool = True
    ) -> Found:
        pairs = [(phrase, box) for phrase, own in boxes.items() for box in own]
        with context.timed("encode"):
            encoding = self.predictor.encode([image])[0]
        with context.timed("decode"):
            groups = [pairs] if together else [[pair] for pair in pairs]
            masks = [self.predictor.decode(encoding, [box for _, box in own], image.shape[:2]) for own in groups]
        return [(phrase, box, mask) for (phrase, box), mask in zip(pairs, np.concatenate(masks), strict=True)]


def best_boxes(
    logits: torch.Tensor, boxes: torch.Tensor, ids: Sequence[int], phrases: Sequence[str], size: Sequence[int]
) -> dict[str, list[Box]]:
    """Return the best boxes of each phrase among the queries with that phrase as their best, in pixels.

    Args:
        logits: `[Q, T]` of the tokens of the caption.
        boxes: `[Q, 4]`, center and extent as fractions of the image.
        ids: tokens of the caption; every phrase is one of them, in order, before a period.
        phrases: the phrases of the caption.
        size: height and width of the image.

    Raises:
        ValueError: the caption does not have one token per phrase.
    """
    places = [i for i, token in enumerate(ids[1:], 1) if ids[i + 1 : i + 2] == [_PERIOD] and token != _PERIOD]
    if len(places) != len(phrases):
        raise ValueError(f"{len(phrases)} phrases but {len(places)} words in the caption {ids}")
    scores, winners = logits[:, places].max(dim=-1)
    height, width = size
    center, extent = boxes[:, :2], boxes[:, 2:]
    limits = torch.tensor([width, height] * 2)
    pixels = torch.cat([center - extent / 2, center + extent / 2], dim=1).cpu() * limits
    pixels = torch.minimum(pixels.clamp(min=0), limits)
    best = {}
    for k, phrase in enumerate(phrases):
        own = torch.nonzero(winners == k)[:, 0]
        own = own[scores[own].argsort(descending=True, stable=True)[:BOXES]]
        best[phrase] = [tuple(box) for box in pixels[own.cpu()].tolist()]
    return best


# -------------------------------------------------------------------------------------------------------- predictors


class Predictor(Protocol):
    """SAM or SAM 2 with the two calls of their packages; `model` is the network."""

    model: Any

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """Encode images of one shape by one pass of the image encoder."""
        ...

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        """Return the full-size float masks of all boxes of one image by one pass of the decoder."""
        ...


def open_predictor(folder: Path, device: torch.device) -> Predictor:
    """Load the predictor for a model folder."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    return SamPredictor(folder, device) if kind == "sam" else Sam2Predictor(folder, device)


class SamPredictor:
    """SAM: the longer edge is resized, the rest is padded."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model: Any = SamModel.from_pretrained(folder).eval().to(device)
        self.processor: Any = SamImageProcessorPil.from_pretrained(folder)
        self.device = device

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """See `Predictor.encode`."""
        inputs = self.processor(list(images), return_tensors="pt")
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.device))
        shapes = inputs["reshaped_input_sizes"].tolist()
        return [(embedding[None], shape) for embedding, shape in zip(embeddings, shapes, strict=True)]

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        """See `Predictor.decode`."""
        embedding, shape = encoding
        scaled = _scaled(boxes, shape[1] / size[1], shape[0] / size[0]).to(self.device)
        output = self.model(image_embeddings=embedding, input_boxes=scaled, multimask_output=False)
        masks = self.processor.post_process_masks([output.pred_masks[0]], [tuple(size)], [tuple(shape)])[0]
        return masks[:, 0].float().cpu().numpy()  # type: ignore[no-any-return]


class Sam2Predictor:
    """SAM 2: the image becomes a float tensor and is stretched to a square."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.model: Any = Sam2Model.from_pretrained(folder).eval().to(device)
        preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
        self.mean, self.std = (torch.tensor(preprocessor[f"image_{key}"]).view(3, 1, 1) for key in ("mean", "std"))
        self.side = int(preprocessor["size"]["height"])
        self.device = device

    def encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """See `Predictor.encode`."""
        batch = torch.stack([self._preprocess(image) for image in images]).to(self.device)
        levels = self.model.get_image_embeddings(batch)
        return [[level[i : i + 1] for level in levels] for i in range(len(images))]

    def _preprocess(self, image: ImageArray) -> torch.Tensor:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        square = (self.side, self.side)
        resized = interpolate(pixels[None], square, mode="bilinear", align_corners=False, antialias=True)[0]
        return (resized - self.mean) / self.std

    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, ...]) -> Masks:
        """See `Predictor.decode`."""
        scaled = _scaled(boxes, self.side / size[1], self.side / size[0]).to(self.device)
        output = self.model(image_embeddings=encoding, input_boxes=scaled, multimask_output=False)
        masks = interpolate(output.pred_masks[0].float(), tuple(size), mode="bilinear", align_corners=False)
        return (masks[:, 0] > 0).float().cpu().numpy()


def _scaled(boxes: Sequence[Box], x: float, y: float) -> torch.Tensor:
    return torch.tensor(boxes).reshape(1, -1, 4) * torch.tensor([x, y, x, y])
