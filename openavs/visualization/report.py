"""HTML report of a clip: captions, prompts, segments and rejections by frame.

The page is one file that needs no network. Its one script draws the masks over the video beside it, or over the frames
in the page; the Content-Security-Policy forbids all others. The templates are in openavs/assets/report; the functions
here return the values that they show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.models.catalog import find_known_model, is_only_synthetic
from openavs.structures.types import (
    Caption,
    ClipResult,
    Event,
    Frame,
    FrameResult,
    ImageArray,
    Interval,
    Rejection,
    Waveform,
    frame_intervals,
)
from openavs.utils.fs import atomic_write
from openavs.visualization.colors import DISTINCT, Palette, palette_of
from openavs.visualization.html import asset, image_data, png_data_uri, render, shrink_image
from openavs.visualization.overlay import SYNTHETIC, paint_layer
from openavs.visualization.player import MotionRecorder, player_data, player_page
from openavs.visualization.reasons import ORIGINS, chain_texts, merge_rejections, rejection_text

MAX_IMAGES = 48  # frames that are shown as images
MAX_ROWS = 600  # frames in the table
MAX_LANES = 10  # sounds or captions, and phrases, on the timeline
MAX_POINTS = 500  # of the curves of a lane
SHADES = 20  # between the lightest and the full color of a lane
_IMAGE_SIZE = 480  # pixels of the long side
_WAVE_COLUMNS = 400

Span = tuple[float, float, float | None]
"""Start and end in s, and the score (None: the model gives none)."""


@dataclass(frozen=True)
class TimelineLane:
    """One row of the timeline: a text and its spans, in order of time and without overlaps.

    Attributes:
        color: index in `DISTINCT`; None for captions, which share one color.
        curve: scores over time as the SVG path of an area of 1000 x 10; the spans are its background.
        digits: of the times.
    """

    text: str
    spans: tuple[Span, ...]
    color: int | None = None
    curve: str = ""
    digits: int = 1

    @property
    def by_score(self) -> list[Span]:
        """The spans with the best score last, which is drawn on top."""
        return sorted(self.spans, key=lambda span: _score(span[2]))


def report_frames(result: ClipResult, limit: int = MAX_IMAGES) -> frozenset[int]:
    """Return the indices of all frames, or of `limit` frames at equal distances."""
    indices = sorted(frame.index for frame in result.frames)
    if len(indices) <= limit:
        return frozenset(indices)
    return frozenset(indices[i] for i in np.linspace(0, len(indices) - 1, limit).round().astype(int))


def write_report(
    path: Path,
    result: ClipResult,
    clip_frames: Iterable[Frame],
    audio: Waveform | None = None,
    duration: float | None = None,
    video: str | None = None,
    moving: MotionRecorder | None = None,
) -> None:
    """Write the report as one HTML file.

    Args:
        path: of the file.
        result: of the clip.
        clip_frames: all frames of the clip, or those of `report_frames`; frames that are missing are not shown.
        audio: for the waveform.
        duration: of the file in s, if known.
        video: name of the clip's video in the same folder, which the page plays; without it, the frames are played.
        moving: the masks between the sampled frames.
    """
    palette = palette_of(result.frames)
    shown = report_frames(result)
    timeline = timeline_values(result, audio, palette, duration)
    player = player_values(result, palette, timeline["end"], video=video, moving=moving) if result.frames else None
    page = render(
        "report/report.html",
        asset("report/report.css") + asset("report/pieces.css") + color_css(),
        asset("report/player.js") if player else "",
        player=player,
        s=result,
        source=PurePath(result.source.replace("\\", "/")).name if result.source else None,
        recipe_name=result.recipe.get("name"),
        recipe=json.dumps(result.recipe, indent=2, ensure_ascii=False),
        models=model_rows(result.models, result.recipe.get("license")),
        only_synthetic=is_only_synthetic(result.models),
        images=image_rows(result.frames, clip_frames, shown, palette),
        shown=len(shown),
        listed={frame.index for frame in result.frames[:MAX_ROWS]},
        **object_values(result.frames, palette),
        timings=timing_rows(result.timings),
        **table_values(result.frames[:MAX_ROWS]),
        **timeline,
    )
    atomic_write(path, page)


def player_values(
    result: ClipResult,
    palette: Palette,
    end: float,
    *,
    video: str | None = None,
    moving: MotionRecorder | None = None,
    captions: str | None = None,
    poster: str | None = None,
) -> dict[str, Any]:
    """Return the values of the player of a clip, see `player_page`.

    Args:
        result: of the clip.
        palette: of the clip.
        end: length of the clip in s.
        video: URL of the clip's video without painted masks; None: the images of `report/frames.html` are played.
        moving: the masks between the sampled frames.
        captions: URL of WebVTT captions.
        poster: URL of an image that is shown before the video plays.
    """
    intervals = frame_intervals([frame.time for frame in result.frames])
    return player_page(
        player_data(result, palette, intervals, end, moving),
        f"Player of {result.clip}",
        id="player",
        video=video,
        captions=captions,
        poster=poster,
        mark=SYNTHETIC if is_only_synthetic(result.models) else "",
    )


# ------------------------------------------------------------------------------------------------ images and phrases


def image_values(
    image: ImageArray, frame: FrameResult, palette: Palette, span: Interval = (0.0, 0.0)
) -> dict[str, Any]:
    """Return a scaled frame as a data URI with its size, result and interval; `masks` is what is painted on it."""
    small = shrink_image(image, _IMAGE_SIZE)
    layer = paint_layer((small.shape[0], small.shape[1]), palette.shown(frame).segments, palette, text_scale=1.5)
    masks = png_data_uri(layer) if layer.any() else None
    return {"frame": frame, **image_data(small, _IMAGE_SIZE), "masks": masks, "start": span[0], "stop": span[1]}


def image_rows(
    frames: Sequence[FrameResult], clip_frames: Iterable[Frame], shown: frozenset[int], palette: Palette
) -> list[dict[str, Any]]:
    """Return `image_values` of the clip's frames with an index in `shown`."""
    results = {frame.index: frame for frame in frames}
    spans = dict(zip(results, frame_intervals([frame.time for frame in frames]), strict=True))
    return [image_values(f.image, results[f.index], palette, spans[f.index]) for f in clip_frames if f.index in shown]


