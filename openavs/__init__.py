"""Open-vocabulary audio-visual segmentation: audio -> captions -> prompts -> boxes -> masks.

    pipe = openavs.load("openavs")
    result = pipe("video.mp4")
    result.save("out")

The public names are imported when they are first used, so that `import openavs` is fast and does not load torch.
Editors complete them from the imports that only type checkers see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from openavs.api import VideoPipeline as VideoPipeline, load as load
    from openavs.config.recipe import Recipe as Recipe, load_recipe as load_recipe
    from openavs.errors import InputError as InputError, ModelError as ModelError, OpenAVSError as OpenAVSError
    from openavs.exports.avsbench import to_label_map as to_label_map
    from openavs.exports.base import Categories as Categories
    from openavs.exports.coco import to_coco as to_coco
    from openavs.exports.csv import to_events as to_events, to_timeline as to_timeline
    from openavs.exports.supervision import to_supervision as to_supervision
    from openavs.exports.yolo import to_yolo_seg as to_yolo_seg
    from openavs.exports.youtube_vis import to_youtube_vis as to_youtube_vis
    from openavs.media.audio import read_audio as read_audio
    from openavs.media.clip import open_clip as open_clip, probe as probe
    from openavs.pipeline.pipeline import Pipeline as Pipeline
    from openavs.registry import Registry as Registry
    from openavs.results.result import Result as Result, read_result as read_result
    from openavs.results.serialization import (
        result_from_json as result_from_json,
        result_to_json as result_to_json,
        write_result as write_result,
    )
    from openavs.structures.masks import (
        RLE as RLE,
        mask_to_rle as mask_to_rle,
        rle_to_mask as rle_to_mask,
        segments_to_label_map as segments_to_label_map,
        segments_to_mask as segments_to_mask,
    )
    from openavs.structures.types import (
        AudioWindow as AudioWindow,
        Caption as Caption,
        Clip as Clip,
        ClipResult as ClipResult,
        Detection as Detection,
        Event as Event,
        Frame as Frame,
        FrameResult as FrameResult,
        Mask as Mask,
        Prompt as Prompt,
        Rejection as Rejection,
        Segment as Segment,
        Verdict as Verdict,
        Waveform as Waveform,
    )

_HOMES = {
    "openavs.api": ("VideoPipeline", "load"),
    "openavs.errors": ("InputError", "ModelError", "OpenAVSError"),
    "openavs.exports.avsbench": ("to_label_map",),
    "openavs.exports.base": ("Categories",),
    "openavs.exports.coco": ("to_coco",),
    "openavs.exports.supervision": ("to_supervision",),
    "openavs.exports.csv": ("to_events", "to_timeline"),
    "openavs.exports.yolo": ("to_yolo_seg",),
    "openavs.exports.youtube_vis": ("to_youtube_vis",),
    "openavs.media.audio": ("read_audio",),
    "openavs.media.clip": ("open_clip", "probe"),
    "openavs.pipeline.pipeline": ("Pipeline",),
    "openavs.config.recipe": ("Recipe", "load_recipe"),
    "openavs.registry": ("Registry",),
    "openavs.results.result": ("Result", "read_result"),
    "openavs.results.serialization": ("result_from_json", "result_to_json", "write_result"),
    "openavs.structures.masks": ("RLE", "mask_to_rle", "rle_to_mask", "segments_to_label_map", "segments_to_mask"),
    "openavs.structures.types": (
        "Caption",
        "Clip",
        "Detection",
        "Event",
        "Rejection",
        "Frame",
        "FrameResult",
        "Mask",
        "Prompt",
        "Segment",
        "ClipResult",
        "Verdict",
        "Waveform",
        "AudioWindow",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME_OF, "__version__"])


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
