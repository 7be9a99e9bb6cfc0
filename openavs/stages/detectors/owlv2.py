"""OWLv2 (transformers): encodes an image once and compares it with any number of phrases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoConfig, AutoTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

from openavs.errors import InputError, ModelError
from openavs.models.device import frames_per_batch, resolve_device
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.detectors.processing import (
    best_first,
    boxes_to_detections,
    check_inputs,
    check_options,
    distinct_phrases,
    image_batches,
    to_host,
)
from openavs.structures.types import Detection, ImageArray

_TEXT_BATCH = 128


class Owlv2Detector:
    """Detects phrases with an OWLv2 checkpoint.

    Args:
        model: reference of a checkpoint with model type `owlv2`.
        floor: candidates with a lower score are not returned, in [0, 1].
        template: text for a phrase, which replaces `{}`. OWLv2 was trained on captions, not on bare nouns.
        max_candidates: number of candidates to keep per frame, best first; each phrase's best one is always kept.
        batch_size: frames in one call of the image encoder; None: 8 on a GPU, 1 on a CPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the encoders. The heads of boxes and scores are always
            float32.
        offline: use only local and cached files.

    Raises:
        ModelError: the model cannot be loaded, or is of another kind.
        InputError: an option is out of range, or the template has no `{}`.
    """

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.05,
        template: str = "a photo of a {}",
        max_candidates: int = 300,
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if template.count("{}") != 1:
            raise InputError(f"the detector's template must contain {{}} once, for the phrase: {template!r}")
        check_options(floor, max_candidates, batch_size)
        resolved = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.floor, self.template = floor, template
        self.max_candidates = max_candidates
        self._reference = model
        self._placement = resolve_device(device, dtype)
        self.batch_size = frames_per_batch(batch_size, self._placement.device)
        self._config: Any = load_processor(AutoConfig, resolved)
        if self._config.model_type != "owlv2":
            raise ModelError(f"{model} is a {self._config.model_type} model; the detector owlv2 needs type owlv2")
        self._tokenizer: Any = load_processor(AutoTokenizer, resolved)
        self._processor: Any = load_processor(Owlv2ImageProcessorPil, resolved)
        self.model: Any = load_pretrained(Owlv2ForObjectDetection, resolved, torch.float32, self._placement.device)
        # The heads stay float32: bfloat16 has 8 bits, and a corner among 960 pixels needs more than 10.
        for encoder in (self.model.owlv2, self.model.layer_norm):
            encoder.to(self._placement.dtype)
        self._mean, self._std = (
            torch.tensor(values, device=self._placement.device).view(3, 1, 1)
            for values in (self._processor.image_mean, self._processor.image_std)
        )

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector.detect`.

        Raises:
            InputError: an image is malformed.
            InvalidOutputError: the model's output is not finite.
        """
        check_inputs(images, phrases)
        texts = {own: self._embed(own) for own in dict.fromkeys(map(tuple, phrases))}
        detections: list[list[Detection]] = [[] for _ in images]
        for batch in image_batches([tuple(own) for own in phrases], self.batch_size):
            distinct, queries = texts[tuple(phrases[batch[0]])]
            if not distinct:
                continue
            scores, winners, boxes = self._forward(self._prepare([images[i] for i in batch]), queries)
            for i, position in enumerate(batch):
                size = (images[position].shape[0], images[position].shape[1])
                square = (float(max(size)), float(max(size)))
                found = boxes_to_detections(boxes[i], scores[i], winners[i], distinct, square, size, self.floor)
                detections[position] = best_first(found, self.max_candidates)
        return detections

    @torch.inference_mode()
    def _embed(self, phrases: Sequence[str]) -> tuple[tuple[str, ...], torch.Tensor]:
        """Return the distinct phrases and text embeddings `[P, D]`."""
        spelling = distinct_phrases(phrases)
        texts = [self.template.replace("{}", cleaned) for cleaned in spelling]
        parts = [self._embed_texts(texts[i : i + _TEXT_BATCH]) for i in range(0, len(texts), _TEXT_BATCH)]
        return tuple(spelling.values()), torch.cat(parts) if parts else torch.empty(0, device=self._placement.device)

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        max_length = self._config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=max_length, return_tensors="pt"
        ).to(self._placement.device)
        model = self.model.owlv2
        state = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embeds: torch.Tensor = model.text_projection(state.pooler_output).float()
        return torch.nn.functional.normalize(embeds, dim=-1)

    def _prepare(self, images: Sequence[ImageArray]) -> torch.Tensor:
        """Return pixel values `[B, 3, h, w]`: padded to a square at the bottom and right, resized, normalized."""
        settings, device = self._processor, self._placement.device
        size = (int(settings.size["height"]), int(settings.size["width"]))
        squares = (resize_in_square(image, size, device) * settings.rescale_factor for image in images)
        pixels = [(square - self._mean) / self._std for square in squares]
        return torch.stack(pixels).to(self._placement.dtype)

    def _forward(self, pixels: torch.Tensor, queries: torch.Tensor) -> tuple[Any, Any, Any]:
        """Return the best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        features = self.model.image_embedder(pixels)[0].float()
        cells = features.flatten(1, 2)
        logits, _ = self.model.class_predictor(cells, queries[None].expand(len(pixels), -1, -1))
        scores, winners = logits.sigmoid().max(dim=-1)
        scores = scores.where(torch.isfinite(logits).all(dim=-1), torch.nan)
        return to_host(scores, winners, self.model.box_predictor(cells, features), self._reference)


def resize_in_square(image: ImageArray, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """Pad an image to a black square at the bottom and right, and resize it: float32 `[3, h, w]` in [0, 255].

    Black, not gray: OWLv2 was trained with it, and gray costs half a point on LVIS (huggingface/transformers#41938).
    The padding is zero, adds nothing to any sum and is never allocated: its columns of the matrices are left out.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    down = _resampling(side, size[0], height, device)
    across = _resampling(side, size[1], width, device)
    pixels = torch.from_numpy(np.ascontiguousarray(image)).to(device).float()
    rows: torch.Tensor = torch.sparse.mm(down, pixels.reshape(height, width * 3))  # [h, W * 3]
    columns = rows.view(-1, width, 3).transpose(0, 1).reshape(width, -1)  # [W, h * 3]
    resized: torch.Tensor = torch.sparse.mm(across, columns)  # [w, h * 3]
    return resized.view(size[1], size[0], 3).permute(2, 1, 0)


@lru_cache(maxsize=16)
def _resampling(length: int, target: int, used: int, device: torch.device) -> torch.Tensor:
    """Return one axis of OWLv2's resize as a sparse matrix `[target, used]`: a Gaussian, then linear interpolation.

    Each of the `target` samples mixes its two neighbors among `length` pixels, each smoothed over four standard
    deviations with mirrored borders; only the first `used` pixels are not padding.
    """
    factor = length / target
    sigma = max(0.0, (factor - 1) / 2)
    reach = int(4 * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    smooth = np.exp(-0.5 * (steps / sigma) ** 2) if sigma > 0 else np.ones(1)
    smooth /= smooth.sum()

    centers = (np.arange(target) + 0.5) * factor - 0.5
    left = np.floor(centers).astype(np.int64)
    neighbors = np.stack([left, left + 1], axis=1)  # [target, 2]
    share = np.stack([left + 1 - centers, centers - left], axis=1)
    pixels = _mirror(_mirror(neighbors, length)[:, :, None] + steps, length)  # [target, 2, taps]
    weights = share[:, :, None] * smooth
    rows = np.broadcast_to(np.arange(target)[:, None, None], pixels.shape)
    is_image = pixels < used
    indices = torch.from_numpy(np.stack([rows[is_image], pixels[is_image]]))
    values = torch.from_numpy(weights[is_image].astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, (target, used), check_invariants=True).coalesce().to(device)


def _mirror(positions: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Reflect positions into `[0, length)` about the centers of the first and the last pixel."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    folded = np.abs(positions) % period
    mirrored: npt.NDArray[np.int64] = np.minimum(folded, period - folded)
    return mirrored
