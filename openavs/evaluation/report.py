"""The HTML page of an evaluation: one file with figures, classes, curves, the best and the worst clips, and the recipe.

It needs no network and runs no script; names that come from files, reports and models are escaped by the template. Its
size does not grow with the number of clips: at most twelve pictures, and lists that are cut and say so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openavs.config import resources
from openavs.evaluation.benchmark import BenchmarkConfig, load_benchmark
from openavs.evaluation.charts import CHART_STYLE, bar, mark_key
from openavs.evaluation.compare import class_score
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.display_names import figure_name, in_order, percent, protocol_words, title_of
from openavs.evaluation.leaderboard import (
    FIGURE_WORDS,
    FIGURES,
    PROTOCOLS,
    PublishedResult,
    as_published,
    beside,
    by_kind,
    published,
)
from openavs.evaluation.leaderboard_charts import KIND_MARKS, OWN, results_chart, shots
from openavs.evaluation.report_charts import is_hard, report_charts
from openavs.evaluation.report_frames import clip_picture
from openavs.models.catalog import is_only_synthetic
from openavs.utils.fs import atomic_write
from openavs.visualization.html import asset, render
from openavs.visualization.report import model_rows

CLIPS = 6  # of the best, and as many of the worst
CLASSES = 120  # at most so many classes are listed
NEAR = 8  # published results of each kind
LONGEST_RECIPE = 100_000  # characters

Report = Mapping[str, Any]
Row = dict[str, Any]

_NOT_SAID = dict.fromkeys(
    ("date", "limit", "failed", "command", "curve", "missing_masks", "incomparable")
)  # what `score` has nothing to say of
_PARTS = {"base": 0, "novel": 1, "background": 4}


def write_page(path: Path, report: Report, dataset: Dataset, predictions: Path) -> None:
    """Writes the page of a report: `Scores.to_dict()`, or a report.json, which also tells of recipe, models and times.

    `dataset` and `predictions` are those that were scored; their files are read for the pictures alone.
    """
    card = _card(report["benchmark"])
    rows = [] if report.get("incomparable") else beside(report["benchmark"], report["split"])
    kinds = by_kind(rows)
    near = [row for found in kinds.values() for row in found[:NEAR]]
    style = asset("report/report.css") + asset("report/pieces.css") + asset("benchmark/benchmark.css") + CHART_STYLE
    page = render(
        "benchmark/benchmark.html",
        style,
        r={**_NOT_SAID, **report},
        title=title_of(report["benchmark"]),
        recipe_name=(report.get("recipe") or {}).get("name"),
        only_synthetic=is_only_synthetic(report.get("models") or {}),
        protocols=[(name, protocol_words(report, name)) for name in _protocols(report)],
        figures=_figures(report),
        published=near,
        kinds=[(kind, mark_key(KIND_MARKS[kind]), found[:NEAR], len(found)) for kind, found in kinds.items()],
        columns=_columns(near),
        with_setting=any(row.setting for row in near),
        own=_own(report),
        own_mark=mark_key(OWN),
        measured={key: words for key, words in PROTOCOLS.items() if any(row.protocol == key for row in near)},
        chart=results_chart(report["benchmark"], published(report["benchmark"]), _own_point(report, near)),
        classes=_classes(report),
        parts=[
            (name, kind) for name, kind in _PARTS.items() if any(r.get("part") == name for r in report["per_class"])
        ],
        charts=report_charts(report),
        hard=is_hard(report.get("curve")),
        clips=_clips(report, dataset, predictions),
        silence=_silence(report.get("silence") or {}),
        models=model_rows(report.get("models") or {}, (report.get("recipe") or {}).get("license")),
        timings=_timings(report),
        versions=_versions(report),
        recipe=json.dumps(report["recipe"], indent=2, ensure_ascii=False)[:LONGEST_RECIPE]
        if report.get("recipe")
        else None,
        caveats=card.caveats if card is not None else [],
        percent=percent,
        as_published=as_published,
        figure_words=FIGURE_WORDS,
    )
    atomic_write(path, page)


# ------------------------------------------------------------------------------------------------------------ figures


def _protocols(report: Report) -> list[str]:
    """The protocol that was asked for, then the others."""
    return sorted(report["figures"], key=lambda name: name != report["protocol"])


def _figures(report: Report) -> list[Row]:
    """Per figure its name and, per protocol, value and interval; those that only one protocol has have one value."""
    protocols = _protocols(report)
    names = in_order({name: None for protocol in protocols for name in report["figures"][protocol]})
    return [
        {
            "name": figure_name(name, report["task"]),
            "values": [
                {
                    "given": name in report["figures"][protocol],
                    "value": report["figures"][protocol].get(name),
                    "interval": (report.get("intervals") or {}).get(protocol, {}).get(name),
                }
                for protocol in protocols
            ],
        }
        for name in names
    ]


# ---------------------------------------------------------------------------------------------------------- published


def _columns(rows: Sequence[PublishedResult]) -> list[str]:
    return [name for name in FIGURES if any(getattr(row, name) is not None for row in rows)]


def _own(report: Report) -> dict[str, float | None]:
    """This run's figures in the columns of the published ones, in percent; J&F is not ours to claim."""
    metrics = report["metrics"]
    names = {"j": "miou", "f": "f", "base": "base", "novel": "novel", "harmonic": "harmonic"}
    values = {column: metrics.get(name) for column, name in names.items()}
    return {column: None if value is None else 100 * value for column, value in values.items()}


