"""The SAM family: image processing, box prompts, mask selection, and the base class of its adapters of boxes."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.models.device import frames_per_batch, resolve_device, resolve_matmul_dtype
from openavs.models.hub import ResolvedModel, load_pretrained, resolve
from openavs.models.ops.image import normalization_table, normalize_bytes, resize_bilinear
from openavs.models.ops.sam import optimize_decoder, prepare_encoder
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask
from openavs.structures.types import BoolMask, Box, ImageArray, Mask
from openavs.utils.optional_deps import import_timm

_MASK_LOGIT = 10.0  # of a mask's pixels as a prompt: certain
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
    """Base class of SAM, SAM-HQ, SAM 2 and EdgeTAM (transformers): encodes each image once, then decodes its boxes.

    Only the image encoder computes in the requested dtype, and on a CPU the projections of its cells in the decoder: in
    bfloat16 the prompt encoder would round box corners to several pixels.

    Args:
        model: reference of a checkpoint.
        batch_size: images per call of the encoder; None: 8 on a GPU, 1 on a CPU.
        multimask: decode three masks per box and keep the one with the highest score, instead of the single mask
            (which suits boxes, the less ambiguous prompt).
        quantize: `int8` multiplies in 8 bits in the image encoder on a CPU; no effect on a GPU.
        device, dtype, offline: as everywhere; dtype applies to the image encoder.

    Raises:
        InputError: an option is out of range, or timm is needed and missing.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    name: ClassVar[str]  # of the backend
    title: ClassVar[str]  # of the model, for errors and the log
    model_class: ClassVar[Any]
    needs_timm: ClassVar[bool] = False

    def __init__(
        self,
        *,
        model: str,
        batch_size: int | None = None,
        multimask: bool = False,
        quantize: Literal["int8"] | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"{self.name}: batch_size must be at least 1, not {batch_size}")
        if self.needs_timm:
            import_timm()
        placement = resolve_device(device, dtype)
        self.multimask, self.device = multimask, placement.device
        self.batch_size = frames_per_batch(batch_size, self.device)
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self._ref = model
        self.model: Any = load_pretrained(self.model_class, resolved, torch.float32, self.device)
        self.pixels = self._image_transform(resolved)
        encoder = self.model.vision_encoder
        self.dtype = resolve_matmul_dtype(
            placement, dtype, encoder.num_parameters(), f"{self.title}'s image encoder", quantize
        )
        body = getattr(encoder, "backbone", encoder)  # SAM 2's neck stays in float32
        self._input_dtype = prepare_encoder(encoder, body, self.dtype, self.device)
        if self.device.type == "cpu":
            optimize_decoder(self.model.mask_decoder, self.dtype)
        self.kept = KeptEncodings()

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
                for i, encoding in zip(batch, self.kept.encode(self._encode, [images[i] for i in batch]), strict=True):
                    size = (int(images[i].shape[0]), int(images[i].shape[1]))
                    masks[i] = list(self.decode(encoding, boxes[i], size, i))
        return masks

    @torch.inference_mode()
    def decode(self, encoding: Any, boxes: Sequence[Box], size: tuple[int, int], position: int = 0) -> Iterator[Mask]:
        """Decode the masks of boxes of one encoded image of `size` (height, width); `position` is for errors."""
        scaled = self.pixels.scale_boxes(boxes, size)
        for start in range(0, scaled.shape[1], MAX_BOXES):
            part = scaled[:, start : start + MAX_BOXES]
            inputs = self._decoder_inputs(encoding)
            output = self.model(**inputs, input_boxes=part, multimask_output=self.multimask)
            logits, scores = select_best_mask(
                output.pred_masks[0], output.iou_scores[0], f"{self.title} model '{self._ref}'", position
            )
            for mask, score in zip(self.pixels.enlarge(logits, size), scores, strict=True):
                yield Mask(mask_to_rle(mask), score)

    @torch.inference_mode()
    def segment_points(
        self,
        image: ImageArray,
        points: Sequence[tuple[float, float]],
        labels: Sequence[bool],
        box: Box | None = None,
        mask: RLE | None = None,
    ) -> list[Mask]:
        """Return masks of the object that points mark: the single mask, then the best of an ambiguous prompt.

        Args:
            image: the image.
            points: `(x, y)` in pixels of the image.
            labels: True for a point that belongs to the object, False for one that does not.
            box: the object's box.
            mask: the mask before.

        Raises:
            InputError: no points, or not one label for each.
            InvalidOutputError: the model's output is not finite.
        """
        if not points or len(points) != len(labels):
            raise InputError(f"{self.name}: {len(points)} points and {len(labels)} labels; give a label for each point")
        size = (int(image.shape[0]), int(image.shape[1]))
        [encoding] = self.kept.encode(self._encode, [image])
        prompts: dict[str, torch.Tensor] = {
            "input_points": self.pixels.scale_boxes([(x, y, x, y) for x, y in points], size)[None, :, :, :2],
            "input_labels": torch.tensor([[list(map(int, labels))]], device=self.device),
        }
        if box is not None:
            prompts["input_boxes"] = self.pixels.scale_boxes([box], size)
        if mask is not None:
            prompts["input_masks"] = self._mask_prompt(rle_to_mask(mask), size)
        found: list[Mask] = []
        for several in (False, True):
            output = self.model(**self._decoder_inputs(encoding), **prompts, multimask_output=several)
            logits, scores = output.pred_masks[0, 0, :, None], output.iou_scores[0, 0, :, None]
            best, kept = select_best_mask(logits, scores, f"{self.title} model '{self._ref}'", 0)
            masks = zip(self.pixels.enlarge(best, size), kept, strict=True)
            found += sorted((Mask(mask_to_rle(own), score) for own, score in masks), key=lambda m: -(m.score or 0.0))
        return found

    def _mask_prompt(self, mask: BoolMask, size: tuple[int, int]) -> torch.Tensor:
        """Return a mask as the logits `[1, 1, h, w]` that the prompt encoder takes: 4 cells per cell of the image."""
        prompts = self.model.prompt_encoder
        rows, columns = (4 * side for side in prompts.image_embedding_size)
        right, bottom = (self.pixels.scale_boxes([(0, 0, size[1], size[0])], size)[0, 0, 2:]).tolist()
        height, width = (
            max(round(end * cells / prompts.input_image_size), 1) for end, cells in ((bottom, rows), (right, columns))
        )
        small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None, None], (height, width))
        logits = torch.full((1, 1, rows, columns), -_MASK_LOGIT)
        logits[..., :height, :width] = (2 * small - 1) * _MASK_LOGIT
        return logits.to(self.device)

    def _decoder_inputs(self, encoding: Any) -> Mapping[str, Any]:
        """Return the model's arguments for an encoded image."""
        return {"image_embeddings": encoding}

    @abstractmethod
    def _image_transform(self, resolved: ResolvedModel) -> ImageTransform:
        """Return the pre- and post-processing of the model, which is loaded."""

    @abstractmethod
    def _batch_key(self, image: ImageArray) -> Any:
        """Return a key that is equal for images that may share a batch."""

    @abstractmethod
    def _encode(self, images: Sequence[ImageArray]) -> list[Any]:
        """Return the encoding of each image, in float32, from one call of the encoder."""


