"""What a report is made of: the plain values that its templates (openavs/assets/report) show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pictures

from openavs.models.catalog import find_known_model
from openavs.structures.types import Caption, FrameResult, ImageArray, Rejection, Waveform
from openavs.visualization.colors import DISTINCT, Palette
from openavs.visualization.html import jpeg_address
from openavs.visualization.overlay import paint

LANES = 10
LEVELS = 20  # shades between the faintest and the full colour of a lane
_WIDEST = 480  # pixels
_COLUMNS = 400  # of the waveform


Span = tuple[float, float, float | None]
"""Start and end in s, and the score (None: the model gives none)."""

Cell = tuple[float, float]
"""The stretch of time, in s, that a frame stands for."""


@dataclass(frozen=True)
class TimelineLane:
    """One line under the waveform: a text and its spans in order of time, which do not overlap."""

    text: str
    spans: tuple[Span, ...]
    place: int | None = None  # of the colour, None for what was only heard

    @property
    def drawn(self) -> list[Span]:
        """The spans, best score last: where a long clip's spans share a pixel, the best one is seen."""
        return sorted(self.spans, key=lambda span: _value(span[2]))


def picture_parts(image: ImageArray, frame: FrameResult, palette: Palette) -> dict[str, Any]:
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


def timeline_parts(
    frames: Sequence[FrameResult], audio: Waveform | None, palette: Palette, duration: float | None = None
) -> dict[str, Any]:
    """Everything that is drawn against time, on one axis from 0 to `end` s.

    `duration` is the length of the file in s; without it the clip ends with its sound or its last frame.
    """
    cells = _cells([frame.time for frame in frames])
    lasts = max([0.0, *(end for _, end in cells)]) if duration is None else duration
    end = max(audio.duration if audio else 0.0, lasts, 1e-3)
    cells = [(start, min(stop, end)) for start, stop in cells]
    heard, left_out = _heard_lanes(frames, cells)
    found = [_found_lane(frames, cells, phrase, palette.place(phrase)) for phrase in palette.phrases]
    return {
        "length": end if duration is None else duration,
        "end": end,
        "wave": _wave_path(audio, end) if audio is not None else None,
        "silent": [cell for frame, cell in zip(frames, cells, strict=True) if frame.silent],
        "captions": heard,
        "left_out": left_out,
        "found_lanes": found[:LANES],
        "found_left_out": max(0, len(found) - LANES),
        "ticks": [end * i / 4 for i in range(5)],
        "level": _level,
        "unscored": any(caption.score is None for frame in frames for caption in frame.captions),
    }


def _cells(times: Sequence[float]) -> list[Cell]:
    """The stretch of each frame: half a sampling interval to either side, and no farther than to its neighbor's."""
    gap = float(np.median(np.diff(times))) if len(times) > 1 else 1.0
    edges = [min((after - before) / 2, gap / 2) for before, after in pairwise(times)]
    reaches = [gap / 2, *edges, gap / 2]
    return [(max(time - reaches[i], 0.0), time + reaches[i + 1]) for i, time in enumerate(times)]


def _heard_lanes(frames: Sequence[FrameResult], cells: Sequence[Cell]) -> tuple[list[TimelineLane], int]:
    """The captions that were heard longest, in order of first hearing, and how many more there were.

    The windows of neighboring frames overlap. A moment shows what was heard at its frame, once, with the best score.
    """
    spans: dict[str, list[Span]] = {}
    for frame, (start, end) in zip(frames, cells, strict=True):
        for caption in _best_by_text(frame.captions):
            span = (max(start, caption.start), min(end, caption.end), caption.score)
            spans.setdefault(caption.text, []).append(span if span[0] < span[1] else (start, end, caption.score))
    longest = sorted(spans, key=lambda text: -sum(end - start for start, end, _ in spans[text]))[:LANES]
    return [TimelineLane(text, tuple(own)) for text, own in spans.items() if text in longest], len(spans) - len(longest)


def _best_by_text(captions: Sequence[Caption]) -> list[Caption]:
    """One caption per text: several questions may be answered alike."""
    ranked = sorted(captions, key=lambda caption: _value(caption.score))
    best = {caption.text: caption for caption in ranked}
    return [best[text] for text in dict.fromkeys(caption.text for caption in captions)]


