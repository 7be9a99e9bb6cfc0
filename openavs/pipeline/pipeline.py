"""THE ALGORITHM: audio -> captions -> object prompts -> boxes -> masks (OpenAVS, arXiv 2505.01448), top to bottom.

1. `caption`: the audio windows of a clip are captioned in batches; silent windows run no model.
   With a captioner of events, a frame has those whose exact times overlap its interval.
2. `translate`: one request per clip holds the captions of all frames and returns the phrases to find at each frame.
   A translator with a contact sheet also gets pictures of frames that have captions.
3. `localize`: frames with prompts are decoded batch by batch, detected, filtered and segmented.
   Then the segments are verified by their look, tracked, and verified over time: by their motion and the sound.
   Last, a reasoner may accept or reject the tracks of the whole clip.

The output is one `FrameResult` per frame, in order, with the reasons: captions, prompts, segments and rejections.

Beside this file: `frames.py` (audio windows, frame batches, repeated frames), `filtering.py` (which boxes are kept),
`context.py` (warnings, timings, progress); `stages/contracts.py` finds NaN and wrong sizes. The
thresholds are in `PipelineConfig`; `models/device.py` splits batches that do not fit into memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from heapq import merge
from typing import Any, Self, cast

from openavs.config.recipe import PipelineConfig, Recipe, pipeline_config
from openavs.errors import InputError
from openavs.models.device import run_with_oom_backoff
from openavs.pipeline.context import Progress, RunContext
from openavs.pipeline.filtering import FrameBoxes, filter_frames
from openavs.pipeline.frames import FrameMemo, audio_windows, batches_of, frame_batches, frame_events
from openavs.registry import BackendCache, build_backends
from openavs.stages.captioners.base import Captioner, EventCaptioner, gives_events
from openavs.stages.contracts import validate_events, validate_output, validate_outputs, validate_tracked_frames
from openavs.stages.detectors.base import Detector, known_phrases
from openavs.stages.lexicon import detector_name, lexicon
from openavs.stages.reasoners.base import Reasoner
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter, validate_stages
from openavs.stages.trackers.base import Tracker, key_frames
from openavs.stages.trackers.iou import IouTracker
from openavs.stages.translators.base import Request, Translator, wants_pictures
from openavs.stages.translators.frame_pictures import frame_pictures
from openavs.stages.verifiers.base import TemporalVerifier, Verifier, is_temporal
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.types import (
    AudioWindow,
    Caption,
    Clip,
    ClipEvidence,
    ClipResult,
    Detection,
    Frame,
    FrameResult,
    Mask,
    Prompt,
    Rejection,
    Segment,
    TrackedFrame,
    strong_captions,
)
from openavs.utils.concurrency import prefetch

__all__ = ["Pipeline", "PipelineConfig", "Progress", "RunContext"]

FrameCaptions = tuple[Caption, ...] | None
"""Captions of a frame, best first; None where it is silent."""

FramePrompts = tuple[Prompt, ...]
"""Phrases to find at a frame."""

FrameSegments = tuple[tuple[Segment, ...], tuple[Rejection, ...]]
"""Segments of a frame, and the prompts and boxes that were rejected."""


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
        self.captioner, self.translator = captioner, translator
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
        if self._is_only_prompt(clip.expression):
            return [()] * len(clip.times)
        windows = audio_windows(clip, self.settings.window_seconds, self.settings.context_seconds)
        captions: list[FrameCaptions] = [None] * len(windows)
        audible = [i for i, window in enumerate(windows) if window.audio.dbfs >= self.settings.silence_dbfs]
        if not audible:
            context.warn("the audio is silent throughout, so no frame has prompts")
        context.progress("caption", 0, len(audible))
        captioner: Any = self.captioner
        if not gives_events(captioner):
            self._caption_windows(captioner, windows, audible, captions, context)
        elif audible and clip.audio is not None:
            with context.timed("caption"):
                context.events[:] = validate_events(captioner.events(clip.audio))
            for i, own in frame_events(clip, context.events, audible, self.settings.window_seconds):
                captions[i] = own
            context.progress("caption", len(audible), len(audible))
        if note := _uncaptioned([captions[i] or () for i in audible]):
            context.warn(note)
        return captions

    def _caption_windows(
        self,
        captioner: Captioner,
        windows: Sequence[AudioWindow],
        audible: Sequence[int],
        captions: list[FrameCaptions],
        context: RunContext,
    ) -> None:
        """Set the captions of the audible windows, batch by batch."""
        for start in range(0, len(audible), self.settings.batch_windows):
            batch = audible[start : start + self.settings.batch_windows]
            with context.timed("caption"):
                answers = run_with_oom_backoff(
                    validate_output("caption", captioner.caption), [windows[i] for i in batch]
                )
            validate_outputs("caption", answers)
            for i, own in zip(batch, answers, strict=True):
                captions[i] = tuple(own)
            context.progress("caption", start + len(batch), len(audible))

    def request(self, clip: Clip, captions: Sequence[FrameCaptions]) -> Request:
        """Return the translator's request for a clip: the captions that reach the threshold, by frame.

        Only for a translator with a contact sheet, frames are decoded here.
        """
        frames = tuple(map(strong_captions, captions))
        pictures = frame_pictures(clip, frames) if wants_pictures(self.translator) else ()
        return Request(frames, self.settings.vocabulary, clip.expression, pictures)

    def _is_only_prompt(self, expression: str | None) -> bool:
        """Whether an expression is the only prompt, because no stage reads it together with the sound."""
        return expression is not None and not getattr(self.translator, "takes_expression", False)

    def translate(self, clip: Clip, captions: Sequence[FrameCaptions], context: RunContext) -> list[FramePrompts]:
        """Return the prompts of every frame: the translation of its captions, as the recipe edits it."""
        settings = self.settings
        added, removed = map(_phrases_of, (settings.added_prompts, settings.removed_prompts))
        own = tuple(Prompt(phrase, self.label(phrase)[0], "recipe") for phrase in added)
        return [
            _unique((*(p for p in prompts if p.phrase.lower() not in removed), *(own if heard is not None else ())))
            for heard, prompts in zip(captions, self._translate(clip, captions, context), strict=True)
        ]

    def _translate(self, clip: Clip, captions: Sequence[FrameCaptions], context: RunContext) -> list[FramePrompts]:
        """Translate the captions of a clip to the prompts of every frame.

        One request holds all frames, so that the translator names the same thing alike at all of them (frame
        consistency; OpenAVS, section 3.3).
        """
        if clip.expression is not None and self._is_only_prompt(clip.expression):
            phrase = clip.expression.strip().rstrip(".").lower()
            return [(Prompt(phrase, self.label(phrase)[0], "expression"),)] * len(captions)
        with context.timed("decode"):
            request = self.request(clip, captions)
        if not any(request.frames):
            return [()] * len(captions)
        context.progress("translate", 0, 1)
        with context.timed("translate"):
            translation = validate_output("translate", self.translator.translate)([request])[0]
        if translation.note:
            context.warn(translation.note)
        context.progress("translate", 1, 1)
        return [
            _unique(self._prompt(phrase, own, translation.origin_of(i)) for phrase in phrases)
            for i, (phrases, own) in enumerate(zip(translation.frames, request.frames, strict=True))
        ]

    def _prompt(self, phrase: str, captions: Sequence[Caption], origin: str) -> Prompt:
        """Make a prompt of a phrase, with the captions that mention it; with all of the frame's if none does."""
        sources = tuple(c for c in captions if phrase in c.text.lower() or phrase in lexicon(c.text))
        name = detector_name(phrase) if self.settings.disambiguate else phrase
        return Prompt(name, self.label(phrase)[0], origin, sources or tuple(captions))

    # ------------------------------------------------------------------------------------ prompts -> boxes -> masks

    def localize(
        self, clip: Clip, captions: Sequence[FrameCaptions], prompts: Sequence[FramePrompts], context: RunContext
    ) -> Iterator[FrameResult]:
        """Find the prompts in their frames; frames without prompts are not decoded."""

        def without_prompts(i: int) -> FrameResult:
            own = captions[i]
            return FrameResult(i, clip.times[i], own is None, strong_captions(own), weak=_weak(own))

        def with_prompts(tracked: TrackedFrame) -> FrameResult:
            i, time = tracked.frame.index, tracked.frame.time
            strong, weak = strong_captions(captions[i]), _weak(captions[i])
            return FrameResult(i, time, False, strong, prompts[i], tracked.segments, tracked.rejected, weak)

        tracked = self._detect_key_frames(clip, prompts, context)
        if self.tracker is not None:
            tracked = context.timed_items("track", validate_tracked_frames(self.tracker.track(tracked)))
        evidence = ClipEvidence(clip, prompts, tuple(context.events), context.warn, captions, context.record)
        for verifier in self.verifiers:
            if is_temporal(verifier):
                verified = validate_tracked_frames(verifier.verify_clip(tracked, evidence), "verify_clip")
                tracked = context.timed_items("verify", verified)
        if self.reasoner is not None:
            if self.tracker is None:
                tracked = context.timed_items("track", IouTracker(max_gap_seconds=0.0).track(tracked))
            reasoned = validate_tracked_frames(self.reasoner.reason(tracked, evidence), "reason")
            tracked = context.timed_items("reason", reasoned)
        skipped = (i for i, own in enumerate(prompts) if not own)
        missing = sum(map(bool, prompts))
        by_index = merge(map(without_prompts, skipped), map(with_prompts, tracked), key=lambda result: result.index)
        for result in by_index:
            missing -= bool(result.prompts)
            yield result
        if missing:
            context.warn(f"{missing} of {len(clip.times)} frames could not be read; the file may be cut short")

    def _detect_key_frames(
        self, clip: Clip, prompts: Sequence[FramePrompts], context: RunContext
    ) -> Iterator[TrackedFrame]:
        """Yield the frames that have prompts, with the segments of the key frames; without a tracker all are key."""
        found = filter_frames(self._detect(clip, prompts, context), self.settings, known_phrases(self.detector))
        memo = FrameMemo()
        for batch in batches_of(found, self.settings, lambda boxes: boxes.frame):
            segmented = iter(self._segment([boxes for boxes in batch if boxes.key], memo, context))
            for boxes in batch:
                segments, rejected = next(segmented) if boxes.key else ((), ())
                phrases = tuple(prompt.phrase for prompt in prompts[boxes.frame.index])
                yield TrackedFrame(boxes.frame, phrases, segments, rejected, key=boxes.key)

    def _detect(self, clip: Clip, prompts: Sequence[FramePrompts], context: RunContext) -> Iterator[FrameBoxes]:
        """Yield the frames that have prompts, with the candidates of the key frames.

        Each frame is grounded with its own phrases: a phrase of another frame could take a box away from them.
        """
        phrases = _phrases(prompts)
        wanted = frozenset(i for i, own in enumerate(phrases) if own)
        keys = wanted if self.tracker is None else key_frames(phrases, self.tracker.keyframe_interval)
        memo = FrameMemo()
        for batch in frame_batches(clip, wanted, self.settings, context):
            key = [frame for frame in batch if frame.index in keys]
            memo.begin([frame.image for frame in key])
            candidates = iter(self._candidates(key, [phrases[frame.index] for frame in key], memo, context))
            for frame in batch:
                if frame.index in keys:
                    boxes, masks = next(candidates)
                    yield FrameBoxes(frame, prompts[frame.index], True, boxes, masks)
                else:
                    yield FrameBoxes(frame)

    def _candidates(
        self, frames: list[Frame], phrases: list[tuple[str, ...]], memo: FrameMemo, context: RunContext
    ) -> list[tuple[Sequence[Detection], Mapping[Detection, Mask] | None]]:
        """Return the boxes of some frames, with their masks if one model makes both."""
        if not frames:
            return []
        if self.detector is None:  # one model from phrases to masks
            call = validate_output("segment_phrases", self.segmenter.segment_phrases)
            with context.timed("segment"):
                return [(list(own), own) for own in map(dict, memo.call(call, phrases))]
        with context.timed("detect"):
            return [(own, None) for own in memo.call(validate_output("detect", self.detector.detect), phrases)]

    def _segment(self, found: list[FrameBoxes], memo: FrameMemo, context: RunContext) -> list[FrameSegments]:
        """Segment the kept boxes of some frames, and verify the segments by their look."""
        if not found:
            return []
        memo.begin([boxes.frame.image for boxes in found])
        if self.detector is None:
            masks = [[(boxes.masks or {})[box] for box in boxes.kept] for boxes in found]
        else:
            call = validate_output("segment", self.segmenter.segment)
            with context.timed("segment"):
                masks = memo.call(call, [[box.box for box in boxes.kept] for boxes in found])
        segmented = [self._compose(b.kept, own, b.rejected) for b, own in zip(found, masks, strict=True)]
        prompts = [tuple(boxes.prompts) for boxes in found]
        for verifier in self.verifiers:
            if not is_temporal(verifier):
                segmented = self._verify(cast(Verifier, verifier), prompts, segmented, memo, context)
        return segmented

    def _compose(
        self, kept: Sequence[Detection], masks: Sequence[Mask], rejected: Sequence[Rejection]
    ) -> FrameSegments:
        """Make labeled segments of boxes and their masks; empty and too small masks are rejected."""
        segments, rejections = [], list(rejected)
        for box, mask in zip(kept, masks, strict=True):
            if mask.rle.area < max(self.settings.min_area, 1):
                rejections.append(Rejection(box.phrase, "empty mask", box.score, box.box))
                continue
            label, how = self.label(box.phrase)
            segments.append(Segment(mask.rle, box.box, box.phrase, box.score, mask.score, label, how))
        return tuple(segments), tuple(rejections)

    def _verify(
        self,
        verifier: Verifier,
        prompts: list[FramePrompts],
        found: list[FrameSegments],
        memo: FrameMemo,
        context: RunContext,
    ) -> list[FrameSegments]:
        """Reject the segments that do not look like their phrase."""
        call = validate_output("verify", verifier.verify)
        with context.timed("verify"):
            verdicts = memo.call(call, [segments for segments, _ in found], _phrases(prompts))
        verified = []
        for (segments, rejected), own in zip(found, verdicts, strict=True):
            pairs = list(zip(segments, own, strict=True))
            kept = tuple(replace(s, verdicts=(*s.verdicts, v)) for s, v in pairs if v.kept)
            gone = [
                Rejection(s.phrase, "verifier", v.score, s.box, v.margin, v.verifier or None)
                for s, v in pairs
                if not v.kept
            ]
            verified.append((kept, (*rejected, *gone)))
        return verified


