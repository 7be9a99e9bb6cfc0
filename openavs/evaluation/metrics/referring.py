"""Metrics of Ref-AVS Bench: J and F of the chosen objects, and S of expressions that choose nothing.

- J and F are those of AVSBench with the threshold 0.4 for J and batches of 4 expressions (`official`); `fixed` has 0.5
  and averages frames (`BinaryMetrics`).
- S is the square root of the share of marked pixels (threshold 0.5), lower is better. `official` pools the pixels of a
  batch and averages batches; `fixed` averages expressions.
- J and F of the split `test` are the means of seen and unseen objects, as the column "Mix (S+U)" of papers.

Other papers measure otherwise: TGS-Agent scores each expression alone at 224 x 224 and sets S to 0 where its language
model answered "null"; OmniAVS has the boundary F of DAVIS, and counts an empty prediction of an empty truth as 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from openavs.evaluation.datasets.base import BenchmarkClip, Masks
from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.evaluation.metrics.functional import (
    Figures,
    Floats,
    Protocol,
    check_protocol,
    masked_mean,
    ratio,
    to_figures,
)
from openavs.evaluation.metrics.metrics import NO_FACTS, BinaryMetrics, ClipFacts, ClipScore, Metric, Row

NULL = "test_n"
NAMES = {"test_s": "seen objects", "test_u": "unseen objects", NULL: "null expressions"}
THRESHOLD = 0.4  # of J in the published code


class ReferringMetrics(Metric):
    """J, F and S of expressions.

    Args:
        read_published_truth: reads the truth of a clip as the published code samples it.
        clips_per_batch: expressions per batch of `official`.
    """

    def __init__(self, read_published_truth: Callable[[BenchmarkClip], Masks], clips_per_batch: int = 4) -> None:
        self._read, self.clips_per_batch = read_published_truth, clips_per_batch
        super().__init__()

    def reset(self) -> None:
        """Reset the state to no clips."""
        super().reset()
        self._official: dict[str, BinaryMetrics] = {}
        self._fixed: dict[str, BinaryMetrics] = {}
        self._clips: dict[str, int] = {}
        # Per null expression: marked and all pixels of official, and of fixed.
        self._null: list[tuple[int, int, int, int]] = []
        self._null_frames = 0

    def update(self, predicted: Masks, truth: Masks, facts: ClipFacts = NO_FACTS) -> ClipScore:
        """Add one expression; see `Metric.update`. The clip's split and files are needed."""
        clip = facts.clip
        assert clip is not None
        sampled = predicted if facts.published is None else facts.published
        self.frames += len(truth)
        self._clips[clip.split] = self._clips.get(clip.split, 0) + 1
        if clip.split == NULL:
            marked = [int(np.count_nonzero(masks > 127)) for masks in (sampled, predicted)]
            self._null.append((marked[0], sampled.size, marked[1], predicted.size))
            self._null_frames += len(truth)
            return ClipScore(1.0 - marked[1] / predicted.size, None)
        official = self._official.setdefault(clip.split, BinaryMetrics(self.clips_per_batch, THRESHOLD))
        official.update(sampled, self._read(clip))
        return self._fixed.setdefault(clip.split, BinaryMetrics()).update(predicted, truth, facts)

    def compute(self, protocol: Protocol) -> Figures:
        """Return `j`, `f`, their mean `jf`, and `s`; None without expressions of the kind."""
        check_protocol(protocol, self.frames)
        parts = [metric.compute(protocol) for metric in self._metrics(protocol).values()]
        null = self._null_sample(protocol)
        s = null.figures(np.ones((1, null.units)))["s"] if null.units else np.full(1, np.nan)
        j, f = (np.array([[part[name] for part in parts]], dtype=np.float64) for name in ("miou", "f"))
        return to_figures({name: value[0] for name, value in _figures(j, f, s).items()})

    def sample(self, protocol: Protocol) -> BootstrapSample:
        """Return the figures of weighted expressions (`fixed`) or batches (`official`)."""
        parts = [metric.sample(protocol) for metric in self._metrics(protocol).values()]
        null = self._null_sample(protocol)
        ends = np.cumsum([part.units for part in (*parts, null)])

        def figures(weights: Floats) -> dict[str, Floats]:
            slices = np.split(weights, ends[:-1], axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):  # a resample may lack a part
                found = [part.figures(own) for part, own in zip(parts, slices, strict=False)]
            empty = np.full((len(weights), 0), np.nan)
            j, f = (np.stack([own[name] for own in found], axis=1) if found else empty for name in ("miou", "f"))
            s = null.figures(slices[-1])["s"] if null.units else np.full(len(weights), np.nan)
            return _figures(j, f, s)

        return BootstrapSample(int(ends[-1]), figures)

    def per_class(self) -> list[Row]:
        """Return one row per object, by the `fixed` definitions; an object of two splits has a row of each."""
        rows = [(split, row) for split, metric in self._fixed.items() for row in metric.per_class()]
        often = {row["name"] for _, row in rows if sum(row["name"] == other["name"] for _, other in rows) > 1}
        return [{**row, "name": f"{row['name']} ({split})"} if row["name"] in often else row for split, row in rows]

    def groups(self) -> list[Row]:
        """Return one row per split, with its `fixed` figures; a single split has none."""
        if len(self._clips) < 2:
            return []
        rows: list[Row] = []
        for split, count in self._clips.items():
            part = ReferringMetrics(self._read, self.clips_per_batch)
            part.frames = self._null_frames if split == NULL else self._fixed[split].frames
            if split == NULL:
                part._null = self._null
            else:
                part._official, part._fixed = {split: self._official[split]}, {split: self._fixed[split]}
            for protocol in ("official", "fixed"):
                bounds = intervals(part.sample(protocol))
                row: Row = {"name": f"{NAMES.get(split, split)}, {protocol}", "clips": count, "frames": part.frames}
                row["figures"] = part.compute(protocol)
                rows.append(row | {"intervals": {name: list(bound) for name, bound in bounds.items()}})
        return rows

    def _metrics(self, protocol: Protocol) -> dict[str, BinaryMetrics]:
        return self._official if protocol == "official" else self._fixed

    def _null_sample(self, protocol: Protocol) -> BootstrapSample:
        """S of weighted batches of null expressions (`official`) or of weighted expressions."""
        counts = np.array(self._null, dtype=np.float64).reshape(-1, 4)
        if protocol == "official":
            counts = np.array(
                [counts[i : i + self.clips_per_batch].sum(axis=0) for i in range(0, len(counts), self.clips_per_batch)]
            ).reshape(-1, 4)
        column = 0 if protocol == "official" else 2
        s = np.sqrt(ratio(counts[:, column], counts[:, column + 1]))
        return BootstrapSample(len(s), lambda weights: {"s": ratio(weights @ s, weights.sum(axis=1))})


def _figures(j: Floats, f: Floats, s: Floats) -> dict[str, Floats]:
    """Return the figures from J and F of each split `[R, splits]`, and S `[R]`; a split without a value has NaN."""
    means = {
        name: np.where(np.isnan(values).any(axis=1), np.nan, masked_mean(np.nan_to_num(values), np.ones_like(values)))
        for name, values in (("j", j), ("f", f))
    }
    return {**means, "jf": (means["j"] + means["f"]) / 2, "s": s}