def object_values(frames: Sequence[FrameResult], palette: Palette) -> dict[str, Any]:
    """Return the objects with their captions, and the functions that return a segment's name and a name's color."""
    return {
        "found": found_rows(frames, palette),
        "chains": chain_texts([palette.shown(frame) for frame in frames]),
        "shown_name": palette.name,
        "color": palette.index,
    }


def found_rows(frames: Sequence[FrameResult], palette: Palette) -> list[dict[str, Any]]:
    """Return each shown name with its number of frames and best score, most frames first."""
    rows = []
    for phrase in palette.phrases:
        scores = [[s.score for s in frame.segments if palette.name(s) == phrase] for frame in frames]
        best = max(score for frame in scores for score in frame)
        rows.append({"phrase": phrase, "frames": sum(map(bool, scores)), "best": best})
    return sorted(rows, key=lambda row: -row["frames"])


# ---------------------------------------------------------------------------------------------------------- timeline


def timeline_values(
    result: ClipResult, audio: Waveform | None, palette: Palette, duration: float | None = None
) -> dict[str, Any]:
    """Return everything on the time axis, from 0 to `end` s: events where the result has them, otherwise captions.

    `duration` is that of the file in s; without it the clip ends with its audio or its last frame.
    """
    frames = result.frames
    intervals = frame_intervals([frame.time for frame in frames])
    last = max([0.0, *(end for _, end in intervals)]) if duration is None else duration
    end = max(audio.duration if audio else 0.0, last, 1e-3)
    intervals = [(start, min(stop, end)) for start, stop in intervals]
    sounds = _event_lanes(result.events, end) if result.events else _caption_lanes(frames, intervals)
    shown = _longest(sounds)
    shown_frames = [palette.shown(frame) for frame in frames]
    found = [_phrase_lane(shown_frames, intervals, phrase, palette.index(phrase)) for phrase in palette.phrases]
    return {
        "length": end if duration is None else duration,
        "end": end,
        "wave": _wave_path(audio, end) if audio is not None else None,
        "silent": [interval for frame, interval in zip(frames, intervals, strict=True) if frame.silent],
        "sound_kind": "Sound" if result.events else "Caption",
        "sound_lanes": shown,
        "hidden_sounds": len(sounds) - len(shown),
        "found_lanes": found[:MAX_LANES],
        "hidden_phrases": max(0, len(found) - MAX_LANES),
        "ticks": [end * i / 4 for i in range(5)],
        "shade": _shade,
        "shades": SHADES,
        "unscored": any(caption.score is None for frame in frames for caption in frame.captions),
    }


