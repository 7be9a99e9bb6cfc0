"""A recipe over a benchmark: predictions, reports, resuming, and clips that fail."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.evaluator import Evaluation, adapt_recipe, evaluate, recipe_predictor
from openavs.evaluation.job_io import folder_names, to_sample
from openavs.evaluation.metrics.metrics import BinaryMetrics
from openavs.evaluation.predictor import Predictor
from openavs.jobs.loader import ClipLoader
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import ClipResult, FrameResult, Segment
from openavs.synthetic.datasets import write_layout
from tests.benchmark_clips import write_predictions

Roots = Callable[[str], Path]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Roots:
    """The synthetic world in a layout, two test clips of it."""
    written: dict[str, Path] = {}

    def root(layout: str) -> Path:
        if layout not in written:
            written[layout] = tmp_path_factory.mktemp(layout) / "data"
            write_layout(layout, written[layout], {"test": 2})
        return written[layout]

    return root


@pytest.fixture(scope="module")
def held() -> BackendCache:
    """The models of the module's pipelines, loaded once."""
    return {}


@pytest.fixture(scope="module")
def system(held: BackendCache) -> Callable[..., Predictor]:
    """The tiny recipe with overrides as a system for a data set."""

    def make(dataset: Dataset, *overrides: str) -> Predictor:
        recipe = load_recipe("tiny", overrides)
        return recipe_predictor(
            recipe, dataset, load_benchmark(dataset.benchmark), lambda r: Pipeline.from_recipe(r, held)
        )

    return make


def unused() -> Any:
    """A build that must not happen."""
    raise AssertionError("there is nothing to run, and the models were loaded all the same")


def idle(system: Predictor) -> Predictor:
    return replace(system, build=unused)


def without(report: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in keys}


Told = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def heard(
    roots: Roots, system: Callable[..., Predictor], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, Told]:
    """S4 with the captioner, and the messages of the run."""
    dataset, out = open_dataset("s4", roots("s4")), tmp_path_factory.mktemp("captions")
    told: Told = []
    done = evaluate(system(dataset), dataset, out, command="openavs evaluate s4", progress=lambda *a: told.append(a))
    return done, told


# ----------------------------------------------------------------------------------------------- what is written


def test_s4_is_run_and_scored(roots: Roots, heard: tuple[Evaluation, Told]) -> None:
    dataset = open_dataset("s4", roots("s4"))
    done, told = heard
    assert (done.failed, done.report) == ({}, json.loads((done.out / "report.json").read_text()))
    assert done.report is not None
    masks = BinaryMetrics()
    for clip in dataset.clips:
        paths = [done.out / "predictions" / place for place in clip.predictions]
        shown = np.stack([np.asarray(Image.open(path)) for path in paths])
        assert set(np.unique(shown)) <= {0, 255}
        masks.update(shown, dataset.read_truth(clip))
    assert done.report["metrics"] == pytest.approx(masks.compute("official"))
    assert done.report["metrics"]["miou"] > 0.4  # the floor of the tiny recipe, see test_quality.py
    assert (done.report["clips"], done.report["frames"], done.report["limit"]) == (2, 10, None)
    assert done.report["command"] == "openavs evaluate s4"
    assert done.report["recipe"]["vocabulary"] is None
    assert set(done.report["models"]) == set(load_recipe("tiny").models().values())
    assert all({"revision", "license"} <= set(facts) for facts in done.report["models"].values())
    assert {"openavs", "packages", "python"} <= set(done.report["versions"])
    stages = done.report["timings"]["stages"]
    assert {"caption", "translate", "detect", "segment"} <= set(stages)
    assert done.report["timings"]["seconds"] == pytest.approx(sum(stages.values()), abs=1e-3)
    assert [item for item in told if item[0] == "clips"] == [("clips", i, 2) for i in range(3)]
    assert (done.out / "report.html").stat().st_size > 1000


