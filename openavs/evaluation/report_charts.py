"""The charts of one report: precision and recall, F at each threshold, and how the clips' scores are spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from openavs.evaluation.charts import ChartSeries, Point, histogram, plot, shares

BINS = 20

Report = Mapping[str, Any]


def report_charts(report: Report) -> list[tuple[str, Markup]]:
    """The charts with what stands above them."""
    charts = []
    curve = report.get("curve")
    if curve:
        charts.append(("Precision and recall over all thresholds", _precision_recall(curve)))
        charts.append(("Mean F at each threshold", _f_curve(curve)))
    name = "mean J" if report["task"] == "binary" else "mean IoU of the classes that it holds"
    charts.append((f"Clips by their {name}", _score_histogram([row["score"] for row in report["per_clip"]])))
    return charts


def _precision_recall(curve: Mapping[str, Sequence[float]]) -> Markup:
    points = tuple(Point(r, p) for r, p in zip(curve["recall"], curve["precision"], strict=True))
    half = min(range(len(points)), key=lambda i: abs(curve["threshold"][i] - 0.5))
    middle = Point(points[half].x, points[half].y, "threshold 0.5", named=True)
    told = f"At the threshold 0.5 precision is {middle.y:.3f} and recall {middle.x:.3f}."
    lines = [ChartSeries("precision over recall", 0, points, line=True, marks=False), ChartSeries("", 1, (middle,))]
    return plot("pr", "Precision and recall", told, shares("recall"), shares("precision"), lines)


def _f_curve(curve: Mapping[str, Sequence[float]]) -> Markup:
    points = tuple(Point(t, f) for t, f in zip(curve["threshold"], curve["f"], strict=True))
    best = max(points, key=lambda point: point.y)
    told = f"The best mean F is {best.y:.3f}, at the threshold {best.x:.3f}."
    top = Point(best.x, best.y, f"best, at {best.x:.2f}", named=True)
    lines = [ChartSeries("mean F", 0, points, line=True, marks=False), ChartSeries("", 1, (top,))]
    return plot("f", "F against the threshold", told, shares("threshold"), shares("F"), lines)


def _score_histogram(scores: Sequence[float]) -> Markup:
    counts = [int(count) for count in np.histogram(scores, BINS, (0.0, 1.0))[0]]
    middle = float(np.median(scores))
    told = f"{len(scores):,} clips; half of them score above {middle:.3f}."
    return histogram("scores", "Scores of the clips", told, shares("score of a clip"), counts, "clips")


def is_hard(curve: Mapping[str, Sequence[float]] | None) -> bool:
    """Whether all thresholds but the first, which takes every pixel, select the same: masks of 0 and 255 alone."""
    return curve is not None and len(set(curve["recall"][1:])) == 1
