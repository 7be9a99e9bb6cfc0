"""HTML report of an evaluation: figures, classes, curves, the best and the worst clips, and the recipe, in one file.

The report needs no network; its one script is the player of the clips. Names from files, reports and models are escaped
by the template. Its size is bounded for any number of clips: at most twelve clips of a few frames are played, and long
lists are cut with a note.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openavs.config import resources
from openavs.evaluation.benchmark import figure_name, in_order, load_benchmark, percent, protocol_name, title_of
from openavs.evaluation.compare import Report, class_score, class_score_name
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.leaderboard import (
    FIGURE_WORDS,
    FIGURES,
    MEASURES,
    PROTOCOLS,
    PublishedResult,
    comparable_results,
    format_published,
    group_by_kind,
    group_by_measure,
    published_results,
)
from openavs.evaluation.metrics.metrics import Row
from openavs.evaluation.negatives import FOLDER as NEGATIVES, TITLES
from openavs.evaluation.report_examples import example_frame, play_example
from openavs.evaluation.report_plots import (
    KIND_STYLES,
    OWN_STYLE,
    is_hard,
    plot_published,
    plot_report,
    shot_count,
)
from openavs.models.catalog import is_only_synthetic
from openavs.utils.fs import atomic_write
from openavs.visualization.html import asset, render
from openavs.visualization.plots import series_css
from openavs.visualization.report import model_rows, timing_rows

MAX_EXAMPLES = 6  # of the best clips, and of the worst
MAX_NEGATIVE_EXAMPLES = 4  # of each kind of exchanged sound
MAX_CLASSES = 120
MAX_PUBLISHED = 8  # of each kind of method
MAX_RECIPE_CHARACTERS = 100_000

# Keys that an evaluation adds to `BenchmarkScores.to_dict()`, or that may be absent.
_OPTIONAL = dict.fromkeys(("date", "limit", "failed", "command", "curve", "missing_masks", "incomparable"))
_PART_STYLES = {"base": 0, "novel": 1, "background": 4}


def write_benchmark_report(
    path: Path, report: Report, dataset: Dataset, predictions: Path, negatives: Mapping[str, Dataset] | None = None
) -> None:
    """Write the HTML report of an evaluation.

    Args:
        path: the file to write.
        report: `BenchmarkScores.to_dict()`, or a report.json, which also has recipe, models and timings.
        dataset: the scored split; its files are only read for the example frames.
        predictions: the folder of scored masks, read for the same frames.
        negatives: the splits with exchanged sounds by kind; their masks are in `negatives/<kind>/predictions` beside
            the page.
    """
    benchmark = report["benchmark"]
    models, recipe = report.get("models") or {}, report.get("recipe") or {}
    listed = [] if report.get("incomparable") else comparable_results(benchmark, report["split"])
    measures = {key: group_by_kind(rows) for key, rows in group_by_measure(listed, report["protocol"]).items()}
    near = [row for kinds in measures.values() for found in kinds.values() for row in found[:MAX_PUBLISHED]]
    parts = {row.get("part") for row in report["per_class"]}
    style = asset("report/report.css") + asset("report/pieces.css") + asset("benchmark/benchmark.css") + series_css()
    page = render(
        "benchmark/benchmark.html",
        style,
        asset("report/player.js"),
        r={**_OPTIONAL, **report},
        title=title_of(benchmark),
        recipe_name=recipe.get("name"),
        only_synthetic=is_only_synthetic(models),
        protocols=[(name, protocol_name(report, name)) for name in _protocols(report)],
        figures=_figures(report),
        published=near,
        measures=[
            (
                MEASURES[key],
                [(kind, KIND_STYLES[kind], rows[:MAX_PUBLISHED], len(rows)) for kind, rows in kinds.items()],
            )
            for key, kinds in measures.items()
        ],
        most=MAX_PUBLISHED,
        columns=[name for name in FIGURES if any(getattr(row, name) is not None for row in near)],
        with_setting=any(row.setting for row in near),
        own=_own_figures(report),
        own_style=OWN_STYLE,
        measured={key: words for key, words in PROTOCOLS.items() if any(row.protocol == key for row in near)},
        chart=plot_published(benchmark, published_results(benchmark), _own_point(report, near)) if near else None,
        classes=_classes(report),
        parts=[(name, style) for name, style in _PART_STYLES.items() if name in parts],
        charts=plot_report(report),
        hard=is_hard(report.get("curve")),
        clips=_examples(report, dataset, predictions),
        groups=_groups(report),
        silence=_silence(report.get("silence") or {}),
        negatives=_negatives(report, path.parent / NEGATIVES, negatives or {}),
        models=model_rows(models, recipe.get("license")),
        timings=timing_rows((report.get("timings") or {}).get("stages", {}), report["frames"]),
        versions=_versions(report),
        recipe=json.dumps(recipe, indent=2, ensure_ascii=False)[:MAX_RECIPE_CHARACTERS] if recipe else None,
        # The configuration of the user's own benchmark may be anywhere, so only those of the package are read.
        caveats=load_benchmark(benchmark).caveats if benchmark in resources.names("eval") else [],
        percent=percent,
        format_published=format_published,
        figure_words=FIGURE_WORDS,
    )
    atomic_write(path, page)


# ------------------------------------------------------------------------------------------------------------ figures


def _protocols(report: Report) -> list[str]:
    """The chosen protocol, then the others."""
    return sorted(report["figures"], key=lambda name: name != report["protocol"])


def _figures(report: Report) -> list[Row]:
    """The name of every figure, with value and interval per protocol; some figures exist in one protocol only."""
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


def _own_figures(report: Report) -> dict[str, float | None]:
    """This run's figures in percent by the columns of published ones."""
    metrics = report["metrics"]
    values = {column: metrics.get(column, metrics.get("miou") if column == "j" else None) for column in FIGURES}
    return {column: None if value is None else 100 * value for column, value in values.items()}


