"""THE ALGORITHM: sound -> words -> object prompts -> boxes -> masks (OpenAVS, arXiv 2505.01448), top to bottom.

The sound of a clip is captioned first (`listen`). One request per clip then names the things that make these sounds at
every frame (`ask`). Frames are decoded last, a batch at a time, and only those with prompts (`look`). The output is one
`FrameResult` per frame, in order. It says why: what was heard, asked, found and dropped.

Beside this file: `windows.py` (the sound of a frame), `filtering.py` (which boxes are kept), `frames.py` (batches,
decoded ahead), `dedup.py` (pictures that repeat), `validation.py` (NaN and the like), `context.py` (warnings, timings,
progress). The rules are in `config/settings.py`; `models/oom.py` splits batches that do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import merge
from typing import Any, Self

from openavs.config.recipe import Recipe
from openavs.config.settings import PipelineConfig, pipeline_config
from openavs.errors import InputError
from openavs.models.oom import run_with_oom_backoff
from openavs.pipeline.class_mapping import ClassMapper
from openavs.pipeline.context import Progress, RunContext
from openavs.pipeline.dedup import FrameMemo
from openavs.pipeline.filtering import filter_detections
from openavs.pipeline.frames import frame_batches
from openavs.pipeline.validation import validate_outputs
from openavs.pipeline.windows import audio_windows
from openavs.registry import BackendCache, build_backends
from openavs.stages.captioners.base import Captioner
from openavs.stages.contracts import validate_output, validate_tracked_frames
from openavs.stages.detectors.base import Detector
from openavs.stages.lexicon import detector_name, lexicon
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter, validate_stages
from openavs.stages.trackers.association import key_frames
from openavs.stages.trackers.base import TrackedFrame, Tracker
from openavs.stages.translators.base import Request, Translator
from openavs.stages.verifiers.base import Verifier
from openavs.structures.types import (
    Caption,
    Clip,
    ClipResult,
    Detection,
    Frame,
    FrameResult,
    Mask,
    Prompt,
    Rejection,
    Segment,
    strong_captions,
)
from openavs.utils.concurrency import prefetch

__all__ = ["Pipeline", "PipelineConfig", "Progress", "RunContext"]

FrameCaptions = tuple[Caption, ...] | None
"""What is heard at a frame; None where it is silent."""

FramePrompts = tuple[Prompt, ...]
"""What to look for at a frame."""

FrameSegments = tuple[tuple[Segment, ...], tuple[Rejection, ...]]
"""What of a frame's prompts is there, and what is not."""


