"""Runs an ablation study: every variant of a recipe evaluated on a benchmark, and what each adds to the baseline.

OUT/<variant>/ is an evaluation like any other, so a study that is run again does only what is missing. Models that
follow each other unchanged are loaded once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openavs.caching.stagewise import StagedSchedule
from openavs.config.recipe import Recipe
from openavs.evaluation.benchmark import BenchmarkConfig
from openavs.evaluation.charts import CHART_STYLE, Axis, ChartSeries, Point, as_file, plot, shares
from openavs.evaluation.compare import compare
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.display_names import figure_name, percent, protocol_words, title_of
from openavs.evaluation.evaluator import Evaluation, evaluate, recipe_predictor
from openavs.evaluation.leaderboard import published
from openavs.evaluation.metrics.functional import Protocol
from openavs.evaluation.studies import AblationStudy, AblationVariant
from openavs.pipeline.context import Progress
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache
from openavs.results.serialization import json_bytes
from openavs.utils.fs import atomic_write

Row = dict[str, Any]

_INK = ":root{--ink:#1b1f24;--quiet:#57606a;--line:#d8dee4;--card:#fff}"
Build = Callable[[Recipe, BackendCache], Pipeline | StagedSchedule]


def run_study(
    study: AblationStudy,
    recipes: Mapping[str, Recipe],
    dataset: Dataset,
    card: BenchmarkConfig,
    out: Path,
    *,
    protocol: Protocol = "official",
    clips_per_batch: int = 1,
    limit: int | None = None,
    allow_missing: bool = False,
    overwrite: bool = False,
    command: str = "",
    build: Build = Pipeline.from_recipe,
    progress: Callable[[str], Progress] | None = None,
) -> dict[str, Any]:
    """Evaluates every variant into `out` and writes ablation.json, ablation.csv and, along an axis, curve.svg.

    `recipes` are those of `study_recipes`; the options are `evaluate`'s, and `progress(variant)` gives the function
    that is told about that variant. Returns what ablation.json holds: `variants`, one row each, whose figures are None
    where clips failed and nothing was scored, and whose `difference` is that to the baseline, paired by clip.
    """
    held: BackendCache = {}
    done: dict[str, Evaluation] = {}
    for variant in study.variants:
        system = recipe_predictor(recipes[variant.name], dataset, card, lambda recipe: build(recipe, held))
        done[variant.name] = evaluate(
            system,
            dataset,
            out / variant.name,
            protocol=protocol,
            clips_per_batch=clips_per_batch,
            limit=limit,
            allow_missing=allow_missing,
            overwrite=overwrite,
            command=command,
            progress=progress(variant.name) if progress else None,
        )
    answer = _answer(study, dataset, done, protocol, clips_per_batch) | {"limit": limit, "command": command}
    atomic_write(out / "ablation.json", json_bytes(answer))
    atomic_write(out / "ablation.csv", _table(answer))
    if study.axis is not None and (curve := study_curve(answer)) is not None:
        atomic_write(out / "curve.svg", curve.encode())
    return answer


def _answer(
    study: AblationStudy, dataset: Dataset, done: Mapping[str, Evaluation], protocol: Protocol, clips_per_batch: int
) -> dict[str, Any]:
    baseline = study.baseline or study.variants[0].name
    first = done[baseline].report
    rows = [_row(variant, done[variant.name], first, study, dataset.benchmark) for variant in study.variants]
    known: Row = {key: getattr(study, key) for key in ("title", "mirrors", "about", "axis")}
    scored = next((item.report for item in done.values() if item.report is not None), None)
    counts = {key: scored[key] if scored else None for key in ("clips", "frames")}
    return {
        "study": study.name,
        **known,
        "benchmark": dataset.benchmark,
        "task": dataset.task,
        "split": dataset.split,
        "protocol": protocol,
        "clips_per_batch": clips_per_batch,
        **counts,
        "baseline": baseline,
        "variants": rows,
    }


def _row(
    variant: AblationVariant, item: Evaluation, first: Mapping[str, Any] | None, study: AblationStudy, benchmark: str
) -> Row:
    report = item.report
    differs = report is not None and first is not None and report is not first
    return {
        "name": variant.name,
        "at": variant.at,
        "overrides": variant.overrides,
        "report": f"{variant.name}/report.json" if report is not None else None,
        "metrics": report["metrics"] if report is not None else None,
        "intervals": report["intervals"][report["protocol"]] if report is not None else None,
        "seconds": report["timings"]["seconds"] if report is not None else None,
        "failed": [{"id": clip, "reason": reason} for clip, reason in item.failed.items()],
        "difference": _difference(first, report) if differs and first is not None and report is not None else None,
        "published": _published(variant, study, benchmark) if report and not report["incomparable"] else None,
    }


def _difference(first: Mapping[str, Any], report: Mapping[str, Any]) -> Row:
    """The variant minus the baseline: its figures, and the clips' mean score with its paired interval and p-value."""
    side_by_side = compare(first, report)
    figures = {name: row["difference"] for name, row in side_by_side["figures"].items()}
    return {"figures": figures, "score": side_by_side["score"], "f": side_by_side["f"]}


