"""Two runs side by side, clip by clip: what changed, by how much, and whether chance explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.utils.strict_json import parse_json

Report = Mapping[str, Any]
_Values = npt.NDArray[np.float64]

TIE = 1e-6  # scores nearer than this are one score: they come from float32
MOST_DIFFERENT = 10
RESAMPLES = 10_000
_CHUNK = 500  # permutations at a time: bounds the memory
_SAME = ("benchmark", "task", "split", "protocol")
_NEEDED = (*_SAME, "figures", "per_clip", "per_class")


def read_report(path: Path) -> dict[str, Any]:
    """A report.json, given as the file or as the folder that holds it.

    Raises:
        InputError: there is none, or it is not one that openavs wrote.
    """
    file = path / "report.json" if path.is_dir() else path
    try:
        report = parse_json(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist; give a folder of `openavs evaluate` or its report.json") from error
    except ValueError as error:
        raise InputError(f"{file} is no JSON file ({error}); give a report of `openavs evaluate`") from error
    missing = [key for key in _NEEDED if not isinstance(report, dict) or key not in report]
    if missing:
        raise InputError(f"{file} is no report of an evaluation (it has no {missing[0]!r}); evaluate or score again")
    return dict(report)


def compare(report_a: Report, report_b: Report, *, seed: int = 0) -> dict[str, Any]:
    """What B has more than A, over the clips that both have; differences are B minus A, shares in [0, 1].

    `score` (a clip's mean J or IoU) and `f` hold both means, their difference with a 95 % interval (bootstrap over the
    pairs), the two-sided p-value of a paired permutation test (signs of the differences flipped at random) and
    wins, ties and losses of B. `f` counts the clips where both have one. `figures` are the two runs' own figures, over
    whatever clips each has. `per_class` is sorted by the size of the difference, and `differ_most` names ten clips.

    Raises:
        InputError: other benchmark, split or protocol, no clip in both, or clips that are not the same.
    """
    _check_same(report_a, report_b)
    rows_a, rows_b = _by_id(report_a, "first"), _by_id(report_b, "second")
    shared = [name for name in rows_a if name in rows_b]
    _check_clips(rows_a, rows_b, shared)
    with_f = [n for n in shared if rows_a[n].get("f") is not None and rows_b[n].get("f") is not None]
    protocol = report_a["protocol"]
    return {
        **{key: report_a[key] for key in _SAME},
        "clips_per_batch": report_a.get("clips_per_batch", 1),
        "clips": len(shared),
        "only_a": len(rows_a) - len(shared),
        "only_b": len(rows_b) - len(shared),
        "figures": _figures(report_a["figures"][protocol], report_b["figures"][protocol]),
        "score": _paired(_column(rows_a, shared, "score"), _column(rows_b, shared, "score"), seed),
        "f": _paired(_column(rows_a, with_f, "f"), _column(rows_b, with_f, "f"), seed) if with_f else None,
        "per_class": _per_class(report_a["per_class"], report_b["per_class"]),
        "differ_most": _differ_most(rows_a, rows_b, shared),
    }


# ------------------------------------------------------------------------------------------------------------ checks


def _check_same(a: Report, b: Report) -> None:
    keys = [*_SAME, "clips_per_batch"] if a["task"] == "binary" and a["protocol"] == "official" else list(_SAME)
    for key in keys:
        if a.get(key) != b.get(key):
            name = key.replace("_", " ")
            raise InputError(
                f"the runs differ in {name} ({a.get(key)} and {b.get(key)}) and cannot be compared; "
                "score both in the same way with `openavs score`"
            )


def _by_id(report: Report, which: str) -> dict[str, Mapping[str, Any]]:
    rows = {row["id"]: row for row in report["per_clip"]}
    if len(rows) != len(report["per_clip"]):
        raise InputError(f"the {which} run lists a clip twice; score its predictions again")
    return rows


def _check_clips(a: Mapping[str, Any], b: Mapping[str, Any], shared: Sequence[str]) -> None:
    if not shared:
        raise InputError("the runs have no clip in common; compare two runs over the same data")
    for name in shared:
        if a[name]["frames"] != b[name]["frames"]:
            raise InputError(
                f"clip {name!r:.80} has {a[name]['frames']} frames in one run and {b[name]['frames']} in the other; "
                "compare two runs over the same data"
            )


# ---------------------------------------------------------------------------------------------------------- statistics


def _paired(a: _Values, b: _Values, seed: int) -> dict[str, Any]:
    difference = b - a
    mean = BootstrapSample(len(difference), lambda weights: {"mean": weights @ difference / len(difference)})
    return {
        "clips": len(difference),
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": float(difference.mean()),
        "interval": list(intervals(mean, resamples=RESAMPLES, seed=seed)["mean"]),
        "p": permutation_p(difference, seed),
        "wins": int((difference > TIE).sum()),
        "ties": int((np.abs(difference) <= TIE).sum()),
        "losses": int((difference < -TIE).sum()),
    }


def permutation_p(difference: _Values, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """The two-sided p-value of paired differences `[N]`: how often random signs give a mean as far from 0.

    The observed signs count as one of the draws (Phipson and Smyth 2010), so that p is never 0.
    """
    random = np.random.default_rng(seed)
    observed = abs(difference.sum()) - 1e-12  # equal sums in another order of adding
    reached = 0
    for start in range(0, resamples, _CHUNK):
        signs = random.integers(0, 2, (min(_CHUNK, resamples - start), len(difference)), dtype=np.int8) * 2 - 1
        reached += int((np.abs(signs @ difference) >= observed).sum())
    return (reached + 1) / (resamples + 1)


# ------------------------------------------------------------------------------------------------------------- tables


def _column(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], key: str) -> _Values:
    return np.array([rows[name][key] for name in names], dtype=np.float64)


def _figures(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    return {name: {"a": a[name], "b": b[name], "difference": _minus(b[name], a[name])} for name in a if name in b}


def _per_class(rows_a: Sequence[Mapping[str, Any]], rows_b: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    others = {row["name"]: row for row in rows_b}
    rows: list[dict[str, Any]] = []
    for row in rows_a:
        if (other := others.get(row["name"])) is None:
            continue
        a, b = class_score(row), class_score(other)
        rows.append({"name": row["name"], "clips": row["clips"], "a": a, "b": b, "difference": _minus(b, a)})
    return sorted(rows, key=lambda row: -abs(row["difference"] or 0.0))


def class_score(row: Mapping[str, Any]) -> float | None:
    """A per-class row's J (binary) or IoU (label maps)."""
    value: float | None = row["j"] if "j" in row else row["iou"]
    return value


def _differ_most(a: Mapping[str, Any], b: Mapping[str, Any], shared: Sequence[str]) -> list[dict[str, Any]]:
    rows = [
        {"id": name, "group": a[name].get("group"), "a": a[name]["score"], "b": b[name]["score"]} for name in shared
    ]
    rows = [{**row, "difference": row["b"] - row["a"]} for row in rows if row["a"] != row["b"]]
    return sorted(rows, key=lambda row: (-abs(row["difference"]), row["id"]))[:MOST_DIFFERENT]


def _minus(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else b - a
