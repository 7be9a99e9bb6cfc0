"""Box prompts: input checks, mask selection, and the base class of the SAM and SAM 2 adapters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import torch

from openavs.errors import InputError, InvalidOutputError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import ResolvedModel, load_pretrained, resolve
from openavs.models.ops.sam import prepare_encoder
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, Box, ImageArray, Mask

MAX_BOXES = 64  # per call of a mask decoder, which needs 30 to 40 MB per box at full size
MAX_UPSCALED_PIXELS = 1 << 26  # of float32 masks that are upscaled together: 256 MB, or one mask


class ImageTransform(Protocol):
    """Pre- and post-processing of a model: images and boxes to its input size, masks back to the image."""

    def prepare(self, image: ImageArray) -> torch.Tensor:
        """Convert uint8 `[H, W, 3]` to float32 `[3, h, w]` on the device."""
        ...

    def scale_boxes(self, boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
        """Convert boxes of an image of `size` (height, width) to `[1, boxes, 4]` in pixels of the model's input."""
        ...

    def enlarge(self, masks: torch.Tensor, size: tuple[int, int]) -> Iterator[BoolMask]:
        """Convert mask logits `[boxes, h, w]` to boolean masks `[H, W]` on the CPU, a bounded number at a time."""
        ...


class BoxPromptSegmenter(ABC):
    """Base class of SAM and SAM 2 (transformers): encodes each image once, then decodes its boxes.

    Only the image encoder computes in the requested dtype: in bfloat16 the prompt encoder would round box corners to
    several pixels.

    Args:
        model: reference of a checkpoint.
        batch_size: images per call of the encoder; None: 8 on a GPU, 1 on a CPU.
        multimask: decode three masks per box and keep the one with the highest score, instead of the single mask
            (which suits boxes, the less ambiguous prompt).
        device, dtype, offline: as everywhere; dtype applies to the image encoder.

    Raises:
        InputError: an option is out of range.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    name: ClassVar[str]  # of the backend
    title: ClassVar[str]  # of the model, for errors and the log
    model_class: ClassVar[Any]

    def __init__(
        self,
        *,
        model: str,
        batch_size: int | None = None,
        multimask: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"{self.name}: batch_size must be at least 1, not {batch_size}")
        placement = resolve_device(device, dtype)
        self.multimask, self.device = multimask, placement.device
        self.batch_size = frames_per_batch(batch_size, self.device)
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.model: Any = load_pretrained(self.model_class, resolved, torch.float32, self.device)
        self.pixels = self._image_transform(resolved)
        encoder = self.model.vision_encoder
        self.dtype = resolve_matmul_dtype(placement, dtype, encoder.num_parameters(), f"{self.title}'s image encoder")
        body = getattr(encoder, "backbone", encoder)  # SAM 2's neck stays in float32
        self._input_dtype = prepare_encoder(encoder, body, self.dtype, self.device)

    @torch.inference_mode()
    def segment(self, images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]]) -> list[list[Mask]]:
        """Return one mask per box, in the order of the boxes and the size of the image.

        A mask's score is the model's own estimate of its IoU, clamped to [0, 1]. Images without boxes are not encoded.

        Raises:
            InputError: an image or box is malformed.
            InvalidOutputError: the model's output is not finite.
        """
        check_lists(images, boxes, self.name)
        masks: list[list[Mask]] = [[] for _ in images]
        groups: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            if len(boxes[i]):
                groups.setdefault(self._batch_key(image), []).append(i)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                for i, encoding in zip(batch, self._encode([images[i] for i in batch]), strict=True):
                    size = (int(images[i].shape[0]), int(images[i].shape[1]))
                    masks[i] = list(self.decode(encoding, boxes[i], size, i))
        return masks

    @torch.inference_mode()
    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, int], position: int = 0) -> Iterator[Mask]:
        """Decode the masks of boxes of one encoded image of `size` (height, width); `position` is for errors."""
        scaled = self.pixels.scale_boxes(boxes, size)
        for start in range(0, scaled.shape[1], MAX_BOXES):
            part = scaled[:, start : start + MAX_BOXES]
            output = self.model(image_embeddings=encoding, input_boxes=part, multimask_output=self.multimask)
            logits, scores = select_best_mask(
                output.pred_masks[0], output.iou_scores[0], f"{self.title} model '{self._ref}'", position
            )
            for mask, score in zip(self.pixels.enlarge(logits, size), scores, strict=True):
                yield Mask(mask_to_rle(mask), score)

    @abstractmethod
    def _image_transform(self, resolved: ResolvedModel) -> ImageTransform:
        """Return the pre- and post-processing of the model, which is loaded."""

    @abstractmethod
    def _batch_key(self, image: ImageArray) -> Any:
        """Return a key that is equal for images that may share a batch."""

    @abstractmethod
    def _encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """Return the encoding of each image, in float32, from one call of the encoder."""


def check_lists(images: Sequence[ImageArray], boxes: Sequence[Sequence[Box]], name: str) -> None:
    """Raise InputError for lists of unequal length; `name` is the backend's, for errors."""
    if len(images) != len(boxes):
        raise InputError(f"{name}: {len(images)} images but boxes for {len(boxes)}; give one list of boxes per image")


def check_image(image: ImageArray, name: str) -> None:
    """Raise InputError unless an image is uint8 `[H, W, 3]` with pixels."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"{name}: an image must be uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")


def box_corners(boxes: Sequence[Box], name: str) -> npt.NDArray[np.float64]:
    """Return the corners of boxes, `[boxes, 2, 2]`; raises InputError for NaN and infinity."""
    array = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
    if not np.isfinite(array).all():
        raise InputError(f"{name}: a box has coordinates that are not finite; check the detector")
    return array


def masks_per_chunk(*sizes: tuple[int, int]) -> int:
    """Return how many masks may be upscaled together through these sizes, so that memory does not grow with them."""
    return max(MAX_UPSCALED_PIXELS // max(height * width for height, width in sizes), 1)


def select_best_mask(
    logits: torch.Tensor, scores: torch.Tensor, model: str, position: int
) -> tuple[torch.Tensor, list[float]]:
    """Select each box's mask with the highest score.

    Args:
        logits: mask logits, `[boxes, masks, h, w]`.
        scores: the model's estimates of their IoU, `[boxes, masks]`.
        model: the model's name, for errors.
        position: the image's position in the batch, for errors.

    Returns:
        Mask logits `[boxes, h, w]` and scores clamped to [0, 1].

    Raises:
        InvalidOutputError: a number is not finite.
    """
    best = scores.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    finite = torch.isfinite(logits).all() & torch.isfinite(scores).all()
    # One transfer from the device, for the check and the scores.
    is_finite, *kept = torch.cat([finite[None].to(scores), scores[rows, best].clamp(0.0, 1.0)]).tolist()
    if not is_finite:
        raise InvalidOutputError(
            f"the {model} returned mask logits that are not finite for image {position} of the batch; try "
            "dtype=float32, or another copy of the model"
        )
    return logits[rows, best], kept
