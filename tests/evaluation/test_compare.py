"""Paired comparison of two runs: pairs, differences, intervals and p-values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.evaluation.compare import compare, permutation_test, read_report


def report(scores: dict[str, float], **changes: Any) -> dict[str, Any]:
    """A binary report whose clips have these scores; F is a little higher, and None where the score is exactly 1."""
    rows = [
        {"id": name, "group": name[:3], "frames": 5, "score": score, "f": None if score == 1 else score + 0.01}
        for name, score in scores.items()
    ]
    mean = sum(scores.values()) / len(scores)
    made = {"benchmark": "s4", "task": "binary", "split": "test", "protocol": "official", "clips_per_batch": 1}
    figures = {"miou": mean, "f": None}
    classes = [{"name": "dog", "clips": 2, "frames": 10, "j": mean, "f": mean}]
    return {
        **made,
        "figures": {"official": figures, "fixed": figures},
        "per_clip": rows,
        "per_class": classes,
    } | changes


def noisy(seed: int, gain: float = 0.0, clips: int = 60) -> dict[str, float]:
    random = np.random.default_rng(seed)
    base = np.random.default_rng(99).uniform(0.2, 0.7, clips)
    return {f"clip{i}": float(base[i] + gain + random.normal(0, 0.03)) for i in range(clips)}


def test_clips_are_paired_by_id_in_any_order() -> None:
    a = report({"one": 0.2, "two": 0.5, "three": 0.4, "gone": 0.9})
    b = report({"three": 0.4, "two": 0.9, "one": 0.1, "new": 0.0, "newer": 0.0})
    found = compare(a, b)
    assert (found["clips"], found["only_a"], found["only_b"]) == (3, 1, 2)
    score = found["score"]
    assert (score["wins"], score["ties"], score["losses"]) == (1, 1, 1)
    assert score["difference"] == pytest.approx(0.1)
    assert (score["a"], score["b"]) == (pytest.approx(1.1 / 3), pytest.approx(1.4 / 3))
    assert [(row["id"], round(row["difference"], 6)) for row in found["differ_most"]] == [("two", 0.4), ("one", -0.1)]


def test_f_is_compared_over_clips_that_have_it_in_both_runs() -> None:
    found = compare(report({"one": 0.2, "silent": 1.0}), report({"one": 0.3, "silent": 0.5}))
    assert (found["score"]["clips"], found["f"]["clips"]) == (2, 1)
    assert compare(report({"silent": 1.0}), report({"silent": 0.5}))["f"] is None


def test_a_gain_is_significant_and_noise_is_not() -> None:
    gain = compare(report(noisy(1)), report(noisy(2, gain=0.05)))["score"]
    assert gain["p"] < 0.001
    assert 0.03 < gain["interval"][0] < gain["difference"] < gain["interval"][1] < 0.07
    noise = compare(report(noisy(1)), report(noisy(2)))["score"]
    assert noise["p"] > 0.05
    assert noise["interval"][0] < 0 < noise["interval"][1]


def test_a_run_does_not_differ_from_itself() -> None:
    found = compare(report(noisy(1)), report(noisy(1)))
    assert found["score"]["p"] == 1.0
    assert (found["score"]["interval"], found["score"]["ties"]) == ([0.0, 0.0], 60)
    assert found["differ_most"] == []


def test_results_repeat_with_the_seed_and_mirror_on_exchange() -> None:
    a, b = report(noisy(1)), report(noisy(2, gain=0.01))
    forth, back = compare(a, b, seed=3), compare(b, a, seed=3)
    assert compare(a, b, seed=3) == forth
    assert back["score"]["difference"] == pytest.approx(-forth["score"]["difference"])
    assert back["score"]["p"] == forth["score"]["p"]
    assert back["score"]["wins"] == forth["score"]["losses"]


def test_p_against_all_sign_patterns() -> None:
    difference = np.array([0.3, 0.1, -0.05, 0.2, 0.15, -0.02, 0.12, 0.08])
    patterns = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T
    exact = float((np.abs(patterns @ difference) >= abs(difference.sum()) - 1e-12).mean())
    assert permutation_test(difference, seed=0) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("clips", "gain"), [(12, 0.05), (60, 0.02), (200, 0.0)])
def test_p_equals_that_of_scipy(clips: int, gain: float) -> None:
    from scipy import stats

    difference = np.random.default_rng(clips).normal(gain, 0.1, clips)
    reference = stats.permutation_test((difference,), np.sum, permutation_type="samples", n_resamples=9999, rng=1)
    assert permutation_test(difference) == pytest.approx(reference.pvalue, abs=0.02)


def test_p_of_noise_is_uniform() -> None:
    draws = [permutation_test(np.random.default_rng(i).normal(size=20), seed=i, resamples=400) for i in range(200)]
    assert 0.01 < np.mean(np.array(draws) < 0.05) < 0.1
    assert 0.4 < float(np.median(draws)) < 0.6


def test_classes_by_the_size_of_their_difference() -> None:
    def with_ious(cat: float | None, dog: float) -> dict[str, Any]:
        rows = [{"name": "cat", "clips": 2, "frames": 4, "iou": cat, "f": cat}, {"name": "dog", "clips": 1, "iou": dog}]
        return report({"one": 0.5}, task="semantic", per_class=rows)

    found = compare(with_ious(0.5, 0.5), with_ious(0.4, 0.8))["per_class"]
    assert [(row["name"], round(row["difference"], 6)) for row in found] == [("dog", 0.3), ("cat", -0.1)]
    assert compare(with_ious(None, 0.5), with_ious(0.4, 0.8))["per_class"][1]["difference"] is None
    few = with_ious(0.4, 0.8)
    del few["per_class"][0]
    assert [row["name"] for row in compare(with_ious(0.5, 0.5), few)["per_class"]] == ["dog"], "the one of both runs"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmark": "ms3"}, r"differ in benchmark \(s4 and ms3\)"),
        ({"split": "val"}, r"differ in split \(test and val\)"),
        ({"protocol": "fixed"}, r"differ in protocol \(official and fixed\)"),
        ({"clips_per_batch": 4}, r"differ in clips per batch \(1 and 4\)"),
    ],
)
def test_runs_measured_differently_raise(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said + ".*openavs score"):
        compare(report({"one": 0.5}), report({"one": 0.5}, **change))


def test_different_clips_raise() -> None:
    with pytest.raises(InputError, match="no clip in common"):
        compare(report({"one": 0.5}), report({"two": 0.5}))
    other = report({"one": 0.5})
    other["per_clip"][0]["frames"] = 10
    with pytest.raises(InputError, match="clip 'one' has 5 frames in one run and 10 in the other"):
        compare(report({"one": 0.5}), other)
    twice = report({"one": 0.5})
    twice["per_clip"] *= 2
    with pytest.raises(InputError, match="the second run lists a clip twice"):
        compare(report({"one": 0.5}), twice)


def test_a_report_is_read_from_its_folder_or_its_file(tmp_path: Path) -> None:
    made = report({"one": 0.5})
    (tmp_path / "report.json").write_text(json.dumps(made))
    assert read_report(tmp_path) == made == read_report(tmp_path / "report.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        ("{", "is not a JSON file"),
        ("[]", "is not an evaluation"),
        ('{"task": 1}', "it lacks 'benchmark'"),
    ],
)
def test_an_invalid_report_raises(content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=said):
        read_report(tmp_path)
