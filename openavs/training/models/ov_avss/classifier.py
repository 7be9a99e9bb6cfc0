"""Classification of masks by CLIP: square crops of the masked frames are compared with the class names.

A crop equals torchvision's `roi_align(aligned=False)`; this version uses `grid_sample`, so it needs no torchvision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from openavs.errors import InputError
from openavs.models.device import resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve

MASK_THRESHOLD = 0.5
"""Probability above which a pixel belongs to a mask."""


def mask_crops(
    frames: torch.Tensor, masks: torch.Tensor, size: int, centered: bool = False, hard: bool = False
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the index of each mask that is not empty in all frames, and its crops `[n, 3, size, size]`, 0 to 255.

    A crop is a square of the frame times the mask; its side is the longer side of the mask's box.

    Args:
        frames: `[T, 3, H, W]`, uint8 or float.
        masks: logits `[Q, T, h, w]`, resized bilinearly to the frames.
        size: side of the crops in pixels.
        centered: the square has the center of the box; otherwise, as published, its top left corner.
        hard: multiply by 0 or 1; otherwise, as published, by the probability.
    """
    images = frames.float()
    for number, logits in enumerate(masks):  # one by one: memory does not grow with the number of masks
        full = F.interpolate(logits[None].float(), size=frames.shape[-2:], mode="bilinear", align_corners=False)
        soft = full[0].sigmoid()
        visible = (soft > MASK_THRESHOLD).flatten(1).any(1)
        if visible.any():
            squares = crop_squares(tight_boxes(soft[visible] > MASK_THRESHOLD), centered)
            factor = (soft[visible] > MASK_THRESHOLD).float() if hard else soft[visible]
            # Frame and mask are cropped separately and multiplied afterwards, as published.
            both = crop_and_resize(torch.cat([images[visible], factor[:, None]], dim=1), squares, size)
            yield number, both[:, :3] * both[:, 3:]


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return boxes `[N, 4]` (x0, y0, x1, y1; ends exclusive) of masks `[N, H, W]` that are not empty."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = [line.argmax(1) for line in (columns, rows)]
    last = [line.shape[1] - line.flip(1).argmax(1) for line in (columns, rows)]
    return torch.stack([*first, *last], dim=1)


def crop_squares(boxes: torch.Tensor, centered: bool) -> torch.Tensor:
    """Return squares (x, y, side), float `[N, 3]`, for boxes `[N, 4]`; a square may extend beyond the frame."""
    corner, extent = boxes[:, :2].float(), (boxes[:, 2:] - boxes[:, :2]).float()
    side = extent.amax(1, keepdim=True)
    if centered:
        corner = corner + (extent - side) / 2
    return torch.cat([corner, side], dim=1)


def crop_and_resize(images: torch.Tensor, squares: torch.Tensor, size: int) -> torch.Tensor:
    """Crop squares (x, y, side) `[N, 3]` of images `[N, C, H, W]` to `[N, C, size, size]`, with 0 outside the image.

    An output pixel is the mean of a grid of bilinear samples, ceil(side / size) per axis. The origin of the coordinates
    is the center of the first pixel.
    """
    out = images.new_zeros(len(images), images.shape[1], size, size)
    per_pixel = [max(1, math.ceil(side / size)) for side in squares[:, 2].tolist()]
    for samples in sorted(set(per_pixel)):
        rows = torch.tensor([i for i, n in enumerate(per_pixel) if n == samples], device=images.device)
        out[rows] = _crop_with_grid(images[rows], squares[rows], size, samples)
    return out


