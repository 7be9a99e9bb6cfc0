"""Charts of an evaluation report: curves over thresholds, scores of the clips, and published results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np

from openavs.evaluation.benchmark import title_of
from openavs.evaluation.compare import Report
from openavs.evaluation.leaderboard import MethodKind, PublishedResult, format_published, group_by_kind
from openavs.visualization.plots import Axis, Chart, ChartSeries, Point, plot_histogram, plot_series, unit_axis

BINS = 20

KIND_STYLES: dict[MethodKind, int] = {
    "training-free": 0,
    "unsupervised": 1,
    "weakly-supervised": 2,
    "zero-shot": 3,
    "supervised": 4,
}
"""The color and marker of each kind of method in `plots`."""

_CLIP_SCORES = {"binary": "mean J", "instances": "share of right frames (FSLA, fixed)"}

OWN_STYLE = 5  # of the run that the report is about


# ---------------------------------------------------------------------------------------------------------- one report


def plot_report(report: Report) -> list[tuple[str, Chart]]:
    """Plot the curves and the scores of a report, each with its caption."""
    charts = []
    curve = report.get("curve")
    if curve and "hota" in curve:
        charts.append(("HOTA and its parts at each IoU that counts as a match, by fixed", _plot_hota(curve)))
    elif curve:
        charts.append(("Precision and recall over all thresholds", _plot_precision_recall(curve)))
        charts.append(("Mean F at each threshold", _plot_f(curve)))
    name = _CLIP_SCORES.get(report["task"], "mean IoU of the classes that it holds")
    charts.append((f"Clips by their {name}", _plot_scores([row["score"] for row in report["per_clip"]])))
    return charts


def is_hard(curve: Mapping[str, Sequence[float]] | None) -> bool:
    """Whether the predictions have only the values 0 and 255.

    All thresholds but the first, which selects every pixel, then select the same pixels.
    """
    return curve is not None and "recall" in curve and len(set(curve["recall"][1:])) == 1


def _plot_precision_recall(curve: Mapping[str, Sequence[float]]) -> Chart:
    points = [Point(r, p) for r, p in zip(curve["recall"], curve["precision"], strict=True)]
    half = min(range(len(points)), key=lambda i: abs(curve["threshold"][i] - 0.5))
    middle = Point(points[half].x, points[half].y, "threshold 0.5", labeled=True)
    description = f"At the threshold 0.5, precision is {middle.y:.3f} and recall {middle.x:.3f}."
    series = [ChartSeries(points, 0, line=True, markers=False), ChartSeries([middle], 1)]
    return plot_series("Precision and recall", description, series, unit_axis("recall"), unit_axis("precision"))


def _plot_f(curve: Mapping[str, Sequence[float]]) -> Chart:
    points = [Point(t, f) for t, f in zip(curve["threshold"], curve["f"], strict=True)]
    best = max(points, key=lambda point: point.y)
    description = f"The best mean F is {best.y:.3f}, at the threshold {best.x:.3f}."
    top = Point(best.x, best.y, f"best, at {best.x:.2f}", labeled=True)
    series = [ChartSeries(points, 0, line=True, markers=False), ChartSeries([top], 1)]
    return plot_series("F against the threshold", description, series, unit_axis("threshold"), unit_axis("F"))


def _plot_hota(curve: Mapping[str, Sequence[float]]) -> Chart:
    """HOTA is the geometric mean of detection (DetA) and association (AssA)."""
    series, at_half = [], []
    for kind, (key, name) in enumerate((("hota", "HOTA"), ("det_a", "DetA"), ("ass_a", "AssA"))):
        points = [
            Point(t, y, name, labeled=not i)
            for i, (t, y) in enumerate(zip(curve["threshold"], curve[key], strict=True))
        ]
        series.append(ChartSeries(points, kind, line=True, markers=False))
        at_half.append(f"{name} {min(points, key=lambda point: abs(point.x - 0.5)).y:.3f}")
    description = f"At an IoU of 0.5: {', '.join(at_half)}."
    return plot_series("HOTA against the IoU", description, series, unit_axis("IoU"), unit_axis("HOTA, DetA, AssA"))


def _plot_scores(scores: Sequence[float]) -> Chart:
    counts = [int(count) for count in np.histogram(scores, BINS, (0.0, 1.0))[0]]
    description = f"{len(scores):,} clips; half of them score above {float(np.median(scores)):.3f}."
    return plot_histogram("Scores of the clips", description, counts, unit_axis("score of a clip"), "clips")


# --------------------------------------------------------------------------------------------------- published results


def plottable(benchmark: str, rows: Sequence[PublishedResult]) -> list[PublishedResult]:
    """Return the comparable rows that have both figures of the benchmark's chart."""
    x, y = _chart_figures(benchmark)
    return [row for row in rows if row.comparable and None not in (getattr(row, x), getattr(row, y))]


