"""Cached stages: wrappers that look up an output on disk before they call their backend.

A cache entry is one whole call: its key covers all inputs in order and the stage's fingerprint. Floats depend on the
batch in their last bits, so an output assembled from other calls could differ from a fresh one, and results must not
depend on the cache. The pipeline makes equal calls for equal clips and recipes.

Only stages with `models` are cached; the others (lexicon, oracle, box) compute faster than a disk reads. Outputs that
depend on a temporary failure, such as the lexicon's for an unreachable server, are not stored.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import getattr_static
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from openavs.caching.fingerprint import stage_fingerprint
from openavs.caching.store import CachePlace, StageCache
from openavs.config.recipe import Recipe
from openavs.errors import InputError
from openavs.models.device import run_with_oom_backoff
from openavs.registry import check_backends
from openavs.stages.captioners.base import Captioner, gives_events
from openavs.stages.contracts import call_stage, validate_events
from openavs.stages.detectors.base import Detector, known_phrases
from openavs.stages.reasoners.judgment import Judgment
from openavs.stages.translators.base import Request, Translation, Translator, wants_pictures
from openavs.structures.types import (
    AudioWindow,
    Caption,
    ClipEvidence,
    Decision,
    Detection,
    Event,
    ImageArray,
    TrackedFrame,
    Waveform,
)

if TYPE_CHECKING:
    from openavs.pipeline.pipeline import Pipeline
    from openavs.stages.reasoners.question import ClipQuestion

logger = logging.getLogger(__name__)

T = TypeVar("T")


def with_cache(
    pipe: Pipeline,
    recipe: Recipe,
    place: CachePlace | None = None,
    stages: Sequence[str] = ("captioner", "translator", "reasoner"),
) -> StageCache:
    """Wrap stages of a pipeline with a cache. Results are the same as without.

    Call it in the process that runs the pipeline, after its number of threads is set.

    Args:
        pipe: a pipeline that was just built from `recipe`.
        recipe: its recipe.
        place: the folder or the address of the cache; `store.cache_place()` by default.
        stages: stages to cache. The detector can be cached, too, but its boxes take much more space.

    Returns:
        The cache, with its hits and misses in `counts`.

    Raises:
        InputError: a stage cannot be cached.
    """
    cache = StageCache(place)
    backends = check_backends(recipe)
    for stage in stages:
        if stage not in _WRAPPERS:
            raise InputError(f"the {stage} cannot be cached; these can: {', '.join(_WRAPPERS)}")
        backend = getattr(pipe, stage)
        if backend is not None and getattr(backend, "models", None) and _is_cacheable(stage, backend):
            fingerprint = stage_fingerprint(backend, *backends[stage])
            wrapper = CachedEventCaptioner if gives_events(backend) else _WRAPPERS[stage]
            setattr(pipe, stage, wrapper(backend, cache, fingerprint))
    return cache


class CachedStage:
    """Base class of the wrappers; other attributes of the backend (text_similarity, usage) are passed through."""

    stage = ""

    def __init__(self, backend: Any, cache: StageCache, fingerprint: str) -> None:
        self.backend, self.cache, self.fingerprint = backend, cache, fingerprint
        self._revisions: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name == "backend":  # not set yet while the object is copied or unpickled
            raise AttributeError(name)
        return getattr(self.backend, name)

    @property
    def models(self) -> dict[str, Any]:
        """The backend's models. An unresolved revision (of a server) is taken from the cached entry."""
        return {
            ref: {**facts, "revision": self._revisions.get(ref)} if facts.get("revision") is None else facts
            for ref, facts in self.backend.models.items()
        }

    def _cached(
        self,
        content: str,
        compute: Callable[[], T],
        pack: Callable[[T], Any],
        unpack: Callable[[Any], T],
        keep: Callable[[T], bool] = lambda output: True,
    ) -> T:
        """Return the output for an input from the cache, or compute it and store it if `keep` allows it.

        `pack` converts an output to JSON data, `unpack` back; the latter raises ValueError, TypeError or KeyError for
        an entry of another structure, which is then computed again.
        """
        key = self._key(content)
        found = self.cache.get(self.stage, key)
        if found is not None:
            try:
                entry = json.loads(found)
                output = unpack(entry["output"])
                self._revisions |= entry["revisions"]
                return output
            except (ValueError, TypeError, KeyError) as error:
                logger.warning("a cached output of the %s is malformed (%s); it is computed again", self.stage, error)
                self.cache.discard(self.stage, key)
        output = compute()
        if keep(output):
            self._store(key, pack(output))
        return output

    def _key(self, content: str) -> str:
        return hashlib.sha256(f"{self.stage}\0{self.fingerprint}\0{content}".encode()).hexdigest()

    def _store(self, key: str, packed: Any) -> None:
        revisions = {ref: facts.get("revision") for ref, facts in self.backend.models.items()}
        try:
            content = json.dumps({"output": packed, "revisions": revisions}, separators=(",", ":"))
        except TypeError as error:  # scores of a plug-in that are not plain numbers
            logger.warning("the outputs of this %s cannot be cached: %s", self.stage, error)
            return
        self.cache.put(self.stage, key, content.encode())


