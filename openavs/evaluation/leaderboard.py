"""Published results on the benchmarks, from eval/published.csv, with the source and measurement of every number.

Numbers are in percent, as printed in the source. The only ones computed here are harmonic means of two published
numbers; rows that follow from stated margins are marked `derived`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal, get_args

from openavs.config import resources
from openavs.errors import InputError

MethodKind = Literal["training-free", "zero-shot", "unsupervised", "weakly-supervised", "supervised"]
"""Training data of a method: none of the benchmark, classes of other data, no masks, clip labels, masks."""

Confidence = Literal["paper", "own-readme", "third-party-readme", "third-party-note", "derived", "probable"]

FIGURE_WORDS = {
    **{"j": "J", "f": "F", "jf": "J&F", "base": "base", "novel": "novel", "harmonic": "harmonic"},
    **{"map": "mAP", "hota": "HOTA", "fsla": "FSLA"},
}
FIGURES = tuple(FIGURE_WORDS)

UNKNOWN = "not stated"

PROTOCOLS: dict[str, str] = {
    "official": "the published evaluation; AVSBench at 224 px, F by batches of 1 to 4 clips, which are rarely stated",
    "official-512": "the published formulas at 512 px, masks resized too, batches of 2 clips",
    "softmax": "the published formulas one clip at a time, on a softmax over two channels (fewer thresholds act)",
    "valid-frames": "the published AVSS formulas without the padded frames",
    "image-level": "the published formulas per video on a softmax, masks made from AVSBench-semantic",
    "dataset-level": "pixel sums over the whole test set, not means of frames: far higher, never beside the others",
    "rebuilt-truth": "masks rebuilt from AVSBench-semantic's color masks, otherwise as softmax",
    "semantic-truth": "masks from AVSBench-semantic, resized bilinearly and then above 0 (grown at the edges)",
    "threshold-0.4": "masks from AVSBench-semantic, J at the threshold 0.4 instead of 0.5",
    "raw-logits": "at 1024 px; F sweeps raw logits, so its thresholds are probabilities of 0.5 to 0.73",
    "confusion-matrix": "one confusion matrix over all test frames (AVSBench-OV)",
    "as-reported": "as the source reports it; how it was measured is not known in detail",
}
"""Ways to measure, by the key in `PublishedResult.protocol`."""


@dataclass(frozen=True)
class PublishedResult:
    """One published result; figures in percent, None if the source has none.

    Attributes:
        variant: separates the rows of one method.
        setting: the setting of the benchmark (V3: 0-shot to 5-shot; Ref-AVS: seen, unseen or not stated).
        ablation: the study of a row, empty for main results.
        protocol: a key of `PROTOCOLS`.
        jf: the mean of J and F, for sources with only that.
    """

    method: str
    variant: str
    backbone: str
    kind: MethodKind
    benchmark: str
    setting: str
    ablation: str
    protocol: str
    j: float | None
    f: float | None
    jf: float | None
    base: float | None
    novel: float | None
    harmonic: float | None
    map: float | None
    hota: float | None
    fsla: float | None
    source: str
    confidence: Confidence

    @property
    def name(self) -> str:
        """The method with its variant."""
        return f"{self.method} ({self.variant})" if self.variant else self.method

    @property
    def comparable(self) -> bool:
        """False for pixel sums over a whole data set, and if the data set is a guess."""
        return self.protocol != "dataset-level" and self.confidence != "probable"

    @property
    def title(self) -> str:
        """The name with the backbone, if known."""
        return self.name if self.backbone == UNKNOWN else f"{self.name}, {self.backbone}"


def published_results(
    benchmark: str, setting: str | None = None, *, ablation: str | None = ""
) -> list[PublishedResult]:
    """Return the results on a benchmark in the order of the file.

    Args:
        benchmark: the short name, such as `s4`.
        setting: keep the rows of one setting; None keeps all.
        ablation: keep the rows of one study; the default keeps the main results, None all rows.
    """
    return [
        row
        for row in _rows()
        if row.benchmark == benchmark
        and (setting is None or row.setting == setting)
        and (ablation is None or row.ablation == ablation)
    ]


def comparable_results(benchmark: str, split: str) -> list[PublishedResult]:
    """Return the main results on a split: those of test splits, on V3 of the split's setting; none for other splits."""
    if benchmark == "v3":
        setting = "0-shot" if split == "test" else split.removesuffix("-test")
        return published_results(benchmark, setting) if split.endswith("test") else []
    if benchmark == "ref-avs" and split in _REFERRING_SETTINGS:
        return published_results(benchmark, _REFERRING_SETTINGS[split])
    return published_results(benchmark) if split == "test" else []


