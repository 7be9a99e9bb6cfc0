"""Finds, names and segments whatever makes the sound in a video: sound -> words -> prompts -> boxes -> masks.

    pipe = openavs.load("openavs")
    result = pipe("video.mp4")
    result.save("out")

The public names below are imported when they are first used, so that `import openavs` costs next to nothing and
does not load torch.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know the name; importing it from typing would be most of what this file costs
__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from openavs.api import VideoPipeline, load
    from openavs.config.recipe import Recipe, load_recipe
    from openavs.errors import InputError, ModelError, OpenAVSError
    from openavs.exports.avsbench import to_label_map
    from openavs.exports.categories import Categories
    from openavs.exports.coco import to_coco
    from openavs.exports.supervision import to_supervision
    from openavs.exports.timeline import to_events, to_timeline
    from openavs.exports.yolo import to_yolo_seg
    from openavs.exports.youtube_vis import to_youtube_vis
    from openavs.media import open_clip, probe, read_audio
    from openavs.pipeline.pipeline import Pipeline
    from openavs.registry import Registry
    from openavs.results.result import Result, read_result
    from openavs.results.serialization import segmentation_from_json, segmentation_to_json, write_result
    from openavs.structures.types import (
        RLE,
        AudioWindow,
        Caption,
        Clip,
        ClipResult,
        Detection,
        Frame,
        FrameResult,
        Mask,
        Prompt,
        Rejection,
        Segment,
        Waveform,
        mask_to_rle,
        rle_to_mask,
        segments_to_label_map,
        segments_to_mask,
    )

_HOMES = {
    "openavs.api": ("VideoPipeline", "load"),
    "openavs.errors": ("InputError", "ModelError", "OpenAVSError"),
    "openavs.exports.avsbench": ("to_label_map",),
    "openavs.exports.categories": ("Categories",),
    "openavs.exports.coco": ("to_coco",),
    "openavs.exports.supervision": ("to_supervision",),
    "openavs.exports.timeline": ("to_events", "to_timeline"),
    "openavs.exports.yolo": ("to_yolo_seg",),
    "openavs.exports.youtube_vis": ("to_youtube_vis",),
    "openavs.media": ("open_clip", "probe", "read_audio"),
    "openavs.pipeline.pipeline": ("Pipeline",),
    "openavs.config.recipe": ("Recipe", "load_recipe"),
    "openavs.registry": ("Registry",),
    "openavs.results.result": ("Result", "read_result"),
    "openavs.results.serialization": ("segmentation_from_json", "segmentation_to_json", "write_result"),
    "openavs.structures.types": (
        "RLE",
        "Caption",
        "Clip",
        "Detection",
        "Rejection",
        "Frame",
        "FrameResult",
        "Mask",
        "Prompt",
        "Segment",
        "ClipResult",
        "Waveform",
        "AudioWindow",
        "mask_to_rle",
        "rle_to_mask",
        "segments_to_label_map",
        "segments_to_mask",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "RLE",
    "AudioWindow",
    "Caption",
    "Categories",
    "Clip",
    "ClipResult",
    "Detection",
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
    "Rejection",
    "Result",
    "Segment",
    "VideoPipeline",
    "Waveform",
    "__version__",
    "load",
    "load_recipe",
    "mask_to_rle",
    "open_clip",
    "probe",
    "read_audio",
    "read_result",
    "rle_to_mask",
    "segmentation_from_json",
    "segmentation_to_json",
    "segments_to_label_map",
    "segments_to_mask",
    "to_coco",
    "to_events",
    "to_label_map",
    "to_supervision",
    "to_timeline",
    "to_yolo_seg",
    "to_youtube_vis",
    "write_result",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and that there are no other names

    def __getattr__(name):
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'openavs' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(home), name)
        globals()[name] = value  # the next access is an ordinary attribute
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