def test_the_table_of_clips(roots: Roots, system: Callable[..., Predictor], tmp_path: Path) -> None:
    dataset = open_dataset("ms3", roots("ms3"))
    done = evaluate(system(dataset), dataset, tmp_path)
    assert done.report is not None
    rows = list(csv.DictReader((tmp_path / "per_clip.csv").open(encoding="utf-8")))
    assert [row["id"] for row in rows] == [clip.id for clip in dataset.clips]
    assert [float(row["score"]) for row in rows] == [row["score"] for row in done.report["per_clip"]]
    assert all(float(row["seconds"]) > 0 for row in rows)


@pytest.mark.parametrize(("benchmark", "figures"), [("avss", {"miou", "f"}), ("ov", {"base", "novel", "harmonic"})])
def test_label_maps_hold_class_indices(
    roots: Roots, system: Callable[..., Predictor], tmp_path: Path, benchmark: str, figures: set[str]
) -> None:
    dataset = open_dataset(benchmark, roots(benchmark))
    done = evaluate(system(dataset), dataset, tmp_path, protocol="fixed")
    assert done.report is not None
    assert figures <= set(done.report["metrics"])
    assert done.report["metrics"]["miou"] > 0.4
    assert done.report["recipe"]["vocabulary"] == load_benchmark(benchmark).vocabulary
    assert done.report["recipe"]["aliases"]["chainsaw"] == "saw"
    found: set[int] = set()
    for clip in dataset.clips:
        pictures = [Image.open(tmp_path / "predictions" / place) for place in clip.predictions]
        assert {(picture.mode, picture.size) for picture in pictures} == {("P", (320, 240))}
        found |= {int(value) for picture in pictures for value in np.unique(np.asarray(picture))}
    sounding = {CLASSES.index(name) for clip in dataset.clips for name in clip.classes}
    assert found - {0}
    assert len(found - {0} - sounding) <= 1  # the small models are seldom wrong


def test_the_oracle_is_at_least_as_good_as_the_captioner(
    roots: Roots, system: Callable[..., Predictor], heard: tuple[Evaluation, Told], tmp_path: Path
) -> None:
    dataset = open_dataset("s4", roots("s4"))
    oracle = evaluate(system(dataset, "captioner={use: oracle}", "translator={use: none}"), dataset, tmp_path).report
    assert oracle is not None
    assert heard[0].report is not None
    assert oracle["metrics"]["miou"] >= heard[0].report["metrics"]["miou"]
    assert "openavs:tiny/clap" not in oracle["models"]
    result = json.loads(next(tmp_path.glob("clips/*/result.json")).read_text())
    assert result["frames"][0]["captions"][0]["text"] in {name for clip in dataset.clips for name in clip.classes}


def test_the_oracle_has_nothing_to_say_of_ms3(roots: Roots, system: Callable[..., Predictor], tmp_path: Path) -> None:
    dataset = open_dataset("ms3", roots("ms3"))
    done = evaluate(system(dataset, "captioner={use: oracle}", "translator={use: none}"), dataset, tmp_path)
    assert done.report is None
    assert all("MS3's never does" in reason for reason in done.failed.values())


# ------------------------------------------------------------------------------------------------------ going on


def test_running_again_does_what_is_missing_and_nothing_else(
    roots: Roots, system: Callable[..., Predictor], tmp_path: Path
) -> None:
    dataset = open_dataset("s4", roots("s4"))
    first = evaluate(system(dataset), dataset, tmp_path, limit=1)
    assert first.report is not None
    assert (first.report["clips"], first.report["limit"]) == (1, 1)
    assert len(list((tmp_path / "clips").iterdir())) == 1

    kept = tmp_path / "clips" / dataset.clips[0].id / "result.json"
    before = kept.stat().st_mtime_ns
    whole = evaluate(system(dataset), dataset, tmp_path)
    assert whole.report is not None
    assert whole.report["clips"] == 2
    assert kept.stat().st_mtime_ns == before

    again = evaluate(idle(system(dataset)), dataset, tmp_path)
    assert again.report == whole.report
    lost = tmp_path / "predictions" / dataset.clips[1].predictions[2]
    written = lost.read_bytes()
    lost.unlink()
    assert evaluate(idle(system(dataset)), dataset, tmp_path).report == whole.report
    assert lost.read_bytes() == written

    (tmp_path / "clips" / dataset.clips[1].id / "result.json").unlink()
    anew = evaluate(system(dataset), dataset, tmp_path)
    assert anew.report is not None
    assert without(anew.report, "timings") == without(whole.report, "timings")
    assert kept.stat().st_mtime_ns == before


