"""Measures the verifier `sync` on the synthetic world's twins, with their true masks as candidates.

    python eval/experiments/synchrony.py --clips 200 --seed 1900 --json
    python eval/experiments/synchrony.py --cost video.mp4 --json

Each clip shows two or three things of one kind, of which one sounds at a time, or one outside the picture. Every
visible twin is a candidate with the kind as its phrase, in one frame a second. Reported by camera, each with a 95 %
bootstrap interval over clips:

- decided: of the frames with a visible sounding and a visible silent twin, those in which some but not all are kept;
- right: of the decided frames, those that keep exactly the twins that sound;
- lone sources dropped: frames in which a sounding twin that is the only candidate is rejected;
- off-screen frames with something kept, in which only a twin outside the picture sounds, with and without `off_screen`,
  and the clips with at least one such frame.

`--cost` runs the verifier on a file with two boxes as candidates. It reports the CPU seconds of decoding small frames
and those of the verifier with frames that have been decoded (least of five runs), and the peak of the memory that
Python and numpy allocate while both run.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from openavs.media.clip import open_clip
from openavs.stages.verifiers.sync import SyncVerifier
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Box, Clip, ClipEvidence, Frame, Segment, TrackedFrame
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Scene, sample_scene

BLANK = np.zeros((1, 1, 3), dtype=np.uint8)
ANYWHERE: Box = (0.0, 0.0, 1.0, 1.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="index of the first clip")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--split", default="test")
    parser.add_argument("--cost", type=Path, metavar="VIDEO", help="measure cost on a file instead")
    parser.add_argument("--fps", type=float, default=1.0, help="sampled frames a second of --cost")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.cost is not None:
        figures: dict[str, object] = dict(measure_cost(options.cost, options.fps))
    else:
        scores = SyncScores()
        for index in range(options.first, options.first + options.clips):
            scores.update(sample_scene("twins", options.split, options.seed, index).scene)
        figures = dict(scores.compute())
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:32}", value)


# ---------------------------------------------------------------------------------------------------------- quality


@dataclass
class SyncScores:
    """Outcomes of clips: for each measure, one list of frame outcomes per clip."""

    outcomes: dict[str, list[list[bool]]] = field(default_factory=dict)

    def update(self, scene: Scene) -> None:
        """Verify one clip and add its outcomes."""
        clip = rendered_once(scene_to_clip(scene, "twins", 0.5))
        camera = "static" if scene.camera is None else "shaking"
        frames = twin_frames(scene, clip)
        found: dict[str, list[bool]] = {}
        for frame, kept in zip(frames, kept_twins(frames, clip, SyncVerifier()), strict=True):
            shown = twins_shown(frame)
            sounding = {i for i, actor in enumerate(scene.actors, start=1) if actor.on[int(frame.frame.time)]}
            if sounding & shown and shown - sounding:
                decided = bool(kept) and kept != shown
                found.setdefault(f"decided, {camera}", []).append(decided)
                if decided:
                    found.setdefault(f"right, {camera}", []).append(kept == sounding & shown)
            elif sounding and not sounding & shown:
                found.setdefault(f"off-screen kept, {camera}", []).append(bool(kept))
        lone = [only(frame, sounding_twin(scene, frame)) for frame in frames]
        for frame, kept in zip(lone, kept_twins(lone, clip, SyncVerifier()), strict=True):
            if frame.segments:
                found.setdefault("lone sources dropped", []).append(not kept)
        strict = kept_twins(frames, clip, SyncVerifier(off_screen=True))
        for frame, kept in zip(frames, strict, strict=True):
            sounding = {i for i, actor in enumerate(scene.actors, start=1) if actor.on[int(frame.frame.time)]}
            if sounding and not sounding & twins_shown(frame):
                found.setdefault(f"off-screen kept with off_screen, {camera}", []).append(bool(kept))
            elif sounding & twins_shown(frame):
                found.setdefault(f"all dropped with off_screen, {camera}", []).append(not kept)
        for setting in ("", " with off_screen"):
            if own := found.get(f"off-screen kept{setting}, {camera}"):
                found[f"off-screen clips with something kept{setting}"] = [any(own)]
        for name, outcomes in found.items():
            self.outcomes.setdefault(name, []).append(outcomes)

    def compute(self) -> dict[str, dict[str, float]]:
        """Return each measure with its interval, its number of frames and of clips."""
        return {name: summarize(self.outcomes[name]) for name in sorted(self.outcomes)}


def summarize(clips: Sequence[Sequence[bool]], rounds: int = 2000) -> dict[str, float]:
    """Return the share of true outcomes over all frames, with a 95 % bootstrap interval over clips."""
    sums = np.array([[sum(clip), len(clip)] for clip in clips], dtype=float)
    drawn = np.random.default_rng(0).integers(len(sums), size=(rounds, len(sums)))
    shares = sums[drawn, 0].sum(axis=1) / sums[drawn, 1].sum(axis=1)
    low, high = np.quantile(shares, (0.025, 0.975))
    total = sums.sum(axis=0)
    return {
        "share": round(float(total[0] / total[1]), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "frames": int(total[1]),
        "clips": len(sums),
    }


def rendered_once(clip: Clip) -> Clip:
    """Return a clip whose small frames are kept, because several verifiers read them."""
    assert clip.dense_frames is not None
    verifier = SyncVerifier()
    frames = list(clip.dense_frames(verifier.fps, verifier.longest_side))
    return replace(clip, dense_frames=lambda fps, longest_side: iter(frames))


def twin_frames(scene: Scene, clip: Clip) -> list[TrackedFrame]:
    """Return the frames of a clip with the visible pixels of every twin as segments; `track` is its number."""
    kinds = [actor.kind for actor in scene.actors]
    twins = max(kinds, key=kinds.count)
    frames = []
    for index, at in enumerate(clip.times):
        owners = scene.picture(at)[1]
        numbers = [i for i, kind in enumerate(kinds, start=1) if kind == twins and (owners == i).any()]
        segments = tuple(Segment(mask_to_rle(owners == i), ANYWHERE, twins, 1.0, track=i) for i in numbers)
        frames.append(TrackedFrame(Frame(index, at, BLANK), (twins,), segments))
    return frames


def kept_twins(frames: Sequence[TrackedFrame], clip: Clip, verifier: SyncVerifier) -> Iterator[set[int]]:
    """Yield the numbers of the segments that a verifier keeps in each frame."""
    for frame in verifier.verify_clip(frames, ClipEvidence(clip, ())):
        yield twins_shown(frame)


def twins_shown(frame: TrackedFrame) -> set[int]:
    """Return the numbers of a frame's segments."""
    return {segment.track for segment in frame.segments if segment.track is not None}


