"""Trial run of a recipe's stages, one in memory at a time, on a synthetic clip or a video."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from openavs.checks import CheckResult
from openavs.checks.recipe_check import check_vocabulary
from openavs.config.recipe import Recipe, override_recipe, stage_of
from openavs.errors import InputError, OpenAVSError
from openavs.models.device import DeviceConfig, is_out_of_memory, resolve_device
from openavs.pipeline.context import RunContext
from openavs.pipeline.filtering import filter_detections
from openavs.pipeline.memory_estimate import PROCESS, MemoryFootprint, measure_footprints
from openavs.pipeline.offload import lazy_stages
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.contracts import call_clip_stage, call_stage
from openavs.stages.segmenters.box import BoxSegmenter
from openavs.stages.trackers.iou import IouTracker
from openavs.stages.verifiers.base import TemporalVerifier, Verifier, is_temporal
from openavs.structures.types import (
    Caption,
    Clip,
    ClipEvidence,
    Detection,
    Event,
    Frame,
    Mask,
    Prompt,
    Segment,
    TrackedFrame,
    phrases_of,
    strong_captions,
)
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)

MAX_FRAMES = 10
"""Maximum number of frames of a video."""


CAPTION, PHRASE = "dog barking", "dog"
"""Placeholder inputs for stages whose predecessors found nothing."""


def bundled_clip() -> Clip:
    """Return one second of a synthetic clip: a dog that barks."""
    from openavs.synthetic.datasets import scene_to_clip
    from openavs.synthetic.scenes import Role, plan_scene, scene_rng

    return scene_to_clip(plan_scene([Role("dog", (True,))], scene_rng("test", 50), 1, (288, 384)), "synthetic")


def try_stages(recipe: Recipe, clip: Clip, failed: Mapping[str, str] | None = None) -> Iterator[CheckResult]:
    """Run each stage once, one in memory at a time; yields one result per stage, in the order of the pipeline.

    Verifiers of whole clips therefore follow the tracker. The input of a stage is the output of the previous stages, or
    a placeholder if they found nothing or failed. The
    facts are `stage`, `use`, `load_seconds`, `run_seconds`, `peak_gb`, `estimated_gb` (None for a stage without a
    model) and `placeholder` (whether the input was one).

    Args:
        recipe: to try; missing models are downloaded.
        clip: its first `MAX_FRAMES` frames and their audio are used.
        failed: by stage, why its model is not available; these stages are not loaded.

    Raises:
        InputError: the clip has no audio or no frames, or the recipe is not a pipeline of stages.
    """
    if clip.audio is None:
        raise InputError(f"{clip.source or clip.id} has no audio track; give a video with sound")
    times, window = clip.times[:MAX_FRAMES], max(recipe.audio.window_seconds, recipe.audio.context_seconds or 0)
    clip = replace(clip, times=times, audio=clip.audio.cut(0, len(times) / clip.fps + window))
    frames = list(clip.frames(frozenset(range(len(clip.times)))))
    if not frames:
        raise InputError(f"{clip.source or clip.id} has no frame that can be decoded; give another video")
    trial = _Trial(recipe, clip, frames)
    for stage in trial.order():
        yield trial.try_stage(stage, (failed or {}).get(stage, ""))


class PeakMemory:
    """Measures peak memory from its construction on.

    On a GPU, of torch's allocator. On a CPU, the resident memory of this process, libraries included; on systems that
    cannot reset the peak (all but Linux), since the start of the process.
    """

    def __init__(self, device: DeviceConfig) -> None:
        self._device = device.device
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (man 5 proc)

    def gb(self) -> float:
        """Return the peak in GB (10^9 bytes)."""
        if self._device.type == "cuda":
            import torch

            return round(torch.cuda.max_memory_allocated(self._device) / 1e9, 3)
        return round(_peak_resident_bytes() / 1e9, 3)


def _peak_resident_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Trial:
    """The stages of a recipe with their outputs so far."""

    def __init__(self, recipe: Recipe, clip: Clip, frames: Sequence[Frame]) -> None:
        self._recipe, self._clip, self._frames = recipe, clip, frames
        self._device = resolve_device(recipe.device, recipe.dtype)
        self._footprints: dict[str, MemoryFootprint] | None = None
        self._offload, stages = lazy_stages(recipe)
        self._pipeline = Pipeline.from_recipe(recipe, stages)
        keys = [key for key in recipe.stages() if stage_of(key) == "verifier"]
        self._verifiers = dict(zip(keys, self._pipeline.verifiers, strict=True))
        self._captions: list[Any] = []
        self._prompts: list[tuple[Prompt, ...]] = []
        self._boxes: list[list[Detection]] = []
        self._masks: list[list[Mask]] = []
        self._events: list[Event] = []
        self._tracked: list[TrackedFrame] = []
        self._placeholder = False
        self._warning = ""

    def order(self) -> list[str]:
        """Return the keys of the stages in the order in which they run: verifiers of whole clips, and the reasoner."""
        last = {key for key, own in self._verifiers.items() if is_temporal(own)}
        return sorted(self._recipe.stages(), key=lambda key: (key == "reasoner", key in last))

    def try_stage(self, stage: str, failed: str) -> CheckResult:
        """Load a stage, run it, release it."""
        use = self._recipe.stages()[stage].use
        facts: dict[str, Any] = {"stage": stage, "use": use}
        if failed:
            return CheckResult("stage", "problem", f"{stage} {use}: not loaded, since {failed}", facts=facts)
        self._placeholder, self._warning = False, ""
        peak = PeakMemory(self._device)
        try:
            started = time.monotonic()
            self._offload.backend(stage)
            loaded = time.monotonic()
            output = self._run(stage)
            ran = time.monotonic()
        except Exception as error:
            logger.debug("the %s failed", stage, exc_info=True)
            return CheckResult("stage", "problem", f"{stage} {use}: {_reason(error)}.", facts=facts)
        finally:
            self._offload.release()
        facts |= {"load_seconds": round(loaded - started, 2), "run_seconds": round(ran - loaded, 2)}
        facts |= {"peak_gb": peak.gb(), "estimated_gb": self._estimated_gb(stage), "placeholder": self._placeholder}
        cost = f"loaded in {loaded - started:.1f} s, ran in {ran - loaded:.1f} s, peak memory {facts['peak_gb']:.2f} GB"
        if facts["estimated_gb"] is not None:
            cost += f" (estimated {facts['estimated_gb']:.2f} GB)"
        message = f"{stage} {use}: {cost}; {output}. {self._warning}".rstrip()
        return CheckResult("stage", "warning" if self._warning else "ok", message, facts=facts)

    def _estimated_gb(self, stage: str) -> float | None:
        """The estimated peak of a stage in GB, on a CPU with the memory of the process."""
        if self._footprints is None:
            self._footprints = measure_footprints(override_recipe(self._recipe, ["offline=true"]))
        footprint = self._footprints.get(stage)
        if footprint is None:
            return None
        process = 0 if self._device.device.type == "cuda" else PROCESS
        return round((footprint.weights + footprint.working + process) / 1e9, 3)

    def _run(self, stage: str) -> str:
        """Runs a stage; returns its output in a few words."""
        runs: dict[str, Callable[[], str]] = {
            "captioner": self._caption,
            "translator": self._translate,
            "detector": self._detect,
            "segmenter": self._segment,
            "verifier": lambda: self._verify(self._verifiers[stage]),
            "tracker": self._track,
            "reasoner": self._reason,
        }
        return runs[stage_of(stage)]()

    def _caption(self) -> str:
        self._warning = check_vocabulary(self._recipe)
        context = RunContext()
        self._captions = self._pipeline.caption(self._clip, context)
        self._events = context.events
        audible = [strong_captions(captions) for captions in self._captions if captions is not None]
        if not audible:
            return "the audio is silent, so the model was not run"
        texts = list(dict.fromkeys(caption.text for captions in audible for caption in captions))
        share = f"{sum(bool(captions) for captions in audible)} of {pluralize(len(audible), 'audible frame')}"
        return f"{share} with captions{_listed(texts)}"

    def _translate(self) -> str:
        captions = self._captions
        if not any(map(strong_captions, captions)):
            self._placeholder = True
            captions = [(Caption(CAPTION, None, time, time + 1.0),) for time in self._clip.times]
        self._prompts = self._pipeline.translate(self._clip, captions, RunContext())
        phrases = list(dict.fromkeys(prompt.phrase for prompts in self._prompts for prompt in prompts))
        return f"{pluralize(len(phrases), 'prompt')}{_listed(phrases)}"

    def _clip_prompts(self) -> list[tuple[Prompt, ...]]:
        """The prompts of every sampled frame."""
        if any(self._prompts):
            return self._prompts
        self._placeholder = True
        return [(Prompt(PHRASE),)] * len(self._clip.times)

    def _frame_prompts(self) -> list[tuple[Prompt, ...]]:
        """The prompts of every decoded frame."""
        prompts = self._clip_prompts()
        return [prompts[frame.index] for frame in self._frames]

    def _images_and_phrases(self) -> tuple[list[Any], list[tuple[str, ...]]]:
        return [frame.image for frame in self._frames], list(map(phrases_of, self._frame_prompts()))

    def _detect(self) -> str:
        images, phrases = self._images_and_phrases()
        return self._filter(call_stage("detect", self._pipeline.detector, images, phrases))

    def _filter(self, candidates: Sequence[Sequence[Detection]]) -> str:
        """Keeps the boxes that the pipeline would keep."""
        config, prompts = self._pipeline.settings, self._frame_prompts()
        self._boxes = [filter_detections(*pair, config)[0] for pair in zip(candidates, prompts, strict=True)]
        best = max((box.score for boxes in candidates for box in boxes), default=None)
        score = "" if best is None else f" (best score {best:.2f})"
        return f"{pluralize(sum(map(len, self._boxes)), 'box', 'boxes')} above the threshold{score}"

    def _segment(self) -> str:
        if self._pipeline.detector is None:
            images, phrases = self._images_and_phrases()
            pairs = call_stage("segment_phrases", self._pipeline.segmenter, images, phrases)
            message = self._filter([[box for box, _ in found] for found in pairs])
            masks = [dict(found) for found in pairs]
            self._masks = [[mask_of[box] for box in boxes] for mask_of, boxes in zip(masks, self._boxes, strict=True)]
            return message
        self._masks = self._segment_boxes()
        areas = [mask.rle.area / (mask.rle.size[0] * mask.rle.size[1]) for masks in self._masks for mask in masks]
        largest = f", the largest covers {max(areas):.0%} of the image" if areas else ""
        return f"{pluralize(len(areas), 'mask')}{largest}"

    def _segment_boxes(self) -> list[list[Mask]]:
        if not any(self._boxes):
            self._placeholder = True
            self._boxes = [[_center_box(frame)] for frame in self._frames]
        boxes = [[detection.box for detection in detections] for detections in self._boxes]
        images = [frame.image for frame in self._frames]
        return cast(list[list[Mask]], call_stage("segment", self._pipeline.segmenter, images, boxes))

    def _segments(self) -> list[tuple[Segment, ...]]:
        """The segments of every frame; a box in the middle of the image if no stage found any."""
        boxes, masks = self._boxes, self._masks
        if not any(masks):
            self._placeholder = True
            boxes = [[_center_box(frame)] for frame in self._frames]
            images = [frame.image for frame in self._frames]
            masks = BoxSegmenter().segment(images, [[box.box] for (box,) in boxes])
        return [
            tuple(Segment(m.rle, b.box, b.phrase, b.score, m.score) for b, m in zip(bs, ms, strict=True))
            for bs, ms in zip(boxes, masks, strict=True)
        ]

    def _verify(self, verifier: Verifier | TemporalVerifier) -> str:
        if is_temporal(verifier):
            return self._pass("verify_clip", verifier)
        segments = self._segments()
        images, phrases = self._images_and_phrases()
        verdicts = call_stage("verify", verifier, images, segments, phrases)
        kept = [verdict.kept for frame_verdicts in verdicts for verdict in frame_verdicts]
        return f"{sum(kept)} of {pluralize(len(kept), 'segment')} kept"

    def _reason(self) -> str:
        if self._pipeline.tracker is None:
            self._tracked = list(IouTracker(max_gap_seconds=0.0).track(self._tracked or self._untracked()))
        return self._pass("reason", self._pipeline.reasoner)

    def _pass(self, method: str, stage: Any) -> str:
        """Pass the frames through a stage that takes all of a clip."""
        frames = self._tracked or self._untracked()
        warnings: list[str] = []
        evidence = ClipEvidence(self._clip, self._clip_prompts(), self._events, warnings.append, self._captions)
        self._tracked = list(call_clip_stage(method, stage, iter(frames), evidence))
        before, kept = (sum(len(frame.segments) for frame in some) for some in (frames, self._tracked))
        self._warning = f"{'; '.join(warnings)}." if warnings else ""
        return f"{kept} of {pluralize(before, 'segment')} kept"

    def _untracked(self) -> list[TrackedFrame]:
        segments = self._segments()
        phrases = [tuple(dict.fromkeys(segment.phrase for segment in found)) for found in segments]
        return [TrackedFrame(*values) for values in zip(self._frames, phrases, segments, strict=True)]

    def _track(self) -> str:
        if self._recipe.segmenter is None:  # the tracker is the segmenter, too
            self._masks = self._segment_boxes()
        self._tracked = list(call_clip_stage("track", self._pipeline.tracker, iter(self._untracked())))
        tracks = {segment.track for frame in self._tracked for segment in frame.segments}
        return f"{pluralize(len(tracks), 'track')} through {pluralize(len(self._tracked), 'frame')}"


def _reason(error: Exception) -> str:
    """An error without its full stop; an error of a library with the name of its class."""
    if isinstance(error, OpenAVSError):
        return str(error).rstrip(".")
    if is_out_of_memory(error):
        return "it does not fit into memory; use a smaller model, dtype=bfloat16 or another device"
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:300].rstrip(".: ")


def _listed(words: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return f" ({', '.join(words[:limit])}{more})" if words else ""


def _center_box(frame: Frame) -> Detection:
    """A box of half the height and width in the middle of the image."""
    height, width = frame.image.shape[:2]
    return Detection((width / 4, height / 4, width * 3 / 4, height * 3 / 4), PHRASE, 0.0)