def test_another_recipe_or_another_split_is_refused(
    roots: Roots, system: Callable[..., Predictor], tmp_path: Path
) -> None:
    dataset = open_dataset("s4", roots("s4"))
    evaluate(system(dataset), dataset, tmp_path, limit=1)
    for changed, named in (
        ((idle(system(dataset, "filtering.box_threshold=0.5")), dataset), "filtering.box_threshold"),
        ((idle(system(dataset)), replace(dataset, split="val")), "data.split"),
        ((idle(system(dataset)), open_dataset("ms3", roots("ms3"))), "data.benchmark"),
    ):
        with pytest.raises(InputError, match=named):
            evaluate(*changed, tmp_path)
    assert (tmp_path / "report.json").is_file()
    done = evaluate(system(dataset, "filtering.box_threshold=0.9"), dataset, tmp_path, limit=1, overwrite=True)
    assert done.report is not None
    assert done.report["metrics"]["miou"] == 0.0  # nothing scores 0.9


def test_a_link_among_the_outputs_is_not_followed_by_overwrite(
    roots: Roots, system: Callable[..., Predictor], tmp_path: Path
) -> None:
    dataset = open_dataset("s4", roots("s4"))
    evaluate(system(dataset), dataset, tmp_path / "out", limit=1)
    (tmp_path / "out" / "predictions").rename(tmp_path / "elsewhere")
    (tmp_path / "out" / "predictions").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="predictions is a link; remove it, or give an output folder of its own"):
        evaluate(system(dataset), dataset, tmp_path / "out", limit=1, overwrite=True)
    assert any((tmp_path / "elsewhere").rglob("*.png"))


def test_a_clip_that_fails_is_named_and_no_figure_hides_it(system: Callable[..., Predictor], tmp_path: Path) -> None:
    write_layout("s4", tmp_path / "data", {"test": 2}, seed=3)
    dataset = open_dataset("s4", tmp_path / "data")
    bad, out = dataset.clips[0], tmp_path / "out"
    whole = bad.frames[3].read_bytes()
    bad.frames[3].write_bytes(whole[:300])  # the header is complete, the pixels are not
    done = evaluate(system(dataset), dataset, out)
    assert done.report is None
    assert list(done.failed) == [bad.id]
    assert bad.frames[3].name in done.failed[bad.id]
    assert not (out / "report.json").exists()
    assert not any((out / "predictions" / place).exists() for place in bad.predictions)
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert {line["id"]: line["status"] for line in lines} == {bad.id: "failed", dataset.clips[1].id: "ok"}

    counted = evaluate(system(dataset), dataset, out, allow_missing=True)
    assert counted.report is not None
    assert (counted.report["missing"], counted.report["clips"]) == (1, 2)
    assert [item["id"] for item in counted.report["failed"]] == [bad.id]
    assert counted.report["per_clip"][0]["score"] == 0.0  # S4 is never silent: an empty mask misses all

    bad.frames[3].write_bytes(whole)
    mended = evaluate(system(dataset), dataset, out)
    assert mended.failed == {}
    assert mended.report is not None
    assert mended.report["missing"] == 0


@pytest.mark.parametrize("what", ["a frame", "the sound"])
def test_files_that_are_absent_fail_their_clip(system: Callable[..., Predictor], tmp_path: Path, what: str) -> None:
    write_layout("s4", tmp_path / "data", {"test": 1}, seed=4)
    dataset = open_dataset("s4", tmp_path / "data")
    gone = dataset.clips[0].frames[1] if what == "a frame" else dataset.clips[0].audio
    gone.unlink()
    done = evaluate(replace(system(dataset), build=lambda: unused), dataset, tmp_path / "out")
    assert gone.name in done.failed[dataset.clips[0].id]


