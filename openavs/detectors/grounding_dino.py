"""Grounding DINO and MM-Grounding-DINO (transformers): all phrases of a frame in one forward.

What the library leaves to its caller is settled here: phrase scores come from the phrases' own tokens
(`phrase_map.py`), long lists are split over several captions, frames are never padded against each other (the
answers would depend on the batch mates), and very thin frames, for which the model has too few visual tokens and
stops with an index error, are letterboxed (`fitting.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoImageProcessorPil,
)

from openavs.detectors.candidates import batches, best_first, boxes_to_detections, check_inputs, check_options
from openavs.detectors.fitting import Fit, Size, fit_edges, resize
from openavs.detectors.phrase_map import CLS, DOT, SEP, CaptionTokens, map_phrases
from openavs.device import resolve_device
from openavs.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.types import Detection, Image, ModelError, OpenAVSError

_KINDS = ("grounding-dino", "mm-grounding-dino")
_PROBE = 128  # pixels; a multiple of every stride that a backbone of this family has


class GroundingDinoDetector:
    """Boxes for phrases with a Grounding DINO checkpoint.

    Args:
        model: reference of a checkpoint whose model type is `grounding-dino` or `mm-grounding-dino`.
        floor: candidates that score less are not returned, in [0, 1].
        joint: ask all phrases of a frame in one caption; False asks one phrase at a time. The answers differ.
        max_candidates: how many candidates a frame keeps, best first; each phrase's best one always stays.
        batch_size: frames in one forward; only frames of one resized shape with the same phrases go together.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        offline: use only what is already on this machine.

    Raises:
        ModelError: the reference cannot be had, or is a model of another kind.
        InputError: an option outside its range.
    """

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.05,
        joint: bool = True,
        max_candidates: int = 300,
        batch_size: int = 1,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        found = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: found.describe()}
        self.floor, self.joint = floor, joint
        self.max_candidates, self.batch_size = max_candidates, batch_size
        self._reference = model
        self._place = resolve_device(device, dtype)
        self._config: Any = load_processor(AutoConfig, found)
        if self._config.model_type not in _KINDS:
            raise ModelError(
                f"{model} is a {self._config.model_type} model; give the detector grounding-dino one of type "
                f"{' or '.join(_KINDS)}"
            )
        self._tokenizer = _load_tokenizer(found)
        self._pixels = _PixelRules.of(load_processor(GroundingDinoImageProcessorPil, found), model)
        self.model: Any = load_pretrained(
            AutoModelForZeroShotObjectDetection, found, self._place.dtype, self._place.device
        )
        self._strides = _measure_strides(self.model, self._place.device, self._place.dtype)

    def detect(self, images: Sequence[Image], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """Boxes for each image's phrases, best first, every box under the phrase it answers best.

        Args:
            images: uint8 RGB `[H, W, 3]` of any sizes.
            phrases: one list of noun phrases per image. An empty list costs nothing and finds nothing.

        Raises:
            InputError: something that is not an image.
            OpenAVSError: the model's answer is not finite.
        """
        check_inputs(images, phrases)
        fits = [self._fit(image) for image in images]
        keys = [(fit.canvas, tuple(asked)) for fit, asked in zip(fits, phrases, strict=True)]
        answers: list[list[Detection]] = [[] for _ in images]
        for members in batches(keys, self.batch_size):
            captions = self._captions(keys[members[0]][1])
            if not captions:
                continue
            chosen = [fits[i] for i in members]
            found = self._ask([images[i] for i in members], chosen, captions)
            for position, candidates in zip(members, found, strict=True):
                answers[position] = best_first(candidates, self.max_candidates)
        return answers

    def _captions(self, phrases: Sequence[str]) -> list[CaptionTokens]:
        # BERT restarts its positions at each phrase, yet no caption may be longer than its position table.
        limit = min(self._config.max_text_len, self._config.text_config.max_position_embeddings)
        return map_phrases(phrases, self._encode, limit, self.joint)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _fit(self, image: Image) -> Fit:
        size = (image.shape[0], image.shape[1])
        fit = fit_edges(size, self._pixels.shortest, self._pixels.longest, self._accepts)
        if fit is None:
            raise ModelError(
                f"{self._reference} picks {self._config.num_queries} boxes from fewer image cells at the size in its "
                f"preprocessor_config.json; give it a larger shortest_edge"
            )
        return fit

    def _accepts(self, size: Size) -> bool:
        """Whether a frame of this size has cells at every level and as many of them as the model picks boxes from."""
        levels = [(size[0] // stride, size[1] // stride) for stride in self._strides]
        for _ in range(self._config.num_feature_levels - len(levels)):
            levels.append(((levels[-1][0] + 1) // 2, (levels[-1][1] + 1) // 2))
        cells = [height * width for height, width in levels]
        return min(cells) > 0 and sum(cells) >= self._config.num_queries

    @torch.inference_mode()
    def _ask(
        self, images: Sequence[Image], fits: Sequence[Fit], captions: Sequence[CaptionTokens]
    ) -> list[list[Detection]]:
        """All candidates of frames that share a canvas, asked with each caption in turn."""
        pixels = self._prepare(images, fits)
        found: list[list[Detection]] = [[] for _ in images]
        for caption in captions:
            scores, winners, boxes = self._forward(pixels, caption)
            for i, fit in enumerate(fits):
                found[i] += boxes_to_detections(
                    boxes[i], scores[i], winners[i], caption.phrases, fit.extent, fit.original, self.floor
                )
        return found

    def _prepare(self, images: Sequence[Image], fits: Sequence[Fit]) -> torch.Tensor:
        """Pixel values `[B, 3, h, w]`; letterboxing stays 0, the mean colour after normalisation."""
        device, rules = self._place.device, self._pixels
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (rules.mean, rules.std))
        batch = torch.zeros((len(images), 3, *fits[0].canvas), dtype=self._place.dtype, device=device)
        for slot, image, fit in zip(batch, images, fits, strict=True):
            content = resize(image, fit.content, rules.filter, device).float() * rules.scale
            slot[:, : fit.content[0], : fit.content[1]] = (content - mean) / std
        return batch

    def _forward(self, pixels: torch.Tensor, caption: CaptionTokens) -> tuple[Any, Any, Any]:
        """Best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        device, count = pixels.device, len(pixels)
        ids = torch.tensor(caption.ids, device=device).expand(count, -1)
        output = self.model(
            pixel_values=pixels,
            pixel_mask=torch.ones((count, *pixels.shape[-2:]), dtype=torch.long, device=device),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        )
        logits = phrase_logits(output.logits.float(), caption)
        boxes = output.pred_boxes.float()
        if not bool(torch.isfinite(logits).all() & torch.isfinite(boxes).all()):
            raise OpenAVSError(
                f"{self._reference} answered with numbers that are not finite; use dtype=float32, or another copy of "
                f"the weights if that is what you have"
            )
        scores, winners = logits.sigmoid().max(dim=-1)
        return scores.cpu().numpy(), winners.cpu().numpy(), boxes.cpu().numpy()


