"""How peers go from pictures and words to masks, in our own short code on the models of transformers.

Each way is faithful in what costs time: what is computed how often, in which type, in what batches, and in which form
masks reach the host. Choosing boxes is made equal: the two best of every phrase, by the scores of its own words. Models
are transformers' own, unchanged; pictures go through its own processors (those on Pillow; the one of SAM 2 wants
torchvision and is written out here).

- `naive`: the detector for every label of every frame; an encoding and a decoding for every box.
- `hf_pipeline`: the detection pipeline of transformers, which encodes a picture anew for every label; then SAM with one
  encoding a frame and one decoding a box. This is how autodistill-grounded-sam works, too.
- `lang_sam`: the frame is repeated for every label; pairs of frame and label go through the detector as one batch, then
  the repeated frames through the image encoder as one batch; the decoder answers them one by one.
- `grounded_sam2`: one caption holds all labels, one encoding a frame, all of its boxes in one decoding. Its demos run
  under bfloat16 autocast; `autocast=False` gives the same in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import torch
from predictors import Predictor, open_predictor
from standard_load import BOXES, Load
from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil
from transformers import GroundingDinoProcessor as Processor

from openavs.pipeline.context import RunContext
from openavs.structures.types import Box, ImageArray

Masks = npt.NDArray[np.float32]  # [boxes, H, W], 0 or 1
Answer = list[tuple[str, Box, Masks]]
"""What is found in one frame: phrase, box and mask `[H, W]`."""


class Peers:
    """The ways of the peers on one pair of models, which they share."""

    def __init__(self, detector: Path, segmenter: Path, device: str = "cpu") -> None:
        self.device = torch.device(device)
        tokenizer = BertTokenizer.from_pretrained(detector)
        self.pictures = GroundingDinoImageProcessorPil.from_pretrained(detector)
        self.processor: Any = Processor(self.pictures, tokenizer)
        self.detector: Any = GroundingDinoForObjectDetection.from_pretrained(detector).eval().to(self.device)
        self.predictor: Predictor = open_predictor(segmenter, self.device)
        self._pipeline: Any = None

    # ------------------------------------------------------------------------------------------------------ the ways

    @torch.no_grad()
    def naive(self, load: Load, notes: RunContext) -> Iterator[Answer]:
        """One detection a label, one encoding and one decoding a box."""
        for image in load.images:
            answer: Answer = []
            for phrase in load.phrases:
                with notes.timed("detect"):
                    boxes = self._detect([image], [[phrase]])[0][phrase]
                for box in boxes:
                    answer += self._segment(image, {phrase: [box]}, notes)
            yield answer

    def hf_pipeline(self, load: Load, notes: RunContext) -> Iterator[Answer]:
        """The library's own pipeline for boxes; one encoding a frame, one decoding a box."""
        for image in load.images:
            with notes.timed("detect"), torch.no_grad():
                chosen = self._ask_pipeline(image, load.phrases)
            with torch.no_grad():
                yield self._segment(image, chosen, notes, together=False)

    @torch.no_grad()
    def lang_sam(self, load: Load, notes: RunContext) -> Iterator[Answer]:
        """Pairs of frame and label as one batch, frames repeated in the encoder, too."""
        for image in load.images:
            repeated = [image] * len(load.phrases)
            with notes.timed("detect"):
                found = self._detect(repeated, [[phrase] for phrase in load.phrases])
            with notes.timed("encode"):
                encodings = self.predictor.encode(repeated)
            with notes.timed("decode"):
                masks = [
                    self.predictor.decode(encoding, boxes[phrase], image.shape[:2])
                    for encoding, boxes, phrase in zip(encodings, found, load.phrases, strict=True)
                ]
            yield [
                (phrase, box, mask)
                for phrase, boxes, own in zip(load.phrases, found, masks, strict=True)
                for box, mask in zip(boxes[phrase], own, strict=True)
            ]

    @torch.no_grad()
    def grounded_sam2(self, load: Load, notes: RunContext, *, autocast: bool) -> Iterator[Answer]:
        """One caption, one encoding, one decoding a frame."""
        for image in load.images:
            with self._autocast(autocast):
                with notes.timed("detect"):
                    boxes = self._detect([image], [load.phrases])[0]
                answer = self._segment(image, boxes, notes)
            yield answer

    def ways(self) -> dict[str, Callable[[Load, RunContext], Iterator[Answer]]]:
        """All of them by name."""
        return {
            "naive": self.naive,
            "hf_pipeline": self.hf_pipeline,
            "lang_sam": self.lang_sam,
            "grounded_sam2_fp32": partial(self.grounded_sam2, autocast=False),
            "grounded_sam2_bf16": partial(self.grounded_sam2, autocast=True),
        }

    # ----------------------------------------------------------------------------------------------------- the steps

    def _detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[dict[str, list[Box]]]:
        """The best boxes of every phrase in each image; one forward pass for all."""
        pictures = [PIL.Image.fromarray(image) for image in images]
        texts = [". ".join(own) + "." for own in phrases]
        inputs = self.processor(images=pictures, text=texts, padding=True, return_tensors="pt").to(self.device)
        outputs = self.detector(**inputs)
        logits, boxes = outputs.logits.float(), outputs.pred_boxes.float()
        return [
            best_boxes(logits[i], boxes[i], inputs.input_ids[i].tolist(), own, images[i].shape[:2])
            for i, own in enumerate(phrases)
        ]

    def _segment(
        self, image: ImageArray, boxes: dict[str, list[Box]], notes: RunContext, *, together: bool = True
    ) -> Answer:
        named = [(phrase, box) for phrase, own in boxes.items() for box in own]
        with notes.timed("encode"):
            encoding = self.predictor.encode([image])[0]
        with notes.timed("decode"):
            groups = [named] if together else [[pair] for pair in named]
            masks = [self.predictor.decode(encoding, [box for _, box in own], image.shape[:2]) for own in groups]
        return [(phrase, box, mask) for (phrase, box), mask in zip(named, np.concatenate(masks), strict=True)]

    def _ask_pipeline(self, image: ImageArray, phrases: Sequence[str]) -> dict[str, list[Box]]:
        if self._pipeline is None:
            from transformers import ZeroShotObjectDetectionPipeline

            self._pipeline = ZeroShotObjectDetectionPipeline(
                model=self.detector, image_processor=self.pictures, tokenizer=self.processor.tokenizer
            )
        labels = [f"{phrase}." for phrase in phrases]
        found = self._pipeline(PIL.Image.fromarray(image), candidate_labels=labels, threshold=self.least_score)
        chosen: dict[str, list[Box]] = {phrase: [] for phrase in phrases}
        for one in found:  # best first
            own = chosen[one["label"].rstrip(".")]
            if len(own) < BOXES:
                own.append(tuple(float(one["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")))  # type: ignore[arg-type]
        return chosen

    least_score = 0.4
    """Boxes that score less do not leave the library's pipeline; it makes a dictionary of every one that does."""

    def _autocast(self, on: bool) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16) if on else nullcontext()


