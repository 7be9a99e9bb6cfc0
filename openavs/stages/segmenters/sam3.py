"""SAM 3 and SAM 3 LiteText (transformers): phrases to masks in one model, instead of detector and segmenter.

An image is encoded once, whatever the number of its phrases. Pre- and post-processing are our own, because the
library's processor needs torchvision; they equal its `post_process_instance_segmentation`. Only the backbone of the
image encoder computes in the requested dtype, and of it only the parameters: its rotary tables stay exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoTokenizer, Sam3LiteTextModel, Sam3Model
from transformers.modeling_outputs import BaseModelOutputWithPooling

from openavs.errors import InputError, InvalidOutputError
from openavs.models.device import resolve_device
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.stages.segmenters.box_prompts import SquareResize
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Box, Detection, ImageArray, Mask

_MASK_THRESHOLD = 0.5  # probability from which a pixel belongs to a mask
_MAX_TEXTS = 1024  # phrases whose features are cached, 32 kB each at full size


class Sam3Segmenter:
    """Segments every object that a phrase names. The score of an object is SAM 3's confidence in it, in [0, 1].

    Args:
        model: reference of a Sam3Model or Sam3VideoModel checkpoint.
        floor: objects with a lower score are not returned.
        max_candidates: maximum number of objects of one phrase in one image, best first.
        batch_size: phrases of an image that are processed together.
        device, dtype, offline: as everywhere; dtype applies to the image encoder.

    Raises:
        InputError: an option is out of range.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    name = "sam3"
    model_class: ClassVar[Any] = Sam3Model
    text_tokens: ClassVar[int | None] = None  # None: as many as the text encoder has positions

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
                f"{self.name}: floor must be between 0 and 1, max_candidates and batch_size at least 1, not {floor}, "
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
        """Load the model, in float32."""
        return load_pretrained(self.model_class, resolved, torch.float32, self.device)

    @torch.inference_mode()
    def segment_phrases(
        self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]
    ) -> list[list[tuple[Detection, Mask]]]:
        """See `PhraseSegmenter.segment_phrases`; an image without phrases is not encoded."""
        if len(images) != len(phrases):
            raise InputError(
                f"{self.name}: {len(images)} images but phrases for {len(phrases)}; give one list of phrases per image"
            )
        objects: list[list[tuple[Detection, Mask]]] = [[] for _ in images]
        for i, (image, own) in enumerate(zip(images, phrases, strict=True)):
            if own:
                vision = self._encode(image)
                size = (int(image.shape[0]), int(image.shape[1]))
                for start in range(0, len(own), self.batch_size):
                    objects[i] += self._decode(vision, own[start : start + self.batch_size], size, i)
                objects[i].sort(key=lambda found: -found[0].score)
        return objects

    def _encode(self, image: ImageArray) -> Any:
        """Compute the vision features of one image."""
        pixels = self.pixels.prepare(image)[None]
        return self.model.get_vision_features(pixel_values=pixels.to(self.dtype))

    def _decode(
        self, vision: Any, phrases: Sequence[str], size: tuple[int, int], position: int
    ) -> Iterator[tuple[Detection, Mask]]:
        """Yield the objects of phrases in one encoded image."""
        features, attention_mask = self._embed(phrases)
        output = self.model(
            vision_embeds=_expand(vision, len(phrases)),
            text_embeds=BaseModelOutputWithPooling(pooler_output=features),
            attention_mask=attention_mask,
        )
        scores = output.pred_logits.sigmoid() * output.presence_logits.sigmoid()  # [phrases, queries]
        order = scores.argsort(dim=-1, descending=True, stable=True)[:, : self.max_candidates]
        boxes = output.pred_boxes.gather(1, order[..., None].expand(-1, -1, 4))
        finite = torch.isfinite(scores).all() & torch.isfinite(output.pred_masks).all()
        # One transfer from the device; NaN marks an output that is not finite.
        best = torch.cat([scores.gather(1, order)[..., None], boxes], dim=-1).where(finite, torch.nan).cpu().numpy()
        if np.isnan(best[..., 0]).any():
            raise InvalidOutputError(
                f"the SAM 3 model '{self._ref}' returned numbers that are not finite for image {position} of the "
                "batch; try dtype=float32, or another copy of the model"
            )
        scale = np.array([1, size[1], size[0], size[1], size[0]], dtype=np.float32)
        for row, phrase in enumerate(phrases):
            found = best[row][best[row, :, 0] >= self.floor] * scale  # sorted, so these are the first of `order`
            probabilities = output.pred_masks[row][order[row, : len(found)]].sigmoid()
            masks = self.pixels.enlarge(probabilities, size, _MASK_THRESHOLD)
            for (score, *box), mask in zip(found.tolist(), masks, strict=True):
                yield Detection(_clip(box, size), phrase, score), Mask(mask_to_rle(mask))

    def _embed(self, phrases: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return text features `[phrases, tokens, C]` and attention mask `[phrases, tokens]`, both cached."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._texts]
        if len(self._texts) + len(new) > _MAX_TEXTS:
            self._texts.clear()
            new = list(dict.fromkeys(phrases))
        if new:
            max_length = self.text_tokens or self.model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(
                new, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
            )
            ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            features = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            self._texts.update(zip(new, zip(features, mask, strict=True), strict=True))
        pairs = [self._texts[phrase] for phrase in phrases]
        return torch.stack([features for features, _ in pairs]), torch.stack([mask for _, mask in pairs])


class Sam3LiteTextSegmenter(Sam3Segmenter):
    """SAM 3 with the text encoder of MobileCLIP: a Sam3LiteTextModel checkpoint. See `Sam3Segmenter` for the options.

    Its convolutions and interpolated positions depend on the padded length of a text, which is 32 tokens in the
    library's processor, whatever the length of the position table.
    """

    name = "sam3-lite-text"
    model_class = Sam3LiteTextModel
    text_tokens = 32


def _expand(vision: Any, count: int) -> Any:
    """Repeat the features of one image for several phrases, without copying them."""
    levels, positions = (
        tuple(level.expand(count, *level.shape[1:]) for level in part)
        for part in (vision.fpn_hidden_states, vision.fpn_position_encoding)
    )
    return type(vision)(
        last_hidden_state=vision.last_hidden_state, fpn_hidden_states=levels, fpn_position_encoding=positions
    )


def _clip(box: Sequence[float], size: tuple[int, int]) -> Box:
    """Crop a box to the image."""
    x0, y0, x1, y1 = box
    return (max(x0, 0.0), max(y0, 0.0), min(x1, float(size[1])), min(y1, float(size[0])))
