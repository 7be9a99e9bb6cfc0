"""Files that a session can download: overlay video, captions, masks, result JSON and COCO."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.media import write_overlay
from openavs.results.result import Result
from openavs.results.serialization import Values, json_bytes, mask_values, palette_png, result_to_json
from openavs.structures.masks import segments_to_label_map
from openavs.structures.types import Clip, ClipResult, Segment
from openavs.utils.fs import atomic_write
from openavs.visualization.colors import palette_of
from openavs.visualization.overlay import OverlayPainter

MAX_SIDE = 960  # pixels of the overlay video

DOWNLOADS = {
    "masks.zip": "Masks (PNG, zip)",
    "result.json": "Result (JSON)",
    "coco.json": "COCO (JSON)",
    "overlay.mp4": "Overlay video (MP4)",
}
CAPTIONS = "captions.vtt"


@dataclass(frozen=True)
class Instance:
    """A choice of the page: all segments of one shown name, which can be hidden.

    Attributes:
        frames: number of frames with the object.
        best: highest score.
    """

    name: str
    frames: int
    best: float


def list_instances(result: ClipResult) -> list[Instance]:
    """The objects of a result, those with the most frames first."""
    palette = palette_of(result.frames)
    scores: dict[str, dict[int, float]] = defaultdict(dict)
    for frame in result.frames:
        for segment in frame.segments:
            by_frame = scores[palette.name(segment)]
            by_frame[frame.index] = max(segment.score, by_frame.get(frame.index, segment.score))
    instances = [Instance(name, len(own), max(own.values())) for name, own in scores.items()]
    return sorted(instances, key=lambda instance: -instance.frames)


def instance_name(segment: Segment) -> str:
    """`dog`, or with a tracker `dog #2`."""
    return segment.phrase if segment.track is None else f"{segment.phrase} #{segment.track}"


def filter_instances(result: ClipResult, names: Collection[str]) -> ClipResult:
    """The result with the segments of the named objects only."""
    palette = palette_of(result.frames)
    frames = tuple(
        replace(frame, segments=tuple(segment for segment in frame.segments if palette.name(segment) in names))
        for frame in result.frames
    )
    return replace(result, frames=frames)


def write_overlay_video(
    folder: Path, result: Result, names: Collection[str] | None = None, reopen: Callable[[], Clip] | None = None
) -> Path:
    """Write the video with the masks of the named objects, or of all (None), once for each selection.

    `reopen` opens the clip with its audio, if the clip of the result has none.
    """
    known = [instance.name for instance in list_instances(result)]
    selection = "".join("1" if names is None or name in names else "0" for name in known)
    path = folder / ("overlay.mp4" if "0" not in selection else f"overlay-{int(selection, 2):x}.mp4")
    if not path.is_file():
        shown = result if names is None else filter_instances(result, names)
        clip = reopen() if reopen else result.video
        write_overlay(path, clip, OverlayPainter(shown, palette_of(result.frames), clip), size_limit=MAX_SIDE)
    return path


def write_files(folder: Path, result: Result) -> None:
    """Write all other files, each atomically."""
    public = strip_local_paths(result)
    atomic_write(folder / "result.json", json_bytes(result_to_json(public)))
    atomic_write(folder / CAPTIONS, captions_vtt(result).encode("utf-8", "replace"))
    _write_masks(folder / "masks.zip", result)
    Result.of(public).export("coco", folder / "coco.json", overwrite=True)


def strip_local_paths(result: ClipResult) -> ClipResult:
    """Copy of a result without the folders of its models."""
    models = {
        name: {key: value for key, value in facts.items() if key != "path"} if isinstance(facts, dict) else facts
        for name, facts in result.models.items()
    }
    return Result.of(replace(result, models=models))


def _write_masks(path: Path, result: ClipResult) -> None:
    """Write `masks/00000.png` (palette, 0 is background) and `masks.json`, the meaning of their values, as a zip.

    Values are classes if the vocabulary is closed, else instances, as in `openavs segment`.
    """
    classes: Sequence[str] = result.recipe.get("vocabulary") or ()
    values: Values = "class" if classes else "instance"
    rows = []
    partial = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for frame, numbers in zip(result.frames, mask_values(result, values, classes), strict=True):
            name = f"masks/{frame.index:05d}.png"
            archive.writestr(name, palette_png(segments_to_label_map(frame.segments, numbers, result.size)))
            legend = {str(n): instance_name(s) for n, s in zip(numbers, frame.segments, strict=True) if n}
            rows.append({"file": name, "time": frame.time, "values": legend})
        archive.writestr(
            "masks.json", json.dumps({"values": values, "classes": list(classes), "frames": rows}, indent=1)
        )
    partial.replace(path)


def captions_vtt(result: ClipResult) -> str:
    """The audio captions as WebVTT, such as `[dog barking]`, for deaf viewers."""
    cues: dict[tuple[float, float], list[str]] = defaultdict(list)
    for caption in (caption for frame in result.frames for caption in frame.captions):
        text = " ".join(caption.text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if caption.end > caption.start and f"[{text}]" not in cues[caption.start, caption.end]:
            cues[caption.start, caption.end].append(f"[{text}]")
    blocks = [
        "\n".join([f"{_timestamp(start)} --> {_timestamp(end)}", *texts, ""])
        for (start, end), texts in sorted(cues.items())
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _timestamp(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"