def sounding_twin(scene: Scene, frame: TrackedFrame) -> Callable[[Segment], bool]:
    """Return whether a segment sounds at a frame."""
    return lambda s: s.track is not None and scene.actors[s.track - 1].on[int(frame.frame.time)]


def only(frame: TrackedFrame, wanted: Callable[[Segment], bool]) -> TrackedFrame:
    """Return a frame with some of its segments."""
    return TrackedFrame(frame.frame, frame.phrases, tuple(filter(wanted, frame.segments)))


# ------------------------------------------------------------------------------------------------------------- cost


def measure_cost(path: Path, fps: float) -> dict[str, float]:
    """Return CPU seconds of decoding, of the verifier beside it, and the verifier's peak of allocated memory in MB."""
    clip = open_clip(path, fps=fps)
    height, width = clip.size
    segments = []
    for left in (width // 8, width * 5 // 8):
        mask = np.zeros(clip.size, dtype=np.bool_)
        mask[height // 4 : height * 3 // 4, left : left + width // 4] = True
        segments.append(Segment(mask_to_rle(mask), ANYWHERE, "thing", 1.0))
    frames = [TrackedFrame(Frame(i, at, BLANK), ("thing",), tuple(segments)) for i, at in enumerate(clip.times)]
    verifier = SyncVerifier()
    small = rendered_once(clip)
    decode, run = [], []
    assert clip.dense_frames is not None
    for _ in range(5):
        start = time.process_time()
        for _ in clip.dense_frames(verifier.fps, verifier.longest_side):
            pass
        middle = time.process_time()
        for _ in verifier.verify_clip(frames, ClipEvidence(small, ())):
            pass
        decode.append(middle - start)
        run.append(time.process_time() - middle)
    del small
    tracemalloc.start()
    for _ in verifier.verify_clip(frames, ClipEvidence(clip, ())):
        pass
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    return {
        "decoding_cpu_s": round(min(decode), 3),
        "sync_cpu_s": round(min(run), 3),
        "peak_mb": round(peak, 1),
    }


if __name__ == "__main__":
    main()
