"""The geometry and arithmetic of SAM 2 and SAM 3: a frame is stretched to a square and normalised; masks go back.

The library's own processors of these models need torchvision. What they do is little: a bilinear resize with
antialiasing to `size` x `size` whatever the frame's shape, then a mean and a deviation per channel.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from openavs.errors import ModelError
from openavs.models.hub import ResolvedModel
from openavs.models.ops.normalize import normalization_table, normalize_bytes
from openavs.models.ops.resize import resize_bilinear
from openavs.stages.segmenters.box_prompts import box_corners, check_image
from openavs.structures.types import Box, ImageArray

_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
_SECTIONS = ("image_processor", "video_processor")
_PIXELS_AT_ONCE = 1 << 26  # float32 pixels of enlarged masks held together: 256 MB, or one mask
_BILINEAR = 2


class SquareResize:
    """Frames into the model's square and masks out of it.

    Args:
        resolved: the model's folder, whose preprocessor file says size, mean and deviation.
        expected: pixels of an edge that the model takes.
        who: the backend's short name, for the sentences of errors.
    """

    def __init__(self, resolved: ResolvedModel, expected: int, device: torch.device, who: str) -> None:
        settings = _settings(resolved)
        self.device, self.size, self._who = device, expected, who
        made = (settings["size"].get("height"), settings["size"].get("width"))
        if made != (expected, expected):
            raise ModelError(
                f"the model '{resolved.ref}' takes images of {expected} pixels but its preprocessor makes {made}; "
                "use the preprocessor_config.json that was saved with it"
            )
        if settings.get("resample", _BILINEAR) != _BILINEAR:
            raise ModelError(
                f"the preprocessor of '{resolved.ref}' does not resize bilinearly; use the preprocessor_config.json "
                "that was saved with the model"
            )
        self.values = _value_table(settings).to(device)

    def prepare(self, image: ImageArray) -> torch.Tensor:
        """uint8 `[H, W, 3]` -> float32 `[3, size, size]` on the device."""
        check_image(image, self._who)
        return normalize_bytes(self.values, resize_bilinear(image, (self.size, self.size), self.device))

    def scale_boxes(self, boxes: Sequence[Box], size: tuple[int, int]) -> torch.Tensor:
        """Boxes of the original image -> float32 `[1, boxes, 4]` in pixels of the square."""
        scaled = box_corners(boxes, self._who) * (self.size / np.array([size[1], size[0]], dtype=np.float64))
        return torch.from_numpy(scaled.reshape(1, -1, 4).astype(np.float32)).to(self.device)

    def enlarge(
        self, masks: torch.Tensor, size: tuple[int, int], threshold: float = 0.0
    ) -> Iterator[npt.NDArray[np.bool_]]:
        """Low-resolution masks `[n, h, w]` -> booleans `[H, W]` on the host, a bounded number at a time."""
        for start in range(0, len(masks), chunk := max(_PIXELS_AT_ONCE // (size[0] * size[1]), 1)):
            part = interpolate(masks[start : start + chunk, None], size, mode="bilinear", align_corners=False)
            yield from (part[:, 0] > threshold).cpu().numpy()

    def shrink(self, mask: npt.NDArray[np.bool_]) -> torch.Tensor:
        """A mask `[H, W]` of the original image -> float32 0 or 1 `[1, 1, size, size]`, as a mask prompt is given."""
        dense = torch.from_numpy(np.ascontiguousarray(mask)).to(self.device).float()[None, None]
        if dense.shape[-2:] == (self.size, self.size):
            return dense
        edges = (self.size, self.size)
        return (interpolate(dense, edges, mode="bilinear", align_corners=False, antialias=True) >= 0.5).float()


def _settings(resolved: ResolvedModel) -> Mapping[str, Any]:
    """What the folder's preprocessor file says; newer folders keep it inside the processor's file."""
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
        f"the model '{resolved.ref}' has no preprocessor file that says its image size; give a folder with its "
        "preprocessor_config.json or processor_config.json, too"
    )


def _value_table(settings: Mapping[str, Any]) -> torch.Tensor:
    scale = float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 1.0
    if not settings.get("do_normalize", True):
        return normalization_table(scale, None, None)
    return normalization_table(scale, settings["image_mean"], settings["image_std"])
