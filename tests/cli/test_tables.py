"""Tables of score, evaluate and compare: aligned, with names that cannot break them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.cli.tables import print_comparison, print_published, print_scores, table_text
from openavs.evaluation.compare import compare
from openavs.evaluation.leaderboard import published_results
from tests.evaluation.pages import report_of, write_dataset


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return report_of(write_dataset(tmp_path_factory.mktemp("data"), 9))


def printed(capsys: pytest.CaptureFixture[str], show: Callable[..., None], *values: Any) -> str:
    show(*values)
    return capsys.readouterr().out


def test_figures_with_protocol_and_interval(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    print_scores(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "AVSBench-object S4, test: 9 clips, 18 frames"
    assert lines[2].split("  ")[1:3] == ["percent [95 %]", ""]
    assert "official, 1 clip per batch" in lines[2]
    (row,) = [line for line in lines if line.startswith("  mIoU (J)")]
    low, high = report["intervals"]["official"]["miou"]
    assert f"{100 * report['metrics']['miou']:.2f} [{100 * low:.2f}, {100 * high:.2f}]" in row


def test_the_chosen_protocol_comes_first(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    head = printed(capsys, print_scores, {**report, "protocol": "fixed"}).splitlines()[2]
    assert head.index("fixed") < head.index("official")


def test_the_batch_is_named(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "official, 4 clips per batch" in printed(capsys, print_scores, {**report, "clips_per_batch": 4})


def test_missing_predictions_are_counted(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert "3 clips without predictions: 6 masks counted as empty" in printed(
        capsys, print_scores, {**report, "missing": 3, "missing_masks": 6}
    )
    assert "without predictions" not in printed(capsys, print_scores, report)


def test_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, print_scores, report_of(write_dataset(tmp_path, 4, "open-vocabulary", "ov")))
    assert "base mIoU" in text
    assert "harmonic mean" in text
    assert "per batch" not in text


def test_published_results_by_kind_with_source(capsys: pytest.CaptureFixture[str]) -> None:
    print_published(published_results("s4"), limit=3)
    text = capsys.readouterr().out
    assert text.index("TRAINING-FREE") < text.index("OpenAVS, Pengi") < text.index("UNSUPERVISED")
    assert "63.8  72.8  OpenAVS, Pengi, GPT-4o, Grounding DINO, SAM 2" in text
    assert "OpenAVS (arXiv 2505.01448v1), table 1 [paper]" in text
    assert "... 36 more" in text  # of 39 supervised ones


def test_a_comparison(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    better = {**report, "per_clip": [{**row, "score": row["score"] + 0.1} for row in report["per_clip"][1:]]}
    print_comparison(compare(report, better), ("box-prompt", "openavs"))
    text = capsys.readouterr().out
    assert "8 clips in both runs (1 only in box-prompt, 0 only in openavs: not compared)" in text
    (row,) = [line for line in text.splitlines() if line.startswith("  score ")]
    assert "+10.00 [+10.00, +10.00]" in row
    assert row.endswith("8, 0, 0")
    assert "clips that differ most" in text


def test_no_difference_lists_nothing(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, print_comparison, compare(report, report))
    assert "differ most" not in text
    assert "0, 9, 0" in text


def test_names_cannot_move_the_cursor_or_break_the_table() -> None:
    text = table_text(["name", "x"], [["a\x1b[31mred\nline", "1"], ["b" * 500, "2"]])
    assert "\x1b" not in text
    assert len(text.splitlines()) == 3
    assert max(map(len, text.splitlines())) < 120
