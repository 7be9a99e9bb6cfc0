"""Published results: bounds, unique rows with sources, known numbers, and their charts."""

from __future__ import annotations

import runpy
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest

from openavs.config import resources
from openavs.errors import InputError
from openavs.evaluation import leaderboard as module
from openavs.evaluation.leaderboard import (
    FIGURES,
    PROTOCOLS,
    PublishedResult,
    comparable_results,
    group_by_measure,
    published_results,
)
from openavs.evaluation.report_plots import plot_published, plottable
from tests.conftest import ROOT

CHARTS = ("s4", "ms3", "avss", "ov", "v3")
BENCHMARKS = (*CHARTS, "avis", "ref-avs")
ROWS = [row for benchmark in BENCHMARKS for row in published_results(benchmark, ablation=None)]


def test_every_row_belongs_to_a_benchmark_and_none_is_lost() -> None:
    lines = resources.shipped("eval", "published.csv").read_text("utf-8").splitlines()
    assert len(ROWS) == len(lines) - 1 > 200
    assert published_results("nobody's") == []


def test_every_row_has_a_source() -> None:
    assert all(row.source.strip() and row.method and row.backbone for row in ROWS)
    assert {row.protocol for row in ROWS} == set(PROTOCOLS)


def test_every_number_is_a_percentage_and_every_row_has_one() -> None:
    for row in ROWS:
        values = [value for name in FIGURES if (value := getattr(row, name)) is not None]
        assert values, row
        assert all(5 < value < 100 for value in values), row  # a share in [0, 1] would be a slip


def test_rows_are_unique() -> None:
    def told_apart(row: PublishedResult) -> tuple[str, ...]:
        return (row.benchmark, row.method, row.variant, row.backbone, row.setting, row.protocol, row.source)

    assert max(Counter(map(told_apart, ROWS)).values()) == 1


@pytest.mark.parametrize(
    ("benchmark", "method", "backbone", "setting", "j", "f"),
    [
        ("s4", "TPAVI", "R50", "", 72.79, 84.8),
        ("s4", "OpenAVS", "Pengi, GPT-4o, Grounding DINO, SAM 2", "", 63.8, 72.8),
        ("s4", "Box-Prompt", "CLAP, Grounding DINO, SAM ViT-H", "", 51.2, 61.5),
        ("ms3", "OpenAVS", "Pengi, GPT-4o, Grounding DINO, SAM 2", "", 51.2, 58.7),
        ("ms3", "MoCA", "DINO", "", 57.0, 62.0),
        ("avss", "COMBO", "PVT-v2", "", 42.1, 46.1),
        ("v3", "OpenAVS", "Pengi, GPT-4o, Grounding DINO, SAM 2", "0-shot", 67.5, 74.1),
        ("v3", "GAVS", "not stated", "5-shot", 67.8, 79.5),
    ],
)
def test_known_numbers(benchmark: str, method: str, backbone: str, setting: str, j: float, f: float) -> None:
    (row,) = [r for r in published_results(benchmark, setting) if (r.method, r.backbone) == (method, backbone)]
    assert (row.j, row.f) == (j, f)


def test_the_open_vocabulary_rows_have_groups_and_their_harmonic_mean() -> None:
    (row,) = [r for r in published_results("ov") if r.method == "OV-AVSS" and r.base is not None]
    assert (row.base, row.novel, row.harmonic, row.kind) == (55.43, 29.14, 38.20, "supervised")
    assert row.base and row.novel and row.harmonic == round(2 * row.base * row.novel / (row.base + row.novel), 2)


def test_ablations_are_separate_from_results() -> None:
    assert not any(row.ablation for row in published_results("s4"))
    counts = Counter(row.ablation for row in published_results("s4", ablation=None) if row.ablation)
    assert counts == {"questions": 6, "consistency": 4, "labels": 1, "student": 9}
    best = max(published_results("s4", ablation="consistency"), key=lambda row: row.j or 0)
    assert (best.variant, best.j, best.f) == ("prompt and frame consistency, 15 calls", 58.2, 68.9)


def test_results_of_another_measurement_are_apart() -> None:
    groups = group_by_measure(published_results("s4"), "official")
    assert {row.protocol for row in groups["same"]} == {"official"}
    assert {row.protocol for row in groups["unknown"]} == {"as-reported"}
    assert {"dataset-level", "threshold-0.4", "rebuilt-truth"} <= {row.protocol for row in groups["other"]}
    assert "OpenAVS-Large" in {row.method for row in groups["other"]}  # its data set is a guess
    assert sum(map(len, groups.values())) == len(published_results("s4"))
    assert "same" not in group_by_measure(published_results("s4"), "fixed")
    assert "OV-AVSS" in {row.method for row in group_by_measure(published_results("ov"), "official")["same"]}


