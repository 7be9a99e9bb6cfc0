"""What a visitor asks for, checked before any model is run; every refusal is one sentence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from openavs.errors import InputError
from openavs.media import MediaInfo, MediaLimits, open_clip, probe
from openavs.results.serialization import safe_id
from openavs.structures.types import Clip
from openavs.web.settings import ServerConfig

MOST_WORDS = 50
LONGEST_WORD = 60


@dataclass(frozen=True)
class SegmentRequest:
    """A video, or a picture with its sound beside it, and how to look at it; `threshold` None is the recipe's own."""

    source: Path
    sound: Path | None = None
    recipe: str = "tiny"
    vocabulary: tuple[str, ...] = ()
    threshold: float | None = None


def vocabulary_of(text: str | None) -> tuple[str, ...]:
    """The words of a comma list, each once; InputError for one that is no list of things."""
    words = tuple(dict.fromkeys(" ".join(word.split()) for word in re.split(r"[,;\n]", text or "")))
    words = tuple(word for word in words if word)
    if len(words) > MOST_WORDS or any(len(word) > LONGEST_WORD for word in words):
        raise InputError(f"give at most {MOST_WORDS} things of at most {LONGEST_WORD} letters each, such as dog, bell")
    return words


def threshold_of(value: object) -> float | None:
    """A score in [0, 1], in steps that a slider has; InputError outside of them and for what is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"a threshold is a number between 0 and 1, not {value!r:.40}")
    if not 0 <= value <= 1:
        raise InputError(f"a threshold lies between 0 and 1, not at {value:g}")
    return round(float(value), 4)


def open_request(wish: SegmentRequest, fps: float, settings: ServerConfig) -> Clip:
    """The clip of a wish; its `source` is the file's name alone, for that is all a result may tell.

    Raises:
        InputError: no media, too large, too long, a video without sound, a picture without one beside it.
    """
    try:
        return _open(wish, fps, settings)
    except InputError as problem:  # names the file as its owner knows it, not where it lies on the server
        sentence = str(problem)
        for path in (wish.source, wish.sound):
            if path is not None:
                sentence = sentence.replace(str(path), path.name)
        raise InputError(sentence) from problem


def _open(wish: SegmentRequest, fps: float, settings: ServerConfig) -> Clip:
    for path in (wish.source, wish.sound):
        if path is not None and path.stat().st_size > settings.max_upload:
            raise InputError(too_large(path.name, settings))
    seen = probe(wish.source)
    heard = probe(wish.sound) if wish.sound is not None else seen
    if seen.kind == "image" and wish.sound is None:
        raise InputError(f"{wish.source.name} is a picture without sound; add the sound that belongs to it")
    for info in (seen, heard):
        _check_length(info, settings)
    if heard.audio_codec is None:
        name = (wish.sound or wish.source).name
        raise InputError(f"{name} has no sound track, so there is nothing to hear; give a clip with sound")
    limits = MediaLimits(max_duration=settings.max_seconds + 1)
    return open_clip(wish.source, fps=fps, audio=wish.sound, id=safe_id(wish.source.stem or "clip"), limits=limits)


def _check_length(info: MediaInfo, settings: ServerConfig) -> None:
    if info.duration > settings.max_seconds + 0.5:  # containers round up to whole frames of sound
        raise InputError(
            f"{Path(info.path).name} lasts {info.duration:.0f} s and this page takes at most "
            f"{settings.max_seconds:g} s; cut it, or run 'openavs segment' on the file"
        )


def too_large(name: str, settings: ServerConfig) -> str:
    """The sentence for a file over the limit."""
    return f"{name} is larger than the {settings.max_upload_mb} MB that this page takes; cut it or scale it down"
