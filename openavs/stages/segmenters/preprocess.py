"""Image processing of the SAM family: resizing, normalization, boxes and masks.

SAM 2 and SAM 3 resize an image to a square, whatever its shape. The library's own processors of these models need
torchvision; this module does the same: a bilinear resize with antialiasing, then a mean and a deviation per channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from openavs.errors import ModelError
from openavs.models.hub import ResolvedModel
from openavs.models.ops.image import normalization_table, normalize_bytes, resize_bilinear
from openavs.stages.segmenters.box_prompts import box_corners, check_image, masks_per_chunk
from openavs.structures.types import BoolMask, Box, ImageArray

_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_SECTIONS = ("image_processor", "video_processor")
_BILINEAR = 2


def longest_edge_size(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return height and width after a resize of the longest edge, rounded as SAM does; at least one pixel."""
    scale = longest * 1.0 / max(size)
    return max(int(size[0] * scale + 0.5), 1), max(int(size[1] * scale + 0.5), 1)


class SquareResize:
    """Converts images to the model's square, and masks back.

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
