"""How well things keep their identity when they cross: the `tiny` models on clips of the synthetic world.

    python eval/experiments/tracking.py --clips 20 --json

Each clip shows two things that change sides, one passing in front of the other, and both sound throughout. What sounds
is told (the `oracle` captioner), since hearing is not what is measured. Every frame is detected and segmented once; the
same finds are then scored as they are and as the `iou` tracker leaves them:

- identity switches: how often the track of a thing differs from the one it was last found with (IoU >= 0.5);
- mIoU: of the union of all masks with the union of the true ones, mean over frames;
- found: the share of true things (by frame) that some segment finds.

`--twins` makes both things of one kind, so that only where they are and how they move tells them apart.
`--true-masks` puts the true masks of what is seen in the place of the models' finds: what is left is the tracker's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from openavs.config.recipe import load_recipe
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.trackers.association import mask_box
from openavs.stages.trackers.base import TrackedFrame
from openavs.stages.trackers.iou import IouTracker
from openavs.structures.types import (
    BoolMask,
    Clip,
    Frame,
    FrameResult,
    Prompt,
    Segment,
    mask_to_rle,
    rle_to_mask,
    segments_to_mask,
)
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import Role, Scene, plan_scene, scene_rng

FOUND = 0.5  # IoU from which a segment finds a thing


def crossing_scene(index: int, seconds: int, *, twins: bool) -> Scene:
    """Two things that change sides once, at heights that differ a little; the second passes in front."""
    rng = scene_rng("test", 9000 + twins, index)
    names = [KINDS[i].name for i in rng.choice(len(KINDS), 2, replace=False)]
    on = (True,) * seconds
    scene = plan_scene([Role(names[0], on), Role(names[0] if twins else names[1], on)], rng, seconds)
    swing, height = float(rng.uniform(0.24, 0.3)), float(rng.uniform(0.42, 0.58))
    offset = float(rng.uniform(0.04, 0.1)) * float(rng.choice([-1, 1]))
    actors = tuple(
        replace(
            actor,
            centre=(0.5, height + side * offset / 2),
            size=float(rng.uniform(0.16, 0.2)),
            motion=(side * swing, 0.0, float(rng.uniform(0, 0.08)), 2.0 * seconds, -np.pi / 2),  # half a swing
        )
        for actor, side in zip(scene.actors, (1, -1), strict=True)
    )
    return replace(scene, actors=actors)


def clip_of(scene: Scene, fps: float, name: str) -> Clip:
    """The scene as a clip in memory that knows its labels."""
    times = tuple((i + 0.5) / fps for i in range(round(scene.seconds * fps)))

    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        for i, time in enumerate(times):
            if wanted is None or i in wanted:
                yield Frame(i, time, scene.picture(time)[0])

    labels = tuple(dict.fromkeys(actor.kind for actor in scene.actors))
    return Clip(name, times, fps, scene.size, frames, scene.soundtrack(), labels=labels)


@dataclass
class Tally:
    """Scores of one way of tracking, over all clips."""

    switches: int = 0
    ids: int = 0
    clips_with_switch: int = 0
    ious: list[float] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)

    def add(self, scene: Scene, frames: Sequence[tuple[float, Sequence[Segment]]]) -> None:
        """One clip: the segments of every frame at its time."""
        last: dict[int, int | None] = {}
        before = self.switches
        for time, segments in frames:
            owners = scene.picture(time)[1]
            truth = [owners == i for i in range(1, len(scene.actors) + 1)]
            union = segments_to_mask(segments, scene.size)
            self.ious.append(iou(union, owners > 0))
            for number, finder in enumerate(finders(truth, segments)):
                if truth[number].any():
                    self.found.append(finder is not None)
                if finder is not None:
                    self.switches += number in last and last[number] != finder.track
                    last[number] = finder.track
        self.ids += len({s.track for _, segments in frames for s in segments})
        self.clips_with_switch += self.switches > before

    def figures(self) -> dict[str, float]:
        return {
            "switches": self.switches,
            "clips_with_switch": self.clips_with_switch,
            "ids": self.ids,
            "miou": float(np.mean(self.ious)),
            "found": float(np.mean(self.found)),
        }


def true_finds(scene: Scene, clip: Clip) -> list[FrameResult]:
    """The visible pixels of every thing, as a detector and a segmenter without faults would find them, in any order."""
    frames = []
    order = np.random.default_rng(0)
    for index, time in enumerate(clip.times):
        owners = scene.picture(time)[1]
        masks = {i: mask_to_rle(owners == i) for i in range(1, len(scene.actors) + 1)}
        found = [Segment(m, mask_box(m), scene.actors[i - 1].kind, 1.0) for i, m in masks.items() if m.area]
        found = [found[i] for i in order.permutation(len(found))]
        asked = tuple(Prompt(kind) for kind in dict.fromkeys(actor.kind for actor in scene.actors))
        frames.append(FrameResult(index, time, prompts=asked, segments=tuple(found)))
    return frames


def iou(one: BoolMask, other: BoolMask) -> float:
    either = int((one | other).sum())
    return int((one & other).sum()) / either if either else 1.0


def finders(truth: Sequence[BoolMask], segments: Sequence[Segment]) -> list[Segment | None]:
    """The segment that finds each thing best, none for two things."""
    from scipy.optimize import linear_sum_assignment

    masks = [rle_to_mask(segment.mask) for segment in segments]
    overlap = np.array([[iou(true, mask) for mask in masks] for true in truth]).reshape(len(truth), len(masks))
    answer: list[Segment | None] = [None] * len(truth)
    for row, column in zip(*linear_sum_assignment(np.where(overlap >= FOUND, overlap, 0), maximize=True), strict=True):
        if overlap[row, column] >= FOUND:
            answer[row] = segments[column]
    return answer


def sightings(clip: Clip, frames: Sequence[FrameResult]) -> Iterator[TrackedFrame]:
    """What the pipeline found, as it would hand it to a tracker; the pictures are not needed again."""
    blank = np.zeros((1, 1, 3), dtype=np.uint8)
    for frame in frames:
        shown = Frame(frame.index, frame.time, blank)
        yield TrackedFrame(shown, tuple(prompt.phrase for prompt in frame.prompts), frame.segments, frame.rejected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--twins", action="store_true", help="both things are of one kind")
    parser.add_argument("--true-masks", action="store_true", help="no models: what is found is what is there")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    told = ["captioner={use: oracle}", "translator={use: none}"]
    own = [f"filtering.max_per_phrase={2 if options.twins else 1}"]
    pipe = None if options.true_masks else Pipeline.from_recipe(load_recipe("tiny", [*told, *own, *options.set]))
    ways = {"linked": IouTracker(max_gap_seconds=0.0), "linked and filled": IouTracker()}
    tallies = {name: Tally() for name in ("per frame", *ways)}
    for index in range(options.clips):
        scene = crossing_scene(index, options.seconds, twins=options.twins)
        clip = clip_of(scene, options.fps, f"crossing-{index}")
        frames = true_finds(scene, clip) if pipe is None else pipe(clip).frames
        alone = [replace(s, track=i) for f in frames for i, s in enumerate(f.segments)]  # best first: rank as identity
        taken = iter(alone)
        tallies["per frame"].add(scene, [(f.time, [next(taken) for _ in f.segments]) for f in frames])
        for name, tracker in ways.items():
            tracked = tracker.track(sightings(clip, frames))
            tallies[name].add(scene, [(seen.frame.time, seen.segments) for seen in tracked])
    answer = {name: tally.figures() for name, tally in tallies.items()}
    if options.json:
        print(json.dumps(answer, indent=2))
        return
    for name, figures in answer.items():
        print(f"{name:18}", {key: round(value, 4) for key, value in figures.items()})


if __name__ == "__main__":
    main()
