"""Shared steps of the detectors: checks, image sizes, batching, phrases as tokens, scored boxes as detections.

Grounding DINO reads all phrases as one caption, `dog . red car .`, and scores every token of it. Decoding tokens back
to words merges and truncates labels; here the caption is built from token ids, so every phrase's span is known.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from openavs.errors import InputError, InvalidOutputError
from openavs.models.ops.image import resize_bilinear
from openavs.structures.types import Detection, ImageArray

Floats = npt.NDArray[np.float32]


def check_inputs(images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> None:
    """Raise ValueError for lists of unequal length, InputError unless images are uint8 RGB `[H, W, 3]` with pixels."""
    if len(images) != len(phrases):
        raise ValueError(f"{len(images)} images but {len(phrases)} lists of phrases")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"an image must be uint8 RGB [H, W, 3] with pixels, not {image.dtype} {image.shape}")


def check_options(floor: float, max_candidates: int, batch_size: int | None) -> None:
    """Raise InputError for options out of range."""
    if not 0 <= floor <= 1:
        raise InputError(f"the detector's floor must be a score between 0 and 1, not {floor}")
    if max_candidates < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(
            f"max_candidates ({max_candidates}) and batch_size ({batch_size}) of a detector must be at least 1"
        )


def image_batches(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Yield positions in batches of at most `size` with equal keys, in the order of each key's first position."""
    groups: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        groups.setdefault(key, []).append(position)
    for members in groups.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]


def boxes_to_detections(
    boxes: Floats,
    scores: Floats,
    winners: npt.NDArray[np.int64],
    phrases: Sequence[str],
    extent: tuple[float, float],
    size: tuple[int, int],
    floor: float,
) -> list[Detection]:
    """Convert the scored queries of one image to detections, in pixels, clipped to the image.

    Args:
        boxes: `[Q, 4]`, center x, center y, width, height as fractions of the model's input.
        scores: `[Q]`, the score of each query's best phrase; queries below `floor` are dropped.
        winners: `[Q]`, the index of that phrase.
        phrases: the phrases that `winners` refers to.
        extent: height and width of the model's input in pixels of the image (more than `size` if it was padded).
        size: height and width of the image. Boxes entirely outside it are dropped.
        floor: minimum score.
    """
    kept = scores >= floor
    centers, halves = boxes[kept, :2].astype(np.float64), boxes[kept, 2:].astype(np.float64) / 2
    scale, border = np.asarray(extent)[::-1], np.asarray(size)[::-1]
    first = np.clip((centers - halves) * scale, 0, border)
    last = np.clip((centers + halves) * scale, 0, border)
    return [
        Detection((float(a[0]), float(a[1]), float(b[0]), float(b[1])), phrases[winner], float(score))
        for a, b, winner, score in zip(first, last, winners[kept], scores[kept], strict=True)
        if (b > a).all()
    ]


