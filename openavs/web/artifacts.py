"""Files that a session can download: overlay video, captions, masks, result JSON and COCO."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openavs.media.remux import write_overlay
from openavs.results.result import Result
from openavs.results.serialization import Values, json_bytes, mask_values, palette_png, result_from_json, result_to_json
from openavs.structures.masks import segments_to_label_map
from openavs.structures.types import ClipResult, Segment
from openavs.utils.fs import atomic_write
from openavs.utils.serialization import parse_json
from openavs.visualization.colors import palette_of
from openavs.visualization.overlay import OverlayPainter
from openavs.visualization.player import MotionRecorder

MAX_SIDE = 960  # pixels of the overlay video

DOWNLOADS = {
    "masks.zip": "Masks (PNG, zip)",
    "result.json": "Result (JSON)",
    "coco.json": "COCO (JSON)",
    "overlay.mp4": "Overlay video (MP4)",
}
CAPTIONS = "captions.vtt"
RESULT, OVERLAY = "result.json", "overlay.mp4"
BEFORE = "before.json"  # the result before its last correction


def instance_name(segment: Segment) -> str:
    """`dog`, or with a tracker `dog #2`."""
    return segment.phrase if segment.track is None else f"{segment.phrase} #{segment.track}"


def write_overlay_video(folder: Path, result: Result, record: MotionRecorder | None = None) -> Path:
    """Write the video with all masks; `record` keeps those between the sampled frames."""
    path = folder / OVERLAY
    painter = OverlayPainter(result, palette_of(result.frames), result.video, record)
    write_overlay(path, result.video, painter, size_limit=MAX_SIDE)
    return path


def link_or_copy(source: Path, path: Path) -> None:
    """Link a file, or copy it to another disk or a file system without links; FileNotFoundError if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if not path.exists():
            os.link(source, path)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, path)


def write_files(folder: Path, result: Result) -> None:
    """Write all other files, each atomically."""
    public = strip_local_paths(result)
    atomic_write(folder / RESULT, json_bytes(result_to_json(public)))
    write_captions(folder, result)
    _write_masks(folder / "masks.zip", result)
    Result.of(public).export("coco", folder / "coco.json", overwrite=True)


def read_result_file(path: Path) -> ClipResult:
    """Read a result that `write_files` wrote."""
    return result_from_json(parse_json(path.read_bytes()))


def write_captions(folder: Path, result: ClipResult) -> None:
    """Write the captions of the player."""
    atomic_write(folder / CAPTIONS, captions_vtt(result).encode("utf-8", "replace"))


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