class CachedCaptioner(CachedStage):
    """A captioner with a cache."""

    stage = "captioner"
    backend: Captioner

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """See `Captioner.caption`."""
        return self._cached(
            _digest(part for window in windows for part in _window_parts(window)),
            lambda: call_stage("caption", self.backend, windows),
            lambda captions: [[_caption_row(caption) for caption in own] for own in captions],
            lambda rows: _check_count([[Caption(*row) for row in own] for own in rows], len(windows)),
            # A weak caption without a score stands for a fault of a server.
            keep=lambda captions: not any(c.weak and c.score is None for own in captions for c in own),
        )


class CachedEventCaptioner(CachedCaptioner):
    """A captioner that gives events, with a cache. Only it has `events`, so that protocols are resolved as without."""

    backend: Any  # an EventCaptioner

    def events(self, audio: Waveform) -> list[Event]:
        """See `EventCaptioner.events`."""
        facts = json.dumps([audio.rate, len(audio.samples)]).encode()
        return self._cached(
            _digest([b"events", facts, *map(_bytes, audio.blocks())]),
            lambda: validate_events(self.backend.events(audio)),
            lambda events: [_event_row(event) for event in events],
            lambda rows: validate_events([_event(*row) for row in rows]),
        )


class CachedTranslator(CachedStage):
    """A translator with a cache."""

    stage = "translator"
    backend: Translator

    def __init__(self, backend: Any, cache: StageCache, fingerprint: str) -> None:
        super().__init__(backend, cache, fingerprint)
        self.contact_sheet = wants_pictures(backend)  # read without `__getattr__`

    def translate(self, requests: Sequence[Request]) -> list[Translation]:
        """See `Translator.translate`."""
        return self._translate_cached(requests, lambda: self._compute(requests))

    def prefetch(self, requests: Sequence[Request]) -> list[Translation]:
        """Translate all requests that are not cached in one call, and store each as if it had been translated alone.

        A language model needs little longer for a batch than for one request. Batching may change logits in the last
        bits, but rarely the text.
        """
        new = [r for r in dict.fromkeys(requests) if not self.cache.has(self.stage, self._key(_content([r])))]
        computed = dict(zip(new, run_with_oom_backoff(self._compute, new), strict=True)) if new else {}
        translations = []
        for request in requests:

            def compute(request: Request = request) -> list[Translation]:
                return [computed[request]] if request in computed else self._compute([request])

            translations += self._translate_cached([request], compute)
        return translations

    def _compute(self, requests: Sequence[Request]) -> list[Translation]:
        translations: list[Translation] = call_stage("translate", self.backend, requests)
        return translations

    def _translate_cached(
        self, requests: Sequence[Request], compute: Callable[[], list[Translation]]
    ) -> list[Translation]:
        return self._cached(
            _content(requests),
            compute,
            lambda translations: [[t.frames, t.origin, t.note, t.attempts, t.origins] for t in translations],
            lambda rows: _check_count([_translation(*row) for row in rows], len(requests)),
            keep=lambda translations: not any(t.transient for t in translations),
        )


class CachedDetector(CachedStage):
    """A detector with a cache; the threshold of the pipeline is not part of the key."""

    stage = "detector"
    backend: Detector

    def knows(self, phrase: str) -> bool:
        """Return whether the detector knows a phrase."""
        return known_phrases(self.backend)(phrase)

    def detect(self, images: Sequence[ImageArray], phrases: Sequence[Sequence[str]]) -> list[list[Detection]]:
        """See `Detector.detect`."""
        lists = json.dumps([list(own) for own in phrases]).encode()
        return self._cached(
            _digest([lists, *(part for image in images for part in (_shape(image), _bytes(image)))]),
            lambda: call_stage("detect", self.backend, images, phrases),
            lambda boxes: [[[box.box, box.phrase, box.score] for box in own] for own in boxes],
            lambda rows: _check_count([[_detection(*row) for row in own] for own in rows], len(images)),
        )


