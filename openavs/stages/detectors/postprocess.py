"""Shared steps of the detectors: input checks, batching, and conversion of scored boxes to detections."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from openavs.errors import InputError, InvalidOutputError
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
