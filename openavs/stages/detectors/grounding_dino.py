"""Grounding DINO and MM-Grounding-DINO (transformers): all phrases of a frame in one forward.

`BaseGroundingDino` is shared with the adapter of the original package. Phrase scores come from the phrases' own tokens
(`token_spans.py`), long lists are split over several captions, and frames are never padded against each other, because
results would then depend on the batch. Very thin frames, for which the model has too few visual tokens and stops with
an index error, are letterboxed (`preprocess.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import PIL.Image
import torch
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoImageProcessorPil,
)

from openavs.errors import InputError, ModelError
from openavs.models.device import DeviceConfig, frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.models.ops.grounding_dino import optimize_grounding_dino
from openavs.models.ops.normalize import normalization_table, normalize_bytes
from openavs.stages.detectors.postprocess import (
    best_first,
    boxes_to_detections,
    check_inputs,
    check_options,
    image_batches,
    to_host,
)
from openavs.stages.detectors.preprocess import ResizePolicy, Size, resize, scaled_edges
from openavs.stages.detectors.token_spans import CLS, DOT, SEP, CaptionTokens, map_phrases
from openavs.structures.types import Detection, ImageArray

_KINDS = ("grounding-dino", "mm-grounding-dino")
_PROBE = 128  # pixels; a multiple of every stride that a backbone of this family has

PHRASES_PER_CAPTION = 8
"""Long captions cost recall: users report phrases that are found alone and missed among others (GroundingDINO #330)."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """How a model wants its pictures: the edges they are resized to, and their normalisation."""

    shortest: int
    longest: int
    filter: PIL.Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class CaptionLimits:
    """The sizes of a network that bound what can be asked of it."""

    tokens: int  # of one caption, borders included
    queries: int  # boxes that it picks from its image cells
    levels: int  # feature levels; those beyond the backbone's halve the last one
    strides: tuple[int, ...]  # pixels per cell at each level of the backbone, finest first


class BaseGroundingDino(ABC):
    """Boxes for phrases by a model that reads all phrases as one caption and scores its tokens.

    An adapter sets the attributes below and answers `_encode` and `_answer`.
    """

    floor: float
    phrases_per_caption: int
    max_candidates: int
    batch_size: int
    models: dict[str, dict[str, Any]]
    _reference: str
    _place: DeviceConfig
    _pixels: ImagePreprocessing
    _limits: CaptionLimits

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens."""

    @abstractmethod
    def _answer(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Token logits `[B, Q, T]` and boxes `[B, Q, 4]` (fractions) of pixels `[B, 3, h, w]` and ids `[B, T]`."""

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
        fits = [self._fit(image) for image in images]
        keys = [(fit.canvas, tuple(asked)) for fit, asked in zip(fits, phrases, strict=True)]
        answers: list[list[Detection]] = [[] for _ in images]
        for members in image_batches(keys, self.batch_size):
            captions = map_phrases(keys[members[0]][1], self._encode, self._limits.tokens, self.phrases_per_caption)
            if not captions:
                continue
            chosen = [fits[i] for i in members]
            found = self._ask([images[i] for i in members], chosen, captions)
            for position, candidates in zip(members, found, strict=True):
                answers[position] = best_first(candidates, self.max_candidates)
        return answers

    def _fit(self, image: ImageArray) -> ResizePolicy:
        size = (image.shape[0], image.shape[1])
        fit = scaled_edges(size, self._pixels.shortest, self._pixels.longest, self._accepts)
        if fit is None:
            raise ModelError(
                f"{self._reference} picks {self._limits.queries} boxes from fewer image cells at the size it is given "
                "pictures in; give it a larger shortest_edge"
            )
        return fit

    def _accepts(self, size: Size) -> bool:
        """Whether a frame of this size has cells at every level and as many of them as the model picks boxes from."""
        levels = [(size[0] // stride, size[1] // stride) for stride in self._limits.strides]
        for _ in range(self._limits.levels - len(levels)):
            levels.append(((levels[-1][0] + 1) // 2, (levels[-1][1] + 1) // 2))
        cells = [height * width for height, width in levels]
        return min(cells) > 0 and sum(cells) >= self._limits.queries

    @torch.inference_mode()
    def _ask(
        self, images: Sequence[ImageArray], fits: Sequence[ResizePolicy], captions: Sequence[CaptionTokens]
    ) -> list[list[Detection]]:
        """All candidates of frames that share a canvas, asked with each caption in turn."""
        pixels = self._prepare(images, fits)
        found: list[list[Detection]] = [[] for _ in images]
        for caption in captions:
            scores, winners, boxes = self._score(pixels, caption)
            for i, fit in enumerate(fits):
                found[i] += boxes_to_detections(
                    boxes[i], scores[i], winners[i], caption.phrases, fit.extent, fit.original, self.floor
                )
        return found

    def _prepare(self, images: Sequence[ImageArray], fits: Sequence[ResizePolicy]) -> torch.Tensor:
        """Pixel values `[B, 3, h, w]`; letterboxing stays 0, the mean colour after normalisation."""
        device = self._place.device
        batch = torch.zeros((len(images), 3, *fits[0].canvas), device=device)
        for slot, image, fit in zip(batch, images, fits, strict=True):
            content = resize(image, fit.content, self._pixels.filter, device)
            slot[:, : fit.content[0], : fit.content[1]] = normalize_bytes(self._values, content)
        return batch

    @cached_property
    def _values(self) -> torch.Tensor:
        """What each byte of each channel becomes, on the device."""
        return normalization_table(self._pixels.scale, self._pixels.mean, self._pixels.std).to(self._place.device)

    def _score(self, pixels: torch.Tensor, caption: CaptionTokens) -> tuple[Any, Any, Any]:
        """Best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        ids = torch.tensor(caption.ids, device=pixels.device).expand(len(pixels), -1)
        token_logits, boxes = self._answer(pixels, ids)
        scores, winners = phrase_scores(token_logits.float(), caption)
        return to_host(scores, winners, boxes.float(), self._reference)


def phrase_scores(logits: torch.Tensor, caption: CaptionTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Token logits `[B, Q, T]` -> each query's score and phrase, both `[B, Q]`.

    The phrase is the one with the highest mean over its tokens, as in Grounding DINO's own evaluation
    (demo/test_ap_on_coco.py: maps that sum to one): the best token alone would give any car to "car window". The score
    is the highest of that phrase's tokens, which is what the paper's threshold of 0.25 applies to. Tokens between
    phrases are left out.
    """
    tokens = logits.sigmoid()
    means = torch.stack([tokens[..., start:end].mean(dim=-1) for start, end in caption.spans], dim=-1)
    highest = torch.stack([tokens[..., start:end].amax(dim=-1) for start, end in caption.spans], dim=-1)
    winners = means.argmax(dim=-1)
    return highest.gather(-1, winners[..., None])[..., 0], winners


def check_phrases_per_caption(count: int) -> None:
    """Raises InputError unless a caption holds at least one phrase."""
    if count < 1:
        raise InputError(f"phrases_per_caption of a detector is 1 or more, not {count}")


def check_tokenizer(tokenizer: Any, reference: str) -> None:
    """Raises ModelError unless the borders of phrases have BERT's ids, which the networks have written into them."""
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids("."))
    if ids != (CLS, SEP, DOT):
        raise ModelError(
            f"the tokenizer of {reference} gives [CLS], [SEP] and '.' the ids {ids}, but Grounding DINO needs BERT's "
            f"{(CLS, SEP, DOT)}; use the tokenizer that came with the checkpoint"
        )


def encode(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


class GroundingDinoDetector(BaseGroundingDino):
    """Boxes for phrases with a Grounding DINO checkpoint.

    Args:
        model: reference of a checkpoint whose model type is `grounding-dino` or `mm-grounding-dino`.
        floor: candidates that score less are not returned, in [0, 1].
        phrases_per_caption: phrases that one caption holds at most; 1 grounds one phrase at a time. The answers differ.
        max_candidates: how many candidates a frame keeps, best first; each phrase's best one always stays.
        batch_size: frames in one forward; only frames of one resized shape with the same phrases go together.
            None: 8 on a GPU, 1 on a CPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the large products of matrices. Coordinates, scores, the
            text and its fusion with the picture are float32 in any case.
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
        phrases_per_caption: int = PHRASES_PER_CAPTION,
        max_candidates: int = 300,
        batch_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        check_phrases_per_caption(phrases_per_caption)
        found = resolve(model, offline=offline)
        self.models: dict[str, dict[str, Any]] = {model: found.describe()}
        self.floor, self.phrases_per_caption = floor, phrases_per_caption
        self.max_candidates = max_candidates
        self._reference = model
        self._place = resolve_device(device, dtype)
        self.batch_size = frames_per_batch(batch_size, self._place.device)
        config: Any = load_processor(AutoConfig, found)
        if config.model_type not in _KINDS:
            raise ModelError(
                f"{model} is a {config.model_type} model; give the detector grounding-dino one of type "
                f"{' or '.join(_KINDS)}"
            )
        self._tokenizer: Any = load_processor(AutoTokenizer, found)
        check_tokenizer(self._tokenizer, model)
        self._pixels = _pixel_rules(load_processor(GroundingDinoImageProcessorPil, found), model)
        self.model: Any = load_pretrained(AutoModelForZeroShotObjectDetection, found, torch.float32, self._place.device)
        optimize_grounding_dino(
            self.model, resolve_matmul_dtype(self._place, dtype, self.model.num_parameters(), "Grounding DINO")
        )
        self._limits = CaptionLimits(
            # BERT restarts its positions at each phrase, yet no caption may be longer than its position table.
            tokens=min(config.max_text_len, config.text_config.max_position_embeddings),
            queries=config.num_queries,
            levels=config.num_feature_levels,
            strides=_measure_strides(self.model, self._place.device),
        )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return encode(self._tokenizer, texts)

    def _answer(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(
            pixel_values=pixels,
            pixel_mask=torch.ones((len(pixels), *pixels.shape[-2:]), dtype=torch.long, device=pixels.device),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        )
        return output.logits, output.pred_boxes


def _pixel_rules(processor: Any, ref: str) -> ImagePreprocessing:
    """What a checkpoint's preprocessor_config.json says of its pictures."""
    size = processor.size
    if not (size["shortest_edge"] and size["longest_edge"]):
        raise ModelError(
            f"the preprocessor_config.json of {ref} has no shortest_edge and longest_edge; copy the one that came "
            f"with the checkpoint"
        )
    return ImagePreprocessing(
        shortest=int(size["shortest_edge"]),
        longest=int(size["longest_edge"]),
        filter=PIL.Image.Resampling(int(processor.resample)),
        scale=float(processor.rescale_factor),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


@torch.inference_mode()
def _measure_strides(network: Any, device: torch.device) -> tuple[int, ...]:
    """Pixels per cell at each level of the backbone, finest first; measured, since backbones name it differently."""
    pixels = torch.zeros((1, 3, _PROBE, _PROBE), device=device)
    mask = torch.ones((1, _PROBE, _PROBE), dtype=torch.long, device=device)
    levels = network.model.backbone.conv_encoder(pixels, mask)
    return tuple(_PROBE // features.shape[-2] for features, _ in levels)
