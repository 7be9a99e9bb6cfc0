"""Ablation studies: variants of a recipe, each evaluated on a benchmark and compared with the baseline.

Studies are eval/ablations/*.yaml. OUT/<variant>/ is the output of an evaluation like any other, so running a study
again only does what is missing. Models that consecutive variants share are loaded once.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self, Unpack

from pydantic import Field, ValidationError, model_validator

from openavs.caching.build import StagedSchedule
from openavs.config import resources
from openavs.config.options import first_error
from openavs.config.recipe import Recipe, Section, Text, load_recipe
from openavs.errors import InputError
from openavs.evaluation.benchmark import BenchmarkConfig, figure_name, percent, protocol_name, title_of
from openavs.evaluation.compare import compare
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.evaluator import Evaluation, EvaluationOptions, evaluate, recipe_predictor
from openavs.evaluation.leaderboard import published_results
from openavs.evaluation.metrics.metrics import Row
from openavs.pipeline.context import Progress
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache, check_backends
from openavs.results.serialization import json_bytes
from openavs.utils.fs import atomic_write, safe_id
from openavs.utils.serialization import read_yaml
from openavs.utils.text import did_you_mean
from openavs.visualization.plots import Axis, Chart, ChartSeries, Point, plot_series, unit_axis

EXAMPLE = "see eval/ablations/threshold.yaml for a complete study"
Build = Callable[[Recipe, BackendCache], Pipeline | StagedSchedule]


# ----------------------------------------------------------------------------------------------------- the study file


class AblationVariant(Section):
    """A variant of a recipe.

    Attributes:
        overrides: as on the command line; whole sections are allowed (`translator={use: none}`).
        at: the place on the study's axis.
        published: the variant of eval/published.csv that it repeats.
    """

    name: Text
    overrides: list[Text]
    at: float | None = None
    published: Text | None = None


class AblationStudy(Section):
    """A study file.

    Attributes:
        mirrors: the published table that the study repeats.
        pipeline: the recipe that it is made for.
        published: the ablation of eval/published.csv with the published figures.
        axis: the label of the x axis of its curve, if it has one.
        baseline: the variant that the others are compared with; the default is the first.
    """

    name: Text
    title: Text
    variants: Annotated[list[AblationVariant], Field(min_length=1)]
    mirrors: str = ""
    about: str = ""
    pipeline: Text | None = None
    published: Text | None = None
    axis: Text | None = None
    baseline: Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [variant.name for variant in self.variants]
        if len(set(names)) < len(names):
            raise ValueError("two variants have the same name")
        for name in names:
            if safe_id(name) != name:
                raise ValueError(f"the variant {name!r} cannot name a folder; use letters, digits and dashes")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"the baseline {self.baseline!r} is not one of the variants")
        if self.axis is not None and any(variant.at is None for variant in self.variants):
            raise ValueError("with an axis, every variant needs its place on it ('at')")
        return self

    def select(self, names: Sequence[str] | None) -> AblationStudy:
        """Return the study with some of its variants, in its order; without its baseline, the first becomes it.

        Raises:
            InputError: an unknown variant.
        """
        known = [variant.name for variant in self.variants]
        for name in names or ():
            if name not in known:
                raise InputError(f"the study {self.name!r} has no variant {name!r}; {did_you_mean(name, known)}")
        kept = [variant for variant in self.variants if not names or variant.name in names]
        baseline = self.baseline if self.baseline in {variant.name for variant in kept} else kept[0].name
        return self.model_copy(update={"variants": kept, "baseline": baseline})


def load_study(name_or_path: str | Path) -> AblationStudy:
    """Load a study by its short name or its file.

    Raises:
        InputError: an unknown study, or a file that is not one.
    """
    path = _find_study(name_or_path)
    try:
        return AblationStudy.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise InputError(f"the study {path}: {first_error(error, AblationStudy, EXAMPLE)}") from None


def study_names() -> list[str]:
    """List the short names of the studies, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def study_recipes(study: AblationStudy, pipeline: str, overrides: Sequence[str] = ()) -> dict[str, Recipe]:
    """Load and check every variant's recipe, by its name, so that errors appear before the first run.

    Raises:
        InputError: a variant does not fit the recipe, or names an unknown backend or option.
    """
    recipes: dict[str, Recipe] = {}
    for variant in study.variants:
        try:
            recipes[variant.name] = load_recipe(pipeline, [*overrides, *variant.overrides])
            check_backends(recipes[variant.name])
        except InputError as error:
            raise InputError(f"the variant {variant.name!r} of {study.name!r} does not work: {error}") from error
    return recipes