def _crop_with_grid(images: torch.Tensor, squares: torch.Tensor, size: int, samples: int) -> torch.Tensor:
    height, width = images.shape[-2:]
    steps = (torch.arange(size * samples, device=squares.device) + 0.5) / (size * samples)
    x, y = (squares[:, i, None] + squares[:, 2, None] * steps for i in (0, 1))  # [N, size * samples]
    grid = torch.stack(
        [
            (2 * x / (width - 1) - 1)[:, None].expand(-1, len(steps), -1),
            (2 * y / (height - 1) - 1)[:, :, None].expand(-1, -1, len(steps)),
        ],
        dim=-1,
    )
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)
    # As in roi_align, samples up to one pixel beyond the border repeat it; farther ones are 0.
    inside = ((y >= -1) & (y <= height))[:, None, :, None] & ((x >= -1) & (x <= width))[:, None, None]
    return F.avg_pool2d(sampled * inside, samples)


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
"""The 14 prompts of ViLD (arXiv 2104.13921); the embedding of a class name is their mean."""


class MaskClassifier:
    """A frozen CLIP that classifies masks. Embeddings of class names are cached.

    Args:
        model: reference of a CLIPModel checkpoint with its tokenizer.
        device: the device; float32 except on GPUs that compute bfloat16 natively.
        batch_size: crops that are processed together.
        centered: see `mask_crops`.
        hard: see `mask_crops`.
        offline: load the model from this disk only.
    """

    def __init__(
        self,
        model: str,
        device: torch.device | str,
        *,
        batch_size: int = 64,
        centered: bool = False,
        hard: bool = False,
        offline: bool = False,
    ) -> None:
        place = resolve_device(str(device))
        found = resolve(model, offline)
        self.device = place.device
        self.batch_size, self.centered, self.hard = batch_size, centered, hard
        self._clip: Any = load_pretrained(CLIPModel, found, place.dtype, place.device)
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        self._size: int = self._clip.config.vision_config.image_size
        self._name_vectors: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def classify(self, frames: torch.Tensor, masks: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
        """Return the class probabilities `[Q, classes]` of masks; zeros for masks that are empty in all frames.

        The logits of a mask are averaged over the frames in which it is not empty, before the softmax.

        Args:
            frames: uint8 `[T, 3, H, W]`.
            masks: logits `[Q, T, h, w]`.
            classes: the class names.
        """
        texts = self.embed_names(classes)
        sums = torch.zeros(len(masks), len(classes), device=self.device)
        counts = torch.zeros(len(masks), 1, device=self.device)
        scale = self._clip.logit_scale.exp().float()  # 100 in OpenAI's checkpoints
        crops = mask_crops(frames.to(self.device), masks.to(self.device), self._size, self.centered, self.hard)
        for numbers, pixels in _batches(crops, self.batch_size):
            owners = torch.tensor(numbers, device=self.device)
            sums.index_add_(0, owners, scale * self._embed_crops(pixels) @ texts.T)
            counts.index_add_(0, owners, torch.ones(len(owners), 1, device=self.device))
        return torch.where(counts > 0, (sums / counts.clamp(min=1)).softmax(-1), 0.0)

    @torch.inference_mode()
    def embed_names(self, classes: Sequence[str]) -> torch.Tensor:
        """Return unit vectors `[classes, d]`: the normalized mean of the normalized embeddings of the prompts.

        Raises:
            InputError: `classes` is empty.
        """
        if not classes:
            raise InputError("a vocabulary has at least one class; give the names to choose from")
        for name in classes:
            if name not in self._name_vectors:
                self._name_vectors[name] = self._embed_name(name)
        return torch.stack([self._name_vectors[name] for name in classes])

    def _embed_name(self, name: str) -> torch.Tensor:
        prompts = [template.replace("{}", name) for template in TEMPLATES]
        tokens = self._tokenizer(prompts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        features = self._clip.get_text_features(**tokens).pooler_output.float()
        return F.normalize(F.normalize(features, dim=-1).mean(0), dim=-1)

    def _embed_crops(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return unit vectors `[n, d]` for crops `[n, 3, size, size]` from 0 to 255."""
        mean, std = (torch.tensor(c, device=pixels.device)[:, None, None] for c in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
        prepared = ((pixels / 255 - mean) / std).to(self._clip.dtype)
        return F.normalize(self._clip.get_image_features(pixel_values=prepared).pooler_output.float(), dim=-1)


def _batches(crops: Iterable[tuple[int, torch.Tensor]], size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Yield batches of at most `size` crops with the index of each crop's mask."""
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