def best_boxes(
    logits: torch.Tensor, boxes: torch.Tensor, ids: Sequence[int], phrases: Sequence[str], size: Sequence[int]
) -> dict[str, list[Box]]:
    """The best boxes of each phrase among the queries that answer it best, in pixels of the image.

    Args:
        logits: `[Q, T]` of the caption's tokens.
        boxes: `[Q, 4]`, centre and extent as fractions.
        ids: the caption's tokens; every phrase is one of them, in order, before a full stop (1012).
        size: height and width of the image.
    """
    places = [i for i, token in enumerate(ids[1:], start=1) if ids[i + 1 : i + 2] == [1012] and token != 1012]
    if len(places) != len(phrases):
        raise ValueError(f"{len(phrases)} phrases but {len(places)} words in the caption {ids}")
    scores, winners = logits[:, places].max(dim=-1)
    chosen = {}
    for k, phrase in enumerate(phrases):
        own = torch.nonzero(winners == k)[:, 0]
        best = own[scores[own].argsort(descending=True, stable=True)[:BOXES]]
        chosen[phrase] = [_to_pixels(boxes[i].tolist(), size) for i in best.tolist()]
    return chosen


def _to_pixels(box: Sequence[float], size: Sequence[int]) -> Box:
    x, y, width, height = box
    edges = ((x - width / 2, size[1]), (y - height / 2, size[0]), (x + width / 2, size[1]), (y + height / 2, size[0]))
    x0, y0, x1, y1 = (min(max(edge * extent, 0.0), float(extent)) for edge, extent in edges)
    return x0, y0, x1, y1