def _find_study(name_or_path: str | Path) -> Path:
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path.resolve()
    for folder in _folders():
        if (shipped := folder / f"{Path(name_or_path).name.removesuffix('.yaml')}.yaml").is_file():
            return shipped
    raise InputError(f"there is no study {str(name_or_path)!r}; {did_you_mean(str(name_or_path), study_names())}")


def _folders() -> list[Path]:
    return [folder / "ablations" for folder in resources.folders("eval")]


# ------------------------------------------------------------------------------------------------------------ its run


def run_study(
    study: AblationStudy,
    recipes: Mapping[str, Recipe],
    dataset: Dataset,
    benchmark: BenchmarkConfig,
    out: Path,
    *,
    build: Build = Pipeline.from_recipe,
    progress: Callable[[str], Progress] | None = None,
    **options: Unpack[EvaluationOptions],
) -> dict[str, Any]:
    """Evaluate every variant into `out`, and write ablation.json, ablation.csv and, with an axis, curve.svg.

    `recipes` is the output of `study_recipes`. `build` creates the pipeline of a recipe, with the models that the
    variant before has loaded. `progress` returns the progress function of a variant. `options` are those of `evaluate`.

    Returns:
        The content of ablation.json. `variants` has one row each, with None for figures if clips failed and no score
        was computed; `difference` is that to the baseline, paired by clip.
    """
    backends: BackendCache = {}
    done: dict[str, Evaluation] = {}
    for variant in study.variants:
        system = recipe_predictor(recipes[variant.name], dataset, benchmark, lambda recipe: build(recipe, backends))
        listener = progress(variant.name) if progress else None
        done[variant.name] = evaluate(system, dataset, out / variant.name, progress=listener, **options)
    result = _summarize(study, dataset, done, options)
    atomic_write(out / "ablation.json", json_bytes(result))
    atomic_write(out / "ablation.csv", _table(result))
    if study.axis is not None and (chart := plot_study(result)) is not None:
        atomic_write(out / "curve.svg", chart.svg.encode())
    return result


def _summarize(
    study: AblationStudy, dataset: Dataset, done: Mapping[str, Evaluation], options: EvaluationOptions
) -> dict[str, Any]:
    baseline = study.baseline or study.variants[0].name
    reference = done[baseline].report
    scored = next((item.report for item in done.values() if item.report is not None), None)
    return {
        "study": study.name,
        **{key: getattr(study, key) for key in ("title", "mirrors", "about", "axis")},
        "benchmark": dataset.benchmark,
        "task": dataset.task,
        "split": dataset.split,
        "protocol": options.get("protocol", "official"),
        "clips_per_batch": options.get("clips_per_batch") or dataset.clips_per_batch,
        **{key: scored[key] if scored else None for key in ("clips", "frames")},
        "baseline": baseline,
        "variants": [
            _row(variant, done[variant.name], reference, study, dataset.benchmark) for variant in study.variants
        ],
        "limit": options.get("limit"),
        "command": options.get("command", ""),
    }


def _row(
    variant: AblationVariant,
    item: Evaluation,
    reference: Mapping[str, Any] | None,
    study: AblationStudy,
    benchmark: str,
) -> Row:
    report = item.report
    difference = None
    if report is not None and reference is not None and report is not reference:
        difference = _difference(reference, report)
    return {
        "name": variant.name,
        "at": variant.at,
        "overrides": variant.overrides,
        "report": f"{variant.name}/report.json" if report is not None else None,
        "metrics": report["metrics"] if report is not None else None,
        "intervals": report["intervals"][report["protocol"]] if report is not None else None,
        "seconds": report["timings"]["seconds"] if report is not None else None,
        "failed": [{"id": clip, "reason": reason} for clip, reason in item.failed.items()],
        "difference": difference,
        "published": _published(variant, study, benchmark) if report and not report["incomparable"] else None,
        **{key: report[key] for key in ("negatives", "robustness") if report is not None and key in report},
    }