def _event_lanes(events: Sequence[Event], end: float) -> list[TimelineLane]:
    """A lane of each phrase, with its exact times and curves."""
    own: dict[str, list[Event]] = {}
    for event in events:
        own.setdefault(event.phrase, []).append(event)
    return [
        TimelineLane(
            phrase,
            tuple((event.onset, min(event.offset, end), event.score) for event in sounds),
            curve="".join(_curve_path(event, end) for event in sounds),
            digits=2,
        )
        for phrase, sounds in own.items()
    ]


def _curve_path(event: Event, end: float) -> str:
    """The curve of an event as a closed area; of several values per point the highest is drawn."""
    step = math.ceil(end * event.rate / MAX_POINTS)
    heights = [max(event.curve[i : i + step]) for i in range(0, len(event.curve), step)]
    if not heights:
        return ""
    width = (event.offset - event.onset) / len(heights)
    xs = [event.onset, *(event.onset + (i + 0.5) * width for i in range(len(heights))), event.offset]
    points = zip(xs, [heights[0], *heights, heights[-1]], strict=True)
    line = "".join(f"L{1000 * min(x, end) / end:.2f} {10 - 10 * min(max(y, 0.0), 1.0):.1f}" for x, y in points)
    return f"M{1000 * event.onset / end:.2f} 10{line}V10Z"


def _longest(lanes: list[TimelineLane]) -> list[TimelineLane]:
    """The lanes that last longest in all, in their order."""
    longest = sorted(lanes, key=lambda lane: -sum(end - start for start, end, _ in lane.spans))[:MAX_LANES]
    return [lane for lane in lanes if lane in longest]


def _caption_lanes(frames: Sequence[FrameResult], intervals: Sequence[Interval]) -> list[TimelineLane]:
    """A lane of each caption, by first appearance.

    The audio windows of neighboring frames overlap, so each caption is clipped to the interval of its frame.
    """
    spans: dict[str, list[Span]] = {}
    for frame, (start, end) in zip(frames, intervals, strict=True):
        for caption in _best_by_text(frame.captions):
            span = (max(start, caption.start), min(end, caption.end), caption.score)
            spans.setdefault(caption.text, []).append(span if span[0] < span[1] else (start, end, caption.score))
    return [TimelineLane(text, tuple(own)) for text, own in spans.items()]


def _best_by_text(captions: Sequence[Caption]) -> list[Caption]:
    """The best caption of each text, because several questions may have the same answer."""
    best = {caption.text: caption for caption in sorted(captions, key=lambda caption: _score(caption.score))}
    return [best[text] for text in dict.fromkeys(caption.text for caption in captions)]


def _phrase_lane(frames: Sequence[FrameResult], intervals: Sequence[Interval], phrase: str, color: int) -> TimelineLane:
    spans = []
    for frame, (start, end) in zip(frames, intervals, strict=True):
        scores = [segment.score for segment in frame.segments if segment.phrase == phrase]
        if scores:
            spans.append((start, end, max(scores)))
    return TimelineLane(phrase, tuple(spans), color)


def _score(score: float | None) -> float:
    return 1.0 if score is None else score


def _shade(score: float | None) -> int:
    """The shade of a score in [0, 1], from 0 to `SHADES`; the full color for no score."""
    return round(SHADES * min(max(_score(score), 0.0), 1.0))


def _wave_path(audio: Waveform, duration: float) -> str:
    """The waveform as an SVG path of 1000 x 100, from minimum to maximum per column."""
    columns = max(1, round(_WAVE_COLUMNS * audio.duration / duration))
    edges = np.linspace(0, len(audio.samples), columns + 1).astype(int)
    peak = max(map(abs, _sample_range(audio.samples)), default=0.0) or 1.0
    parts = []
    for i, (start, end) in enumerate(pairwise(edges)):
        low, high = (value / peak for value in _sample_range(audio.samples[start:end]))
        parts.append(f"M{(i + 0.5) * 1000 / _WAVE_COLUMNS:.1f} {50 - 48 * high:.1f}V{50.4 - 48 * low:.1f}")
    return "".join(parts)


