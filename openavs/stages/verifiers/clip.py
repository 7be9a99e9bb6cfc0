"""CLIP (transformers CLIPModel) as a second look: does what a mask shows look like the phrase it was found by?

Each segment is cut out, its background painted over, and compared with its phrase, with what else sounds at that frame,
and with texts that describe nothing in particular. A detector asked for a thing that is not in the picture (an
off-screen sound) likes to point at something else; here that answer has a name, `nothing`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.models.device import resolve_device
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.models.ops.normalize import normalization_table, normalize_bytes
from openavs.stages.verifiers.base import Verdict
from openavs.structures.types import BoolMask, ImageArray, Segment, rle_to_mask

logger = logging.getLogger(__name__)

NEGATIVE_PROMPTS = (
    "a photo of nothing in particular",
    "a blurred background",
    "a plain texture",
    "a part of a wall",
    "the sky",
    "the ground",
)
_TEXTS_KEPT = 4096  # embeddings of texts, 2 kB each at full size


class ClipVerifier:
    """Keeps a segment if it looks more like its phrase than like anything else it is compared with.

    A score is the softmax, at CLIP's own temperature, of the phrase against the other phrases of the frame and the best
    of the texts that stand for nothing: from 0.5 on the phrase outweighs all else together. How to calibrate the
    threshold on examples of one's own: `calibration.py`.

    Args:
        model: reference of a CLIPModel checkpoint.
        threshold: least score of a segment that stays.
        nothing: texts that describe no thing; at least one.
        template: the sentence a phrase is put into; `{}` stands for it.
        others: whether the other phrases of the frame are among what a segment is compared with. Those that share a
            word with its own never are (a dog is no rival of a barking dog).
        margin: room around a mask, as a share of its longer side.
        background: how much of the picture is left to be seen around a mask, from 0 to 1.
        batch_size: crops that are encoded together.
        device, dtype, offline: as everywhere.
    """

    def __init__(
        self,
        *,
        model: str,
        threshold: float = 0.5,
        nothing: Sequence[str] = NEGATIVE_PROMPTS,
        template: str = "a photo of a {}",
        others: bool = True,
        margin: float = 0.1,
        background: float = 0.0,
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if not (0 <= threshold <= 1 and 0 <= background <= 1 and margin >= 0 and batch_size >= 1):
            raise InputError(
                "clip: threshold and background lie between 0 and 1, margin is not negative and batch_size is at least "
                f"1, not {threshold}, {background}, {margin}, {batch_size}"
            )
        if not nothing or template.count("{}") != 1:
            raise InputError("clip: 'nothing' needs at least one text, and 'template' one {} for the phrase")
        self.threshold, self.nothing, self.template, self.others = threshold, tuple(nothing), template, others
        self.margin, self.background, self.batch_size = margin, background, batch_size
        placement = resolve_device(device, dtype)
        self.device, self.dtype = placement.device, placement.dtype
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self._pixels = _Pixels(resolved, self.device)
        self._tokenizer: Any = load_processor(AutoTokenizer, resolved)
        self.model: Any = load_pretrained(CLIPModel, resolved, self.dtype, self.device)
        self._scale = self.model.logit_scale.float().exp().cpu()
        self._texts: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def verify(
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], asked: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """One verdict per segment; `seen` is the phrase it looks like most, None for nothing."""
        crops = [
            self._pixels.crop(image, rle_to_mask(segment.mask), self.margin, self.background)
            for image, own in zip(images, segments, strict=True)
            for segment in own
        ]
        embedded = iter(self._embed_images(crops))
        return [
            [self._judge(next(embedded), segment.phrase, phrases) for segment in own]
            for own, phrases in zip(segments, asked, strict=True)
        ]

    def _judge(self, image: torch.Tensor, phrase: str, asked: Sequence[str]) -> Verdict:
        rivals = [other for other in asked if self.others and not set(other.split()) & set(phrase.split())]
        names = [phrase, *dict.fromkeys(rivals)]
        named = self._embed_texts([self.template.replace("{}", name) for name in names]) @ image
        nothing = (self._embed_texts(self.nothing) @ image).max()
        logits = torch.cat([named, nothing[None]]) * self._scale
        shares = logits.softmax(dim=0).tolist()
        best = int(np.argmax(shares))
        return Verdict(shares[0] >= self.threshold, shares[0], names[best] if best < len(names) else None)

    def _embed_images(self, crops: Sequence[ImageArray]) -> list[torch.Tensor]:
        """Unit vectors `[D]` in float32, one per crop."""
        vectors: list[torch.Tensor] = []
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            pixels = torch.stack([self._pixels.prepare(crop) for crop in part])
            vectors += self._unit(self.model.get_image_features(pixels.to(self.dtype)).pooler_output)
        return vectors

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Unit vectors `[texts, D]` in float32; a text is embedded once."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            if len(self._texts) + len(new) > _TEXTS_KEPT:
                self._texts.clear()
                new = list(dict.fromkeys(texts))
            longest = self.model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(new, padding=True, truncation=True, max_length=longest, return_tensors="pt")
            inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            vectors = self._unit(self.model.get_text_features(**inputs).pooler_output)
            self._texts.update(zip(new, vectors, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        """Unit vectors in the memory of the CPU, where verdicts are computed: they are few and small."""
        unit = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()
        if not bool(torch.isfinite(unit).all()):
            raise InvalidOutputError(
                f"the CLIP model '{self._ref}' gave numbers that are not finite; try dtype float32, or another copy "
                "of the model"
            )
        return unit


class _Pixels:
    """What a checkpoint's preprocessor says: squares in, resized by Pillow as its own processor does, normalised."""

    def __init__(self, resolved: ResolvedModel, device: torch.device) -> None:
        settings: Any = load_processor(CLIPImageProcessorPil, resolved)
        size, crop = settings.size, settings.crop_size
        self.edge = int(size["shortest_edge"] or size["height"])
        self.cropped = int(crop["height"]) if settings.do_center_crop else self.edge
        if self.cropped > self.edge:
            raise ModelError(
                f"the preprocessor of '{resolved.ref}' crops {self.cropped} pixels out of {self.edge}; use the "
                "preprocessor_config.json that was saved with the model"
            )
        self.filter = Pillow.Resampling(int(settings.resample))
        self.table = normalization_table(settings.rescale_factor, settings.image_mean, settings.image_std).to(device)
        self.ground = np.round(np.asarray(settings.image_mean) * 255).astype(np.uint8)  # the mean colour says least

    def crop(self, image: ImageArray, mask: BoolMask, margin: float, background: float) -> ImageArray:
        """The square around a mask `[side, side, 3]`; what lies around it is painted over, as is what lies outside."""
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            return np.broadcast_to(self.ground, (self.edge, self.edge, 3)).copy()
        top, left = int(rows[0]), int(columns[0])
        height, width = int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left
        side = max(round(max(height, width) * (1 + 2 * margin)), 1)
        y, x = top - (side - height) // 2, left - (side - width) // 2
        square = np.broadcast_to(self.ground, (side, side, 3)).copy()
        inner = (slice(max(y, 0), min(y + side, image.shape[0])), slice(max(x, 0), min(x + side, image.shape[1])))
        place = (slice(inner[0].start - y, inner[0].stop - y), slice(inner[1].start - x, inner[1].stop - x))
        shown = image[inner].astype(np.float32)
        around = self.ground + background * (shown - self.ground)
        square[place] = np.where(mask[inner][..., None], shown, around).round().astype(np.uint8)
        return square

    def prepare(self, square: ImageArray) -> torch.Tensor:
        """uint8 `[side, side, 3]` -> float32 `[3, cropped, cropped]` on the device."""
        small = np.array(Pillow.fromarray(square).resize((self.edge, self.edge), self.filter))
        start = (self.edge - self.cropped) // 2
        return normalize_bytes(
            self.table, torch.from_numpy(small[start : start + self.cropped, start : start + self.cropped])
        )