def _weak(captions: FrameCaptions) -> tuple[Caption, ...]:
    """Return the captions below the captioner's threshold."""
    return tuple(caption for caption in captions or () if caption.weak)


def _uncaptioned(frames: Sequence[tuple[Caption, ...]]) -> str | None:
    """Return a sentence about audible frames without a caption above the threshold; None without such frames."""
    missed = [captions for captions in frames if not strong_captions(captions)]
    if not missed:
        return None
    scored = ((caption.score, caption.text) for own in missed for caption in own if caption.score is not None)
    best = max(scored, default=None)
    closest = f" above the threshold (best: {best[1]}, {best[0]:.2f})" if best else ""
    return f"{len(missed)} of {len(frames)} audible frames had no caption{closest}"


def _unique(prompts: Iterable[Prompt]) -> FramePrompts:
    """Return the first prompt of each phrase."""
    first: dict[str, Prompt] = {}
    for prompt in prompts:
        first.setdefault(prompt.phrase, prompt)
    return tuple(first.values())


def _phrases_of(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a recipe as phrases."""
    return tuple(" ".join(word.lower().split()) for word in words)


def _phrases(prompts: Sequence[FramePrompts]) -> list[tuple[str, ...]]:
    """Return the phrases of every frame."""
    return [tuple(prompt.phrase for prompt in own) for own in prompts]