class Pipeline:
    """The stages and the rules between them.

    A segmenter that finds phrases itself (SAM 3) needs no detector; without a segmenter the tracker segments, too
    (SAM 2 video). Verifier and tracker are optional.

    >>> pipe = Pipeline.from_recipe(load_recipe("tiny"))  # doctest: +SKIP
    >>> result = pipe(open_clip("video.mp4"))  # doctest: +SKIP
    """

    def __init__(
        self,
        captioner: Captioner,
        translator: Translator,
        detector: Detector | None,
        segmenter: Segmenter | PhraseSegmenter | None,
        settings: PipelineConfig | None = None,
        recipe: Mapping[str, Any] | None = None,
        *,
        verifier: Verifier | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        validate_stages(detector, segmenter, tracker)
        self.captioner, self.translator = captioner, translator
        self.detector, self.verifier, self.tracker = detector, verifier, tracker
        self.segmenter: Any = segmenter or tracker  # of boxes or of phrases, as `check_fit` has seen to
        self.settings = settings or PipelineConfig()
        self.recipe = dict(recipe or {})
        similarity = getattr(captioner, "text_similarity", None)
        self.label = ClassMapper(self.settings.vocabulary, self.settings.aliases, similarity)

    @classmethod
    def from_recipe(cls, recipe: Recipe, held: BackendCache | None = None) -> Self:
        """Builds the stages that a recipe names and loads their models (`held`: see `build_backends`).

        Raises:
            InputError: a stage cannot be built, or the recipe is a student, which `StudentPipeline` runs.
        """
        if recipe.student is not None:
            raise InputError(f"{recipe.name} is a trained student; it runs in evaluate, segment and label")
        stages = build_backends(recipe, held)
        main, verifier, tracker = stages[:4], stages.verifier, stages.tracker
        return cls(*main, pipeline_config(recipe), recipe.to_dict(), verifier=verifier, tracker=tracker)

    @property
    def models(self) -> dict[str, Any]:
        """What every model reference of the stages resolved to."""
        stages = (self.captioner, self.translator, self.detector, self.segmenter, self.verifier, self.tracker)
        return {ref: facts for stage in stages for ref, facts in getattr(stage, "models", {}).items()}

    # -------------------------------------------------------------------------------------------- the whole of it

    def run(self, clips: Iterable[Clip], progress: Progress | None = None) -> Iterator[ClipResult]:
        """Segments clips one by one; the next one is opened (its sound decoded) while the models work."""
        for clip in prefetch(clips, depth=1):
            yield self(clip, progress)

    def __call__(self, clip: Clip, progress: Progress | None = None) -> ClipResult:
        """Segments one clip."""
        notes = RunContext(list(clip.warnings), clip=clip.id)
        frames = tuple(self.stream(clip, progress, notes))
        return ClipResult(
            clip=clip.id,
            size=clip.size,
            frames=frames,
            source=clip.source,
            recipe=self.recipe,
            models=self.models,
            timings={stage: round(seconds, 4) for stage, seconds in notes.seconds.items()},
            warnings=tuple(notes.warnings),
        )

    def stream(
        self, clip: Clip, progress: Progress | None = None, notes: RunContext | None = None
    ) -> Iterator[FrameResult]:
        """One result per frame, in order; memory is bounded by the batch, not by the length of the clip."""
        notes = notes if notes is not None else RunContext(clip=clip.id)
        notes.progress = progress or notes.progress
        heard = self.caption(clip, notes)
        asked = self.translate(heard, notes)
        yield from self.localize(clip, heard, asked, notes)

    # ------------------------------------------------------------------------------------- sound -> words -> prompts

    def caption(self, clip: Clip, notes: RunContext) -> list[FrameCaptions]:
        """What is heard around every frame; no model is run where it is silent."""
        windows = audio_windows(clip, self.settings.window_seconds, self.settings.context_seconds)
        heard: list[FrameCaptions] = [None] * len(windows)
        audible = [i for i, window in enumerate(windows) if window.audio.dbfs >= self.settings.silence_dbfs]
        if not audible:
            notes.warn("the sound is silent throughout, so nothing was looked for")
        notes.progress("caption", 0, len(audible))
        for start in range(0, len(audible), self.settings.batch_windows):
            batch = audible[start : start + self.settings.batch_windows]
            with notes.timed("caption"):
                captions = run_with_oom_backoff(
                    validate_output("caption", self.captioner.caption), [windows[i] for i in batch]
                )
            validate_outputs("caption", captions)
            for i, own in zip(batch, captions, strict=True):
                heard[i] = tuple(own)
            notes.progress("caption", start + len(batch), len(audible))
        if note := _unnamed([heard[i] or () for i in audible]):
            notes.warn(note)
        return heard

    def request(self, heard: Sequence[FrameCaptions]) -> Request:
        """Return the translator's request for a clip: the captions that reach the threshold, by frame."""
        return Request(tuple(map(strong_captions, heard)), self.settings.vocabulary)

    def translate(self, heard: Sequence[FrameCaptions], notes: RunContext) -> list[FramePrompts]:
        """What to look for at every frame: one request holds the captions of all of them."""
        request = self.request(heard)
        if not any(request.frames):
            return [()] * len(heard)
        notes.progress("translate", 0, 1)
        with notes.timed("translate"):
            translation = validate_output("translate", self.translator.translate)([request])[0]
        if translation.note:
            notes.warn(translation.note)
        notes.progress("translate", 1, 1)
        return [
            _distinct(self._prompt(phrase, captions, translation.origin_of(i)) for phrase in phrases)
            for i, (phrases, captions) in enumerate(zip(translation.frames, request.frames, strict=True))
        ]

    def _prompt(self, phrase: str, captions: Sequence[Caption], origin: str) -> Prompt:
        """A phrase with the captions it can have come from: those that speak of it, else all of its frame."""
        sources = tuple(c for c in captions if phrase in c.text.lower() or phrase in lexicon(c.text))
        name = detector_name(phrase) if self.settings.disambiguate else phrase
        return Prompt(name, self.label(phrase)[0], origin, sources or tuple(captions))

    # --------------------------------------------------------------------------------------- prompts -> boxes -> masks

    def localize(
        self, clip: Clip, heard: Sequence[FrameCaptions], asked: Sequence[FramePrompts], notes: RunContext
    ) -> Iterator[FrameResult]:
        """Finds what is asked for; frames at which nothing is asked for are not looked at but answered as they are."""

        def unseen(i: int) -> FrameResult:
            return FrameResult(i, clip.times[i], heard[i] is None, strong_captions(heard[i]), weak=_weak(heard[i]))

        def seen(s: TrackedFrame) -> FrameResult:
            i = s.frame.index
            return FrameResult(
                i, s.frame.time, False, strong_captions(heard[i]), asked[i], s.segments, s.rejected, _weak(heard[i])
            )

        sightings = self._see(clip, asked, notes)
        if self.tracker is not None:
            sightings = notes.timed_items("track", validate_tracked_frames(self.tracker.track(sightings)))
        quiet = (i for i, prompts in enumerate(asked) if not prompts)
        missing = sum(map(bool, asked))
        for result in merge(map(unseen, quiet), map(seen, sightings), key=lambda result: result.index):
            missing -= bool(result.prompts)
            yield result
        if missing:
            notes.warn(f"{missing} of {len(clip.times)} frames could not be read; the file may be cut short")

    def _see(self, clip: Clip, asked: Sequence[FramePrompts], notes: RunContext) -> Iterator[TrackedFrame]:
        """The frames at which something is asked for, with what is found in them. A tracker has the models look at key
        frames only."""
        sounding = _phrases(asked)
        wanted = frozenset(i for i, phrases in enumerate(sounding) if phrases)
        keys = wanted if self.tracker is None else key_frames(sounding, self.tracker.keyframe_interval)
        answers = FrameMemo()
        for batch in frame_batches(clip, wanted, self.settings, notes):
            looked_at = [frame for frame in batch if frame.index in keys]
            found = dict(zip(looked_at, self._find(looked_at, asked, answers, notes), strict=True))
            for frame in batch:
                segments, dropped = found.get(frame, ((), ()))
                yield TrackedFrame(frame, sounding[frame.index], segments, dropped, key=frame in found)

    def _find(
        self, frames: list[Frame], asked: Sequence[FramePrompts], answers: FrameMemo, notes: RunContext
    ) -> list[FrameSegments]:
        """What of the prompts is there in some frames: the boxes that are kept, their masks, and the verifier's word.

        Each frame is grounded with its own phrases: beside a phrase of another frame, a box could answer that one.
        """
        if not frames:
            return []
        answers.begin([frame.image for frame in frames])
        prompts = [asked[frame.index] for frame in frames]
        if self.detector is None:  # one model from phrases to masks
            with notes.timed("segment"):
                pairs = answers.ask(
                    validate_output("segment_phrases", self.segmenter.segment_phrases), _phrases(prompts)
                )
            kept, dropped = self._choose([[box for box, _ in own] for own in pairs], prompts)
            masks = [[mask_of[box] for box in boxes] for mask_of, boxes in zip(map(dict, pairs), kept, strict=True)]
        else:
            with notes.timed("detect"):
                candidates = answers.ask(validate_output("detect", self.detector.detect), _phrases(prompts))
            kept, dropped = self._choose(candidates, prompts)
            with notes.timed("segment"):
                masks = answers.ask(
                    validate_output("segment", self.segmenter.segment), [[box.box for box in boxes] for boxes in kept]
                )
        found = [self._compose(*own) for own in zip(kept, masks, dropped, strict=True)]
        return found if self.verifier is None else self._verify(self.verifier, prompts, found, answers, notes)

    def _choose(
        self, candidates: list[list[Detection]], prompts: list[FramePrompts]
    ) -> tuple[list[list[Detection]], list[list[Rejection]]]:
        """By frame: the boxes that are kept, best first, and what becomes of the phrases without one."""
        chosen = [filter_detections(boxes, own, self.settings) for boxes, own in zip(candidates, prompts, strict=True)]
        return [kept for kept, _ in chosen], [dropped for _, dropped in chosen]

    def _compose(self, kept: list[Detection], masks: list[Mask], dropped: list[Rejection]) -> FrameSegments:
        """Boxes and their masks as labelled segments; an empty or too small mask is no segment."""
        segments, drops = [], list(dropped)
        for box, mask in zip(kept, masks, strict=True):
            if mask.rle.area < max(self.settings.min_area, 1):
                drops.append(Rejection(box.phrase, "empty mask", box.score, box.box))
                continue
            label, how = self.label(box.phrase)
            segments.append(Segment(mask.rle, box.box, box.phrase, box.score, mask.score, label, how))
        return tuple(segments), tuple(drops)

    def _verify(
        self,
        verifier: Verifier,
        prompts: list[FramePrompts],
        found: list[FrameSegments],
        answers: FrameMemo,
        notes: RunContext,
    ) -> list[FrameSegments]:
        """Drops the segments that do not look like what they are taken for."""
        with notes.timed("verify"):
            verdicts = answers.ask(
                validate_output("verify", verifier.verify), [segments for segments, _ in found], _phrases(prompts)
            )
        verified = []
        for (segments, dropped), own in zip(found, verdicts, strict=True):
            judged = list(zip(segments, own, strict=True))
            kept = tuple(replace(s, verifier_score=verdict.score) for s, verdict in judged if verdict.kept)
            gone = [Rejection(s.phrase, "verifier", verdict.score, s.box) for s, verdict in judged if not verdict.kept]
            verified.append((kept, (*dropped, *gone)))
        return verified


def _weak(captions: FrameCaptions) -> tuple[Caption, ...]:
    """The captions below the captioner's threshold."""
    return tuple(caption for caption in captions or () if caption.weak)


def _unnamed(frames: Sequence[tuple[Caption, ...]]) -> str | None:
    """A sentence about audible frames without a caption above the threshold; None if there are none."""
    missed = [captions for captions in frames if not strong_captions(captions)]
    if not missed:
        return None
    scored = ((caption.score, caption.text) for own in missed for caption in own if caption.score is not None)
    best = max(scored, default=None)
    closest = f" above the threshold (best: {best[1]}, {best[0]:.2f})" if best else ""
    return f"{len(missed)} of {len(frames)} audible frames had no caption{closest}"


def _distinct(prompts: Iterable[Prompt]) -> FramePrompts:
    """The prompts, the first one of each phrase."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.phrase, prompt)
    return tuple(first.values())


def _phrases(prompts: Sequence[FramePrompts]) -> list[tuple[str, ...]]:
    """The phrases of every frame."""
    return [tuple(prompt.phrase for prompt in own) for own in prompts]
