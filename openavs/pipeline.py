"""THE ALGORITHM: sound -> words -> object prompts -> boxes -> masks (OpenAVS, arXiv 2505.01448), top to bottom.

A clip is heard whole before it is looked at: its windows are captioned, one request asks what makes those sounds at
every frame, and only then are frames decoded, a batch at a time, and only those at which something is asked for.
What leaves is one `FrameResult` per frame, in order, and it says why: what was heard, asked, found and dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from openavs.answers import check_answers
from openavs.boxes import choose, iou
from openavs.captioners.base import Captioner
from openavs.detectors.base import Detector
from openavs.halving import halved
from openavs.labels import Labeller
from openavs.notes import Notes
from openavs.recipes import Recipe
from openavs.registry import Held, build_backends
from openavs.reuse import Answers, Pictures
from openavs.segmenters.base import PhraseSegmenter, Segmenter, Sighting, Tracker, check_fit
from openavs.streaming import batched, prefetched
from openavs.tracking import key_frames
from openavs.translators.base import Request, Translation, Translator
from openavs.translators.lexicon import lexicon
from openavs.types import (
    Caption,
    Clip,
    Detection,
    Dropped,
    Frame,
    FrameResult,
    InputError,
    Mask,
    Prompt,
    Segment,
    Segmentation,
    Waveform,
    Window,
)
from openavs.verifiers.base import Verifier

__all__ = ["Notes", "Pipeline", "Progress", "Settings", "iou", "window_of"]

BATCH_PIXELS = 1 << 25
"""Frames of a batch add up to at most this many pixels (eight 4K frames go one or two at a time)."""

Progress = Callable[[str, int, int], None]
"""Told the stage (`listen`, `ask`, `look`), how many of its items are done and how many there are."""


@dataclass(frozen=True)
class Settings:
    """What the pipeline itself decides; the options of the models are their own.

    `window` is the length in s of the sound paired with a frame; windows below `silence_dbfs` hear nothing. A box is
    kept from `box_threshold` on, unless a better box covers it with an IoU above `nms_iou`; a frame keeps at most
    `max_boxes`, of each phrase at most `max_per_phrase`. `batch_frames` and `batch_windows` bound what goes through the
    models at once. A picture whose `reuse.change` to the one before is at most `tolerance` is not looked at again: 0
    means the same bits, None looks at every one.
    """

    window: float = 1.0
    silence_dbfs: float = -60.0
    box_threshold: float = 0.25
    nms_iou: float | None = 0.8
    max_boxes: int = 20
    max_per_phrase: int | None = None
    min_area: int = 0
    vocabulary: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    batch_frames: int = 8
    batch_windows: int = 64
    tolerance: float | None = 0.0


Found = tuple[tuple[Segment, ...], tuple[Dropped, ...]]
"""What of a frame's prompts is there, and what is not."""

Parts = tuple[list[list[Detection]], list[list[Mask]], list[list[Dropped]]]
"""By frame: the boxes that are kept, their masks, and what is dropped."""