class KeptEncodings:
    """Encodings of the images that came last, for questions about the same clip one after the other.

    Attributes:
        limit: bytes of encodings that are kept. 0: none, since an image rarely comes twice in a job.
    """

    def __init__(self) -> None:
        self.limit = 0
        self._kept: OrderedDict[bytes, Any] = OrderedDict()  # by content, the oldest first

    def encode(
        self, encode: Callable[[Sequence[ImageArray]], list[Any]], images: Sequence[ImageArray]
    ) -> Sequence[Any]:
        """Return the encodings of images; `encode` makes those that are not kept."""
        if not self.limit:
            return encode(images)
        keys = [hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).digest() for image in images]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in found}
        made = encode(list(new.values())) if new else []
        found |= dict(zip(new, made, strict=True))
        for key in keys:
            self._kept[key] = found[key]
            self._kept.move_to_end(key)
        while self._kept and sum(map(_bytes_of, self._kept.values())) > self.limit:
            self._kept.popitem(last=False)
        return [found[key] for key in keys]


def _bytes_of(encoding: Iterable[torch.Tensor]) -> int:
    parts = [encoding] if isinstance(encoding, torch.Tensor) else encoding
    return sum(part.nelement() * part.element_size() for part in parts)


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


_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_SECTIONS = ("image_processor", "video_processor")
_BILINEAR = 2


