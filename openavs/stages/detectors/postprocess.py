"""What the detectors share behind the model: batches of like with like, and scored boxes -> candidates, best first."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from openavs.errors import InputError, InvalidOutputError
from openavs.structures.types import Detection, ImageArray

Floats = npt.NDArray[np.float32]


def check_inputs(images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> None:
    """Refuses what no detector can take: lists of unequal length, and images that are not uint8 RGB `[H, W, 3]`."""
    if len(images) != len(phrases):
        raise ValueError(f"{len(images)} images but {len(phrases)} lists of phrases")
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(f"an image is uint8 RGB [H, W, 3] with pixels in it, not {image.dtype} {image.shape}")


def check_options(floor: float, max_candidates: int, batch_size: int | None) -> None:
    """Refuses option values that no detector can work with."""
    if not 0 <= floor <= 1:
        raise InputError(f"the detector's floor is a score between 0 and 1, not {floor}")
    if max_candidates < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(f"max_candidates ({max_candidates}) and batch_size ({batch_size}) of a detector are 1 or more")


def image_batches(keys: Sequence[Hashable], size: int) -> Iterator[list[int]]:
    """Positions in groups of equal keys, at most `size` at a time; groups come in order of their first member."""
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
    """Scored queries of one image as detections, in pixels, clipped to the image.

    Args:
        boxes: `[Q, 4]`, centre x, centre y, width, height as fractions of what the model saw.
        scores: `[Q]`, the score of each query's best phrase; queries below `floor` are left out.
        winners: `[Q]`, the index of that phrase.
        extent: height and width, in pixels of the image, of what the model saw (more than `size` if it was padded).
        size: height and width of the image. Boxes of which nothing lies inside it are left out.
    """
    kept = scores >= floor
    centres, halves = boxes[kept, :2].astype(np.float64), boxes[kept, 2:].astype(np.float64) / 2
    scale, border = np.asarray(extent)[::-1], np.asarray(size)[::-1]
    first = np.clip((centres - halves) * scale, 0, border)
    last = np.clip((centres + halves) * scale, 0, border)
    return [
        Detection((float(a[0]), float(a[1]), float(b[0]), float(b[1])), phrases[winner], float(score))
        for a, b, winner, score in zip(first, last, winners[kept], scores[kept], strict=True)
        if (b > a).all()
    ]


def to_host(
    scores: torch.Tensor, winners: torch.Tensor, boxes: torch.Tensor, model: str
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """Scores and phrases `[B, Q]` and boxes `[B, Q, 4]` of a batch in the memory of the CPU, by one transfer.

    Raises:
        UnusableAnswer: a number is not finite; `model` is the reference to name.
    """
    packed = torch.cat([scores[..., None], winners[..., None].to(scores), boxes], dim=-1).cpu().numpy()
    if not np.isfinite(packed).all():
        raise InvalidOutputError(
            f"{model} answered with numbers that are not finite; use dtype=float32, or another copy of the weights if "
            f"that is what you have"
        )
    return packed[..., 0], packed[..., 1].astype(np.int64), packed[..., 2:]


def best_first(candidates: Sequence[Detection], limit: int) -> list[Detection]:
    """The `limit` best candidates, best first, and each phrase's best one whatever its rank.

    Keeping the latter lets the pipeline say how close a phrase came that many boxes of another outranked.
    """
    ranked = sorted(candidates, key=lambda found: -found.score)
    seen: set[str] = set()
    kept = []
    for rank, found in enumerate(ranked):
        if rank < limit or found.phrase not in seen:
            kept.append(found)
        seen.add(found.phrase)
    return kept
