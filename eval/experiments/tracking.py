"""Scores trackers on objects that cross: the `tiny` models on clips of the synthetic world.

    python eval/experiments/tracking.py --clips 20 --json

Each clip shows two objects that change sides, one in front of the other, and both sound throughout. Captions are the
clip's labels (the captioner `oracle`), so that only tracking is measured. Every frame is detected and segmented once;
the same segments are then scored unchanged and with the tracker `iou`:

- identity switches: changes of the track of an object since it was last found (IoU >= 0.5);
- mIoU: of the union of all masks with the union of the true ones, mean over frames;
- found: the share of true objects (by frame) with a segment.

With `--twins` both objects are of one category, so that only position and motion distinguish them. With `--true-masks`
the true masks replace the segments of the models, so that all errors are those of the tracker.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from openavs.config.recipe import load_recipe
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.trackers.iou import IouTracker
from openavs.structures.masks import mask_to_rle, rle_to_mask, segments_to_mask
from openavs.structures.types import BoolMask, Clip, Frame, FrameResult, Prompt, Segment, TrackedFrame
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, Scene, plan_scene, scene_rng

FOUND = 0.5  # IoU from which a segment finds an object


def main() -> None:
    """Segment the clips, track, score and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--twins", action="store_true", help="both objects are of one category")
    parser.add_argument("--true-masks", action="store_true", help="true masks instead of models")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    overrides = ["captioner={use: oracle}", "translator={use: none}"]
    overrides += [f"filtering.max_per_phrase={2 if options.twins else 1}", *options.set]
    pipeline = None if options.true_masks else Pipeline.from_recipe(load_recipe("tiny", overrides))
    trackers = {"linked": IouTracker(max_gap_seconds=0.0), "linked and filled": IouTracker()}
    scores = {name: TrackingScores() for name in ("per frame", *trackers)}
    for index in range(options.clips):
        scene = crossing_scene(index, options.seconds, twins=options.twins)
        clip = labeled_clip(scene, options.fps, f"crossing-{index}")
        frames = true_results(scene, clip) if pipeline is None else pipeline(clip).frames
        # Without a tracker, the rank by score is the identity.
        ranked = [(f.time, [replace(s, track=i) for i, s in enumerate(f.segments)]) for f in frames]
        scores["per frame"].update(scene, ranked)
        for name, tracker in trackers.items():
            tracked = tracker.track(untracked_frames(frames))
            scores[name].update(scene, [(frame.frame.time, frame.segments) for frame in tracked])
    figures = {name: own.compute() for name, own in scores.items()}
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, own in figures.items():
            print(f"{name:18}", {key: round(value, 4) for key, value in own.items()})


def crossing_scene(index: int, seconds: int, *, twins: bool) -> Scene:
    """Return two objects that change sides once, at slightly different heights; the second passes in front."""
    rng = scene_rng("test", 9000 + twins, index)
    names = [KINDS[i].name for i in rng.choice(len(KINDS), 2, replace=False)]
    on = (True,) * seconds
    scene = plan_scene([Role(names[0], on), Role(names[0] if twins else names[1], on)], rng, seconds)
    swing, height = float(rng.uniform(0.24, 0.3)), float(rng.uniform(0.42, 0.58))
    offset = float(rng.uniform(0.04, 0.1)) * float(rng.choice([-1, 1]))
    actors = tuple(
        replace(
            actor,
            center=(0.5, height + side * offset / 2),
            size=float(rng.uniform(0.16, 0.2)),
            motion=(side * swing, 0.0, float(rng.uniform(0, 0.08)), 2.0 * seconds, -np.pi / 2),  # half a period
        )
        for actor, side in zip(scene.actors, (1, -1), strict=True)
    )
    return replace(scene, actors=actors)