def longest_edge_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return height and width after a resize of the longest edge, rounded as SAM does; at least one pixel."""
    scale = longest * 1.0 / max(size)
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


class SquareResize:
    """Converts images to the square of SAM 2 and SAM 3, whatever their shape, and masks back.

    The library's own processors of these models need torchvision; this does the same: a bilinear resize with
    antialiasing, then a mean and a deviation per channel.

    Args:
        resolved: the model's folder, with a preprocessor file that gives size, mean and deviation.
        expected: edge of the model's input in pixels.
        device: where images are processed.
        name: the backend's short name, for errors.

    Raises:
        ModelError: the preprocessor file is missing, damaged or does not fit the model.
    """

    def __init__(self, resolved: ResolvedModel, expected: int, device: torch.device, name: str) -> None:
        settings = _read_settings(resolved)
        self.device, self.size, self._name = device, expected, name
        size = (settings["size"].get("height"), settings["size"].get("width"))
        if size != (expected, expected):
            raise ModelError(
                f"the model '{resolved.ref}' takes images of {expected} pixels but its preprocessor makes {size}; "
                "use the preprocessor_config.json that was saved with it"
            )
        if settings.get("resample", _BILINEAR) != _BILINEAR:
            raise ModelError(
                f"the preprocessor of '{resolved.ref}' does not resize bilinearly; use the preprocessor_config.json "
                "that was saved with the model"
            )
        self.values = _normalization_table(settings).to(device)

    def prepare(self, image: ImageArray) -> torch.Tensor:
        """Convert uint8 `[H, W, 3]` to float32 `[3, size, size]` on the device."""
        check_image(image, self._name)
        return normalize_bytes(self.values, resize_bilinear(image, (self.size, self.size), self.device))

    def scale_boxes(self, boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
        """Convert boxes of the image to float32 `[1, boxes, 4]` in pixels of the square."""
        scaled = box_corners(boxes, self._name) * (self.size / np.array([size[1], size[0]], dtype=np.float64))
        return torch.from_numpy(scaled.reshape(1, -1, 4).astype(np.float32)).to(self.device)

    def enlarge(self, masks: torch.Tensor, size: tuple[int, int], threshold: float = 0.0) -> Iterator[BoolMask]:
        """Convert masks `[n, h, w]` to boolean masks `[H, W]` on the CPU, a bounded number at a time."""
        for start in range(0, len(masks), chunk := masks_per_chunk(size)):
            part = interpolate(masks[start : start + chunk, None], size, mode="bilinear", align_corners=False)
            yield from (part[:, 0] > threshold).cpu().numpy()

    def shrink(self, mask: BoolMask) -> torch.Tensor:
        """Convert a mask `[H, W]` of the image to a mask prompt: float32 0 or 1 `[1, 1, size, size]`."""
        dense = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device).float()[None, None]
        edges = (self.size, self.size)
        if dense.shape[-2:] == edges:
            return dense
        return (interpolate(dense, edges, mode="bilinear", align_corners=False, antialias=True) >= 0.5).float()


def _read_settings(resolved: ResolvedModel) -> Mapping[str, Any]:
    """Return the image settings of the folder's preprocessor file; newer folders nest them in the processor's file."""
    for name in _FILES:
        path = resolved.path / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(
                f"the {name} of the model '{resolved.ref}' is damaged; copy or download it again"
            ) from error
        for settings in (*(found.get(section) for section in _SECTIONS), found):
            if isinstance(settings, dict) and isinstance(settings.get("size"), dict):
                return settings
    raise ModelError(
        f"the model '{resolved.ref}' has no preprocessor file with its image size; use a folder with its "
        "preprocessor_config.json or processor_config.json"
    )


def _normalization_table(settings: Mapping[str, Any]) -> torch.Tensor:
    scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return normalization_table(scale, None, None)
    return normalization_table(scale, settings["image_mean"], settings["image_std"])