def _own_point(report: Report, near: Sequence[PublishedResult]) -> tuple[float, float] | None:
    """Where this run lies in the chart of published results: V3's has the number of shots across and J upward."""
    own = _own(report)
    x, y = (own["base"], own["novel"]) if report["benchmark"] == "ov" else (own["j"], own["f"])
    if report["benchmark"] == "v3":
        x, y = (shots(near[0]) if near else None), own["j"]
    return None if x is None or y is None else (x, y)


# ------------------------------------------------------------------------------------------------ classes and silence


def _classes(report: Report) -> Row:
    """The classes that the truth holds as bars, best first, and the names of those that it does not."""
    rows = [{"part": None, **row, "score": class_score(row)} for row in report["per_class"]]
    held = sorted((row for row in rows if row["frames"]), key=lambda row: (-(row["score"] or 0.0), row["name"]))
    shown = [{**row, "bar": bar(row["score"] or 0.0, kind=_PARTS.get(row["part"], 0))} for row in held]
    absent = [row["name"] for row in rows if not row["frames"]]
    return {
        "rows": shown[:CLASSES],
        "left_out": max(len(shown) - CLASSES, 0),
        "absent": absent[:CLASSES],
        "absent_left_out": max(len(absent) - CLASSES, 0),
    }


def _silence(silence: Mapping[str, Any]) -> list[Row]:
    """Frames with an empty truth: all of them, then those below the level of silence and those with a sound."""
    names = {"empty": "all", "silent": "silent (below -60 dBFS)", "offscreen": "with a sound from off the screen"}
    return [
        {"name": words, **{key: silence[f"{kind}_{key}"] for key in ("frames", "accuracy", "area")}}
        for kind, words in names.items()
        if silence.get(f"{kind}_frames")
    ]


# -------------------------------------------------------------------------------------------------------------- clips


def _clips(report: Report, dataset: Dataset, predictions: Path) -> list[Row]:
    """The worst and the best clips with their pictures; the best among those in which something is to be found."""
    by_id = {clip.id: clip for clip in dataset.clips}
    rows = [row for row in report["per_clip"] if row["id"] in by_id]
    ordered = sorted(rows, key=lambda row: (row["score"], row["id"]))
    worst = ordered[: min(CLIPS, (len(ordered) + 1) // 2)]
    others = [row for row in reversed(ordered) if row not in worst]
    sounding = [row for row in others if row.get("f") is not None]
    groups = (("Worst", worst), ("Best", (sounding or others)[:CLIPS]))
    return [
        {
            "title": title,
            "rows": [{**row, "picture": clip_picture(dataset, by_id[row["id"]], predictions)} for row in found],
        }
        for title, found in groups
        if found
    ]


# ------------------------------------------------------------------------------------------------------ how it was made


def _timings(report: Report) -> list[Row]:
    stages: Mapping[str, float] = (report.get("timings") or {}).get("stages", {})
    longest = max(stages.values(), default=0.0) or 1.0
    frames = max(report["frames"], 1)
    return [
        {"stage": stage, "seconds": spent, "per_frame": 1000 * spent / frames, "bar": bar(spent / longest)}
        for stage, spent in stages.items()
    ]


def _versions(report: Report) -> list[tuple[str, str]]:
    """What ran, as names and values; nested tables (packages) become rows of their own."""
    rows: list[tuple[str, str]] = []
    for name, value in (report.get("versions") or {}).items():
        if isinstance(value, Mapping):
            rows += [(str(key), str(inner)) for key, inner in value.items() if inner is not None]
        elif value is not None:
            rows.append((name, str(value)))
    return rows


def _card(benchmark: str) -> BenchmarkConfig | None:
    """The benchmark's card; one of the user's own lies where this page does not know."""
    return load_benchmark(benchmark) if benchmark in resources.names("eval") else None
