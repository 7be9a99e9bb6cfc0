"""Published results as charts: J against F, base against novel, or over the number of shots, by kind of method."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from markupsafe import Markup

from openavs.evaluation.charts import Axis, ChartSeries, Point, plot, spanning
from openavs.evaluation.display_names import title_of
from openavs.evaluation.leaderboard import Kind, PublishedResult, as_published, by_kind

KIND_MARKS: dict[Kind, int] = {
    "training-free": 0,
    "unsupervised": 1,
    "weakly-supervised": 2,
    "zero-shot": 3,
    "supervised": 4,
}
"""The colour and shape of each kind of method in `charts`."""

OWN = 5  # the mark of the run that a page is about


def plotted(benchmark: str, rows: Sequence[PublishedResult]) -> list[PublishedResult]:
    """The rows that a chart can hold: comparable ones with both of its figures."""
    x, y = _figures_of(benchmark)
    return [row for row in rows if row.comparable and None not in (getattr(row, x), getattr(row, y))]


def results_chart(
    benchmark: str, rows: Sequence[PublishedResult], own: tuple[float, float] | None = None
) -> Markup | None:
    """The chart of a benchmark's results, with a run's own two figures (percent) among them; None without results."""
    kept = plotted(benchmark, rows)
    if not kept:
        return None
    return _by_shots(benchmark, kept, own) if benchmark == "v3" else _scatter(benchmark, kept, own)


def _scatter(benchmark: str, rows: Sequence[PublishedResult], own: tuple[float, float] | None) -> Markup:
    x, y = _figures_of(benchmark)
    series = []
    for kind, found in by_kind(rows).items():
        points = tuple(
            Point(getattr(row, x), getattr(row, y), row.method if i == 0 else _told(row, x, y), named=i == 0)
            for i, row in enumerate(found)
        )
        series.append(ChartSeries(kind, KIND_MARKS[kind], points))
    if own is not None:
        series.append(ChartSeries("this run", OWN, (Point(*own, "this run", named=True),)))
    values = [[getattr(point, axis) for group in series for point in group.points] for axis in ("x", "y")]
    words = {"j": "J", "f": "F", "base": "base mIoU", "novel": "novel mIoU"}
    told = "; ".join(f"{group.name}: {len(group.points)}, best {_best(group)}" for group in series)
    return plot(
        f"published-{benchmark}",
        f"Published results on {title_of(benchmark)}",
        f"{words[x]} across and {words[y]} upward, in percent. {told}.",
        spanning(f"{words[x]}, %", values[0]),
        spanning(f"{words[y]}, %", values[1]),
        series,
        [(group.kind, group.name) for group in series],
    )


def _by_shots(benchmark: str, rows: Sequence[PublishedResult], own: tuple[float, float] | None) -> Markup:
    lines: list[ChartSeries] = []
    named: set[str] = set()
    for title, found in groupby(sorted(rows, key=lambda row: row.title), key=lambda row: row.title):
        by_shot = sorted(found, key=shots)
        points = tuple(Point(shots(row), row.j or 0.0, f"{title}, {row.setting}: J {row.j}") for row in by_shot)
        method = by_shot[-1].method
        last = Point(points[-1].x, points[-1].y, method, named=method not in named)
        named.add(method)
        lines.append(ChartSeries(title, KIND_MARKS[by_shot[0].kind], (*points[:-1], last), line=True))
    if own is not None:
        lines.append(ChartSeries("this run", OWN, (Point(*own, "this run", named=True),)))
    told = "; ".join(f"{line.name}: {line.points[0].y:g} to {line.points[-1].y:g}" for line in lines)
    return plot(
        f"published-{benchmark}",
        f"Published results on {title_of(benchmark)}",
        f"J in percent over the number of examples per unseen class that a method was given. {told}.",
        Axis("examples per class", 0, 7, (0, 1, 3, 5)),  # room for the names behind the last points
        spanning("J, %", [point.y for line in lines for point in line.points]),
        lines,
        [(KIND_MARKS[kind], kind) for kind in by_kind(rows)],
    )


def _figures_of(benchmark: str) -> tuple[str, str]:
    return ("base", "novel") if benchmark == "ov" else ("j", "f")


def shots(row: PublishedResult) -> float:
    """The number of a V3 row's setting (`3-shot`)."""
    return float(row.setting.split("-")[0])


def _told(row: PublishedResult, x: str, y: str) -> str:
    return f"{row.title}: {as_published(getattr(row, x))} / {as_published(getattr(row, y))}"


def _best(group: ChartSeries) -> str:
    best = max(group.points, key=lambda point: point.x)
    return f"{best.x:g} / {best.y:g}"
