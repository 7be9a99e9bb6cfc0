"""Stages that remember: thin wrappers that look an answer up on the disk before they have it computed.

What is remembered is a whole call: its inputs in their order, and the stage's fingerprint. A model's floats depend on
the batch in its last bits, so an answer put together from parts of other calls would differ from a fresh one, and a
result must not tell whether a cache was there. The pipeline makes the same calls for the same clip and recipe.

Only stages that name their `models` are worth it; the others (lexicon, oracle, box) compute faster than a disk reads.
An answer that a fault of the moment had a part in, such as the lexicon's for a server that is down, is not kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from openavs.caching.fingerprint import stage_fingerprint
from openavs.caching.store import StageCache
from openavs.config.recipe import Recipe
from openavs.errors import InputError
from openavs.models.oom import run_with_oom_backoff
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import check_backends
from openavs.stages.captioners.base import Captioner
from openavs.stages.contracts import validate_output
from openavs.stages.detectors.base import Detector
from openavs.stages.translators.base import Request, Translation, Translator
from openavs.structures.types import AudioWindow, Caption, Detection, ImageArray

log = logging.getLogger(__name__)

T = TypeVar("T")


def with_cache(
    pipe: Pipeline,
    recipe: Recipe,
    folder: str | Path | None = None,
    stages: Sequence[str] = ("captioner", "translator"),
) -> StageCache:
    """Has a pipeline's stages remember their answers; returns the cache, whose `counts` tell how it went.

    Call it in the process that runs the pipeline, when its number of threads is set. Results are the same as without.

    Args:
        pipe: a pipeline that was just built from `recipe`.
        recipe: its recipe.
        folder: of the cache; by default `cache.cache_folder()`.
        stages: those that shall remember; the detector can, too, but its boxes of many pictures take much more room.
    """
    cache = StageCache(folder)
    made_from = check_backends(recipe)
    for stage in stages:
        if stage not in _WRAPPERS:
            raise InputError(f"the {stage} cannot be cached; these can: {', '.join(_WRAPPERS)}")
        backend = getattr(pipe, stage)
        if backend is not None and getattr(backend, "models", None):
            fingerprint = stage_fingerprint(backend, *made_from[stage])
            setattr(pipe, stage, _WRAPPERS[stage](backend, cache, fingerprint))
    return cache


class _Remembering:
    """What the wrappers have in common; whatever else their backend has (text_similarity, usage) is passed through."""

    stage = ""

    def __init__(self, backend: Any, cache: StageCache, fingerprint: str) -> None:
        self.backend, self.cache, self.fingerprint = backend, cache, fingerprint
        self._revisions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "backend":  # not made yet: whoever copies or unpickles looks first
            raise AttributeError(name)
        return getattr(self.backend, name)

    @property
    def models(self) -> dict[str, Any]:
        """The backend's own; a revision that it has not learned, for it asked nobody, is that of the answer."""
        return {
            ref: {**facts, "revision": self._revisions.get(ref)} if facts.get("revision") is None else facts
            for ref, facts in self.backend.models.items()
        }

    def _remembered(
        self,
        content: str,
        ask: Callable[[], T],
        pack: Callable[[T], Any],
        unpack: Callable[[Any], T],
        keep: Callable[[T], bool] = lambda answer: True,
    ) -> T:
        """The answer from the disk, or a new one, which is kept there."""
        key = self._key(content)
        found = self.cache.get(self.stage, key)
        if found is not None:
            try:
                entry = json.loads(found)
                answer = unpack(entry["answer"])
                self._revisions |= entry["revisions"]
                return answer
            except (ValueError, TypeError, KeyError) as problem:
                log.warning("a cached answer of the %s has another form (%s); it is made anew", self.stage, problem)
                self.cache.forget(self.stage, key)
        answer = ask()
        if keep(answer):
            self._keep(key, pack(answer))
        return answer

    def _key(self, content: str) -> str:
        return hashlib.sha256(f"{self.stage}\0{self.fingerprint}\0{content}".encode()).hexdigest()

    def _keep(self, key: str, packed: Any) -> None:
        revisions = {ref: facts.get("revision") for ref, facts in self.backend.models.items()}
        try:
            content = json.dumps({"answer": packed, "revisions": revisions}, separators=(",", ":"))
        except TypeError as problem:  # a plug-in's scores that are no plain numbers
            log.warning("the answers of this %s cannot be cached: %s", self.stage, problem)
            return
        self.cache.put(self.stage, key, content.encode())


