"""THE ALGORITHM: audio -> captions -> object prompts -> boxes -> masks (OpenAVS, arXiv 2505.01448), top to bottom.

1. `caption`: the audio windows of a clip are captioned in batches; silent windows run no model.
   With a captioner of events, a frame has those whose exact times overlap its interval.
2. `translate`: one request per clip holds the captions of all frames and returns the phrases to find at each frame.
   A translator with a contact sheet also gets pictures of frames that have captions.
3. `localize`: frames with prompts are decoded batch by batch, detected, filtered and segmented.
   Then the segments are verified by their look, tracked, and verified over time: by their motion and the sound.
   Last, a reasoner may accept or reject the tracks of the whole clip.

The output is one `FrameResult` per frame, in order, with the reasons: captions, prompts, segments and rejections.

Beside this file: `frames.py` (audio windows, frame batches, repeated frames), `filtering.py` (which boxes and segments
are kept), `context.py` (warnings, timings, progress); `stages/contracts.py` calls a stage and checks what it returns.
The thresholds are in `PipelineConfig`; `models/device.py` splits batches that do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from heapq import merge
from typing import Any, Self

from openavs.config.recipe import PipelineConfig, Recipe, pipeline_config
from openavs.errors import InputError
from openavs.models.device import run_with_oom_backoff
from openavs.pipeline.context import Progress, RunContext
from openavs.pipeline.filtering import FrameBoxes, FrameSegments, apply_verdicts, filter_frames, make_segments
from openavs.pipeline.frames import FrameMemo, audio_windows, batches_of, frame_batches, frame_events
from openavs.registry import BackendCache, build_backends
from openavs.stages.captioners.base import Captioner, EventCaptioner, gives_events
from openavs.stages.contracts import call_clip_stage, call_stage, validate_events
from openavs.stages.detectors.base import Detector, known_phrases
from openavs.stages.lexicon import detector_name, lexicon
from openavs.stages.reasoners.base import Reasoner
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter, validate_stages
from openavs.stages.trackers.base import Tracker, key_frames
from openavs.stages.trackers.iou import IouTracker
from openavs.stages.translators.base import Request, Translation, Translator, wants_pictures
from openavs.stages.translators.frame_pictures import frame_pictures
from openavs.stages.verifiers.base import TemporalVerifier, Verifier, is_temporal
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.types import (
    Caption,
    Clip,
    ClipEvidence,
    ClipResult,
    FrameResult,
    Prompt,
    Rejection,
    Segment,
    TrackedFrame,
    phrases_of,
    strong_captions,
)
from openavs.utils.concurrency import prefetch

__all__ = ["Pipeline", "PipelineConfig", "Progress", "RunContext"]

FrameCaptions = tuple[Caption, ...] | None
"""Captions of a frame, best first; None where it is silent."""

FramePrompts = tuple[Prompt, ...]
"""Phrases to find at a frame."""


class Pipeline:
    """The stages and the rules between them.

    A segmenter that takes phrases (SAM 3) needs no detector. Without a segmenter the tracker segments too (SAM 2
    video). Verifiers, tracker and reasoner are optional.

    >>> pipe = Pipeline.from_recipe(load_recipe("tiny"))  # doctest: +SKIP
    >>> result = pipe(open_clip("video.mp4"))  # doctest: +SKIP
    """

    def __init__(
        self,
        captioner: Captioner | EventCaptioner,
        translator: Translator,
        detector: Detector | None,
        segmenter: Segmenter | PhraseSegmenter | None,
        settings: PipelineConfig | None = None,
        recipe: Mapping[str, Any] | None = None,
        *,
        verifiers: Sequence[Verifier | TemporalVerifier] = (),
        tracker: Tracker | None = None,
        reasoner: Reasoner | None = None,
    ) -> None:
        validate_stages(detector, segmenter, tracker)
        self.captioner: Any = captioner  # of windows or of events
        self.translator = translator
        self.detector, self.verifiers, self.tracker = detector, tuple(verifiers), tracker
        self.reasoner = reasoner
        self.segmenter: Any = segmenter or tracker  # of boxes or of phrases: `validate_stages` has checked which
        self.settings = settings or PipelineConfig()
        self.recipe = dict(recipe or {})
        similarity = getattr(captioner, "text_similarity", None)
        self.label = ClassMapper(self.settings.vocabulary, self.settings.aliases, similarity)

    @classmethod
    def from_recipe(cls, recipe: Recipe, held: BackendCache | None = None) -> Self:
        """Build the stages of a recipe and load their models (`held`: see `build_backends`).

        Raises:
            InputError: a stage cannot be built, or the recipe is a student, which `StudentPipeline` runs.
        """
        if recipe.student is not None:
            raise InputError(f"{recipe.name} is a trained student; it runs in evaluate, segment and label")
        stages = build_backends(recipe, held)
        optional: dict[str, Any] = {key: getattr(stages, key) for key in ("verifiers", "tracker", "reasoner")}
        return cls(*stages[:4], pipeline_config(recipe), recipe.to_dict(), **optional)

    @property
    def models(self) -> dict[str, Any]:
        """Resolved model references of all stages: reference -> revision, license and path."""
        first = (self.captioner, self.translator, self.detector, self.segmenter)
        stages = (*first, *self.verifiers, self.tracker, self.reasoner)
        return {ref: facts for stage in stages for ref, facts in getattr(stage, "models", {}).items()}

    @property
    def fps(self) -> float:
        """Sampled frames per second of the recipe; 1 without a recipe."""
        return float(self.recipe.get("sample", {}).get("fps", 1.0))

    # ----------------------------------------------------------------------------------------------------- clips

    def run(self, clips: Iterable[Clip], progress: Progress | None = None) -> Iterator[ClipResult]:
        """Segment clips one by one; the next one is opened (its audio decoded) while the models work."""
        for clip in prefetch(clips, depth=1):
            yield self(clip, progress)

    def __call__(self, clip: Clip, progress: Progress | None = None) -> ClipResult:
        """Segment one clip."""
        context = RunContext(list(clip.warnings), clip=clip.id)
        frames = tuple(self.stream(clip, progress, context))
        return ClipResult(
            clip=clip.id,
            size=clip.size,
            frames=frames,
            source=clip.source,
            recipe=self.recipe,
            models=self.models,
            timings={stage: round(seconds, 4) for stage, seconds in context.seconds.items()},
            warnings=tuple(context.warnings),
            events=tuple(context.events),
            reasoning=context.reasoning,
        )

    def stream(
        self, clip: Clip, progress: Progress | None = None, context: RunContext | None = None
    ) -> Iterator[FrameResult]:
        """Yield one result per frame, in order; memory is bounded by the batch, not by the length of the clip."""
        context = context if context is not None else RunContext(clip=clip.id)
        context.progress = progress or context.progress
        captions = self.caption(clip, context)
        prompts = self.translate(clip, captions, context)
        yield from self.localize(clip, captions, prompts, context)

    # ------------------------------------------------------------------------------- audio -> captions -> prompts

    def caption(self, clip: Clip, context: RunContext) -> list[FrameCaptions]:
        """Caption the audio window of every frame; silent windows get None and run no model.

        A captioner that gives events captions the whole clip; a frame has those of its own interval. An expression that
        is the only prompt needs no captions.
        """
        if self._is_only_prompt(clip):
            return [()] * len(clip.times)
        settings = self.settings
        windows = audio_windows(clip, settings.window_seconds, settings.context_seconds)
        captions: list[FrameCaptions] = [None] * len(windows)
        audible = [i for i, window in enumerate(windows) if window.audio.dbfs >= settings.silence_dbfs]
        if not audible:
            context.warn("the audio is silent throughout, so no frame has prompts")
        context.progress("caption", 0, len(audible))
        if not gives_events(self.captioner):
            for start in range(0, len(audible), settings.batch_windows):
                batch = audible[start : start + settings.batch_windows]
                with context.timed("caption"):
                    call = partial(call_stage, "caption", self.captioner)
                    answers = run_with_oom_backoff(call, [windows[i] for i in batch])
                for i, own in zip(batch, answers, strict=True):
                    captions[i] = tuple(own)
                context.progress("caption", start + len(batch), len(audible))
        elif audible and clip.audio is not None:
            with context.timed("caption"):
                context.events[:] = validate_events(self.captioner.events(clip.audio))
            for i, own in frame_events(clip, context.events, audible, settings.window_seconds):
                captions[i] = own
            context.progress("caption", len(audible), len(audible))
        _warn_of_uncaptioned([captions[i] or () for i in audible], context)
        return captions

    def _is_only_prompt(self, clip: Clip) -> bool:
        """Return whether the clip's expression is its only prompt, as no stage reads it together with the sound."""
        return clip.expression is not None and not getattr(self.translator, "takes_expression", False)

    def translate(self, clip: Clip, captions: Sequence[FrameCaptions], context: RunContext) -> list[FramePrompts]:
        """Return the prompts of every frame: the translation of its captions, as the recipe edits it."""
        added = [self._prompt(phrase, "recipe") for phrase in self.settings.added_prompts]
        removed = self.settings.removed_prompts
        return [
            _unique([*(p for p in prompts if p.phrase.lower() not in removed), *(added if own is not None else ())])
            for own, prompts in zip(captions, self._translate(clip, captions, context), strict=True)
        ]

    def _translate(self, clip: Clip, captions: Sequence[FrameCaptions], context: RunContext) -> list[FramePrompts]:
        """Translate the captions of a clip to the prompts of every frame.

        One request holds all frames, so that the translator names the same thing alike at all of them (frame
        consistency; OpenAVS, section 3.3).
        """
        if self._is_only_prompt(clip):
            return [(self._prompt(str(clip.expression).strip().rstrip(".").lower(), "expression"),)] * len(captions)
        with context.timed("decode"):
            request = self.request(clip, captions)
        if not any(request.frames):
            return [()] * len(captions)
        context.progress("translate", 0, 1)
        with context.timed("translate"):
            translation: Translation = call_stage("translate", self.translator, [request])[0]
        if translation.note:
            context.warn(translation.note)
        context.progress("translate", 1, 1)
        return [
            _unique(self._caption_prompt(phrase, own, translation.origin_of(i)) for phrase in phrases)
            for i, (phrases, own) in enumerate(zip(translation.frames, request.frames, strict=True))
        ]

    def request(self, clip: Clip, captions: Sequence[FrameCaptions]) -> Request:
        """Return the translator's request for a clip: the captions that reach the threshold, by frame.

        Only for a translator with a contact sheet, frames are decoded here.
        """
        frames = tuple(map(strong_captions, captions))
        pictures = frame_pictures(clip, frames) if wants_pictures(self.translator) else ()
        return Request(frames, self.settings.vocabulary, clip.expression, pictures)

    def _caption_prompt(self, phrase: str, captions: Sequence[Caption], origin: str) -> Prompt:
        """Make a prompt of a phrase, with the captions that mention it; with all of the frame's if none does."""
        sources = tuple(c for c in captions if phrase in c.text.lower() or phrase in lexicon(c.text))
        name = detector_name(phrase) if self.settings.disambiguate else phrase
        return self._prompt(name, origin, sources or tuple(captions))

    def _prompt(self, phrase: str, origin: str, captions: tuple[Caption, ...] = ()) -> Prompt:
        return Prompt(phrase, self.label(phrase)[0], origin, captions)

    # ------------------------------------------------------------------------------------ prompts -> boxes -> masks

    def localize(
        self, clip: Clip, captions: Sequence[FrameCaptions], prompts: Sequence[FramePrompts], context: RunContext
    ) -> Iterator[FrameResult]:
        """Find the prompts in their frames; frames without prompts are not decoded."""

        def result(
            i: int, time: float, segments: tuple[Segment, ...] = (), rejected: tuple[Rejection, ...] = ()
        ) -> FrameResult:
            weak = tuple(caption for caption in captions[i] or () if caption.weak)
            strong, silent = strong_captions(captions[i]), captions[i] is None and not prompts[i]
            return FrameResult(i, time, silent, strong, prompts[i], segments, rejected, weak)

        with_prompts = (
            result(tracked.frame.index, tracked.frame.time, tracked.segments, tracked.rejected)
            for tracked in self._judge_clip(clip, captions, prompts, context)
        )
        without = (result(i, time) for i, time in enumerate(clip.times) if not prompts[i])
        missing = sum(map(bool, prompts))
        for frame in merge(without, with_prompts, key=lambda frame: frame.index):
            missing -= bool(frame.prompts)
            yield frame
        if missing:
            context.warn(f"{missing} of {len(clip.times)} frames could not be read; the file may be cut short")

    def _judge_clip(
        self, clip: Clip, captions: Sequence[FrameCaptions], prompts: Sequence[FramePrompts], context: RunContext
    ) -> Iterator[TrackedFrame]:
        """Yield the segments of the frames that have prompts: tracked, verified over time and reasoned about."""
        frames = self._segment(self._detect(clip, prompts, context), context)
        if self.tracker is not None:
            frames = context.timed_items("track", call_clip_stage("track", self.tracker, frames))
        evidence = ClipEvidence(clip, prompts, tuple(context.events), context.warn, captions, context.record)
        for verifier in filter(is_temporal, self.verifiers):
            frames = context.timed_items("verify", call_clip_stage("verify_clip", verifier, frames, evidence))
        if self.reasoner is not None:
            if self.tracker is None:  # a reasoner decides about tracks
                frames = context.timed_items("track", IouTracker(max_gap_seconds=0.0).track(frames))
            frames = context.timed_items("reason", call_clip_stage("reason", self.reasoner, frames, evidence))
        return frames

    def _detect(self, clip: Clip, prompts: Sequence[FramePrompts], context: RunContext) -> Iterator[FrameBoxes]:
        """Yield the frames that have prompts, with the boxes of the key frames; without a tracker all are key.

        Each frame is grounded with its own phrases: a phrase of another frame could take a box away from them.
        """
        phrases = [phrases_of(own) for own in prompts]
        wanted = frozenset(i for i, own in enumerate(phrases) if own)
        keys = wanted if self.tracker is None else key_frames(phrases, self.tracker.keyframe_interval)
        memo = FrameMemo()

        def candidates() -> Iterator[FrameBoxes]:
            for batch in frame_batches(clip, wanted, self.settings, context):
                key = [frame for frame in batch if frame.index in keys]
                memo.begin([frame.image for frame in key])
                found = iter(self._find(memo, [phrases[frame.index] for frame in key], context))
                for frame in batch:
                    boxes = FrameBoxes(frame, prompts[frame.index])
                    yield replace(boxes, key=True, **next(found)) if frame.index in keys else boxes

        yield from filter_frames(candidates(), self.settings, known_phrases(self.detector))

    def _find(self, memo: FrameMemo, phrases: list[tuple[str, ...]], context: RunContext) -> list[dict[str, Any]]:
        """Return the candidates of the memo's images, with their masks if one model makes both."""
        if not phrases:
            return []
        if self.detector is None:  # one model from phrases to masks
            with context.timed("segment"):
                pairs = memo.call("segment_phrases", self.segmenter, phrases)
            return [{"candidates": [box for box, _ in own], "masks": dict(own)} for own in pairs]
        with context.timed("detect"):
            return [{"candidates": own} for own in memo.call("detect", self.detector, phrases)]

    def _segment(self, found: Iterable[FrameBoxes], context: RunContext) -> Iterator[TrackedFrame]:
        """Segment the kept boxes of the key frames, and verify the segments by their look."""
        memo = FrameMemo()
        for batch in batches_of(found, self.settings, lambda boxes: boxes.frame):
            key = [boxes for boxes in batch if boxes.key]
            memo.begin([boxes.frame.image for boxes in key])
            segmented = iter(self._segment_batch(key, memo, context) if key else ())
            for boxes in batch:
                segments, rejected = next(segmented) if boxes.key else ((), ())
                yield TrackedFrame(boxes.frame, phrases_of(boxes.prompts), segments, rejected, boxes.key)

    def _segment_batch(self, found: list[FrameBoxes], memo: FrameMemo, context: RunContext) -> list[FrameSegments]:
        if self.detector is None:
            masks = [[(boxes.masks or {})[box] for box in boxes.kept] for boxes in found]
        else:
            with context.timed("segment"):
                masks = memo.call("segment", self.segmenter, [[box.box for box in boxes.kept] for boxes in found])
        segmented = [
            make_segments(boxes, own, self.label, self.settings.min_area)
            for boxes, own in zip(found, masks, strict=True)
        ]
        phrases = [phrases_of(boxes.prompts) for boxes in found]
        for verifier in self.verifiers:
            if not is_temporal(verifier):
                with context.timed("verify"):
                    verdicts = memo.call("verify", verifier, [segments for segments, _ in segmented], phrases)
                segmented = [apply_verdicts(*pair) for pair in zip(segmented, verdicts, strict=True)]
        return segmented


def _warn_of_uncaptioned(frames: Sequence[tuple[Caption, ...]], context: RunContext) -> None:
    """Warn if audible frames have no caption above the threshold."""
    missed = [captions for captions in frames if not strong_captions(captions)]
    if missed:
        scored = ((caption.score, caption.text) for own in missed for caption in own if caption.score is not None)
        best = max(scored, default=None)
        closest = f" above the threshold (best: {best[1]}, {best[0]:.2f})" if best else ""
        context.warn(f"{len(missed)} of {len(frames)} audible frames had no caption{closest}")


def _unique(prompts: Iterable[Prompt]) -> FramePrompts:
    """Return the first prompt of each phrase."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.phrase, prompt)
    return tuple(first.values())