_REFERRING_SETTINGS = {"test_s": "seen", "test_u": "unseen"}
_OWN_PROTOCOL = {"ov": "confusion-matrix"}  # the name of `official` in the table

MEASURES = {
    "same": "measured as this run",
    "unknown": "how they were measured is not known",
    "other": "measured differently: not comparable with this run",
}
"""Comparability of published results with a run, in the order in which they are shown."""


def group_by_measure(rows: Iterable[PublishedResult], protocol: str) -> dict[str, list[PublishedResult]]:
    """Group rows by a key of `MEASURES`, for a run in a protocol (`official` or `fixed`)."""
    groups: dict[str, list[PublishedResult]] = {key: [] for key in MEASURES}
    for row in rows:
        same = protocol == "official" and row.protocol == _OWN_PROTOCOL.get(row.benchmark, "official")
        unknown = row.protocol == "as-reported" and row.comparable
        groups["same" if same and row.comparable else "unknown" if unknown else "other"].append(row)
    return {key: found for key, found in groups.items() if found}


def group_by_kind(rows: Iterable[PublishedResult]) -> dict[MethodKind, list[PublishedResult]]:
    """Group rows by kind of method, best first, those that are not `comparable` last."""

    def rank(row: PublishedResult) -> tuple[bool, int, float]:
        values = (row.j, row.base, row.map, row.jf)
        first = next((i for i, value in enumerate(values) if value is not None), len(values))
        return not row.comparable, first, -(0.0 if first == len(values) else values[first] or 0.0)

    kinds: dict[MethodKind, list[PublishedResult]] = {kind: [] for kind in get_args(MethodKind)}
    for row in sorted(rows, key=rank):
        kinds[row.kind].append(row)
    return {kind: found for kind, found in kinds.items() if found}


def format_published(value: float | None) -> str:
    """Format a percentage with one or two decimals, without a final zero; a dash for None."""
    return "–" if value is None else f"{value:.2f}".removesuffix("0")


@cache
def _rows() -> tuple[PublishedResult, ...]:
    path = resources.shipped("eval", "published.csv")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, strict=True)
        columns = [field.name for field in fields(PublishedResult)]
        if reader.fieldnames != columns:
            raise InputError(f"{path} should have the columns {', '.join(columns)}")
        return tuple(_row(cells, f"{path.name}, line {reader.line_num}") for cells in reader)


def _row(cells: dict[str, str], where: str) -> PublishedResult:
    values: dict[str, Any] = dict(cells)
    if None in values or None in values.values():
        raise InputError(f"{where}: the row does not have as many cells as the heading")
    for name in FIGURES:
        values[name] = _percent(cells[name], f"{where}, {name}")
    for name, allowed in (
        ("kind", get_args(MethodKind)),
        ("confidence", get_args(Confidence)),
        ("protocol", PROTOCOLS),
    ):
        if values[name] not in allowed:
            raise InputError(f"{where}: the {name} {values[name]!r} is not one of {', '.join(allowed)}")
    return PublishedResult(**values)


def _percent(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 100:
        raise InputError(f"{where}: {text!r} is not a percentage")
    return value