class CachedCaptioner(_Remembering):
    """Hears the same windows once."""

    stage = "captioner"
    backend: Captioner

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """As the backend."""
        return self._remembered(
            _digest(part for window in windows for part in _window_parts(window)),
            lambda: validate_output("caption", self.backend.caption)(windows),
            lambda captions: [[_caption_row(caption) for caption in own] for own in captions],
            lambda rows: _as_many([[Caption(*row) for row in own] for own in rows], len(windows)),
        )


class CachedTranslator(_Remembering):
    """Asks the same question once."""

    stage = "translator"
    backend: Translator

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """As the backend."""
        return self._answers(requests, lambda: validate_output("translate", self.backend.translate)(requests))

    def ahead(self, requests: Sequence[Request]) -> list[Translation]:
        """Asks in one call for what is not known yet, and keeps each answer as if it had been asked for alone.

        A language model that answers many questions at once takes little longer than for one; its numbers may differ in
        their last bits by the company of a question, its words hardly ever do.
        """
        new = [r for r in dict.fromkeys(requests) if not self.cache.has(self.stage, self._key(_content([r])))]
        fresh = (
            dict(zip(new, run_with_oom_backoff(validate_output("translate", self.backend.translate), new), strict=True))
            if new
            else {}
        )

        def alone(request: Request) -> list[Translation]:
            return (
                [fresh[request]]
                if request in fresh
                else validate_output("translate", self.backend.translate)([request])
            )

        return [self._answers([request], lambda request=request: alone(request))[0] for request in requests]  # type: ignore[misc]

    def _answers(self, requests: Sequence[Request], ask: Callable[[], list[Translation]]) -> list[Translation]:
        return self._remembered(
            _content(requests),
            ask,
            lambda answers: [[t.frames, t.origin, t.note, t.attempts, t.origins] for t in answers],
            lambda found: _as_many([_translation(*row) for row in found], len(requests)),
            keep=lambda answers: not any(t.transient for t in answers),
        )


class CachedDetector(_Remembering):
    """Looks for the same phrases in the same pictures once, whatever threshold is then set for the boxes."""

    stage = "detector"
    backend: Detector

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """As the backend."""
        asked = json.dumps([list(own) for own in phrases]).encode()
        return self._remembered(
            _digest([asked, *(part for image in images for part in (_shape(image), _bytes(image)))]),
            lambda: validate_output("detect", self.backend.detect)(images, phrases),
            lambda boxes: [[[box.box, box.phrase, box.score] for box in own] for own in boxes],
            lambda rows: _as_many([[_detection(*row) for row in own] for own in rows], len(images)),
        )


_WRAPPERS: dict[str, type[_Remembering]] = {
    wrapper.stage: wrapper for wrapper in (CachedCaptioner, CachedTranslator, CachedDetector)
}


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 over parts, each with its length, so that none can pass for its neighbour's end."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _window_parts(window: AudioWindow) -> tuple[bytes | memoryview, ...]:
    around = window.context
    facts = json.dumps([window.audio.rate, window.start, window.end, list(window.labels), around and around.rate])
    return facts.encode(), _bytes(window.audio.samples), b"" if around is None else _bytes(around.samples)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _shape(array: np.ndarray[Any, Any]) -> bytes:
    return f"{array.shape} {array.dtype.str}".encode()


def _as_many(answers: list[T], wanted: int) -> list[T]:
    if len(answers) != wanted:
        raise ValueError(f"{len(answers)} answers instead of {wanted}")
    return answers


def _content(requests: Sequence[Request]) -> str:
    return json.dumps([[[list(map(_caption_row, own)) for own in r.frames], r.vocabulary] for r in requests])


def _caption_row(caption: Caption) -> list[Any]:
    return [caption.text, caption.score, caption.start, caption.end, caption.question, caption.weak]


def _translation(
    frames: list[list[str]], origin: str, note: str | None, attempts: int, origins: list[str] | None = None
) -> Translation:
    by_frame = None if origins is None else tuple(origins)
    return Translation(tuple(map(tuple, frames)), origin, note, attempts, origins=by_frame)


def _detection(box: list[float], phrase: str, score: float) -> Detection:
    x0, y0, x1, y1 = box
    return Detection((x0, y0, x1, y1), phrase, score)
