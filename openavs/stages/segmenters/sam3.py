"""SAM 3 (transformers Sam3Model): noun phrases -> masks in one model, in the place of detector and segmenter.

An image is encoded once, whatever the number of its phrases. Pre- and post-processing are our own tensors (the
library's processor needs torchvision); they do what its `post_process_instance_segmentation` does. Only the backbone of
the image encoder takes the requested dtype, and of it only the weights: its rotary tables stay exact.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling

from openavs.errors import InputError, InvalidOutputError
from openavs.models.device import resolve_device
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.stages.segmenters.preprocess import SquareResize
from openavs.structures.types import Box, Detection, ImageArray, Mask, mask_to_rle

logger = logging.getLogger(__name__)

_MASK = 0.5  # probability from which a pixel belongs to a mask
_TEXTS_KEPT = 1024  # phrases whose features stay at hand, 32 kB each at full size


class Sam3Segmenter:
    """Finds and segments everything that a phrase names. A find's score is how sure SAM 3 is of it, in [0, 1].

    Args:
        model: reference of a Sam3Model or Sam3VideoModel checkpoint.
        floor: finds below this score are not reported at all.
        max_candidates: finds of one phrase in one image, best first.
        batch_size: phrases of an image that are asked together.
        device, dtype, offline: as everywhere; dtype holds for the image encoder.
    """

    name = "sam3"

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.2,
        max_candidates: int = 50,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if not 0 <= floor <= 1 or min(max_candidates, batch_size) < 1:
            raise InputError(
                f"{self.name}: floor lies between 0 and 1, max_candidates and batch_size are at least 1, not {floor}, "
                f"{max_candidates}, {batch_size}"
            )
        self.floor, self.max_candidates, self.batch_size = floor, max_candidates, batch_size
        placement = resolve_device(device, dtype)
        self.device, self.dtype = placement.device, placement.dtype
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.model: Any = self._load(resolved)
        for weights in self.model.vision_encoder.backbone.parameters():
            weights.data = weights.data.to(self.dtype)
        backbone = self.model.config.vision_config.backbone_config
        self.pixels = SquareResize(resolved, int(backbone.image_size), self.device, self.name)
        self._tokenizer: Any = load_processor(AutoTokenizer, resolved)
        self._texts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _load(self, resolved: ResolvedModel) -> Any:
        """The Sam3Model, in float32."""
        return load_pretrained(Sam3Model, resolved, torch.float32, self.device)

    @torch.inference_mode()
    def segment_phrases(
        self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]
    ) -> list[list[tuple[Detection, Mask]]]:
        """See `PhraseSegmenter.segment_phrases`; an image without phrases is not encoded."""
        if len(images) != len(phrases):
            raise InputError(
                f"{self.name}: {len(images)} images but phrases for {len(phrases)}; give one list of phrases an image"
            )
        answers: list[list[tuple[Detection, Mask]]] = [[] for _ in images]
        for i, (image, own) in enumerate(zip(images, phrases, strict=True)):
            if own:
                vision = self._encode(image)
                size = (int(image.shape[0]), int(image.shape[1]))
                for start in range(0, len(own), self.batch_size):
                    answers[i] += self._ask(vision, own[start : start + self.batch_size], size, i)
                answers[i].sort(key=lambda find: -find[0].score)
        return answers

    def _encode(self, image: ImageArray) -> Any:
        """The vision features of one image, one pass of the encoder."""
        pixels = self.pixels.prepare(image)[None]
        return self.model.get_vision_features(pixel_values=pixels.to(self.dtype))

    def _ask(
        self, vision: Any, phrases: Sequence[str], size: tuple[int, int], position: int
    ) -> Iterator[tuple[Detection, Mask]]:
        """All finds of some phrases in one encoded image."""
        features, attended = self._embed(phrases)
        answer = self.model(
            vision_embeds=_repeated(vision, len(phrases)),
            text_embeds=BaseModelOutputWithPooling(pooler_output=features),
            attention_mask=attended,
        )
        scores = answer.pred_logits.sigmoid() * answer.presence_logits.sigmoid()  # [phrases, queries]
        order = scores.argsort(dim=-1, descending=True, stable=True)[:, : self.max_candidates]
        boxes = answer.pred_boxes.gather(1, order[..., None].expand(-1, -1, 4))
        finite = torch.isfinite(scores).all() & torch.isfinite(answer.pred_masks).all()
        best = torch.cat([scores.gather(1, order)[..., None], boxes], dim=-1).where(finite, torch.nan).cpu().numpy()
        if np.isnan(best[..., 0]).any():
            raise InvalidOutputError(
                f"the SAM 3 model '{self._ref}' gave numbers that are not finite for image {position} of the batch; "
                "try dtype float32, or another copy of the model"
            )
        edges = np.array([1, size[1], size[0], size[1], size[0]], dtype=np.float32)
        for row, phrase in enumerate(phrases):
            found = best[row][best[row, :, 0] >= self.floor] * edges  # the best are first
            masks = self.pixels.enlarge(answer.pred_masks[row][order[row, : len(found)]].sigmoid(), size, _MASK)
            for (score, *box), mask in zip(found.tolist(), masks, strict=True):
                yield Detection(_inside(box, size), phrase, score), Mask(mask_to_rle(mask))

    def _embed(self, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text features `[phrases, tokens, C]` and which tokens are there; a phrase is embedded once."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._texts]
        if len(self._texts) + len(new) > _TEXTS_KEPT:
            self._texts.clear()
            new = list(dict.fromkeys(phrases))
        if new:
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(
                new, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
            )
            ids, there = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            features = self.model.get_text_features(input_ids=ids, attention_mask=there).pooler_output
            self._texts.update(zip(new, zip(features, there, strict=True), strict=True))
        pairs = [self._texts[phrase] for phrase in phrases]
        return torch.stack([features for features, _ in pairs]), torch.stack([there for _, there in pairs])


def _repeated(vision: Any, count: int) -> Any:
    """The same features for several phrases, without copying them."""
    levels, positions = (
        tuple(level.expand(count, *level.shape[1:]) for level in part)
        for part in (vision.fpn_hidden_states, vision.fpn_position_encoding)
    )
    return type(vision)(
        last_hidden_state=vision.last_hidden_state, fpn_hidden_states=levels, fpn_position_encoding=positions
    )


def _inside(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box cut off at the edges of the image."""
    x0, y0, x1, y1 = box
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[1])), min(y1, float(size[0])))