def _published(variant: AblationVariant, study: AblationStudy, benchmark: str) -> Row | None:
    """What eval/published.csv has for the variant, in percent; V3's row is that of the zero-shot split."""
    if study.published is None or variant.published is None:
        return None
    rows = published(benchmark, ablation=study.published)
    return next((asdict(row) for row in rows if row.variant == variant.published), None)


def _table(answer: Mapping[str, Any]) -> bytes:
    """One line per variant: figures with their intervals, and the paired difference to the baseline."""
    names = sorted({name for row in answer["variants"] for name in row["metrics"] or ()}, key=_place(answer))
    text = io.StringIO()
    pairs = [column for name in names for column in (name, f"{name}_low", f"{name}_high")]
    changes = ["difference", "difference_low", "difference_high", "difference_p"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "at", "protocol", "clips_per_batch", *pairs, *changes, "failed"])
    for row in answer["variants"]:
        figures: list[Any] = []
        for name in names:
            figures += [(row["metrics"] or {}).get(name), *((row["intervals"] or {}).get(name) or (None, None))]
        score = row["difference"]["score"] if row["difference"] else None
        change = [score["difference"], *score["interval"], score["p"]] if score else [None] * 4
        head = [row["name"], row["at"], answer["protocol"], answer["clips_per_batch"]]
        writer.writerow([*head, *figures, *change, len(row["failed"])])
    return text.getvalue().encode()


def main_figures(task: str) -> Sequence[str]:
    """The figures that a study's table and curve show."""
    return ("base", "novel", "harmonic") if task == "open-vocabulary" else ("miou", "f")


def _place(answer: Mapping[str, Any]) -> Callable[[str], tuple[int, str]]:
    order = list(main_figures(answer["task"]))
    return lambda name: (order.index(name) if name in order else len(order), name)


def study_curve(answer: Mapping[str, Any]) -> str | None:
    """The main figures along the study's axis as an SVG file; None where nothing was scored."""
    rows = sorted((row for row in answer["variants"] if row["metrics"]), key=lambda row: row["at"])
    if not rows:
        return None
    places = [float(row["at"]) for row in rows]
    low, high = (places[0], places[-1]) if places[0] < places[-1] else (places[0] - 0.5, places[0] + 0.5)
    names = main_figures(answer["task"])
    series = [_line(figure_name(name, answer["task"]), kind, name, rows) for kind, name in enumerate(names)]
    shown = ", ".join(group.name for group in series)
    title = f"{answer['title']}: {title_of(answer['benchmark'])}, {answer['split']}"
    told = f"{shown}, each from 0 to 1, {protocol_words(answer, answer['protocol'])}"
    chart = plot("study", title, told, Axis(answer["axis"], low, high, tuple(places)), shares(shown), series)
    return as_file(chart, _INK + CHART_STYLE)


def _line(title: str, kind: int, figure: str, rows: Sequence[Row]) -> ChartSeries:
    """One figure along the axis; its name stands at the first point."""
    known = [(float(row["at"]), row["metrics"][figure]) for row in rows if row["metrics"].get(figure) is not None]
    points = (Point(at, value, f"{title} {percent(value)}", named=not i) for i, (at, value) in enumerate(known))
    return ChartSeries(title, kind, tuple(points), line=True)