Ask = Callable[..., Any]
"""Asks a stage about the frames of a batch; what did not change is not asked again (`Answers.ask`)."""


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
        settings: Settings | None = None,
        recipe: Mapping[str, Any] | None = None,
        *,
        verifier: Verifier | None = None,
        tracker: Tracker | None = None,
    ) -> None:
        check_fit(detector, segmenter, tracker)
        self.captioner, self.translator = captioner, translator
        self.detector, self.verifier, self.tracker = detector, verifier, tracker
        self.segmenter: Any = segmenter or tracker
        self.settings = settings or Settings()
        self.recipe = dict(recipe or {})
        similarity = getattr(captioner, "text_similarity", None)
        self.label = Labeller(self.settings.vocabulary, self.settings.aliases, similarity)

    @classmethod
    def from_recipe(cls, recipe: Recipe, held: Held | None = None) -> Self:
        """Builds the stages that a recipe names and loads their models (`held`: see `build_backends`).

        Raises:
            InputError: a stage cannot be built, or the recipe is a student, which `StudentPipeline` runs.
        """
        if recipe.student is not None:
            raise InputError(f"{recipe.name} is a trained student; it runs in evaluate, segment and label")
        settings = Settings(
            window=recipe.sample.window,
            silence_dbfs=recipe.silence.dbfs,
            **recipe.keep.model_dump(),
            vocabulary=None if recipe.vocabulary is None else tuple(recipe.vocabulary),
            aliases=recipe.aliases,
            batch_frames=recipe.batch.frames,
            batch_windows=recipe.batch.windows,
            tolerance=recipe.reuse.tolerance,
        )
        stages = build_backends(recipe, held)
        main, verifier, tracker = stages[:4], stages.verifier, stages.tracker
        return cls(*main, settings, recipe.to_dict(), verifier=verifier, tracker=tracker)

    @property
    def models(self) -> dict[str, Any]:
        """What every model reference of the stages resolved to."""
        stages = (self.captioner, self.translator, self.detector, self.segmenter, self.verifier, self.tracker)
        return {ref: facts for stage in stages for ref, facts in getattr(stage, "models", {}).items()}

    # -------------------------------------------------------------------------------------------- the whole of it

    def run(self, clips: Iterable[Clip], progress: Progress | None = None) -> Iterator[Segmentation]:
        """Segments clips one by one; the next one is opened (its sound decoded) while the models work."""
        for clip in prefetched(clips, depth=1):
            yield self(clip, progress)

    def __call__(self, clip: Clip, progress: Progress | None = None) -> Segmentation:
        """Segments one clip."""
        notes = Notes(list(clip.warnings))
        frames = tuple(self.stream(clip, progress, notes))
        return Segmentation(
            clip=clip.id,
            size=clip.size,
            frames=frames,
            source=clip.source,
            recipe=self.recipe,
            models=self.models,
            timings={stage: round(seconds, 4) for stage, seconds in notes.seconds.items()},
            warnings=tuple(notes.warnings),
        )

    def stream(self, clip: Clip, progress: Progress | None = None, notes: Notes | None = None) -> Iterator[FrameResult]:
        """One result per frame, in order; memory is bounded by the batch, not by the length of the clip."""
        notes = notes if notes is not None else Notes()
        progress = progress or _silent_progress
        heard = self.listen(clip, progress, notes)
        asked = self.ask(heard, progress, notes)
        yield from self.look(clip, heard, asked, progress, notes)

    # ------------------------------------------------------------------------------------- sound -> words -> prompts

    def listen(self, clip: Clip, progress: Progress, notes: Notes) -> list[tuple[Caption, ...] | None]:
        """What is heard around every frame; None where it is silent, for which no model is run."""
        if clip.audio is None:
            raise InputError(f"{clip.source or clip.id} has no sound track; give its sound with --audio FILE")
        windows = [window_of(clip.audio, t, clip.fps, self.settings.window, clip.labels) for t in clip.times]
        heard: list[tuple[Caption, ...] | None] = [None] * len(windows)
        audible = [i for i, w in enumerate(windows) if w.audio.dbfs >= self.settings.silence_dbfs]
        if not audible:
            notes.warn("the sound is silent throughout, so nothing was looked for")
        progress("listen", 0, len(audible))
        for start in range(0, len(audible), self.settings.batch_windows):
            batch = audible[start : start + self.settings.batch_windows]
            with notes.timed("listen"):
                answers = halved(self.captioner.caption, [windows[i] for i in batch])
            check_answers("caption", answers)
            for i, captions in zip(batch, answers, strict=True):
                heard[i] = tuple(captions)
            progress("listen", start + len(batch), len(audible))
        return heard

    def ask(
        self, heard: Sequence[tuple[Caption, ...] | None], progress: Progress, notes: Notes
    ) -> list[tuple[Prompt, ...]]:
        """What to look for at every frame: one request holds the captions of all of them."""
        request = Request(tuple(captions or () for captions in heard), self.settings.vocabulary)
        if not any(request.frames):
            return [()] * len(heard)
        progress("ask", 0, 1)
        with notes.timed("ask"):
            translation = self.translator.translate([request])[0]
        if translation.note:
            notes.warn(translation.note)
        progress("ask", 1, 1)
        return [
            tuple(self._prompt(phrase, captions or (), translation) for phrase in dict.fromkeys(phrases))
            for phrases, captions in zip(translation.frames, heard, strict=True)
        ]

    def _prompt(self, phrase: str, captions: Sequence[Caption], translation: Translation) -> Prompt:
        """A phrase with the captions it can have come from: those that speak of it, else all of its frame."""
        sources = tuple(c for c in captions if phrase in c.text.lower() or phrase in lexicon(c.text))
        return Prompt(phrase, self.label(phrase)[0], translation.origin, sources or tuple(captions))

    # ---------------------------------------------------------------------------------------- prompts -> boxes -> masks

    def look(
        self,
        clip: Clip,
        heard: Sequence[tuple[Caption, ...] | None],
        asked: Sequence[tuple[Prompt, ...]],
        progress: Progress,
        notes: Notes,
    ) -> Iterator[FrameResult]:
        """Finds what is asked for; frames at which nothing is asked for are not decoded but answered as they are."""
        wanted = sum(map(bool, asked))
        sightings = self._see(clip, asked, progress, notes) if wanted else iter(())
        if self.tracker is not None:
            sightings = notes.timed_items("track", self.tracker.track(sightings))
        following = 0  # the first frame that has not left yet
        for seen in sightings:
            at = seen.frame.index
            yield from (_unseen(clip, i, heard[i]) for i in range(following, at) if not asked[i])
            result = _unseen(clip, at, heard[at])
            yield FrameResult(at, seen.frame.time, False, result.heard, asked[at], seen.segments, seen.dropped)
            following, wanted = at + 1, wanted - 1
        yield from (_unseen(clip, i, heard[i]) for i in range(following, len(clip.times)) if not asked[i])
        if wanted:
            notes.warn(f"{wanted} of {len(clip.times)} frames could not be read; the file may be cut short")

    def _see(
        self, clip: Clip, asked: Sequence[tuple[Prompt, ...]], progress: Progress, notes: Notes
    ) -> Iterator[Sighting]:
        """Decodes the frames at which something is asked for, batch by batch, and looks at those that are key frames
        (without a tracker: at all of them)."""
        sounding = [tuple(prompt.phrase for prompt in prompts) for prompts in asked]
        wanted = frozenset(i for i, phrases in enumerate(sounding) if phrases)
        keys = wanted if self.tracker is None else key_frames(sounding, self.tracker.every)
        pictures, answers, done = Pictures(self.settings.tolerance), Answers(), 0
        progress("look", 0, len(wanted))
        frames = pictures.shared(clip.frames(wanted))
        batches = batched(frames, self.settings.batch_frames, lambda f: f.image.size // 3, BATCH_PIXELS)
        for batch in notes.timed_items("decode", prefetched(batches, depth=1)):  # the next is decoded meanwhile
            looked_at = [frame for frame in batch if frame.index in keys]
            found = dict(zip(looked_at, self._find(looked_at, asked, answers, notes), strict=True))
            for frame in batch:
                segments, dropped = found.get(frame, ((), ()))
                yield Sighting(frame, sounding[frame.index], segments, dropped, key=frame in found)
            done += len(batch)
            progress("look", done, len(wanted))
        if pictures.near:
            notes.warn(f"{pictures.near} of {done} frames had hardly changed and were taken for the one before them")

    def _find(
        self, frames: Sequence[Frame], asked: Sequence[tuple[Prompt, ...]], answers: Answers, notes: Notes
    ) -> list[Found]:
        """Segments and drops of some frames: boxes of what sounds at each, their masks, and the verifier's word."""
        if not frames:
            return []
        images = [frame.image for frame in frames]
        answers.begin(images)
        ask = partial(answers.ask, images)
        prompts = [asked[frame.index] for frame in frames]
        if self.detector is None:
            kept, masks, dropped = self._phrases_to_masks(ask, prompts, notes)
        else:
            kept, masks, dropped = self._boxes_to_masks(ask, prompts, _phrases(asked), notes)
        found = [self._compose(*parts) for parts in zip(kept, masks, dropped, strict=True)]
        return found if self.verifier is None else self._verify(ask, prompts, found, notes)

    def _boxes_to_masks(
        self, ask: Ask, prompts: list[tuple[Prompt, ...]], phrases: tuple[str, ...], notes: Notes
    ) -> Parts:
        """One joint grounding caption of all that sounds in the clip, then one image encoding a frame."""
        assert self.detector is not None
        with notes.timed("detect"):
            candidates = ask(self.detector.detect, [phrases] * len(prompts))
        chosen = [self.choose(boxes, own) for boxes, own in zip(candidates, prompts, strict=True)]
        kept, dropped = [boxes for boxes, _ in chosen], [drops for _, drops in chosen]
        with notes.timed("segment"):
            masks = ask(self.segmenter.segment, [[detection.box for detection in boxes] for boxes in kept])
        return kept, masks, dropped

    def _phrases_to_masks(self, ask: Ask, prompts: list[tuple[Prompt, ...]], notes: Notes) -> Parts:
        """One model from phrases to masks; the same rules choose among what it finds."""
        with notes.timed("segment"):
            finds = ask(self.segmenter.segment_phrases, [[prompt.phrase for prompt in own] for own in prompts])
        chosen = [self.choose([box for box, _ in own], asked) for own, asked in zip(finds, prompts, strict=True)]
        kept, dropped = [boxes for boxes, _ in chosen], [drops for _, drops in chosen]
        masks = [[dict(own)[box] for box in boxes] for own, boxes in zip(finds, kept, strict=True)]
        return kept, masks, dropped

    def choose(
        self, candidates: Sequence[Detection], prompts: Sequence[Prompt]
    ) -> tuple[list[Detection], list[Dropped]]:
        """The boxes that are kept, best first, and what becomes of the phrases without one."""
        rules = self.settings
        return choose(
            candidates,
            prompts,
            threshold=rules.box_threshold,
            nms_iou=rules.nms_iou,
            max_boxes=rules.max_boxes,
            max_per_phrase=rules.max_per_phrase,
        )

    def _compose(self, kept: Sequence[Detection], masks: Sequence[Mask], dropped: Sequence[Dropped]) -> Found:
        """Boxes and their masks as labelled segments; an empty or too small mask is no segment."""
        segments, drops = [], list(dropped)
        for box, mask in zip(kept, masks, strict=True):
            if mask.rle.area < max(self.settings.min_area, 1):
                drops.append(Dropped(box.phrase, "empty mask", box.score, box.box))
                continue
            label, how = self.label(box.phrase)
            segments.append(Segment(mask.rle, box.box, box.phrase, box.score, mask.score, label, how))
        return tuple(segments), tuple(drops)

    def _verify(self, ask: Ask, prompts: list[tuple[Prompt, ...]], found: list[Found], notes: Notes) -> list[Found]:
        """Drops the segments that do not look like what they are taken for."""
        assert self.verifier is not None
        with notes.timed("verify"):
            asked = [[prompt.phrase for prompt in own] for own in prompts]
            verdicts = ask(self.verifier.verify, [segments for segments, _ in found], asked)
        answers = []
        for (segments, dropped), own in zip(found, verdicts, strict=True):
            judged = list(zip(segments, own, strict=True))
            gone = [Dropped(s.phrase, "verifier", verdict.score, s.box) for s, verdict in judged if not verdict.kept]
            answers.append((tuple(s for s, verdict in judged if verdict.kept), (*dropped, *gone)))
        return answers


# ----------------------------------------------------------------------------------------------------------- the rest


def window_of(audio: Waveform, at: float, fps: float, length: float, labels: tuple[str, ...] = ()) -> Window:
    """The sound of a frame: `length` seconds around the middle of the frame interval that a time falls into.

    At one frame per second and one second of sound this is AVSBench's pairing: frame i with second i.
    """
    middle = (math.floor(at * fps + 1e-6) + 0.5) / fps
    start, end = max(middle - length / 2, 0.0), min(middle + length / 2, audio.duration)
    return Window(audio.cut(start, end), start, max(start, end), labels)


def _phrases(asked: Sequence[tuple[Prompt, ...]]) -> tuple[str, ...]:
    """All phrases of a clip, in the order in which they are first asked for."""
    return tuple(dict.fromkeys(prompt.phrase for prompts in asked for prompt in prompts))


def _unseen(clip: Clip, index: int, captions: tuple[Caption, ...] | None) -> FrameResult:
    """A frame at which nothing is asked for."""
    return FrameResult(index, clip.times[index], silent=captions is None, heard=captions or ())


def _silent_progress(stage: str, done: int, total: int) -> None:
    """Tells nobody."""
