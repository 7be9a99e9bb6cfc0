"""What a visit can see and take along: the painted video, what was heard as captions, masks, JSON and COCO."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openavs.media import write_overlay
from openavs.results.result import Result
from openavs.results.serialization import Values, json_bytes, mask_values, palette_png, segmentation_to_json
from openavs.structures.types import Clip, ClipResult, Segment, segments_to_label_map
from openavs.utils.fs import atomic_write
from openavs.visualization.colors import palette_of
from openavs.visualization.overlay import OverlayPainter

LONGEST_SIDE = 960  # pixels of the painted video

DOWNLOADS = {
    "masks.zip": "Masks (PNG, zip)",
    "result.json": "Result (JSON)",
    "coco.json": "COCO (JSON)",
    "overlay.mp4": "Painted video (MP4)",
}


@dataclass(frozen=True)
class Instance:
    """One object that can be shown or hidden: a track, or where nothing was tracked all that answers a phrase."""

    name: str
    frames: int
    best: float


def list_instances(result: ClipResult) -> list[Instance]:
    """The objects of a result, those of the most frames first."""
    scores: dict[str, list[float]] = {}
    seen: dict[str, set[int]] = {}
    for frame in result.frames:
        for segment in frame.segments:
            scores.setdefault(name_of(segment), []).append(segment.score)
            seen.setdefault(name_of(segment), set()).add(frame.index)
    found = [Instance(name, len(seen[name]), max(own)) for name, own in scores.items()]
    return sorted(found, key=lambda thing: -thing.frames)


def name_of(segment: Segment) -> str:
    """`dog`, or with a tracker `dog #2`."""
    return segment.phrase if segment.track is None else f"{segment.phrase} #{segment.track}"


def filter_instances(result: ClipResult, shown: Collection[str]) -> ClipResult:
    """The result with the segments of these things alone."""
    frames = tuple(
        replace(frame, segments=tuple(segment for segment in frame.segments if name_of(segment) in shown))
        for frame in result.frames
    )
    return replace(result, frames=frames)


def write_painted(
    folder: Path, result: Result, shown: Collection[str] | None = None, reopen: Callable[[], Clip] | None = None
) -> Path:
    """The video with the masks of some things (None: of all) painted on it; made once for every choice of them.

    `reopen` gives the clip with its sound, where the clip of the result has none.
    """
    known = [thing.name for thing in list_instances(result)]
    wanted = known if shown is None else [name for name in known if name in shown]
    choice = "".join("1" if name in wanted else "0" for name in known)
    name = "overlay.mp4" if "0" not in choice else f"overlay-{int(choice, 2):x}.mp4"
    path = folder / name
    if not path.is_file():
        painter = OverlayPainter(filter_instances(result, wanted), palette_of(result.frames))
        write_overlay(path, reopen() if reopen else result.video, painter, size_limit=LONGEST_SIDE)
    return path


def write_files(folder: Path, result: Result) -> None:
    """Everything else; a file is there whole or not at all."""
    told = strip_local_paths(result)
    atomic_write(folder / "result.json", json_bytes(segmentation_to_json(told)))
    atomic_write(folder / "heard.vtt", captions(result).encode("utf-8", "replace"))
    write_masks(folder / "masks.zip", result)
    Result.of(told).export("coco", folder / "coco.json", overwrite=True)


def strip_local_paths(result: ClipResult) -> ClipResult:
    """The result as it may leave the server: where its models lie there is nobody's business."""
    models = {name: _told(facts) for name, facts in result.models.items()}
    return Result.of(replace(result, models=models))


def _told(facts: Any) -> Any:
    return {key: value for key, value in facts.items() if key != "path"} if isinstance(facts, dict) else facts


def write_masks(path: Path, result: ClipResult) -> None:
    """A zip of `masks/00000.png` (palette pictures, 0 is background) and `masks.json`, which says what a value means.

    Values are classes where the vocabulary is closed, else instances, as `openavs segment` writes them.
    """
    classes: Sequence[str] = result.recipe.get("vocabulary") or ()
    values: Values = "class" if classes else "instance"
    painted = mask_values(result, values, classes)
    rows = []
    making = path.with_name(f".{path.name}.part")
    with zipfile.ZipFile(making, "w", zipfile.ZIP_DEFLATED) as archive:
        for frame, numbers in zip(result.frames, painted, strict=True):
            name = f"masks/{frame.index:05d}.png"
            archive.writestr(name, palette_png(segments_to_label_map(frame.segments, numbers, result.size)))
            named = {str(n): name_of(s) for n, s in zip(numbers, frame.segments, strict=True) if n}
            rows.append({"file": name, "time": frame.time, "values": named})
        archive.writestr(
            "masks.json", json.dumps({"values": values, "classes": list(classes), "frames": rows}, indent=1)
        )
    making.replace(path)


def captions(result: ClipResult) -> str:
    """What was heard as WebVTT, `[dog barking]`, for those who cannot hear the video."""
    spans: dict[tuple[float, float], list[str]] = {}
    for frame in result.frames:
        for caption in frame.captions:
            texts = spans.setdefault((caption.start, caption.end), [])
            if caption.text not in texts:
                texts.append(caption.text)
    cues = [
        f"{_clock(start)} --> {_clock(end)}\n" + "\n".join(f"[{_plain(text)}]" for text in texts) + "\n"
        for (start, end), texts in sorted(spans.items())
        if end > start
    ]
    return "\n".join(["WEBVTT\n", *cues])


def _clock(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}.{milliseconds:03d}"


def _plain(text: str) -> str:
    """A text as WebVTT may hold it: one line, no markup, no arrow."""
    line = " ".join(text.split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
