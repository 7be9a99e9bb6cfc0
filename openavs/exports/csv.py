"""CSV export: `timeline.csv` has a row per frame, `events.csv` a row per sound, caption, prompt, segment or rejection.

Captions come from models and files. A text that a spreadsheet would read as a formula (it begins with = + - @, perhaps
after spaces) gets an apostrophe in front, and control characters are escaped.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from openavs.exports.base import ExportItem
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.structures.types import Box, ClipResult, FrameResult, Verdict
from openavs.utils.text import printable

Cell = str | int | float | bool | None
Row = Mapping[str, Cell]

FRAME_COLUMNS = (
    *("clip", "frame", "time", "silent", "captions", "caption_scores", "prompts"),
    *("found", "found_scores", "tracks", "rejected", "reasons", "covered"),
)
EVENT_COLUMNS = (
    *("clip", "frame", "time", "event", "text", "score", "label", "track", "reason"),
    *("start", "end", "x0", "y0", "x1", "y1", "area", "verifier", "decision", "margin"),
)
_SEPARATOR = " | "


def to_timeline(result: ClipResult) -> Iterator[dict[str, Cell]]:
    """Yield a row per frame: times in seconds, texts and scores, separated by ` | ` within a cell.

    `covered` is the largest share of the frame that one segment covers.
    """
    pixels = max(1, result.size[0] * result.size[1])
    for frame in result.frames:
        yield {
            "clip": result.clip,
            "frame": frame.index,
            "time": frame.time,
            "silent": frame.silent,
            "captions": _cell(c.text for c in frame.captions),
            "caption_scores": _cell(_number(c.score) for c in frame.captions),
            "prompts": _cell(p.phrase for p in frame.prompts),
            "found": _cell(s.label or s.phrase for s in frame.segments),
            "found_scores": _cell(_number(s.score) for s in frame.segments),
            "tracks": _cell("" if s.track is None else str(s.track) for s in frame.segments),
            "rejected": _cell(d.phrase for d in frame.rejected),
            "reasons": _cell(d.reason for d in frame.rejected),
            "covered": round(max((s.mask.area for s in frame.segments), default=0) / pixels, 6),
        }


def to_events(result: ClipResult) -> Iterator[dict[str, Cell]]:
    """Yield a row per event: each `sound` of the clip, then the events of each frame.

    Those of a frame are `silent`, `caption`, `weak`, `prompt`, `segment` and `rejection`; a `sound` has no frame.
    Columns that do not apply are left out. Times are in seconds, boxes and areas in pixels.
    Several verdicts share their three cells, separated by ` | `.
    """
    for sound in result.events:
        span: dict[str, Cell] = {"start": sound.onset, "end": sound.offset}
        yield {"clip": result.clip, "event": "sound", "text": sound.phrase, "score": sound.score, **span}
    for frame in result.frames:
        where: dict[str, Cell] = {"clip": result.clip, "frame": frame.index, "time": frame.time}
        yield from (where | event for event in _events(frame))


def _events(frame: FrameResult) -> Iterator[dict[str, Cell]]:
    if frame.silent:
        yield {"event": "silent"}
    for event, captions in (("caption", frame.captions), ("weak", frame.weak)):
        for caption in captions:
            span: dict[str, Cell] = {"start": caption.start, "end": caption.end}
            yield {"event": event, "text": caption.text, "score": caption.score, **span}
    for prompt in frame.prompts:
        yield {"event": "prompt", "text": prompt.phrase, "label": prompt.label, "reason": prompt.origin}
    for segment in frame.segments:
        found: dict[str, Cell] = {"event": "segment", "text": segment.phrase, "score": segment.score}
        found |= {"label": segment.label, "track": segment.track, "area": segment.mask.area}
        yield found | _box(segment.box) | _verdicts(segment.verdicts)
    for rejection in frame.rejected:
        why: dict[str, Cell] = {"event": "rejection", "text": rejection.phrase, "reason": rejection.reason}
        why |= {"score": rejection.score, "margin": rejection.margin, "verifier": rejection.verifier}
        yield why | _box(rejection.box)


def _box(box: Box | None) -> dict[str, Cell]:
    return dict(zip(("x0", "y0", "x1", "y1"), box or (None,) * 4, strict=True))


def _verdicts(verdicts: Sequence[Verdict]) -> dict[str, Cell]:
    if len(verdicts) == 1:
        return {"verifier": verdicts[0].verifier, "decision": verdicts[0].decision, "margin": verdicts[0].margin}
    names, decisions = (v.verifier for v in verdicts), (v.decision for v in verdicts)
    margins = (_number(v.margin) for v in verdicts)
    return {"verifier": _cell(names), "decision": _cell(decisions), "margin": _cell(margins)} if verdicts else {}


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write `timeline.csv` and `events.csv` of all clips."""
    summary = ExportSummary()
    with ExitStack() as files:
        frames = _table(folder / "timeline.csv", FRAME_COLUMNS, files)
        events = _table(folder / "events.csv", EVENT_COLUMNS, files)
        for item in items:
            summary.clips += 1
            summary.frames += len(item.result.frames)
            summary.segments += sum(len(frame.segments) for frame in item.result.frames)
            frames.writerows(map(_safe, to_timeline(item.result)))
            events.writerows(map(_safe, to_events(item.result)))
    return summary


def _table(path: Path, columns: tuple[str, ...], files: ExitStack) -> csv.DictWriter[str]:
    writer = csv.DictWriter(files.enter_context(path.open("w", newline="", encoding="utf-8")), columns)
    writer.writeheader()
    return writer


def _safe(row: Row) -> Row:
    return {key: _safe_text(value) if isinstance(value, str) else value for key, value in row.items()}


def _safe_text(text: str) -> str:
    guard = "'" if text.lstrip()[:1] in {*"=+-@"} else ""
    return guard + printable(text)


def _cell(texts: Iterable[str]) -> str:
    return _SEPARATOR.join(texts)


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"
