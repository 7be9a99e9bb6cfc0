"""What segmenters of boxes have in common: inputs are checked, and each box gets the mask that is trusted most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from openavs.errors import InputError, InvalidOutputError
from openavs.structures.types import BoolMask, Box, ImageArray, Mask, mask_to_rle

BOXES_AT_ONCE = 64  # through a decoder, which works on 30 to 40 MB a box at full size


def check_lists(images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]], who: str) -> None:
    """Refuses lists of unequal length; `who` is the backend's short name, for the sentences of errors."""
    if len(images) != len(boxes):
        raise InputError(f"{who}: {len(images)} images but boxes for {len(boxes)}; give one list of boxes an image")


def check_image(image: ImageArray, who: str) -> None:
    """Refuses what is no picture, or has no pixels."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"{who}: an image is uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")


def box_corners(boxes: Sequence[Box], who: str) -> npt.NDArray[np.float64]:
    """The corners of boxes, `[boxes, 2, 2]`; NaN and infinities are refused."""
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
    if not np.isfinite(array).all():
        raise InputError(f"{who}: a box has coordinates that are not finite; look at the detector that made it")
    return array


def select_best_mask(
    logits: torch.Tensor, scores: torch.Tensor, model: str, position: int
) -> tuple[torch.Tensor, list[float]]:
    """Of the answers to each box the one with the best score: its logits `[boxes, h, w]`, and that score in [0, 1].

    Args:
        logits: `[boxes, answers, h, w]`.
        scores: the model's own estimates of their IoU, `[boxes, answers]`.
        model, position: which model, and which image of the batch, for the sentence of the error.

    Raises:
        UnusableAnswer: one of them is not finite.
    """
    best = scores.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    finite = torch.isfinite(logits).all() & torch.isfinite(scores).all()
    whole, *kept = torch.cat([finite[None].to(scores), scores[rows, best].clamp(0.0, 1.0)]).tolist()  # one transfer
    if not whole:
        raise InvalidOutputError(
            f"the {model} gave mask logits that are not finite for image {position} of the batch; try dtype float32, "
            "or another copy of the model"
        )
    return logits[rows, best], kept


def decode_boxes(
    model: Any,
    encoding: Any,
    boxes: torch.Tensor,
    enlarge: Callable[[torch.Tensor], Iterable[BoolMask]],
    *,
    multimask: bool,
    name: str,
    position: int,
) -> Iterator[Mask]:
    """The masks of boxes `[1, boxes, 4]` of one encoded image, by a SAM or SAM 2 of transformers.

    `enlarge` makes masks of the image's size of low-resolution logits `[boxes, h, w]`; `name` and `position` are those
    of `most_trusted`'s `model` and image.
    """
    for start in range(0, boxes.shape[1], BOXES_AT_ONCE):
        part = boxes[:, start : start + BOXES_AT_ONCE]
        answer = model(image_embeddings=encoding, input_boxes=part, multimask_output=multimask)
        logits, scores = select_best_mask(answer.pred_masks[0], answer.iou_scores[0], name, position)
        for mask, score in zip(enlarge(logits), scores, strict=True):
            yield Mask(mask_to_rle(mask), score)