def to_host(
    scores: torch.Tensor, winners: torch.Tensor, boxes: torch.Tensor, model: str
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Copy scores and phrases `[B, Q]` and boxes `[B, Q, 4]` of a batch to the CPU, in one transfer.

    Raises:
        InvalidOutputError: a number is not finite; `model` is the reference for the message.
    """
    packed = torch.cat([scores[..., None], winners[..., None].to(scores), boxes], dim=-1).cpu().numpy()
    if not np.isfinite(packed).all():
        raise InvalidOutputError(
            f"{model} returned numbers that are not finite; use dtype=float32, or another copy of the weights if that "
            "is the dtype already"
        )
    return packed[..., 0], packed[..., 1].astype(np.int64), packed[..., 2:]


def best_first(candidates: Sequence[Detection], limit: int) -> list[Detection]:
    """Return the `limit` best candidates, best first, and each phrase's best one whatever its rank.

    Keeping the latter lets the pipeline report how close a phrase came that many boxes of another outranked.
    """
    ranked = sorted(candidates, key=lambda found: -found.score)
    seen: set[str] = set()
    kept = []
    for rank, found in enumerate(ranked):
        if rank < limit or found.phrase not in seen:
            kept.append(found)
        seen.add(found.phrase)
    return kept


logger = logging.getLogger(__name__)

CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029  # BERT's ids, hard-coded in the model as separators of phrases
_SEPARATORS = frozenset({0, CLS, SEP, DOT, QUESTION})  # 0 is padding

Encode = Callable[[list[str]], list[list[int]]]
"""Converts texts to token ids, without special tokens."""


@dataclass(frozen=True)
class CaptionTokens:
    """One caption as token ids `[CLS] p1 . p2 . [SEP]`; `spans[i]` is the half-open token range of `phrases[i]`."""

    ids: tuple[int, ...]
    phrases: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]


def clean_phrase(phrase: str, separators: str = ".?") -> str:
    """Convert to one lower-case line, without control characters, lone surrogates and separators of phrases."""
    kept = []
    for char in phrase:
        category = unicodedata.category(char)
        if char in separators or category == "Cc":
            kept.append(" ")
        elif category not in ("Cf", "Cs"):
            kept.append(char)
    return " ".join("".join(kept).lower().split())


def distinct_phrases(phrases: Iterable[str]) -> dict[str, str]:
    """Return the first spelling of each phrase by its cleaned form; phrases without a letter are dropped."""
    spelling: dict[str, str] = {}
    for phrase in phrases:
        if cleaned := clean_phrase(phrase, separators=""):
            spelling.setdefault(cleaned, phrase)
    return spelling


def plan_captions(
    phrases: Sequence[str], encode: Encode, max_tokens: int, max_phrases: int | None = None
) -> list[CaptionTokens]:
    """Distribute phrases over as few captions as their length allows.

    Phrases keep their order and their spelling. Those with equal tokens (`Dog`, `dog`) are included once, under the
    first spelling; those without tokens (`...`) are dropped. A phrase that is too long for a caption is truncated.

    Args:
        phrases: noun phrases in any script.
        encode: the tokenizer.
        max_tokens: maximum length of a caption.
        max_phrases: maximum number of phrases in a caption; None for no limit.
    """
    captions: list[CaptionTokens] = []
    batch: list[tuple[str, tuple[int, ...]]] = []
    length = 2  # [CLS] and [SEP]
    for tokens, phrase in _distinct(phrases, encode, max_tokens=max_tokens - 3).items():
        if batch and (len(batch) == max_phrases or length + len(tokens) + 1 > max_tokens):
            captions.append(_join(batch))
            batch, length = [], 2
        batch.append((phrase, tokens))
        length += len(tokens) + 1
    if batch:
        captions.append(_join(batch))
    return captions


def _distinct(phrases: Sequence[str], encode: Encode, max_tokens: int) -> dict[tuple[int, ...], str]:
    """Map the token ids of each distinct phrase to its first spelling."""
    cleaned = [clean_phrase(phrase) for phrase in phrases]
    found: dict[tuple[int, ...], str] = {}
    for phrase, ids in zip(phrases, encode(cleaned) if cleaned else [], strict=True):
        tokens = tuple(i for i in ids if i not in _SEPARATORS)
        if len(tokens) > max_tokens:
            logger.warning("a phrase of %d tokens was truncated to %d: %.60r", len(tokens), max_tokens, phrase)
            tokens = tokens[:max_tokens]
        if tokens:
            found.setdefault(tokens, phrase)
    return found


def _join(batch: Sequence[tuple[str, tuple[int, ...]]]) -> CaptionTokens:
    ids, spans = [CLS], []
    for _, tokens in batch:
        spans.append((len(ids), len(ids) + len(tokens)))
        ids += [*tokens, DOT]
    return CaptionTokens((*ids, SEP), tuple(phrase for phrase, _ in batch), tuple(spans))


Size = tuple[int, int]  # height, width
_ASPECT_RATIOS = (16.0, 8.0, 4.0, 2.0, 1.0)  # of letterboxed canvases, long to short side, tried in this order


@dataclass(frozen=True)
class ResizePolicy:
    """Resize of an image from `original` to `content` size, placed in the top left corner of a `canvas`."""

    original: Size
    content: Size
    canvas: Size

    @property
    def extent(self) -> tuple[float, float]:
        """Height and width of the whole canvas in pixels of the original image."""
        height, width = (o * k / c for o, k, c in zip(self.original, self.canvas, self.content, strict=True))
        return height, width


def edge_size(size: Size, shortest: int, longest: int) -> Size:
    """Scale a size to a short edge of `shortest`, or less if the long edge would exceed `longest`.

    Rounds as the Grounding DINO image processor does; the short edge of a very thin image can become 0.
    """
    short, long = min(size), max(size)
    exact: float = shortest
    if long / short * shortest > longest:
        exact = longest * short / long
    edge = round(exact)
    if short == edge:
        return size
    other = int(exact * long / short)
    return (other, edge) if size[1] < size[0] else (edge, other)


def choose_resize_policy(
    size: Size, shortest: int, longest: int, accepts: Callable[[Size], bool]
) -> ResizePolicy | None:
    """Choose the resize with the least letterboxing whose canvas the model accepts.

    Args:
        size: height and width of the image.
        shortest: short edge of a resized image.
        longest: maximum long edge of a resized image.
        accepts: whether the model accepts images of a size.

    Returns:
        None if not even a square canvas is accepted.
    """
    plain = edge_size(size, shortest, longest)
    if accepts(plain):
        return ResizePolicy(size, plain, plain)
    short, long = min(size), max(size)
    for ratio in _ASPECT_RATIOS:
        padded = max(round(long / ratio), short)
        if padded == short:
            continue
        tall = size[0] > size[1]
        canvas = edge_size((long, padded) if tall else (padded, long), shortest, longest)
        if accepts(canvas):
            thin = max(1, round(short * max(canvas) / long))
            return ResizePolicy(size, (canvas[0], thin) if tall else (thin, canvas[1]), canvas)
    return None


def resize(image: ImageArray, size: Size, filter_: Image.Resampling, device: torch.device) -> torch.Tensor:
    """Resize an image to the same bytes as the model's image processor: uint8 `[h, w, 3]` on the device.

    The bilinear filter, which all released checkpoints use, runs on the device; any other is done by Pillow on the CPU.
    """
    if filter_ is Image.Resampling.BILINEAR:
        return resize_bilinear(image, size, device)
    resized = Image.fromarray(image).resize((size[1], size[0]), resample=filter_)
    return torch.from_numpy(np.array(resized)).to(device)
