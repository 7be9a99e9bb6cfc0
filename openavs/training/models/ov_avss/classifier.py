"""Naming masks: CLIP compares their crops with sentences about each class of any vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from openavs.errors import InputError
from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.training.models.ov_avss.crops import mask_crops

TEMPLATES: tuple[str, ...] = (
    "a photo of a {}.",
    "This is a photo of a {}",
    "There is a {} in the scene",
    "There is the {} in the scene",
    "a photo of a {} in the scene",
    *(
        template.replace("SIZE", size)
        for size in ("small", "medium", "large")
        for template in (
            "a photo of a SIZE {}.",
            "This is a photo of a SIZE {}.",
            "There is a SIZE {} in the scene.",
        )
    ),
)
"""The fourteen sentences of which a class name's embedding is the mean (ViLD's)."""


class MaskClassifier:
    """A frozen CLIP. The embedding of a class name is computed once, whichever vocabularies it is part of.

    Args:
        model: reference of a CLIPModel checkpoint with its tokenizer.
        device: where it runs; float32 except on GPUs that compute bfloat16 natively.
        batch_size: crops (and sentences) that go through the model together.
        centred, hard: see `mask_crops`.
        offline: take the model from this disk only.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str,
        *,
        batch_size: int = 64,
        centred: bool = False,
        hard: bool = False,
        offline: bool = False,
    ) -> None:
        place = resolve_device(str(device))
        found = resolve(model, offline)
        self.device = place.device
        self.batch_size, self.centred, self.hard = batch_size, centred, hard
        self._clip: Any = load_pretrained(CLIPModel, found, place.dtype, place.device)
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        self._size: int = self._clip.config.vision_config.image_size
        self._names: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def classify(self, frames: torch.Tensor, masks: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
        """Probabilities `[Q, classes]` of each mask over the vocabulary; zeros for masks that are seen nowhere.

        A mask's logits are averaged over the frames in which it is seen, then the softmax is taken.

        Args:
            frames: uint8 `[T, 3, H, W]`.
            masks: logits `[Q, T, h, w]`.
        """
        texts = self.texts(classes)
        sums = torch.zeros(len(masks), len(classes), device=self.device)
        counts = torch.zeros(len(masks), 1, device=self.device)
        scale = self._clip.logit_scale.exp().float()  # 100 in OpenAI's checkpoints
        crops = mask_crops(frames.to(self.device), masks.to(self.device), self._size, self.centred, self.hard)
        for numbers, pixels in _batches(crops, self.batch_size):
            owners = torch.tensor(numbers, device=self.device)
            sums.index_add_(0, owners, scale * self._images(pixels) @ texts.T)
            counts.index_add_(0, owners, torch.ones(len(owners), 1, device=self.device))
        return torch.where(counts > 0, (sums / counts.clamp(min=1)).softmax(-1), 0.0)

    @torch.inference_mode()
    def texts(self, classes: Sequence[str]) -> torch.Tensor:
        """Unit vectors `[classes, d]`: each sentence's embedding normalised, their mean normalised again."""
        if not classes:
            raise InputError("a vocabulary has at least one class; give the names to choose from")
        for name in classes:
            if name not in self._names:
                self._names[name] = self._text(name)
        return torch.stack([self._names[name] for name in classes])

    def _text(self, name: str) -> torch.Tensor:
        sentences = [template.replace("{}", name) for template in TEMPLATES]
        tokens = self._tokenizer(sentences, padding=True, truncation=True, return_tensors="pt").to(self.device)
        features = self._clip.get_text_features(**tokens).pooler_output.float()
        return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)

    def _images(self, pixels: torch.Tensor) -> torch.Tensor:
        """Unit vectors `[n, d]` of crops `[n, 3, size, size]` from 0 to 255."""
        mean, std = (torch.tensor(c, device=pixels.device)[:, None, None] for c in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        prepared = ((pixels / 255 - mean) / std).to(self._clip.dtype)
        return F.normalize(self._clip.get_image_features(pixel_values=prepared).pooler_output.float(), dim=-1)


def _batches(crops: Iterable[tuple[int, torch.Tensor]], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """The crops of several masks together, at most `size`, with the number of each crop's mask."""
    numbers: list[int] = []
    held: list[torch.Tensor] = []
    for number, own in crops:
        for crop in own:
            numbers.append(number)
            held.append(crop)
            if len(held) == size:
                yield numbers, torch.stack(held)
                numbers, held = [], []
    if held:
        yield numbers, torch.stack(held)