def phrase_logits(logits: torch.Tensor, caption: CaptionTokens) -> torch.Tensor:
    """Token logits `[B, Q, T]` -> phrase logits `[B, Q, P]`: the highest among each phrase's own tokens.

    The library's post-processing takes the highest over the whole caption, borders included; a border says nothing
    about any phrase.
    """
    best = [logits[..., start:end].amax(dim=-1) for start, end in caption.spans]
    return torch.stack(best, dim=-1)


@dataclass(frozen=True)
class _PixelRules:
    """What a checkpoint's preprocessor_config.json says of its pictures."""

    shortest: int
    longest: int
    filter: PIL.Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, processor: Any, ref: str) -> _PixelRules:
        size = processor.size
        if not (size["shortest_edge"] and size["longest_edge"]):
            raise ModelError(
                f"the preprocessor_config.json of {ref} has no shortest_edge and longest_edge; copy the one that came "
                f"with the checkpoint"
            )
        return cls(
            shortest=int(size["shortest_edge"]),
            longest=int(size["longest_edge"]),
            filter=PIL.Image.Resampling(int(processor.resample)),
            scale=float(processor.rescale_factor),
            mean=tuple(processor.image_mean),
            std=tuple(processor.image_std),
        )


def _load_tokenizer(found: ResolvedModel) -> Any:
    tokenizer: Any = load_processor(AutoTokenizer, found)
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids("."))
    if ids != (CLS, SEP, DOT):
        raise ModelError(
            f"the tokenizer of {found.ref} gives [CLS], [SEP] and '.' the ids {ids}, but Grounding DINO needs BERT's "
            f"{(CLS, SEP, DOT)}; use the tokenizer that came with the checkpoint"
        )
    return tokenizer


@torch.inference_mode()
def _measure_strides(network: Any, device: torch.device, dtype: torch.dtype) -> list[int]:
    """Pixels per cell at each level of the backbone, finest first; measured, since backbones name it differently."""
    pixels = torch.zeros((1, 3, _PROBE, _PROBE), device=device, dtype=dtype)
    mask = torch.ones((1, _PROBE, _PROBE), dtype=torch.long, device=device)
    levels = network.model.backbone.conv_encoder(pixels, mask)
    return [_PROBE // features.shape[-2] for features, _ in levels]