def test_ref_avs_rows_belong_to_their_split() -> None:
    assert {row.setting for row in comparable_results("ref-avs", "test_s")} == {"seen"}
    assert {row.jf for row in comparable_results("ref-avs", "test_u")} == {57.2, 69.4, 81.7}
    assert len(comparable_results("ref-avs", "test")) == 7
    assert comparable_results("ref-avs", "test_n") == []
    assert [row.map for row in published_results("avis")] == [40.57, 37.84, 42.01, 46.64]


def test_a_setting_keeps_its_rows() -> None:
    shots = [len(published_results("v3", f"{n}-shot")) for n in (0, 1, 3, 5)]
    assert shots == [6, 6, 6, 6]
    assert {row.kind for row in published_results("v3", "0-shot")} == {"supervised", "training-free"}


@pytest.mark.parametrize(
    ("cell", "value", "said"),
    [
        ("j", "0,5", "line 2, j: '0,5' is not a percentage"),
        ("f", "101", "'101' is not a percentage"),
        ("kind", "magic", "the kind 'magic' is not one of"),
        ("protocol", "mine", "the protocol 'mine' is not one of"),
        ("confidence", "", "the confidence '' is not one of"),
    ],
)
def test_an_invalid_cell_is_named(
    cell: str, value: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"kind": "supervised", "protocol": "official", "confidence": "paper"}
    names = list(PublishedResult.__dataclass_fields__)
    row = dict.fromkeys(names, "") | good | {cell: value}
    (tmp_path / "published.csv").write_text(",".join(names) + "\n" + ",".join(f'"{row[n]}"' for n in names) + "\n")
    monkeypatch.setattr(resources, "folders", lambda kind: [tmp_path])
    monkeypatch.setattr(module, "_rows", module._rows.__wrapped__)
    with pytest.raises(InputError, match=said):
        published_results("s4")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["benchmark,method", "s4,mine"], "published.csv should have the columns method, variant"),
        ([",".join(PublishedResult.__dataclass_fields__), "s4,mine"], "line 2: the row does not have as many cells"),
        ([",".join(PublishedResult.__dataclass_fields__), "," * 99], "line 2: the row does not have as many cells"),
    ],
)
def test_a_table_with_other_columns_raises(
    lines: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "published.csv").write_text("\n".join(lines))
    monkeypatch.setattr(resources, "folders", lambda kind: [tmp_path])
    monkeypatch.setattr(module, "_rows", module._rows.__wrapped__)
    with pytest.raises(InputError, match=said):
        published_results("s4")


def test_the_page_in_docs_is_up_to_date(tmp_path: Path) -> None:
    """If this fails, run `python docs/scripts/leaderboard_page.py` and commit docs/."""
    made = runpy.run_path(str(ROOT / "docs" / "scripts" / "leaderboard_page.py"))["write"](tmp_path)
    assert len(made) == 1 + len(CHARTS)
    for path in made:
        committed = ROOT / "docs" / path.relative_to(tmp_path)
        if path.suffix == ".md" or f"matplotlib=={version('matplotlib')}\n" in (ROOT / "constraints.txt").read_text():
            assert committed.read_text("utf-8") == path.read_text("utf-8"), committed


def test_chart_files_have_a_title_and_a_description() -> None:
    for benchmark in CHARTS:
        tree = ElementTree.parse(ROOT / "docs" / "published" / f"{benchmark}.svg").getroot()
        kinds = {element.tag.rpartition("}")[2] for element in tree.iter()}
        assert {"title", "desc", "style", "path", "text"} <= kinds
        assert not kinds & {"script", "image", "foreignObject"}


def test_a_chart_has_the_comparable_rows() -> None:
    kept = plottable("s4", published_results("s4"))
    assert 50 < len(kept) < len(published_results("s4"))
    assert not {"dataset-level"} & {row.protocol for row in kept}
    assert "OpenAVS-Large" not in {row.method for row in kept}  # its data set is a guess
    chart = plot_published("s4", kept, own=(50.0, 60.0))
    assert chart is not None
    tooltips = [use for use in ElementTree.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}use") if len(use)]
    assert len(tooltips) == len(kept) + 1  # and this run
    assert ">this run</text>" in chart.svg
    assert plot_published("s4", []) is None
