"""OWLv2 (transformers): an image is encoded once, then compared with any number of phrases."""

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
from openavs.stages.detectors.postprocess import (
    best_first,
    boxes_to_detections,
    check_inputs,
    check_options,
    image_batches,
    to_host,
)
from openavs.stages.detectors.token_spans import clean_phrase
from openavs.structures.types import Detection, ImageArray

_TEXTS_AT_ONCE = 128


class Owlv2Detector:
    """Boxes for phrases with an OWLv2 checkpoint.

    Args:
        model: reference of a checkpoint whose model type is `owlv2`.
        floor: candidates that score less are not returned, in [0, 1].
        template: what is asked for a phrase; `{}` stands for it. OWLv2 was trained on captions, not on bare nouns.
        max_candidates: how many candidates a frame keeps, best first; each phrase's best one always stays.
        batch_size: frames in one forward of the image encoder; None: 8 on a GPU, 1 on a CPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the encoders. The heads, which answer boxes and scores, are
            float32 in any case.
        offline: use only what is already on this machine.

    Raises:
        ModelError: the reference cannot be had, or is a model of another kind.
        InputError: an option outside its range, or a template without `{}`.
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
            raise InputError(f"the detector's template must hold {{}} once, where the phrase goes: {template!r}")
        check_options(floor, max_candidates, batch_size)
        found = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: found.describe()}
        self.floor, self.template = floor, template
        self.max_candidates = max_candidates
        self._reference = model
        self._place = resolve_device(device, dtype)
        self.batch_size = frames_per_batch(batch_size, self._place.device)
        self._config: Any = load_processor(AutoConfig, found)
        if self._config.model_type != "owlv2":
            raise ModelError(f"{model} is a {self._config.model_type} model; give the detector owlv2 one of type owlv2")
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        self._rules: Any = load_processor(Owlv2ImageProcessorPil, found)
        self.model: Any = load_pretrained(Owlv2ForObjectDetection, found, torch.float32, self._place.device)
        # The heads stay float32: bfloat16 has 8 bits, and a corner among 960 pixels needs more than 10.
        for encoder in (self.model.owlv2, self.model.layer_norm):
            encoder.to(self._place.dtype)
        self._mean, self._std = (
            torch.tensor(values, device=self._place.device).view(3, 1, 1)
            for values in (self._rules.image_mean, self._rules.image_std)
        )

    @torch.inference_mode()
    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes for each image's phrases, best first, every box under the phrase it answers best.

        Args:
            images: uint8 RGB `[H, W, 3]` of any sizes.
            phrases: one list of noun phrases per image. An empty list costs nothing and finds nothing.

        Raises:
            InputError: something that is not an image.
            UnusableAnswer: the model's answer is not finite.
        """
        check_inputs(images, phrases)
        texts = {asked: self._embed(asked) for asked in dict.fromkeys(map(tuple, phrases))}
        answers: list[list[Detection]] = [[] for _ in images]
        for members in image_batches([tuple(asked) for asked in phrases], self.batch_size):
            asked, queries = texts[tuple(phrases[members[0]])]
            if not asked:
                continue
            chosen = [images[i] for i in members]
            scores, winners, boxes = self._forward(self._prepare(chosen), queries)
            for i, position in enumerate(members):
                size = (images[position].shape[0], images[position].shape[1])
                square = (float(max(size)), float(max(size)))
                found = boxes_to_detections(boxes[i], scores[i], winners[i], asked, square, size, self.floor)
                answers[position] = best_first(found, self.max_candidates)
        return answers

    @torch.inference_mode()
    def _embed(self, phrases: Sequence[str]) -> tuple[tuple[str, ...], torch.Tensor]:
        """The distinct phrases that say anything, as first spelt, and their text embeddings `[P, D]`."""
        spelt: dict[str, str] = {}
        for phrase in phrases:
            if cleaned := clean_phrase(phrase, borders=""):
                spelt.setdefault(cleaned, phrase)
        texts = [self.template.replace("{}", cleaned) for cleaned in spelt]
        parts = [self._embed_texts(texts[i : i + _TEXTS_AT_ONCE]) for i in range(0, len(texts), _TEXTS_AT_ONCE)]
        return tuple(spelt.values()), torch.cat(parts) if parts else torch.empty(0, device=self._place.device)

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        longest = self._config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        ).to(self._place.device)
        model = self.model.owlv2
        state = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        embeds: torch.Tensor = model.text_projection(state.pooler_output).float()
        return torch.nn.functional.normalize(embeds, dim=-1)

    def _prepare(self, images: Sequence[ImageArray]) -> torch.Tensor:
        """Pixel values `[B, 3, h, w]`: padded to a square at the bottom and right, resized, normalised."""
        rules, device = self._rules, self._place.device
        size = (int(rules.size["height"]), int(rules.size["width"]))
        squares = (resize_in_square(image, size, device) * rules.rescale_factor for image in images)
        pixels = [(square - self._mean) / self._std for square in squares]
        return torch.stack(pixels).to(self._place.dtype)

    def _forward(self, pixels: torch.Tensor, queries: torch.Tensor) -> tuple[Any, Any, Any]:
        """Best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        features = self.model.image_embedder(pixels)[0].float()
        cells = features.flatten(1, 2)
        logits, _ = self.model.class_predictor(cells, queries[None].expand(len(pixels), -1, -1))
        scores, winners = logits.sigmoid().max(dim=-1)
        scores = scores.where(torch.isfinite(logits).all(dim=-1), torch.nan)
        return to_host(scores, winners, self.model.box_predictor(cells, features), self._reference)


def resize_in_square(image: ImageArray, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The image in the top left of a black square, resized to `size`; float32 `[3, h, w]` in [0, 255].

    Black, not grey: OWLv2 was trained so, and grey costs half a point on LVIS (huggingface/transformers#41938). Being
    zero, the padding adds nothing to any sum and need not be made: the columns that stand for it are left out.
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
    """One axis of OWLv2's resize as a sparse matrix `[target, used]`: a Gaussian, then linear interpolation.

    Each of the `target` samples mixes its two neighbours among `length` pixels, each smoothed over four standard
    deviations with the borders mirrored; only the first `used` pixels are not padding.
    """
    factor = length / target
    sigma = max(0.0, (factor - 1) / 2)
    reach = int(4 * sigma + 0.5)
    steps = np.arange(-reach, reach + 1)
    smooth = np.exp(-0.5 * (steps / sigma) ** 2) if sigma > 0 else np.ones(1)
    smooth /= smooth.sum()

    places = (np.arange(target) + 0.5) * factor - 0.5
    left = np.floor(places).astype(np.int64)
    near = np.stack([left, left + 1], axis=1)  # [target, 2]
    share = np.stack([left + 1 - places, places - left], axis=1)
    pixels = _mirror(_mirror(near, length)[:, :, None] + steps, length)  # [target, 2, taps]
    weights = share[:, :, None] * smooth
    rows = np.broadcast_to(np.arange(target)[:, None, None], pixels.shape)
    real = pixels < used
    indices = torch.from_numpy(np.stack([rows[real], pixels[real]]))
    values = torch.from_numpy(weights[real].astype(np.float32))
    return torch.sparse_coo_tensor(indices, values, (target, used), check_invariants=True).coalesce().to(device)


def _mirror(positions: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int64]:
    """Positions reflected into `[0, length)` about the centres of the first and the last pixel."""
    if length == 1:
        return np.zeros_like(positions)
    period = 2 * (length - 1)
    folded = np.abs(positions) % period
    mirrored: npt.NDArray[np.int64] = np.minimum(folded, period - folded)
    return mirrored
