"""Grounding DINO and MM-Grounding-DINO (transformers): all phrases of a frame in one forward pass.

`BaseGroundingDino` is shared with the adapter of the original package. Phrase scores are computed from the phrases' own
tokens (`postprocess.py`), long lists are split over several captions, and frames are never padded against each other,
because results would then depend on the batch. Very thin frames, for which the model has too few visual tokens and
fails with an index error, are letterboxed (`preprocess.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoTokenizer,
    GroundingDinoImageProcessorPil,
)

from openavs.errors import InputError, ModelError
from openavs.models.device import DeviceConfig, frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import ResolvedModel, load_pretrained, load_processor, resolve
from openavs.models.ops.grounding_dino import optimize_grounding_dino
from openavs.models.ops.image import normalization_table, normalize_bytes
from openavs.stages.detectors.processing import (
    CLS,
    DOT,
    SEP,
    CaptionTokens,
    ResizePolicy,
    Size,
    best_first,
    boxes_to_detections,
    check_inputs,
    check_options,
    choose_resize_policy,
    image_batches,
    plan_captions,
    resize,
    to_host,
)
from openavs.structures.types import Detection, ImageArray

_MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")
_PROBE_SIZE = 128  # pixels; a multiple of every stride of the backbones of this family

PHRASES_PER_CAPTION = 8
"""Long captions cost recall: users report phrases that are found alone and missed among others (GroundingDINO #330)."""


@dataclass(frozen=True)
class ImagePreprocessing:
    """Edges that a model's images are resized to, and their normalization."""

    shortest: int
    longest: int
    filter: Image.Resampling
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class NetworkLimits:
    """Sizes of a network that limit its inputs.

    Attributes:
        tokens: maximum length of a caption, with its [CLS] and [SEP].
        queries: number of boxes, which the network selects from the cells of the feature levels.
        levels: number of feature levels; those beyond the backbone's halve the last one.
        strides: pixels per cell at each level of the backbone, finest first.
    """

    tokens: int
    queries: int
    levels: int
    strides: tuple[int, ...]


class BaseGroundingDino(ABC):
    """Detects phrases with a model that reads all phrases as one caption and scores its tokens.

    Adapters call `__init__` first, which checks the options, then set the attributes below. They implement `_forward`.
    """

    model: Any
    models: dict[str, dict[str, Any]]
    _tokenizer: Any
    _pixels: ImagePreprocessing
    _limits: NetworkLimits

    def __init__(
        self,
        model: str,
        placement: DeviceConfig,
        *,
        floor: float,
        phrases_per_caption: int,
        max_candidates: int,
        batch_size: int | None,
    ) -> None:
        check_options(floor, max_candidates, batch_size)
        if phrases_per_caption < 1:
            raise InputError(f"phrases_per_caption of a detector must be at least 1, not {phrases_per_caption}")
        self.floor, self.phrases_per_caption, self.max_candidates = floor, phrases_per_caption, max_candidates
        self._reference = model
        self._placement = placement
        self.batch_size = frames_per_batch(batch_size, placement.device)

    @abstractmethod
    def _forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return token logits `[B, Q, T]` and boxes `[B, Q, 4]` (fractions) of pixels `[B, 3, h, w]`, ids `[B, T]`."""

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector.detect`.

        Raises:
            InputError: an image is malformed.
            InvalidOutputError: the model's output is not finite.
        """
        check_inputs(images, phrases)
        policies = [self._resize_policy(image) for image in images]
        keys = [(policy.canvas, tuple(own)) for policy, own in zip(policies, phrases, strict=True)]
        detections: list[list[Detection]] = [[] for _ in images]
        for batch in image_batches(keys, self.batch_size):
            captions = plan_captions(keys[batch[0]][1], self._encode, self._limits.tokens, self.phrases_per_caption)
            if not captions:
                continue
            found = self._detect_batch([images[i] for i in batch], [policies[i] for i in batch], captions)
            for position, candidates in zip(batch, found, strict=True):
                detections[position] = best_first(candidates, self.max_candidates)
        return detections

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens."""
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def _resize_policy(self, image: ImageArray) -> ResizePolicy:
        size = (image.shape[0], image.shape[1])
        policy = choose_resize_policy(size, self._pixels.shortest, self._pixels.longest, self._accepts)
        if policy is None:
            raise ModelError(
                f"{self._reference} selects {self._limits.queries} boxes from fewer image cells at the size of its "
                "preprocessed images; use a larger shortest_edge"
            )
        return policy

    def _accepts(self, size: Size) -> bool:
        """Return whether an image of this size has cells at every level, and in total at least as many as queries."""
        levels = [(size[0] // stride, size[1] // stride) for stride in self._limits.strides]
        for _ in range(self._limits.levels - len(levels)):
            levels.append(((levels[-1][0] + 1) // 2, (levels[-1][1] + 1) // 2))
        cells = [height * width for height, width in levels]
        return min(cells) > 0 and sum(cells) >= self._limits.queries

    @torch.inference_mode()
    def _detect_batch(
        self, images: Sequence[ImageArray], policies: Sequence[ResizePolicy], captions: Sequence[CaptionTokens]
    ) -> list[list[Detection]]:
        """Return all candidates of images that share a canvas, for each caption in turn."""
        pixels = self._prepare(images, policies)
        found: list[list[Detection]] = [[] for _ in images]
        for caption in captions:
            scores, winners, boxes = self._score(pixels, caption)
            for i, policy in enumerate(policies):
                found[i] += boxes_to_detections(
                    boxes[i], scores[i], winners[i], caption.phrases, policy.extent, policy.original, self.floor
                )
        return found

    def _prepare(self, images: Sequence[ImageArray], policies: Sequence[ResizePolicy]) -> torch.Tensor:
        """Return pixel values `[B, 3, h, w]`; letterboxing stays 0, the mean color after normalization."""
        device = self._placement.device
        batch = torch.zeros((len(images), 3, *policies[0].canvas), device=device)
        for slot, image, policy in zip(batch, images, policies, strict=True):
            content = resize(image, policy.content, self._pixels.filter, device)
            slot[:, : policy.content[0], : policy.content[1]] = normalize_bytes(self._values, content)
        return batch

    @cached_property
    def _values(self) -> torch.Tensor:
        """The normalized value of each byte of each channel, on the device."""
        return normalization_table(self._pixels.scale, self._pixels.mean, self._pixels.std).to(self._placement.device)

    def _score(self, pixels: torch.Tensor, caption: CaptionTokens) -> tuple[Any, Any, Any]:
        """Return the best score and phrase `[B, Q]` and boxes `[B, Q, 4]` as numpy arrays."""
        ids = torch.tensor(caption.ids, device=pixels.device).expand(len(pixels), -1)
        token_logits, boxes = self._forward(pixels, ids)
        scores, winners = phrase_scores(token_logits.float(), caption)
        return to_host(scores, winners, boxes.float(), self._reference)


class GroundingDinoDetector(BaseGroundingDino):
    """Detects phrases with a Grounding DINO checkpoint.

    Args:
        model: reference of a checkpoint with model type `grounding-dino` or `mm-grounding-dino`.
        floor: candidates with a lower score are not returned, in [0, 1].
        phrases_per_caption: maximum number of phrases in one caption; 1 grounds one phrase at a time. Scores depend on
            the other phrases of a caption.
        max_candidates: number of candidates to keep per frame, best first; each phrase's best one is always kept.
        batch_size: frames in one forward pass; only frames of one resized shape with the same phrases are batched.
            None: 8 on a GPU, 1 on a CPU.
        shortest_edge: pixels of the preprocessed image's shorter side, at least 128; its longest side shrinks alike.
            None: the checkpoint's own.
        quantize: `int8` multiplies in 8 bits on a CPU (the parts that `dtype` applies to); no effect on a GPU.
        device: `auto`, `cpu`, `cuda`, ...
        dtype: `auto`, `float32`, `bfloat16`, `float16`: of the large matrix products. Coordinates, scores, the text and
            its fusion with the image are always float32.
        offline: use only local and cached files.

    Raises:
        ModelError: the model cannot be loaded, or is of another kind.
        InputError: an option is out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        floor: float = 0.05,
        phrases_per_caption: int = PHRASES_PER_CAPTION,
        max_candidates: int = 300,
        batch_size: int | None = None,
        shortest_edge: int | None = None,
        quantize: Literal["int8"] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if shortest_edge is not None and shortest_edge < _PROBE_SIZE:
            raise InputError(f"grounding-dino: shortest_edge is at least {_PROBE_SIZE}, not {shortest_edge}")
        super().__init__(
            model,
            resolve_device(device, dtype),
            floor=floor,
            phrases_per_caption=phrases_per_caption,
            max_candidates=max_candidates,
            batch_size=batch_size,
        )
        resolved = resolve(model, offline=offline)
        self.models = {model: resolved.describe()}
        config: Any = load_processor(AutoConfig, resolved)
        if config.model_type not in _MODEL_TYPES:
            raise ModelError(
                f"{model} is a {config.model_type} model; the detector grounding-dino needs one of type "
                f"{' or '.join(_MODEL_TYPES)}"
            )
        self._tokenizer = load_tokenizer(resolved)
        self._pixels = _read_preprocessing(load_processor(GroundingDinoImageProcessorPil, resolved), model)
        if shortest_edge is not None:
            longest = round(shortest_edge * self._pixels.longest / self._pixels.shortest)
            self._pixels = replace(self._pixels, shortest=shortest_edge, longest=longest)
        place = self._placement
        self.model = load_pretrained(AutoModelForZeroShotObjectDetection, resolved, torch.float32, place.device)
        size = self.model.num_parameters()
        optimize_grounding_dino(self.model, resolve_matmul_dtype(place, dtype, size, "Grounding DINO", quantize))
        self._limits = NetworkLimits(
            # BERT's positions restart at each phrase, yet no caption may be longer than its position table.
            tokens=min(config.max_text_len, config.text_config.max_position_embeddings),
            queries=config.num_queries,
            levels=config.num_feature_levels,
            strides=_measure_strides(self.model, place.device),
        )

    def _forward(self, pixels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(
            pixel_values=pixels,
            pixel_mask=torch.ones((len(pixels), *pixels.shape[-2:]), dtype=torch.long, device=pixels.device),
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.zeros_like(ids),
        )
        return output.logits, output.pred_boxes


def phrase_scores(logits: torch.Tensor, caption: CaptionTokens) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute each query's score and phrase from its token logits.

    The phrase is the one with the highest mean over its tokens, as in Grounding DINO's own evaluation
    (demo/test_ap_on_coco.py: maps that sum to one); with the best single token, any car would match "car window". The
    score is the highest of that phrase's tokens, to which the paper's threshold of 0.25 applies. Tokens between phrases
    are ignored.

    Args:
        logits: token logits, `[B, Q, T]`.
        caption: the caption of the tokens.

    Returns:
        Scores and indices of phrases, both `[B, Q]`.
    """
    tokens = logits.sigmoid()
    means = torch.stack([tokens[..., start:end].mean(dim=-1) for start, end in caption.spans], dim=-1)
    highest = torch.stack([tokens[..., start:end].amax(dim=-1) for start, end in caption.spans], dim=-1)
    winners = means.argmax(dim=-1)
    return highest.gather(-1, winners[..., None])[..., 0], winners


def load_tokenizer(resolved: ResolvedModel) -> Any:
    """Load a BERT tokenizer.

    Raises:
        ModelError: the separators of phrases do not have BERT's ids, which are hard-coded in the networks.
    """
    tokenizer: Any = load_processor(AutoTokenizer, resolved)
    ids = (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids("."))
    if ids != (CLS, SEP, DOT):
        raise ModelError(
            f"the tokenizer of {resolved.ref} has the ids {ids} for [CLS], [SEP] and '.', but Grounding DINO needs "
            f"BERT's {(CLS, SEP, DOT)}; use the tokenizer that came with the checkpoint"
        )
    return tokenizer


def _read_preprocessing(processor: Any, ref: str) -> ImagePreprocessing:
    """Convert the settings of a checkpoint's preprocessor_config.json."""
    size = processor.size
    if not (size["shortest_edge"] and size["longest_edge"]):
        raise ModelError(
            f"the preprocessor_config.json of {ref} has no shortest_edge and longest_edge; copy the one that came "
            "with the checkpoint"
        )
    return ImagePreprocessing(
        shortest=int(size["shortest_edge"]),
        longest=int(size["longest_edge"]),
        filter=Image.Resampling(int(processor.resample)),
        scale=float(processor.rescale_factor),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
    )


@torch.inference_mode()
def _measure_strides(network: Any, device: torch.device) -> tuple[int, ...]:
    """Measure the pixels per cell of the backbone's levels, finest first; backbones differ in how they name them."""
    pixels = torch.zeros((1, 3, _PROBE_SIZE, _PROBE_SIZE), device=device)
    mask = torch.ones((1, _PROBE_SIZE, _PROBE_SIZE), dtype=torch.long, device=device)
    levels = network.model.backbone.conv_encoder(pixels, mask)
    return tuple(_PROBE_SIZE // features.shape[-2] for features, _ in levels)
