"""Loads the stages of a recipe one after the other and runs each once: on a synthetic second, or on a video."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openavs.checks.finding import CheckResult
from openavs.checks.peak_memory import PeakMemory
from openavs.checks.vocabulary import unknown_labels
from openavs.config.recipe import Recipe, override_recipe
from openavs.errors import InputError, OpenAVSError
from openavs.models.device import resolve_device
from openavs.models.oom import is_out_of_memory
from openavs.pipeline.context import RunContext
from openavs.pipeline.filtering import filter_detections
from openavs.pipeline.memory_estimate import PROCESS, MemoryFootprint, measure_footprints
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.pipeline.validation import validate_outputs
from openavs.stages.contracts import validate_output, validate_tracked_frames
from openavs.stages.trackers.base import TrackedFrame
from openavs.structures.types import Caption, Clip, Detection, Frame, Mask, Prompt, Segment, strong_captions
from openavs.utils.text import pluralize

log = logging.getLogger(__name__)

FRAMES = 10
"""Frames of a video that are tried at most."""

CAPTION, PHRASE = "dog barking", "dog"
"""What stands in where a stage finds nothing, so that the stages after it run too."""


def bundled_clip() -> Clip:
    """One second of the synthetic world with its picture: a dog that barks."""
    from openavs.synthetic.datasets import scene_to_clip
    from openavs.synthetic.scenes import Role, plan_scene, scene_rng

    return scene_to_clip(plan_scene([Role("dog", (True,))], scene_rng("test", 50), 1, (288, 384)), "synthetic")


def try_stages(recipe: Recipe, clip: Clip, failed: Mapping[str, str] | None = None) -> Iterator[CheckResult]:
    """Run each stage once, one in memory at a time; one finding per stage, as it is done.

    A stage runs on what the stages before it found, or on a stand-in where they found nothing or failed. The facts are
    `stage`, `use`, `load_seconds`, `run_seconds`, `peak_gb`, `estimated_gb` (None for a stage without a
    model) and `stand_in` (whether the input was one).

    Args:
        recipe: what to try; models that are missing are downloaded.
        clip: its sound and its first `FRAMES` frames are used.
        failed: by stage the reason why its model cannot be had; these stages are not loaded.

    Raises:
        InputError: the clip has no sound or no picture, or the recipe is no pipeline of stages.
    """
    if clip.audio is None:
        raise InputError(f"{clip.source or clip.id} has no sound track; give a video with sound")
    clip = replace(clip, times=clip.times[:FRAMES])
    frames = list(clip.frames(frozenset(range(len(clip.times)))))
    if not frames:
        raise InputError(f"{clip.source or clip.id} has no picture that can be read; give another video")
    trial = _Trial(recipe, clip, frames)
    for stage in recipe.stages():
        yield trial.finding(stage, (failed or {}).get(stage, ""))


class _Trial:
    """What the stages found so far."""

    def __init__(self, recipe: Recipe, clip: Clip, frames: Sequence[Frame]) -> None:
        self._recipe, self._clip, self._frames = recipe, clip, frames
        self._place = resolve_device(recipe.device, recipe.dtype)
        self._footprints: dict[str, MemoryFootprint] | None = None
        self._turns, held = lazy_stages(recipe)
        self._pipe = Pipeline.from_recipe(recipe, held)
        self._heard: list[Any] = []
        self._asked: list[tuple[Prompt, ...]] = []
        self._boxes: list[list[Detection]] = []
        self._masks: list[list[Mask]] = []
        self._stand_in = False
        self._remark = ""

    def finding(self, stage: str, failed: str) -> CheckResult:
        """Load a stage, run it, release it."""
        use = self._recipe.stages()[stage].use
        facts: dict[str, Any] = {"stage": stage, "use": use}
        if failed:
            return CheckResult("stage", "problem", f"{stage} {use}: not loaded, since {failed}", facts=facts)
        self._stand_in, self._remark = False, ""
        peak = PeakMemory(self._place)
        try:
            started = time.monotonic()
            self._turns.backend(stage)
            loaded = time.monotonic()
            says = self._run(stage)
            ran = time.monotonic()
        except Exception as problem:
            log.debug("the %s failed", stage, exc_info=True)
            return CheckResult("stage", "problem", f"{stage} {use}: {_reason(problem)}.", facts=facts)
        finally:
            self._turns.release()
        facts |= {"load_seconds": round(loaded - started, 2), "run_seconds": round(ran - loaded, 2)}
        facts |= {"peak_gb": peak.gb(), "estimated_gb": self._estimated(stage), "stand_in": self._stand_in}
        cost = f"loaded in {loaded - started:.1f} s, ran in {ran - loaded:.1f} s, peak memory {facts['peak_gb']:.2f} GB"
        if facts["estimated_gb"] is not None:
            cost += f" (estimated {facts['estimated_gb']:.2f} GB)"
        says = f"{stage} {use}: {cost}; {says}."
        return CheckResult("stage", "warning" if self._remark else "ok", f"{says} {self._remark}".rstrip(), facts=facts)

    def _estimated(self, stage: str) -> float | None:
        """GB that the stage was expected to take at most, on a CPU with the process."""
        if self._footprints is None:
            self._footprints = measure_footprints(override_recipe(self._recipe, ["offline=true"]))
        own = self._footprints.get(stage)
        if own is None:
            return None
        process = 0 if self._place.device.type == "cuda" else PROCESS
        return round((own.weights + own.working + process) / 1e9, 3)

    def _run(self, stage: str) -> str:
        runs: dict[str, Callable[[], str]] = {
            "captioner": self._caption,
            "translator": self._translate,
            "detector": self._detect,
            "segmenter": self._segment,
            "verifier": self._verify,
            "tracker": self._track,
        }
        return runs[stage]()

    def _caption(self) -> str:
        self._remark = unknown_labels(self._recipe)
        self._heard = self._pipe.caption(self._clip, RunContext())
        audible = [strong_captions(captions) for captions in self._heard if captions is not None]
        if not audible:
            return "the sound is silent, so the model was not run"
        texts = list(dict.fromkeys(caption.text for captions in audible for caption in captions))
        share = f"{sum(bool(captions) for captions in audible)} of {pluralize(len(audible), 'audible frame')}"
        return f"{share} with captions{_named(texts)}"

    def _translate(self) -> str:
        heard = self._heard
        if not any(map(strong_captions, heard)):
            self._stand_in = True
            heard = [(Caption(CAPTION, None, at, at + 1.0),) for at in self._clip.times]
        self._asked = self._pipe.translate(heard, RunContext())
        phrases = list(dict.fromkeys(prompt.phrase for own in self._asked for prompt in own))
        return f"{pluralize(len(phrases), 'phrase')} to look for{_named(phrases)}"

    def _prompts(self) -> list[tuple[Prompt, ...]]:
        """The prompts of every frame that could be read."""
        if any(self._asked):
            return [self._asked[frame.index] for frame in self._frames]
        self._stand_in = True
        return [(Prompt(PHRASE),) for _ in self._frames]

    def _looked_at(self) -> tuple[list[Any], list[list[str]]]:
        return [frame.image for frame in self._frames], [[p.phrase for p in own] for own in self._prompts()]

    def _detect(self) -> str:
        images, phrases = self._looked_at()
        detector: Any = self._pipe.detector
        candidates = validate_output("detect", detector.detect)(images, phrases)
        validate_outputs("detect", candidates)
        return self._kept(candidates)

    def _kept(self, candidates: Sequence[Sequence[Detection]]) -> str:
        """Keep the boxes that the pipeline would keep."""
        rules, prompts = self._pipe.settings, self._prompts()
        self._boxes = [filter_detections(boxes, own, rules)[0] for boxes, own in zip(candidates, prompts, strict=True)]
        best = max((box.score for boxes in candidates for box in boxes), default=None)
        score = "" if best is None else f" (best score {best:.2f})"
        return f"{pluralize(sum(map(len, self._boxes)), 'box', 'boxes')} above the threshold{score}"

    def _segment(self) -> str:
        if self._pipe.detector is None:
            images, phrases = self._looked_at()
            pairs = validate_output("segment_phrases", self._pipe.segmenter.segment_phrases)(images, phrases)
            validate_outputs("segment_phrases", pairs, self._sizes())
            says = self._kept([[box for box, _ in own] for own in pairs])
            masks = [dict(own) for own in pairs]
            self._masks = [[of[box] for box in boxes] for of, boxes in zip(masks, self._boxes, strict=True)]
            return says
        self._masks = self._segmented()
        return self._areas()

    def _segmented(self) -> list[list[Mask]]:
        if not any(self._boxes):
            self._stand_in = True
            self._boxes = [[_middle(frame)] for frame in self._frames]
        boxes = [[box.box for box in own] for own in self._boxes]
        images = [frame.image for frame in self._frames]
        masks: list[list[Mask]] = validate_output("segment", self._pipe.segmenter.segment)(images, boxes)
        validate_outputs("segment", masks, self._sizes())
        return masks

    def _areas(self) -> str:
        shares = [mask.rle.area / (mask.rle.size[0] * mask.rle.size[1]) for own in self._masks for mask in own]
        largest = f", the largest covers {max(shares):.0%} of the picture" if shares else ""
        return f"{pluralize(len(shares), 'mask')}{largest}"

    def _sizes(self) -> list[tuple[int, int]]:
        return [(int(frame.image.shape[0]), int(frame.image.shape[1])) for frame in self._frames]

    def _segments(self) -> list[tuple[Segment, ...]]:
        """Segments of every frame; a box in the middle of the picture where no stage found one."""
        if not any(self._masks):
            self._stand_in = True
            boxes = [[_middle(frame)] for frame in self._frames]
            masks = [[_filled(frame, own[0])] for frame, own in zip(self._frames, boxes, strict=True)]
        else:
            boxes, masks = self._boxes, self._masks
        return [
            tuple(Segment(m.rle, b.box, b.phrase, b.score, m.score) for b, m in zip(bs, ms, strict=True))
            for bs, ms in zip(boxes, masks, strict=True)
        ]

    def _verify(self) -> str:
        segments = self._segments()
        images, phrases = self._looked_at()
        verifier: Any = self._pipe.verifier
        verdicts = validate_output("verify", verifier.verify)(images, segments, phrases)
        validate_outputs("verify", verdicts)
        every = [verdict for own in verdicts for verdict in own]
        return f"{sum(verdict.kept for verdict in every)} of {pluralize(len(every), 'segment')} kept"

    def _track(self) -> str:
        if self._recipe.segmenter is None:  # the tracker segments, too
            self._masks = self._segmented()
        segments = self._segments()
        phrases = [tuple(dict.fromkeys(segment.phrase for segment in own)) for own in segments]
        sightings = [TrackedFrame(*own) for own in zip(self._frames, phrases, segments, strict=True)]
        tracker: Any = self._pipe.tracker
        followed = list(validate_tracked_frames(tracker.track(iter(sightings))))
        tracks = {segment.track for sighting in followed for segment in sighting.segments}
        return f"{pluralize(len(tracks), 'track')} through {pluralize(len(followed), 'frame')}"


def _reason(problem: Exception) -> str:
    """An error as a sentence without its full stop; an error of a library with the name of its class."""
    if isinstance(problem, OpenAVSError):
        return str(problem).rstrip(".")
    if is_out_of_memory(problem):
        return "it does not fit into memory; use a smaller model, dtype=bfloat16 or another device"
    line = (str(problem).strip().splitlines() or [""])[0]
    return f"{type(problem).__name__}: {line}"[:300].rstrip(".: ")


def _named(words: Sequence[str], most: int = 5) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return f" ({', '.join(words[:most])}{more})" if words else ""


def _middle(frame: Frame) -> Detection:
    """A box over the middle of a picture."""
    height, width = frame.image.shape[:2]
    return Detection((width / 4, height / 4, width * 3 / 4, height * 3 / 4), PHRASE, 0.0)


def _filled(frame: Frame, box: Detection) -> Mask:
    """The mask of all pixels of a box."""
    import numpy as np

    from openavs.structures.types import mask_to_rle

    x0, y0, x1, y1 = map(round, box.box)
    mask = np.zeros(frame.image.shape[:2], dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return Mask(mask_to_rle(mask))
