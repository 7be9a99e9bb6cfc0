"""Spans of a clip: stretches of time in which one thing sounds, from the data of a `result.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openavs.errors import InputError
from openavs.results.serialization import FORMAT
from openavs.structures.types import Box, Interval, frame_intervals


@dataclass(slots=True)
class Span:
    """A stretch of consecutive frames with one caption or one segmented thing, or an event of the captioner.

    Attributes:
        phrase: the caption, the event's phrase, or the segment's phrase.
        start: in seconds from the start of the clip.
        end: in seconds.
        score: best score of the caption, event or detection, in [0, 1]; 1 for captions without scores.
        seen: whether it is a segmented thing.
        frame: index of the frame with the best score.
        time: time of that frame in seconds.
        box: the segment's box in that frame; None for sounds.
        track: the segment's track.
        label: the segment's class.
        names: all texts that it is found by: phrase and label, the captions of a segment's prompt, the prompts (and
            their classes) of a caption.
    """

    phrase: str
    start: float
    end: float
    score: float
    seen: bool
    frame: int
    time: float
    box: Box | None = None
    track: int | None = None
    label: str | None = None
    names: dict[str, None] = field(default_factory=dict)


def clip_spans(data: Any) -> tuple[list[Span], float]:
    """Return the spans of a clip and its length in seconds, as far as the result covers it.

    Reads the parsed JSON instead of a `ClipResult`, because decoding a `ClipResult` takes ten times as long.

    Raises:
        InputError: not a result, or one of another format.
        ValueError, TypeError, LookupError, AttributeError: a part of the result is missing or of the wrong type.
    """
    if not isinstance(data, dict) or "format" not in data:
        raise InputError("not an openavs result: it has no 'format' key")
    if data["format"] != FORMAT:
        raise InputError(
            f"the result has format {data['format']!r:.20} and this openavs reads {FORMAT}; update openavs"
        )
    frames = data["frames"]
    intervals = frame_intervals([_number(frame["time"]) for frame in frames])
    names, captions_of = _linked(frames)
    spans: dict[tuple[Any, ...], list[tuple[int, Span]]] = {}

    def add(key: tuple[Any, ...], place: int, span: Span) -> None:
        """Extend the last span of a key by the next frame, or begin another one."""
        own = spans.setdefault(key, [])
        if not own or place - own[-1][0] > 1:
            own.append((place, span))
            return
        last = own[-1][1]
        better = span if span.score > last.score else last
        better.start, better.end = min(last.start, span.start), max(last.end, span.end)
        better.names = last.names if last.names == span.names else last.names | span.names
        own[-1] = (place, better)

    events = [_event(event, frames, intervals, names) for event in data.get("events", ())]
    timed = {event.phrase for event in events}  # their captions repeat them at the rate of the frames
    exact = _corrected_times(data.get("corrections", ()))
    for place, frame in enumerate(frames):
        index, time = int(frame["index"]), _number(frame["time"])
        for caption in frame["captions"]:
            text = _text(caption["text"])
            if text in timed:
                continue
            score = 1.0 if caption["score"] is None else _number(caption["score"])
            start, end = _common(intervals[place], (_number(caption["start"]), _number(caption["end"])))
            found = {text: None} | names.get(text, {})
            add((text,), place, Span(text, start, end, score, False, index, time, names=found))
        for segment in frame["segments"]:
            phrase, label, track = _text(segment["phrase"]), segment["label"], segment["track"]
            label = None if label is None else _text(label)
            found = {phrase: None} | captions_of.get(phrase, {}) | ({} if label is None else {label: None})
            x0, y0, x1, y1 = map(_number, segment["box"])
            start, end = _common(intervals[place], exact.get(track, intervals[place]))
            span = Span(phrase, start, end, _number(segment["score"]), True, index, time, (x0, y0, x1, y1))
            span.track, span.label, span.names = None if track is None else int(track), label, found
            add((phrase, track), place, span)
    found_spans = [*events, *(span for own in spans.values() for _, span in own)]
    return found_spans, max([0.0, *(end for _, end in intervals), *(span.end for span in found_spans)])


def _linked(frames: Sequence[Mapping[str, Any]]) -> tuple[dict[str, dict[str, None]], dict[str, dict[str, None]]]:
    """Phrases and labels of the prompts by caption, and captions by phrase, over the whole clip."""
    names: dict[str, dict[str, None]] = {}
    captions_of: dict[str, dict[str, None]] = {}
    for frame in frames:
        for prompt in frame["prompts"]:
            if prompt["origin"] == "expression":  # the user's sentence, which no caption stands for
                continue
            phrase, label = _text(prompt["phrase"]), prompt["label"]
            for caption in prompt["captions"] or frame["captions"]:
                text = _text(caption["text"])
                own = names.setdefault(text, {})
                own[phrase] = None
                if label is not None:
                    own[_text(label)] = None
                captions_of.setdefault(phrase, {})[text] = None
    return names, captions_of


def _event(
    event: Mapping[str, Any],
    frames: Sequence[Mapping[str, Any]],
    intervals: Sequence[Interval],
    names: Mapping[str, dict[str, None]],
) -> Span:
    """A span of an event, with the frame that is nearest to its middle."""
    phrase, start, end = _text(event["phrase"]), _number(event["onset"]), _number(event["offset"])
    middle = (start + end) / 2
    nearest = min(range(len(frames)), key=lambda i: abs(sum(intervals[i]) / 2 - middle), default=None)
    index, time = (0, middle) if nearest is None else (int(frames[nearest]["index"]), float(frames[nearest]["time"]))
    found = {phrase: None} | names.get(phrase, {})
    return Span(phrase, start, end, _number(event["score"]), False, index, time, names=found)


def _corrected_times(corrections: Sequence[Mapping[str, Any]]) -> dict[int | None, Interval]:
    """The time in which a person said that a track sounds, by track; the last correction holds."""
    spans = (correction for correction in corrections if correction["action"] == "span")
    return {span["track"]: (_number(span["value"][0]), _number(span["value"][1])) for span in spans}


def _common(frame: Interval, window: Interval) -> Interval:
    """The part of a frame's interval in another one; the frame's interval, if there is none."""
    start, end = max(frame[0], window[0]), min(frame[1], window[1])
    return (start, end) if start < end else frame


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()  # no lone surrogates