def labeled_clip(scene: Scene, fps: float, name: str) -> Clip:
    """Return the scene as a clip in memory with its categories as labels."""
    times = tuple((i + 0.5) / fps for i in range(round(scene.seconds * fps)))

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, time in enumerate(times):
            if wanted is None or i in wanted:
                yield Frame(i, time, scene.picture(time)[0])

    return Clip(name, times, fps, scene.size, frames, scene.soundtrack(), labels=categories(scene))


def categories(scene: Scene) -> tuple[str, ...]:
    """Return the distinct categories of a scene."""
    return tuple(dict.fromkeys(actor.kind for actor in scene.actors))


def true_results(scene: Scene, clip: Clip) -> list[FrameResult]:
    """Return the visible pixels of every object as segments in random order, the output of models without errors."""
    frames = []
    order = np.random.default_rng(0)
    for index, time in enumerate(clip.times):
        owners = scene.picture(time)[1]
        masks = {i: mask_to_rle(owners == i) for i in range(1, len(scene.actors) + 1)}
        segments = [Segment(m, m.box, scene.actors[i - 1].kind, 1.0) for i, m in masks.items() if m.area]
        segments = [segments[i] for i in order.permutation(len(segments))]
        prompts = tuple(map(Prompt, categories(scene)))
        frames.append(FrameResult(index, time, prompts=prompts, segments=tuple(segments)))
    return frames


def untracked_frames(frames: Sequence[FrameResult]) -> Iterator[TrackedFrame]:
    """Yield the results as a pipeline passes them to a tracker, without the images."""
    blank = np.zeros((1, 1, 3), dtype=np.uint8)
    for frame in frames:
        phrases = tuple(prompt.phrase for prompt in frame.prompts)
        yield TrackedFrame(Frame(frame.index, frame.time, blank), phrases, frame.segments, frame.rejected)


# ----------------------------------------------------------------------------------------------------------- scoring


@dataclass
class TrackingScores:
    """Scores of one tracker over all clips."""

    switches: int = 0
    ids: int = 0
    clips_with_switch: int = 0
    ious: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)

    def update(self, scene: Scene, frames: Sequence[tuple[float, Sequence[Segment]]]) -> None:
        """Add one clip: time and segments of every frame."""
        last: dict[int, int | None] = {}
        before = self.switches
        for time, segments in frames:
            owners = scene.picture(time)[1]
            truth = [owners == i for i in range(1, len(scene.actors) + 1)]
            self.ious.append(iou(segments_to_mask(segments, scene.size), owners > 0))
            for number, segment in enumerate(match_segments(truth, segments)):
                if truth[number].any():
                    self.found.append(segment is not None)
                if segment is not None:
                    self.switches += number in last and last[number] != segment.track
                    last[number] = segment.track
        self.ids += len({s.track for _, segments in frames for s in segments})
        self.clips_with_switch += self.switches > before

    def compute(self) -> dict[str, float]:
        """Return the scores."""
        return {
            "switches": self.switches,
            "clips_with_switch": self.clips_with_switch,
            "ids": self.ids,
            "miou": float(np.mean(self.ious)),
            "found": float(np.mean(self.found)),
        }


def iou(one: BoolMask, other: BoolMask) -> float:
    """Return the IoU of two masks; 1 for two empty ones."""
    union = int((one | other).sum())
    return int((one & other).sum()) / union if union else 1.0


def match_segments(truth: Sequence[BoolMask], segments: Sequence[Segment]) -> list[Segment | None]:
    """Return the segment that finds each true object, each segment at most once."""
    masks = [rle_to_mask(segment.mask) for segment in segments]
    overlap = np.array([[iou(true, mask) for mask in masks] for true in truth]).reshape(len(truth), len(masks))
    matched: list[Segment | None] = [None] * len(truth)
    for row, column in zip(*linear_sum_assignment(np.where(overlap >= FOUND, overlap, 0), maximize=True), strict=True):
        if overlap[row, column] >= FOUND:
            matched[row] = segments[column]
    return matched


if __name__ == "__main__":
    main()