class CachedReasoner(CachedStage):
    """A reasoner with a cache of its answers, by everything that the request holds: text, picture and schema."""

    stage = "reasoner"
    backend: Any  # a `VisionReasoner`

    def reason(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `Reasoner.reason`."""
        reasoned: Iterator[TrackedFrame] = self.backend.reason_with(self._decide, frames, evidence)
        return reasoned

    def _decide(self, question: ClipQuestion) -> Judgment:
        judgment: Judgment = self._cached(
            question.digest,
            lambda: self.backend.decide(question),
            lambda judgment: [
                judgment.answers,
                list(judgment.decisions.items()),
                judgment.none,
                judgment.problems,
            ],
            lambda packed: _judgment(*packed),
            keep=lambda judgment: not judgment.transient,
        )
        return judgment


_WRAPPERS: dict[str, type[CachedStage]] = {
    wrapper.stage: wrapper for wrapper in (CachedCaptioner, CachedTranslator, CachedDetector, CachedReasoner)
}


def _is_cacheable(stage: str, backend: Any) -> bool:
    """Return whether a backend has what its wrapper calls, without reading it; a reasoner of a plug-in may not."""
    return stage != "reasoner" or callable(getattr_static(backend, "reason_with", None))


def _digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of parts, each prefixed with its length, so that boundaries count."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _window_parts(window: AudioWindow) -> tuple[bytes | memoryview, ...]:
    context = window.context
    facts = json.dumps([window.audio.rate, window.start, window.end, list(window.labels), context and context.rate])
    return facts.encode(), _bytes(window.audio.samples), b"" if context is None else _bytes(context.samples)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _shape(array: np.ndarray[Any, Any]) -> bytes:
    return f"{array.shape} {array.dtype.str}".encode()


def _check_count(outputs: list[T], expected: int) -> list[T]:
    if len(outputs) != expected:
        raise ValueError(f"{len(outputs)} outputs instead of {expected}")
    return outputs


def _content(requests: Sequence[Request]) -> str:
    rows = [[[list(map(_caption_row, own)) for own in r.frames], r.vocabulary, r.expression] for r in requests]
    pictures = [[[p.index, p.time, hashlib.sha256(p.jpeg).hexdigest()] for p in r.pictures] for r in requests]
    return json.dumps([rows, pictures])


def _caption_row(caption: Caption) -> list[Any]:
    return [caption.text, caption.score, caption.start, caption.end, caption.question, caption.weak]


def _event_row(event: Event) -> list[Any]:
    return [event.phrase, event.onset, event.offset, event.score, event.rate, _pack_curve(event.curve)]


def _event(phrase: str, onset: float, offset: float, score: float, rate: float, curve: Any) -> Event:
    return Event(phrase, onset, offset, score, rate, _unpack_curve(curve))


def _pack_curve(curve: tuple[float, ...]) -> Any:
    """Pack a curve of thousandths to base64 of 16-bit integers, a third of its text; others stay as they are."""
    thousandths = np.rint(np.asarray(curve, dtype=np.float64) * 1000)
    if not ((thousandths >= 0) & (thousandths <= 1000) & (thousandths / 1000 == curve)).all():
        return curve
    return base64.b64encode(thousandths.astype("<u2").tobytes()).decode("ascii")


def _unpack_curve(packed: Any) -> tuple[float, ...]:
    if not isinstance(packed, str):
        return tuple(packed)
    return tuple((np.frombuffer(base64.b64decode(packed), dtype="<u2") / 1000).tolist())


def _translation(
    frames: list[list[str]], origin: str, note: str | None, attempts: int, origins: list[str] | None = None
) -> Translation:
    by_frame = None if origins is None else tuple(origins)
    return Translation(tuple(map(tuple, frames)), origin, note, attempts, origins=by_frame)


def _judgment(answers: list[str], decisions: list[Any], none: bool, problems: list[str]) -> Judgment:
    by_number: dict[int, tuple[Decision, str]] = {number: (own[0], own[1]) for number, own in decisions}
    return Judgment(tuple(answers), by_number, none, tuple(problems))


def _detection(box: list[float], phrase: str, score: float) -> Detection:
    x0, y0, x1, y1 = box
    return Detection((x0, y0, x1, y1), phrase, score)
