"""THE ALGORITHM: sound -> words -> object prompts -> boxes -> masks (OpenAVS, arXiv 2505.01448), top to bottom.

A clip is heard whole before it is looked at: its windows are captioned, one request asks what makes those sounds at
every frame, and only then are frames decoded, a batch at a time, and only those at which something is asked for.
What leaves is one `FrameResult` per frame, in order, and it says why: what was heard, asked, found and dropped.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from openavs.captioners.base import Captioner
from openavs.detectors.base import Detector
from openavs.labels import Labeller
from openavs.recipes import Recipe
from openavs.registry import Held, build_backends
from openavs.segmenters.base import Segmenter
from openavs.streaming import batched, prefetched
from openavs.translators.base import Request, Translation, Translator
from openavs.translators.lexicon import lexicon
from openavs.types import (
    Box,
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

log = logging.getLogger(__name__)

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
    models at once.
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


class Pipeline:
    """The four stages and the rules between them.

    >>> pipe = Pipeline.from_recipe(load_recipe("tiny"))  # doctest: +SKIP
    >>> result = pipe(open_clip("video.mp4"))  # doctest: +SKIP
    """

    def __init__(
        self,
        captioner: Captioner,
        translator: Translator,
        detector: Detector,
        segmenter: Segmenter,
        settings: Settings | None = None,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.captioner, self.translator = captioner, translator
        self.detector, self.segmenter = detector, segmenter
        self.settings = settings or Settings()
        self.recipe = dict(recipe or {})
        similarity = getattr(captioner, "text_similarity", None)
        self.label = Labeller(self.settings.vocabulary, self.settings.aliases, similarity)

    @classmethod
    def from_recipe(cls, recipe: Recipe, held: Held | None = None) -> Pipeline:
        """Builds the stages that a recipe names and loads their models (`held`: see `build_backends`)."""
        settings = Settings(
            window=recipe.sample.window,
            silence_dbfs=recipe.silence.dbfs,
            **recipe.keep.model_dump(),
            vocabulary=None if recipe.vocabulary is None else tuple(recipe.vocabulary),
            aliases=recipe.aliases,
            batch_frames=recipe.batch.frames,
            batch_windows=recipe.batch.windows,
        )
        return cls(*build_backends(recipe, held), settings, recipe.to_dict())

    @property
    def models(self) -> dict[str, Any]:
        """What every model reference of the stages resolved to."""
        stages = (self.captioner, self.translator, self.detector, self.segmenter)
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
                answers = self.captioner.caption([windows[i] for i in batch])
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
        """Decodes the frames at which something is asked for and finds it; the others are answered as they are."""
        phrases = tuple(dict.fromkeys(prompt.phrase for prompts in asked for prompt in prompts))
        wanted = [i for i, prompts in enumerate(asked) if prompts]
        following = 0  # the first frame that has not left yet
        done = 0
        progress("look", 0, len(wanted))
        frames: Iterator[Frame] = prefetched(clip.frames(frozenset(wanted))) if wanted else iter(())
        for batch in batched(frames, self.settings.batch_frames, lambda f: f.image.size // 3, BATCH_PIXELS):
            answers = self._look_at(batch, phrases, asked, notes)
            for frame, (segments, dropped) in zip(batch, answers, strict=True):
                for i in range(following, frame.index):
                    if not asked[i]:
                        yield _unseen(clip, i, heard[i])
                result = _unseen(clip, frame.index, heard[frame.index])
                yield FrameResult(result.index, frame.time, False, result.heard, asked[frame.index], segments, dropped)
                following = frame.index + 1
            done += len(batch)
            progress("look", done, len(wanted))
        for i in range(following, len(clip.times)):
            if not asked[i]:
                yield _unseen(clip, i, heard[i])
        if done < len(wanted):
            notes.warn(f"{len(wanted) - done} of {len(clip.times)} frames could not be read; the file may be cut short")

    def _look_at(
        self, batch: Sequence[Frame], phrases: Sequence[str], asked: Sequence[tuple[Prompt, ...]], notes: Notes
    ) -> list[tuple[tuple[Segment, ...], tuple[Dropped, ...]]]:
        """Segments and drops of every frame of a batch: one joint grounding caption, one image encoding a frame."""
        images = [frame.image for frame in batch]
        with notes.timed("detect"):
            found = self.detector.detect(images, [phrases] * len(batch))
        chosen = [self.choose(boxes, asked[frame.index]) for frame, boxes in zip(batch, found, strict=True)]
        with notes.timed("segment"):
            masks = self.segmenter.segment(images, [[d.box for d in kept] for kept, _ in chosen])
        return [self._compose(kept, made, dropped) for (kept, dropped), made in zip(chosen, masks, strict=True)]

    def choose(
        self, candidates: Sequence[Detection], prompts: Sequence[Prompt]
    ) -> tuple[list[Detection], list[Dropped]]:
        """The boxes that are kept, best first, and what becomes of the phrases without one."""
        rules = self.settings
        kept: list[Detection] = []
        dropped: list[Dropped] = []
        phrases = {prompt.phrase for prompt in prompts}
        near: dict[str, Detection] = {}  # the best box of each phrase that lies under the threshold
        for box in sorted((c for c in candidates if c.phrase in phrases), key=lambda c: -c.score):
            if box.score < rules.box_threshold:
                near.setdefault(box.phrase, box)
            elif covering := self._covering(box, kept):
                if box.phrase not in {other.phrase for other in covering}:  # else it is the same thing once more
                    dropped.append(Dropped(box.phrase, "duplicate", box.score, box.box))
            elif len(kept) == rules.max_boxes or self._is_full(box.phrase, kept):
                dropped.append(Dropped(box.phrase, "too many", box.score, box.box))
            else:
                kept.append(box)
        answered = {box.phrase for box in kept} | {drop.phrase for drop in dropped}
        for phrase in (prompt.phrase for prompt in prompts if prompt.phrase not in answered):
            best = near.get(phrase)
            if best is None:
                dropped.append(Dropped(phrase, "not found"))
            else:
                dropped.append(Dropped(phrase, "below threshold", best.score, best.box))
        return kept, dropped

    def _covering(self, box: Detection, kept: Sequence[Detection]) -> list[Detection]:
        """The kept, better boxes that a box overlaps too much to be another thing."""
        limit = self.settings.nms_iou
        return [] if limit is None else [other for other in kept if iou(box.box, other.box) > limit]

    def _is_full(self, phrase: str, kept: Sequence[Detection]) -> bool:
        """Whether a phrase has as many boxes as it may have."""
        limit = self.settings.max_per_phrase
        return limit is not None and sum(other.phrase == phrase for other in kept) >= limit

    def _compose(
        self, kept: Sequence[Detection], masks: Sequence[Mask], dropped: Sequence[Dropped]
    ) -> tuple[tuple[Segment, ...], tuple[Dropped, ...]]:
        """Boxes and their masks as labelled segments; an empty or too small mask is no segment."""
        segments, drops = [], list(dropped)
        for box, mask in zip(kept, masks, strict=True):
            if mask.rle.area < max(self.settings.min_area, 1):
                drops.append(Dropped(box.phrase, "empty mask", box.score, box.box))
                continue
            label, how = self.label(box.phrase)
            segments.append(Segment(mask.rle, box.box, box.phrase, box.score, mask.score, label, how))
        return tuple(segments), tuple(drops)


# ----------------------------------------------------------------------------------------------------------- the rest


@dataclass
class Notes:
    """What is worth telling about a clip's run besides its results: warnings, and seconds by stage."""

    warnings: list[str] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def warn(self, sentence: str) -> None:
        """Keeps a sentence about this clip and logs it."""
        log.warning("%s", sentence)
        self.warnings.append(sentence)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the time spent inside to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started


def window_of(audio: Waveform, at: float, fps: float, length: float, labels: tuple[str, ...] = ()) -> Window:
    """The sound of a frame: `length` seconds around the middle of the frame interval that a time falls into.

    At one frame per second and one second of sound this is AVSBench's pairing: frame i with second i.
    """
    middle = (math.floor(at * fps + 1e-6) + 0.5) / fps
    start, end = max(middle - length / 2, 0.0), min(middle + length / 2, audio.duration)
    return Window(audio.cut(start, end), start, max(start, end), labels)


def iou(one: Box, two: Box) -> float:
    """Intersection over union of two boxes; 0 for boxes without area."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((one[2] - one[0]) * (one[3] - one[1]) + (two[2] - two[0]) * (two[3] - two[1]) - both)


def _unseen(clip: Clip, index: int, captions: tuple[Caption, ...] | None) -> FrameResult:
    """A frame at which nothing is asked for."""
    return FrameResult(index, clip.times[index], silent=captions is None, heard=captions or ())


def _silent_progress(stage: str, done: int, total: int) -> None:
    """Tells nobody."""
