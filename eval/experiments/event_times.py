"""Measures when the captioner `pe-a-frame` notices sounds, on soundtracks of the synthetic world with exact times.

    python eval/experiments/event_times.py --clips 200 --seed 1 --json

An event of the ground truth is matched with at most one found event of its category, the one that overlaps it
longest. `within`: the share of the events whose onset and offset are both at most 80 ms off; an event that is not found
counts as wrong. `onset`, `offset`: the same for one end. `false`: found events without a match, as a share of all found
events. `frame_f`: F-score (b = 1) over frames of 40 ms and categories; a frame counts as sounding if an event covers at
least half of it. Each figure has the ends of its 95 % interval, from a bootstrap over clips.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import yaml

from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.registry import Registry
from openavs.stages.captioners.pe_a_frame import PeAFrameCaptioner
from openavs.structures.types import Event
from openavs.synthetic.categories import KINDS
from openavs.synthetic.events import SoundEvent
from openavs.synthetic.scenes import LAYOUTS, sample_scene

MODEL = "openavs:tiny/pe-a-frame"
OPTIONS = {"threshold": 0.5, "off_threshold": 0.5, "min_seconds": 0.5, "merge_seconds": 0.6}
"""Of the embedded model. `merge_seconds` fills the pauses that do not end an event (`synthetic.events`); the others had
the best sum of `within` and `frame_f` in a grid on 150 soundtracks of split val, seed 11."""
TOLERANCE = 0.08  # s
FRAME_RATE = 25
VOCABULARY = {kind.heard[0]: kind.name for kind in KINDS}

Counts = npt.NDArray[np.int64]
NAMES = ("events", "within", "onset", "offset", "found", "false", "frames_right", "frames_found", "frames_true")


@dataclass(frozen=True)
class Figure:
    """A ratio and the ends of its interval."""

    value: float
    low: float
    high: float


def main() -> None:
    """Parse the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--layout", choices=LAYOUTS, default="ms3")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="thresholds are chosen on val")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="options of the captioner")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    captioner = make_captioner(options.model, options.set)
    figures = measure(captioner, options.layout, options.split, options.seed, options.clips)
    plain = {name: [round(f.value, 4), round(f.low, 4), round(f.high, 4)] for name, f in figures.items()}
    print(json.dumps(plain, indent=2) if options.json else "\n".join(f"{k}: {v}" for k, v in plain.items()))


def make_captioner(model: str, overrides: Sequence[str]) -> PeAFrameCaptioner:
    """Build the captioner with the twenty sounds as its vocabulary."""
    changes = {key: yaml.safe_load(value) for key, _, value in (item.partition("=") for item in overrides)}
    settings = {"model": model, "vocabulary": list(VOCABULARY), "device": "cpu", "offline": True, **OPTIONS} | changes
    captioner: PeAFrameCaptioner = Registry("captioner").build("pe-a-frame", settings)
    return captioner


def measure(captioner: PeAFrameCaptioner, layout: str, split: str, seed: int, clips: int) -> dict[str, Figure]:
    """Return the figures over the soundtracks of a layout."""
    counts = []
    for index in range(clips):
        scene = sample_scene(layout, split, seed, index).scene
        counts.append(compare(scene.events(), captioner.events(scene.soundtrack()), scene.seconds))
    return summarize(np.array(counts))


def compare(truth: Sequence[SoundEvent], found: Sequence[Event], seconds: int) -> Counts:
    """Return the counts `NAMES` of one clip."""
    pairs = match(truth, found)
    onset = [abs(true.onset - event.onset) <= TOLERANCE + 1e-9 for true, event in pairs]
    offset = [abs(true.offset - event.offset) <= TOLERANCE + 1e-9 for true, event in pairs]
    true_frames = frames_of([(true.kind, true.onset, true.offset) for true in truth], seconds)
    found_frames = frames_of([(VOCABULARY[event.phrase], event.onset, event.offset) for event in found], seconds)
    both = [first and second for first, second in zip(onset, offset, strict=True)]
    counts = (len(truth), sum(both), sum(onset), sum(offset), len(found), len(found) - len(pairs))
    frames = ((true_frames & found_frames).sum(), found_frames.sum(), true_frames.sum())
    return np.array([*counts, *map(int, frames)], dtype=np.int64)


def match(truth: Sequence[SoundEvent], found: Sequence[Event]) -> list[tuple[SoundEvent, Event]]:
    """Pair events of one category that overlap, the longest overlaps first; each is in one pair at most."""
    overlaps = [
        (min(true.offset, event.offset) - max(true.onset, event.onset), i, j)
        for i, true in enumerate(truth)
        for j, event in enumerate(found)
        if VOCABULARY[event.phrase] == true.kind
    ]
    pairs: dict[int, int] = {}
    for overlap, i, j in sorted(overlaps, reverse=True):
        if overlap > 0 and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return [(truth[i], found[j]) for i, j in sorted(pairs.items())]


def frames_of(spans: Sequence[tuple[str, float, float]], seconds: int) -> npt.NDArray[np.bool_]:
    """Return which frames each category sounds in `[categories, frames]`: covered at least by half."""
    starts = np.arange(seconds * FRAME_RATE) / FRAME_RATE
    covered = np.zeros((len(KINDS), len(starts)))
    rows = {kind.name: i for i, kind in enumerate(KINDS)}
    for kind, onset, offset in spans:
        covered[rows[kind]] += np.clip(np.minimum(starts + 1 / FRAME_RATE, offset) - np.maximum(starts, onset), 0, None)
    return covered >= 0.5 / FRAME_RATE - 1e-9


def summarize(counts: Counts) -> dict[str, Figure]:
    """Return the figures of all clips from their counts `[clips, NAMES]`."""
    ends = intervals(BootstrapSample(len(counts), lambda weights: _ratios(weights @ counts)))
    whole = _ratios(counts.sum(axis=0, keepdims=True).astype(float))
    return {name: Figure(float(whole[name][0]), *ends.get(name, (np.nan, np.nan))) for name in whole}


def _ratios(totals: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Figures `[R]` of sums of counts `[R, NAMES]`."""
    total = dict(zip(NAMES, totals.T, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            **{name: total[name] / total["events"] for name in ("within", "onset", "offset")},
            "false": total["false"] / total["found"],
            "frame_f": 2 * total["frames_right"] / (total["frames_found"] + total["frames_true"]),
        }


if __name__ == "__main__":
    main()