def _own_point(report: Report, near: Sequence[PublishedResult]) -> tuple[float, float] | None:
    """The place of this run in the chart of published results; that of V3 has the number of shots on its x axis."""
    own = _own_figures(report)
    x, y = (own["base"], own["novel"]) if report["benchmark"] == "ov" else (own["j"], own["f"])
    if report["benchmark"] == "v3":
        x, y = (shot_count(near[0]) if near else None), own["j"]
    return None if x is None or y is None else (x, y)


def _groups(report: Report) -> Row:
    """The figures of groups of clips with their intervals, in the order of `names`."""
    groups = report.get("groups") or ()
    keys = in_order({name: None for row in groups for name in row["figures"]})
    cells = [[(row["figures"][key], row["intervals"].get(key)) for key in keys] for row in groups]
    rows = [{**row, "cells": own} for row, own in zip(groups, cells, strict=True)]
    return {"names": [figure_name(key, report["task"]) for key in keys], "rows": rows}


# ------------------------------------------------------------------------------------------------ classes and silence


def _classes(report: Report) -> Row:
    """The classes in the truth, best first, and the names of the others."""
    rows = [{"part": None, "f": None, **row, "score": class_score(row)} for row in report["per_class"]]
    held = sorted((row for row in rows if row["frames"]), key=lambda row: (-(row["score"] or 0.0), row["name"]))
    absent = [row["name"] for row in rows if not row["frames"]]
    return {
        "name": class_score_name(rows),
        "rows": [{**row, "style": _PART_STYLES.get(row["part"], 0)} for row in held[:MAX_CLASSES]],
        "left_out": max(len(held) - MAX_CLASSES, 0),
        "absent": absent[:MAX_CLASSES],
        "absent_left_out": max(len(absent) - MAX_CLASSES, 0),
    }


def _silence(silence: Mapping[str, Any]) -> list[Row]:
    """Frames with an empty truth: all, those below the level of silence, and those with an off-screen sound."""
    names = {"empty": "all", "silent": "silent (below -60 dBFS)", "offscreen": "with a sound from off the screen"}
    return [
        {"name": words, **{key: silence[f"{kind}_{key}"] for key in ("frames", "accuracy", "area")}}
        for kind, words in names.items()
        if silence.get(f"{kind}_frames")
    ]


def _negatives(report: Report, folder: Path, splits: Mapping[str, Dataset]) -> list[Row]:
    """The figures of each kind of exchanged sound, with the clips that have the largest false positives."""
    found = []
    for kind, figures in (report.get("negatives") or {}).items():
        dataset, predictions = splits[kind], folder / kind / "predictions"
        clips = {clip.id: clip for clip in dataset.clips}
        worst = figures["worst"][:MAX_NEGATIVE_EXAMPLES]
        pictures = [{**row, "picture": example_frame(dataset, clips[row["id"]], predictions)} for row in worst]
        found.append({"kind": kind, "title": TITLES[kind], **figures, "pictures": pictures})
    return found


# --------------------------------------------------------------------------------------------------- timings, versions


def _versions(report: Report) -> list[tuple[str, str]]:
    """Names and versions; nested tables (packages) become rows."""
    rows: list[tuple[str, str]] = []
    for name, value in (report.get("versions") or {}).items():
        if isinstance(value, Mapping):
            rows += [(str(key), str(inner)) for key, inner in value.items() if inner is not None]
        elif value is not None:
            rows.append((name, str(value)))
    return rows


# ------------------------------------------------------------------------------------------------------ example frames


def _examples(report: Report, dataset: Dataset, predictions: Path) -> list[Row]:
    """The worst and the best clips, each with an example frame and a player of truth and prediction.

    The best are taken from clips with a true mask, because an empty prediction of an empty truth shows nothing.
    """
    by_id = {clip.id: clip for clip in dataset.clips}
    rows = [row for row in report["per_clip"] if row["id"] in by_id]
    ordered = sorted(rows, key=lambda row: (row["score"], row["id"]))
    worst = ordered[: min(MAX_EXAMPLES, (len(ordered) + 1) // 2)]
    others = [row for row in reversed(ordered) if row not in worst]
    sounding = [row for row in others if row.get("f") is not None]
    groups = (("Worst", worst), ("Best", (sounding or others)[:MAX_EXAMPLES]))
    return [
        {
            "title": title,
            "rows": [{**row, **play_example(dataset, by_id[row["id"]], predictions)} for row in found],
        }
        for title, found in groups
        if found
    ]
