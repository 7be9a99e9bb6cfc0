"""Ablation studies: their files, and runs of variants on the synthetic world."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from openavs.config.recipe import Recipe
from openavs.errors import InputError
from openavs.evaluation.ablation import load_study, main_figures, run_study, study_names, study_recipes
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.leaderboard import published_results
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache
from openavs.synthetic.datasets import write_layout


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("s4") / "data"
    write_layout("s4", root, {"test": 2})
    return open_dataset("s4", root)


# ----------------------------------------------------------------------------------------------------- their files


@pytest.mark.parametrize("name", study_names())
def test_every_shipped_study_is_valid_and_its_published_figures_exist(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.about
    if study.published is not None:
        known = {row.variant for row in published_results("s4", ablation=study.published)}
        assert {variant.published for variant in study.variants if variant.published} == known


def test_the_studies_of_the_paper_are_included() -> None:
    assert {"questions", "consistency", "threshold", "oracle", "segmenter"} <= set(study_names())


@pytest.mark.parametrize("name", ["threshold", "oracle", "captions", "segmenter"])
def test_studies_without_questions_fit_the_tiny_recipe(name: str) -> None:
    study = load_study(name).select(["recipe", "box"] if name == "segmenter" else None)
    assert list(study_recipes(study, "tiny")) == [variant.name for variant in study.variants]


def test_variants_are_chosen_by_name_and_keep_their_order() -> None:
    study = load_study("threshold").select(["0.35", "0.15"])
    assert [variant.name for variant in study.variants] == ["0.15", "0.35"]
    assert study.baseline == "0.15", "its own, 0.25, is not among them"
    assert load_study("threshold").select(None).baseline == "0.25"
    with pytest.raises(InputError, match=r"no variant '0\.16'; did you mean"):
        load_study("threshold").select(["0.16"])


def test_all_variants_are_checked_before_the_first_is_run() -> None:
    with pytest.raises(InputError, match=r"variant 'sound-of-no-llm' of 'questions' does not work: .*questions"):
        study_recipes(load_study("questions"), "tiny")
    with pytest.raises(InputError, match="no study 'treshold'; did you mean 'threshold'"):
        load_study("treshold")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("title: a\nvariants: []", "variants"),
        ("title: a\nvariants: [{name: x, overrides: []}, {name: x, overrides: []}]", "the same name"),
        ("title: a\nvariants: [{name: ../x, overrides: []}]", "cannot name a folder"),
        ("title: a\nvariants: [{name: x, overrides: []}]\nbaseline: y", "not one of the variants"),
        ("title: a\nvariants: [{name: x, overrides: []}]\naxis: size", "needs its place"),
        ("title: a\nvariants: [{name: x, override: []}]", "overrides"),
    ],
)
def test_a_wrong_study_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------- their runs


def test_a_threshold_curve(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Two thresholds\naxis: box threshold\nbaseline: low\nvariants:\n"
        "  - {name: high, at: 0.9, overrides: [filtering.box_threshold=0.9]}\n"
        "  - {name: low, at: 0.1, overrides: [filtering.box_threshold=0.1]}\n"
    )
    study = load_study(path)
    built: list[Pipeline] = []

    def build(recipe: Recipe, held: BackendCache) -> Pipeline:
        built.append(Pipeline.from_recipe(recipe, held))
        return built[-1]

    answer = run_study(
        study, study_recipes(study, "tiny"), dataset, load_benchmark("s4"), tmp_path / "out", build=build
    )
    assert len({id(pipe.detector) for pipe in built}) == 1, "what variants have in common is loaded once"
    assert answer == json.loads((tmp_path / "out" / "ablation.json").read_text())
    high, low = answer["variants"]
    assert (high["name"], answer["baseline"], low["difference"]) == ("high", "low", None)
    assert high["metrics"]["miou"] < low["metrics"]["miou"]
    score = high["difference"]["score"]
    assert score["difference"] == pytest.approx(high["metrics"]["miou"] - low["metrics"]["miou"])
    assert score["interval"][0] <= score["difference"] <= score["interval"][1] < 0
    assert high["published"] is None

    rows = list(csv.DictReader((tmp_path / "out" / "ablation.csv").open(encoding="utf-8")))
    assert [(row["variant"], row["protocol"], float(row["miou"])) for row in rows] == [
        (row["name"], "official", row["metrics"]["miou"]) for row in answer["variants"]
    ]
    curve = ET.parse(tmp_path / "out" / "curve.svg").getroot()
    assert [group.get("id") for group in curve.iter() if (group.get("id") or "").startswith("points")] == [
        "points0",  # J
        "points1",  # F
    ]

    def unused(recipe: Recipe, held: BackendCache) -> Pipeline:
        raise AssertionError("everything is done, and a model was loaded all the same")

    again = run_study(
        study, study_recipes(study, "tiny"), dataset, load_benchmark("s4"), tmp_path / "out", build=unused
    )
    assert again == answer


def test_the_box_and_the_oracle_beside_published_figures(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: Bounds\npublished: labels\nvariants:\n"
        "  - {name: box, overrides: ['segmenter={use: box}']}\n"
        "  - name: labels\n    published: true clip labels instead of captions\n"
        "    overrides: ['captioner={use: oracle}', 'translator={use: none}', 'segmenter={use: box}']\n"
    )
    study = load_study(path)
    recipes, card = study_recipes(study, "tiny"), load_benchmark("s4")
    synthetic = run_study(study, recipes, dataset, card, tmp_path / "out", limit=1)
    assert [row["published"] for row in synthetic["variants"]] == [None, None], "these do not compare"
    real = replace(dataset, clips=dataset.clips[:1], incomparable=None)
    answer = run_study(study, recipes, real, card, tmp_path / "out", limit=1)
    box, labels = answer["variants"]
    assert box["published"] is None
    assert (labels["published"]["j"], labels["published"]["f"]) == (64.8, 74.8)
    assert labels["metrics"]["miou"] >= box["metrics"]["miou"] > 0.1
    assert (answer["clips"], answer["limit"], answer["baseline"]) == (1, 1, "box")
    assert not (tmp_path / "out" / "curve.svg").exists()


def test_a_study_without_scores_lists_reasons_and_has_no_curve(tmp_path: Path) -> None:
    """The oracle has nothing to say of MS3, whose clips have no labels."""
    write_layout("ms3", tmp_path / "data", {"test": 1})
    path = tmp_path / "mine.yaml"
    oracle = "overrides: ['captioner={use: oracle}', 'translator={use: none}']"
    path.write_text(f"title: In vain\naxis: share\nvariants: [{{name: half, at: 0.5, {oracle}}}]\n")
    study, data = load_study(path), open_dataset("ms3", tmp_path / "data")
    answer = run_study(study, study_recipes(study, "tiny"), data, load_benchmark("ms3"), tmp_path / "out")
    assert [len(row["failed"]) for row in answer["variants"]] == [1]
    assert (tmp_path / "out" / "ablation.csv").is_file()
    assert not (tmp_path / "out" / "curve.svg").exists()


def test_studies_on_ref_avs_and_avatar_show_their_figures() -> None:
    assert main_figures("binary", "s4") == ("miou", "f")
    assert main_figures("binary", "ref-avs") == ("j", "f", "s")
    assert main_figures("binary", "avatar") == ("ciou", "auc", "tn")