def _found_lane(frames: Sequence[FrameResult], cells: Sequence[Cell], phrase: str, place: int) -> TimelineLane:
    spans = []
    for frame, (start, end) in zip(frames, cells, strict=True):
        scores = [segment.score for segment in frame.segments if segment.phrase == phrase]
        if scores:
            spans.append((start, end, max(scores)))
    return TimelineLane(phrase, tuple(spans), place)


def _value(score: float | None) -> float:
    return 1.0 if score is None else score


def _level(score: float | None) -> int:
    """The shade of a score in [0, 1], from 0 to `LEVELS`; without a score the full colour."""
    return round(LEVELS * min(max(_value(score), 0.0), 1.0))


_ASKERS = {"llm": "the language model", "lexicon": "the lexicon", "none": "the captions as they are"}


def why_parts(frames: Sequence[FrameResult]) -> dict[str, Any]:
    """The rows of the table Why, and who proposed the prompts where it was the same for all.

    A row has the prompts with the captions they came from, for each caption why no prompt came from it, and for each
    dropped phrase the reason.
    """
    askers = _askers(frames)
    return {
        "asker": askers[0] if len(askers) == 1 else None,
        "rows": [
            {
                "frame": frame,
                "captions": [(caption, _why_unasked(caption, frame, askers)) for caption in frame.captions],
                "prompts": [
                    (p.phrase, _ASKERS.get(p.origin, p.origin), _best_by_text(p.captions)) for p in frame.prompts
                ],
                "rejected": [(drop, _why_dropped(drop, frame)) for drop in frame.rejected],
            }
            for frame in frames
        ],
    }


def _askers(frames: Sequence[FrameResult]) -> list[str]:
    """Everything that proposed prompts at some frames, in words."""
    return list(dict.fromkeys(_ASKERS.get(p.origin, p.origin) for frame in frames for p in frame.prompts))


def _why_unasked(caption: Caption, frame: FrameResult, askers: Sequence[str]) -> str | None:
    """A few words where no prompt of the frame came from this caption; None where one did."""
    sources = {source.text for prompt in frame.prompts for source in prompt.captions}
    if caption.text in sources or any(not prompt.captions for prompt in frame.prompts):
        return None
    possible = _askers([frame]) or askers
    return f"not asked for by {possible[0]}" if len(possible) == 1 else "not asked for"


def _why_dropped(drop: Rejection, frame: FrameResult) -> str:
    """The reason; for `less likely` with the audio score, which is multiplied by the score of the box."""
    scores = [prompt.audio_score for prompt in frame.prompts if prompt.phrase == drop.phrase]
    if drop.reason != "less likely" or not scores:
        return drop.reason
    return f"less likely: heard {scores[0]:.2f} × box"


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


def model_rows(models: Mapping[str, Any], stated: str | None = None) -> list[dict[str, str]]:
    """Per model: its reference, revision and license, in words where they are not known.

    `stated` is what the recipe says of the licenses of its models.
    """
    rows = []
    for reference, given in models.items():
        facts, known = given if isinstance(given, Mapping) else {}, find_known_model(reference)
        embedded = "part of openavs" if reference.startswith("openavs:") else "not recorded"
        otherwise = f"in the recipe: {stated}" if stated else "not stated"
        license = facts.get("license") or (known.license if known else otherwise)
        rows.append({"model": reference, "revision": str(facts.get("revision") or embedded), "license": str(license)})
    return rows


def timing_rows(timings: Mapping[str, float]) -> list[dict[str, Any]]:
    """Per stage: its seconds and its share of the longest one in percent."""
    longest = max(timings.values(), default=0.0)
    return [
        {"stage": stage, "seconds": spent, "share": 100 * spent / longest if longest > 0 else 0.0}
        for stage, spent in timings.items()
    ]


def colour_rules() -> str:
    """One class per colour and per shade of it: the policy of the page allows no `style` attributes.

    Shades are opaque, so one that lies on another does not darken it.
    """
    colours = [f".c{i}{{--c:rgb({r} {g} {b})}}" for i, (r, g, b) in enumerate(DISTINCT)]
    shares = [(level, 35 + 65 * level / LEVELS) for level in range(LEVELS + 1)]
    mix = "color-mix(in srgb,var(--c,var(--heard)) {:g}%,var(--rail))"
    return "\n".join([*colours, *(f".lane .v{level}{{fill:{mix.format(share)}}}" for level, share in shares)])
