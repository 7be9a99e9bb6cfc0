"""CLIP verifier (transformers CLIPModel): does the content of a mask look like its phrase?

Each segment is cropped, its background is replaced, and the crop is compared with its phrase, with the other phrases of
the frame, and with negative prompts. A detector that searches for an object outside the image (an off-screen sound)
often returns something else; such a segment matches the negative prompts better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.models.device import resolve_device
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.models.ops.image import normalization_table, normalize_bytes
from openavs.stages.verifiers.candidates import cut_out, cut_square, square_around
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask, Decision, ImageArray, Segment, Verdict

NEGATIVE_PROMPTS = (
    "a photo of nothing in particular",
    "a blurred background",
    "a plain texture",
    "a part of a wall",
    "the sky",
    "the ground",
)
_MAX_TEXTS = 4096  # cached text embeddings, 2 kB each at full size


class ClipVerifier:
    """Keeps a segment if it looks more like its phrase than like anything else that it is compared with.

    The score is the softmax, at CLIP's own temperature, of the phrase against the other phrases of the frame and the
    best negative prompt: from 0.5 on the phrase outweighs all others together. `calibrate` finds a threshold from
    labeled examples.

    Args:
        model: reference of a CLIPModel checkpoint.
        threshold: minimum score of a segment that is kept.
        negative_prompts: texts that do not describe an object; at least one.
        template: text for a phrase, which replaces `{}`.
        compare_phrases: whether a segment is also compared with the other phrases of the frame. Phrases that share a
            word with its own are excluded (dog and barking dog).
        margin: space around a mask, relative to its longer side.
        background: opacity of the image around a mask, from 0 to 1.
        batch_size: crops that are encoded together.
        device, dtype, offline: as everywhere.

    Raises:
        InputError: an option is out of range.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        threshold: float = 0.5,
        negative_prompts: Sequence[str] = NEGATIVE_PROMPTS,
        template: str = "a photo of a {}",
        compare_phrases: bool = True,
        margin: float = 0.1,
        background: float = 0.0,
        batch_size: int = 32,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if not (0 <= threshold <= 1 and 0 <= background <= 1 and margin >= 0 and batch_size >= 1):
            raise InputError(
                "clip: threshold and background must be between 0 and 1, margin at least 0 and batch_size at least 1, "
                f"not {threshold}, {background}, {margin}, {batch_size}"
            )
        if not negative_prompts or template.count("{}") != 1:
            raise InputError("clip: 'negative_prompts' needs at least one text, and 'template' one {} for the phrase")
        self.threshold, self.template = threshold, template
        self.negative_prompts, self.compare_phrases = tuple(negative_prompts), compare_phrases
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
        self, images: Sequence[ImageArray], segments: Sequence[Sequence[Segment]], phrases: Sequence[Sequence[str]]
    ) -> list[list[Verdict]]:
        """See `Verifier.verify`.

        Raises:
            InvalidOutputError: the model's output is not finite.
        """
        crops = [
            self._pixels.crop(image, rle_to_mask(segment.mask), self.margin, self.background)
            for image, own in zip(images, segments, strict=True)
            for segment in own
        ]
        embedded = iter(self._embed_images(crops))
        return [
            [self._verdict(next(embedded), segment.phrase, frame_phrases) for segment in own]
            for own, frame_phrases in zip(segments, phrases, strict=True)
        ]

    def _verdict(self, image: torch.Tensor, phrase: str, phrases: Sequence[str]) -> Verdict:
        words = set(phrase.split())
        others = [other for other in phrases if self.compare_phrases and not set(other.split()) & words]
        names = [phrase, *dict.fromkeys(others)]
        positive = self._embed_texts([self.template.replace("{}", name) for name in names]) @ image
        negative = (self._embed_texts(self.negative_prompts) @ image).max()
        scores = (torch.cat([positive, negative[None]]) * self._scale).softmax(dim=0).tolist()
        best = int(np.argmax(scores))
        decision: Decision = "kept" if scores[0] >= self.threshold else "rejected"
        return Verdict(decision, scores[0], None, names[best] if best < len(names) else None, "clip")

    def _embed_images(self, crops: Sequence[ImageArray]) -> list[torch.Tensor]:
        """Return unit vectors `[D]` in float32, one per crop."""
        vectors: list[torch.Tensor] = []
        for start in range(0, len(crops), self.batch_size):
            part = crops[start : start + self.batch_size]
            pixels = torch.stack([self._pixels.prepare(crop) for crop in part])
            vectors += self._unit(self.model.get_image_features(pixels.to(self.dtype)).pooler_output)
        return vectors

    def _embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Return unit vectors `[texts, D]` in float32, cached."""
        new = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if new:
            if len(self._texts) + len(new) > _MAX_TEXTS:
                self._texts.clear()
                new = list(dict.fromkeys(texts))
            max_length = self.model.config.text_config.max_position_embeddings
            tokens = self._tokenizer(new, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            inputs = {name: tokens[name].to(self.device) for name in ("input_ids", "attention_mask")}
            vectors = self._unit(self.model.get_text_features(**inputs).pooler_output)
            self._texts.update(zip(new, vectors, strict=True))
        return torch.stack([self._texts[text] for text in texts])

    def _unit(self, vectors: torch.Tensor) -> torch.Tensor:
        """Normalize vectors and copy them to the CPU, where verdicts are computed: they are few and small."""
        unit = torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()
        if not bool(torch.isfinite(unit).all()):
            raise InvalidOutputError(
                f"the CLIP model '{self._ref}' returned numbers that are not finite; try dtype=float32, or another "
                "copy of the model"
            )
        return unit


class _Pixels:
    """Image processing of a checkpoint: crops to squares, resized by Pillow as by its own processor, normalized."""

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
        self.filter = Image.Resampling(int(settings.resample))
        self.table = normalization_table(settings.rescale_factor, settings.image_mean, settings.image_std).to(device)
        self.fill = np.round(np.asarray(settings.image_mean) * 255).astype(
            np.uint8
        )  # the mean color, the most neutral one

    def crop(self, image: ImageArray, mask: BoolMask, margin: float, background: float) -> ImageArray:
        """Crop the square around a mask `[side, side, 3]`; its background and all beyond the image is filled."""
        square = square_around(mask, margin)
        if square is None:
            return np.broadcast_to(self.fill, (self.edge, self.edge, 3)).copy()
        return cut_out(image, cut_square(mask, square, False), square, self.fill, background)

    def prepare(self, square: ImageArray) -> torch.Tensor:
        """Convert uint8 `[side, side, 3]` to float32 `[3, cropped, cropped]` on the device."""
        small = np.array(Image.fromarray(square).resize((self.edge, self.edge), self.filter))
        start = (self.edge - self.cropped) // 2
        return normalize_bytes(
            self.table, torch.from_numpy(small[start : start + self.cropped, start : start + self.cropped])
        )