def _sample_range(samples: npt.NDArray[np.float32]) -> Interval:
    if not len(samples):
        return 0.0, 0.0
    low, high = np.clip([samples.min(), samples.max()], -1, 1)
    return float(low), float(high)


def color_css() -> str:
    """Return CSS classes of all colors and shades; `style` attributes are forbidden.

    Shades are opaque, so that overlapping spans do not add up.
    """
    colors = [f".c{i}{{--c:rgb({r} {g} {b})}}" for i, (r, g, b) in enumerate(DISTINCT)]
    shares = [(shade, 35 + 65 * shade / SHADES) for shade in range(SHADES + 1)]
    mix = "color-mix(in srgb,var(--c,var(--caption)) {:g}%,var(--rail))"
    fills = [f":is(.lane,.legend) .v{shade}{{fill:{mix.format(share)}}}" for shade, share in shares]
    return "\n".join([*colors, *fills])


# ------------------------------------------------------------------------------------------------------------ tables


def table_values(frames: Sequence[FrameResult]) -> dict[str, Any]:
    """Return the rows of the table of frames, and the common origin of the prompts.

    A row has the captions with the reason if none of the prompts came from them, the prompts with their captions, and
    the rejections with their reasons.
    """
    origins = _origins(frames)
    return {
        "origin": origins[0] if len(origins) == 1 else None,
        "rows": [
            {
                "frame": frame,
                "captions": [(caption, _why_no_prompt(caption, frame, origins)) for caption in frame.captions],
                "prompts": [
                    (p.phrase, ORIGINS.get(p.origin, p.origin), _best_by_text(p.captions)) for p in frame.prompts
                ],
                "rejected": [
                    (rejection, count, _why_rejected(rejection, frame))
                    for rejection, count in merge_rejections(frame.rejected)
                ],
            }
            for frame in frames
        ],
    }


def _origins(frames: Sequence[FrameResult]) -> list[str]:
    return list(dict.fromkeys(ORIGINS.get(p.origin, p.origin) for frame in frames for p in frame.prompts))


def _why_no_prompt(caption: Caption, frame: FrameResult, origins: Sequence[str]) -> str | None:
    """A few words if none of the frame's prompts came from this caption; otherwise None."""
    sources = {source.text for prompt in frame.prompts for source in prompt.captions}
    if caption.text in sources or any(not prompt.captions for prompt in frame.prompts):
        return None
    possible = _origins([frame]) or origins
    return f"no prompt from {possible[0]}" if len(possible) == 1 else "no prompt"


def _why_rejected(rejection: Rejection, frame: FrameResult) -> str:
    """The reason and its sentence; for `less likely` also the audio score, a factor of the box's score."""
    scores = [prompt.audio_score for prompt in frame.prompts if prompt.phrase == rejection.phrase]
    if rejection.reason != "less likely" or rejection.score is None or not scores:
        return rejection_text(rejection)
    return f"{rejection_text(replace(rejection, score=None))} (audio {scores[0]:.2f} × box {rejection.score:.2f})"


def model_rows(models: Mapping[str, Any], license: str | None = None) -> list[dict[str, str]]:
    """Return reference, revision and license of each model."""
    rows = []
    for reference, value in models.items():
        facts, known = value if isinstance(value, Mapping) else {}, find_known_model(reference)
        embedded = "part of openavs" if reference.startswith("openavs:") else "not recorded"
        stated = f"in the recipe: {license}" if license else "not stated"
        own = facts.get("license") or (known.license if known else stated)
        rows.append({"model": reference, "revision": str(facts.get("revision") or embedded), "license": str(own)})
    return rows


def timing_rows(timings: Mapping[str, float], frames: int | None = None) -> list[dict[str, Any]]:
    """Return each stage's seconds, ms per frame, and share of the longest in percent."""
    longest = max(timings.values(), default=0.0) or 1.0
    return [
        {
            "stage": stage,
            "seconds": seconds,
            "per_frame": None if frames is None else 1000 * seconds / max(frames, 1),
            "share": 100 * seconds / longest,
        }
        for stage, seconds in timings.items()
    ]