def plot_published(
    benchmark: str, rows: Sequence[PublishedResult], own: tuple[float, float] | None = None
) -> Chart | None:
    """Plot published results by kind of method: J against F, base against novel, or J over the number of shots (V3).

    `own` is the place of a run to add, in percent. Without any plottable row, there is no chart (None).
    """
    kept = plottable(benchmark, rows)
    if not kept:
        return None
    plot = _plot_shots if benchmark == "v3" else _plot_figures
    return plot(benchmark, kept, [ChartSeries([Point(*own, "this run", labeled=True)], OWN_STYLE)] if own else [])


def _plot_figures(benchmark: str, rows: Sequence[PublishedResult], own: list[ChartSeries]) -> Chart:
    x, y = _chart_figures(benchmark)
    series, summary = [], []
    legend = [(KIND_STYLES[kind], str(kind)) for kind in group_by_kind(rows)]
    for kind, found in group_by_kind(rows).items():
        points = [
            # Only the best of each kind is labeled: the others would cover one another.
            Point(getattr(row, x), getattr(row, y), row.method if i == 0 else _tooltip(row, x, y), labeled=i == 0)
            for i, row in enumerate(found)
        ]
        series.append(ChartSeries(points, KIND_STYLES[kind]))
        best = max(points, key=lambda point: point.x)
        summary.append(f"{kind}: {len(points)}, best {best.x:g} / {best.y:g}")
    words = {"j": "J", "f": "F", "base": "base mIoU", "novel": "novel mIoU"}
    description = f"{words[x]} across and {words[y]} upward, in percent. {'; '.join(summary)}."
    title = f"Published results on {title_of(benchmark)}"
    if own:
        legend.append((OWN_STYLE, "this run"))
    return plot_series(title, description, [*series, *own], Axis(f"{words[x]}, %"), Axis(f"{words[y]}, %"), legend)


def _plot_shots(benchmark: str, rows: Sequence[PublishedResult], own: list[ChartSeries]) -> Chart:
    series, summary = [], []
    labeled: set[str] = set()
    for title, found in groupby(sorted(rows, key=lambda row: row.title), key=lambda row: row.title):
        by_shots = sorted(found, key=shot_count)
        points = [Point(shot_count(row), row.j or 0.0, f"{title}, {row.setting}: J {row.j}") for row in by_shots]
        method = by_shots[-1].method
        points[-1] = Point(points[-1].x, points[-1].y, method, labeled=method not in labeled)
        labeled.add(method)
        series.append(ChartSeries(points, KIND_STYLES[by_shots[0].kind], line=True))
        summary.append(f"{title}: {points[0].y:g} to {points[-1].y:g}")
    return plot_series(
        f"Published results on {title_of(benchmark)}",
        f"J in percent over the number of examples per unseen class. {'; '.join(summary)}.",
        [*series, *own],
        Axis("examples per class", (-0.3, 7.0), (0, 1, 3, 5)),  # with space for the labels of the last points
        Axis("J, %"),
        [(KIND_STYLES[kind], str(kind)) for kind in group_by_kind(rows)],
    )


def _chart_figures(benchmark: str) -> tuple[str, str]:
    return ("base", "novel") if benchmark == "ov" else ("j", "f")


def shot_count(row: PublishedResult) -> float:
    """Return the number in a V3 row's setting (`3-shot`)."""
    return float(row.setting.split("-")[0])


def _tooltip(row: PublishedResult, x: str, y: str) -> str:
    return f"{row.title}: {format_published(getattr(row, x))} / {format_published(getattr(row, y))}"
