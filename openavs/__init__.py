"""Finds, names and segments whatever makes the sound in a video: sound -> words -> prompts -> boxes -> masks.

The public names below are imported when they are first used, so that `import openavs` costs next to nothing and
does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from openavs.media import open_clip, probe, read_audio
    from openavs.pipeline import Pipeline
    from openavs.recipes import Recipe, load_recipe
    from openavs.registry import Registry
    from openavs.results import segmentation_from_json, segmentation_to_json, write_result
    from openavs.types import (
        RLE,
        Caption,
        Clip,
        Detection,
        Dropped,
        Frame,
        FrameResult,
        InputError,
        Mask,
        ModelError,
        OpenAVSError,
        Prompt,
        Segment,
        Segmentation,
        Waveform,
        Window,
        mask_to_rle,
        rle_to_mask,
        segments_to_label_map,
        segments_to_mask,
    )

_HOMES = {
    "openavs.media": ("open_clip", "probe", "read_audio"),
    "openavs.pipeline": ("Pipeline",),
    "openavs.recipes": ("Recipe", "load_recipe"),
    "openavs.registry": ("Registry",),
    "openavs.results": ("segmentation_from_json", "segmentation_to_json", "write_result"),
    "openavs.types": (
        "RLE",
        "Caption",
        "Clip",
        "Detection",
        "Dropped",
        "Frame",
        "FrameResult",
        "InputError",
        "Mask",
        "ModelError",
        "OpenAVSError",
        "Prompt",
        "Segment",
        "Segmentation",
        "Waveform",
        "Window",
        "mask_to_rle",
        "rle_to_mask",
        "segments_to_label_map",
        "segments_to_mask",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "RLE",
    "Caption",
    "Clip",
    "Detection",
    "Dropped",
    "Frame",
    "FrameResult",
    "InputError",
    "Mask",
    "ModelError",
    "OpenAVSError",
    "Pipeline",
    "Prompt",
    "Recipe",
    "Registry",
    "Segment",
    "Segmentation",
    "Waveform",
    "Window",
    "__version__",
    "load_recipe",
    "mask_to_rle",
    "open_clip",
    "probe",
    "read_audio",
    "rle_to_mask",
    "segmentation_from_json",
    "segmentation_to_json",
    "segments_to_label_map",
    "segments_to_mask",
    "write_result",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'openavs' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value  # the next access is an ordinary attribute
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
