"""What a report is made of: the plain values that its templates (openavs/assets/report) show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pictures

from openavs.htmlpage import jpeg_address
from openavs.known_models import known_model
from openavs.overlay import paint
from openavs.palettes import DISTINCT, Palette
from openavs.types import Caption, FrameResult, Image, Waveform

LANES = 10
_WIDEST = 480  # pixels
_COLUMNS = 400  # of the waveform


@dataclass(frozen=True)
class Lane:
    """One line under the waveform: a text and the spans `(start, end, score)` in s at which it holds."""

    text: str
    spans: tuple[tuple[float, float, float | None], ...]
    place: int | None = None  # of the colour, None for what was only heard


def picture_parts(image: Image, frame: FrameResult, palette: Palette) -> dict[str, Any]:
    """A painted, small JPEG as a data address, with the words that stand for it."""
    scale = min(1.0, _WIDEST / max(image.shape[:2]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = Pictures.fromarray(image).resize(size, Pictures.Resampling.BILINEAR)
    painted = paint(np.asarray(small), frame.segments, palette, text_scale=1.5)
    return {"frame": frame, "src": jpeg_address(painted), "width": size[0], "height": size[1]}


def found_rows(frames: Sequence[FrameResult], palette: Palette) -> list[dict[str, Any]]:
    """Per phrase: its colour, in how many frames it was found and its best score; most frames first."""
    rows = []
    for phrase in palette.phrases:
        scores = [[s.score for s in frame.segments if s.phrase == phrase] for frame in frames]
        best = max(score for frame in scores for score in frame)
        rows.append({"phrase": phrase, "frames": sum(map(bool, scores)), "best": best})
    return sorted(rows, key=lambda row: -row["frames"])


def timeline_parts(frames: Sequence[FrameResult], audio: Waveform | None, palette: Palette) -> dict[str, Any]:
    """Everything that is drawn against time, on one axis from 0 to `duration` s."""
    times = [frame.time for frame in frames]
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    ends = [caption.end for frame in frames for caption in frame.heard]
    duration = max([audio.duration if audio else 0.0, *ends, *(time + gap / 2 for time in times), 1e-3])
    heard, left_out = _heard_lanes(frames)
    found = [_found_lane(frames, phrase, gap, palette.place(phrase)) for phrase in palette.phrases]
    return {
        "duration": duration,
        "wave": _wave_path(audio, duration) if audio is not None else None,
        "silent": [(max(f.time - gap / 2, 0.0), f.time + gap / 2) for f in frames if f.silent],
        "heard": heard,
        "left_out": left_out,
        "found_lanes": found[:LANES],
        "found_left_out": max(0, len(found) - LANES),
        "ticks": [duration * i / 4 for i in range(5)],
    }


def _heard_lanes(frames: Sequence[FrameResult]) -> tuple[list[Lane], int]:
    """The captions that were heard longest, in order of first hearing, and how many more there were."""
    spans: dict[str, dict[tuple[float, float], Caption]] = {}
    for frame in frames:
        for caption in frame.heard:
            spans.setdefault(caption.text, {}).setdefault((caption.start, caption.end), caption)
    longest = sorted(spans, key=lambda text: -sum(end - start for start, end in spans[text]))[:LANES]
    lanes = [
        Lane(text, tuple((c.start, c.end, c.score) for c in at.values()))
        for text, at in spans.items()
        if text in longest
    ]
    return lanes, len(spans) - len(lanes)


def _found_lane(frames: Sequence[FrameResult], phrase: str, gap: float, place: int) -> Lane:
    spans = []
    for frame in frames:
        scores = [segment.score for segment in frame.segments if segment.phrase == phrase]
        if scores:
            spans.append((max(frame.time - gap / 2, 0.0), frame.time + gap / 2, max(scores)))
    return Lane(phrase, tuple(spans), place)


def _wave_path(audio: Waveform, duration: float) -> str:
    """The envelope as an SVG path in a box of 1000 x 100: per column a bar from the lowest to the highest sample."""
    columns = max(1, round(_COLUMNS * audio.duration / duration))
    edges = np.linspace(0, len(audio.samples), columns + 1).astype(int)
    loudest = max(map(abs, _extent(audio.samples)), default=0.0) or 1.0
    parts = []
    for i, (start, end) in enumerate(pairwise(edges)):
        low, high = (value / loudest for value in _extent(audio.samples[start:end]))
        parts.append(f"M{(i + 0.5) * 1000 / _COLUMNS:.1f} {50 - 48 * high:.1f}V{50.4 - 48 * low:.1f}")
    return "".join(parts)


def _extent(samples: npt.NDArray[np.float32]) -> tuple[float, float]:
    if not len(samples):
        return 0.0, 0.0
    low, high = np.clip([samples.min(), samples.max()], -1, 1)
    return float(low), float(high)


def model_rows(models: Mapping[str, Any]) -> list[dict[str, str]]:
    """Per model: its reference, revision and licence, in words where they are not known."""
    rows = []
    for reference, given in models.items():
        facts, known = given if isinstance(given, Mapping) else {}, known_model(reference)
        embedded = "part of openavs" if reference.startswith("openavs:") else "not recorded"
        licence = facts.get("licence") or (known.licence if known else "not stated")
        rows.append({"model": reference, "revision": str(facts.get("revision") or embedded), "licence": str(licence)})
    return rows


def timing_rows(timings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per stage: its seconds and its share of the longest one in percent."""
    longest = max(timings.values(), default=0.0)
    return [
        {"stage": stage, "seconds": spent, "share": 100 * spent / longest if longest > 0 else 0.0}
        for stage, spent in timings.items()
    ]


def colour_rules() -> str:
    """One class per colour: the policy of the page allows no `style` attributes."""
    return "\n".join(f".c{i}{{--c:rgb({r} {g} {b})}}" for i, (r, g, b) in enumerate(DISTINCT))