def _difference(reference: Mapping[str, Any], report: Mapping[str, Any]) -> Row:
    """The variant minus the baseline: its figures, and the clips' mean score with its paired interval and p-value."""
    comparison = compare(reference, report)
    figures = {name: row["difference"] for name, row in comparison["figures"].items()}
    return {"figures": figures, "score": comparison["score"], "f": comparison["f"]}


def _published(variant: AblationVariant, study: AblationStudy, benchmark: str) -> Row | None:
    """The row of eval/published.csv for the variant, in percent; that of V3 is for the zero-shot split."""
    if study.published is None or variant.published is None:
        return None
    rows = published_results(benchmark, ablation=study.published)
    return next((asdict(row) for row in rows if row.variant == variant.published), None)


# ------------------------------------------------------------------------------------------------- its table and curve


_OWN_FIGURES = {"ref-avs": ("j", "f", "s"), "avatar": ("ciou", "auc", "tn")}


def main_figures(task: str, benchmark: str = "") -> Sequence[str]:
    """Return the figures that a study's table and curve show."""
    if benchmark in _OWN_FIGURES:
        return _OWN_FIGURES[benchmark]
    if task == "instances":
        return ("map", "hota", "fsla")
    return ("base", "novel", "harmonic") if task == "open-vocabulary" else ("miou", "f")


def _table(result: Mapping[str, Any]) -> bytes:
    """One line per variant: figures with their intervals, and the paired difference to the baseline."""
    first = list(main_figures(result["task"], result["benchmark"]))
    names = {name for row in result["variants"] for name in row["metrics"] or ()}
    ordered = sorted(names, key=lambda name: (first.index(name) if name in first else len(first), name))
    text = io.StringIO()
    kinds = list(dict.fromkeys(kind for row in result["variants"] for kind in row.get("negatives", ())))
    figure_columns = [column for name in ordered for column in (name, f"{name}_low", f"{name}_high")]
    difference_columns = ["difference", "difference_low", "difference_high", "difference_p"]
    writer = csv.writer(text, lineterminator="\n")
    others = [*(f"fpr_{kind}" for kind in kinds), "failed"]
    writer.writerow(["variant", "at", "protocol", "clips_per_batch", *figure_columns, *difference_columns, *others])
    for row in result["variants"]:
        figures: list[Any] = []
        for name in ordered:
            figures += [(row["metrics"] or {}).get(name), *((row["intervals"] or {}).get(name) or (None, None))]
        score = row["difference"]["score"] if row["difference"] else None
        difference = [score["difference"], *score["interval"], score["p"]] if score else [None] * 4
        head = [row["name"], row["at"], result["protocol"], result["clips_per_batch"]]
        false_positives = [row["negatives"][kind]["fpr"] if "negatives" in row else None for kind in kinds]
        writer.writerow([*head, *figures, *difference, *false_positives, len(row["failed"])])
    return text.getvalue().encode()


def plot_study(result: Mapping[str, Any]) -> Chart | None:
    """Plot the main figures along the study's axis; None without any score."""
    rows = sorted((row for row in result["variants"] if row["metrics"]), key=lambda row: row["at"])
    if not rows:
        return None
    names = main_figures(result["task"], result["benchmark"])
    titles = [figure_name(name, result["task"]) for name in names]
    series = [_series(kind, title, name, rows) for kind, (name, title) in enumerate(zip(names, titles, strict=True))]
    return plot_series(
        f"{result['title']}: {title_of(result['benchmark'])}, {result['split']}",
        f"{', '.join(titles)}, each from 0 to 1, {protocol_name(result, result['protocol'])}",
        series,
        Axis(result["axis"], ticks=[float(row["at"]) for row in rows]),
        unit_axis(", ".join(titles)),
    )


def _series(kind: int, title: str, figure: str, rows: Sequence[Row]) -> ChartSeries:
    """One figure along the axis, labeled at its first point."""
    known = [(float(row["at"]), row["metrics"][figure]) for row in rows if row["metrics"].get(figure) is not None]
    points = [Point(at, value, f"{title} {percent(value)}", labeled=not i) for i, (at, value) in enumerate(known)]
    return ChartSeries(points, kind, line=True)