# ------------------------------------------------------------------------------------------------------ the pieces


def test_a_recipe_is_fitted_to_the_benchmark(roots: Roots) -> None:
    avss, s4 = open_dataset("avss", roots("avss")), open_dataset("s4", roots("s4"))
    recipe = load_recipe("tiny", ["sample.fps=4", "aliases={jet: bird}"])
    closed, card = adapt_recipe(recipe, avss, load_benchmark("avss")), load_benchmark("avss")
    assert closed.sample.fps == 1.0
    assert closed.vocabulary == card.vocabulary
    assert closed.aliases["jet"] == "bird", "the recipe's own come first"
    assert adapt_recipe(recipe, s4, load_benchmark("s4")).vocabulary is None


def test_a_vocabulary_of_ones_own_must_be_of_the_benchmarks_classes(roots: Roots) -> None:
    avss, card = open_dataset("avss", roots("avss")), load_benchmark("avss")
    system = recipe_predictor(load_recipe("tiny", ["vocabulary=[dog, emergency-car]"]), avss, card)
    assert system.labels[CLASSES.index("emergency-car")] == "emergency-car"
    assert system.labels[CLASSES.index("dog")] == "dog"
    assert system.recipe["vocabulary"] == ["dog", "emergency-car"]
    with pytest.raises(InputError, match="has 'spaceship', which avss has no class for"):
        recipe_predictor(load_recipe("tiny", ["vocabulary=[dog, spaceship]"]), avss, card)


def test_labels_of_a_clip_are_phrases(roots: Roots) -> None:
    dataset = open_dataset("s4", roots("s4"))
    clip = replace(dataset.clips[0], classes=("emergency-car", "dog"))
    assert to_sample(clip, "a", dataset.root).classes == ("emergency car", "dog")
    assert to_sample(clip, "a", dataset.root, {"dog": "hound"}).classes == ("emergency car", "hound")
    opened = ClipLoader(dataset.root, Path(), 1.0).open(to_sample(clip, "a", dataset.root))
    assert opened.times == (0.5, 1.5, 2.5, 3.5, 4.5)
    assert opened.labels == ("emergency car", "dog")


def test_clips_have_folders_of_their_own_whatever_their_ids() -> None:
    clips = [BenchmarkClip(id, "test", (), Path(), (), ()) for id in ("plain", "-dash", "AbC", "aBc", "-dash-")]
    names = folder_names(clips)
    assert names["plain"] == "plain"
    assert not names["-dash"].startswith("-")
    assert len({name.casefold() for name in names.values()}) == len(clips)
    assert folder_names(clips[1:2]) == {"-dash": names["-dash"]}


def test_predictions_have_the_size_of_the_truth(roots: Roots, tmp_path: Path) -> None:
    dataset = open_dataset("s4", roots("s4"))
    clip = dataset.clips[0]
    half = np.zeros((448, 448), dtype=bool)
    half[:, :224] = True
    segment = Segment(mask_to_rle(half), (0, 0, 224, 448), "dog", 0.9)
    frames = tuple(FrameResult(i, i + 0.5, segments=(segment,) if i else ()) for i in range(5))
    write_predictions(dataset, (), clip, tmp_path, ClipResult(clip.id, (448, 448), frames))
    masks = dataset.read_prediction(clip, tmp_path / "predictions")
    assert masks is not None
    assert masks.shape == (5, 224, 224)
    assert masks[0].max() == 0
    assert (masks[1:, :, :112] == 255).all()
    assert (masks[1:, :, 112:] == 0).all()
    with pytest.raises(InputError, match="has 5 frames and its result 4"):
        write_predictions(dataset, (), clip, tmp_path, ClipResult(clip.id, (448, 448), frames[:4]))
