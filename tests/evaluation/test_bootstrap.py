"""Bootstrap intervals: weighted figures equal those of repeated clips, and percentiles agree with theory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.evaluation.metrics.metrics import BinaryMetrics, make_metric

Array = np.ndarray[Any, Any]


def masks(task: str, seed: int) -> tuple[Array, Array]:
    """A clip's prediction and truth; some frames of binary ones are empty, few classes each of label maps."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 6)), 5, 6)
    if task == "binary":
        truth = rng.random(shape) < rng.choice([0.0, 0.4], (shape[0], 1, 1))
        return rng.integers(0, 256, shape).astype(np.uint8), truth
    palette = rng.choice(71, 3)
    truth = palette[rng.integers(0, 3, shape)].astype(np.uint8)
    return np.where(rng.random(shape) < 0.7, truth, palette[rng.integers(0, 3, shape)]).astype(np.uint8), truth


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["binary", "semantic", "open-vocabulary"]),
    st.sampled_from(["official", "fixed"]),
    st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 3)), min_size=1, max_size=5),
)
def test_weights_are_numbers_of_repetitions(task: Any, protocol: Any, drawn: list[tuple[int, int]]) -> None:
    """The figures of weighted clips equal those of a metric that was updated with every clip that number of times."""
    metric, repeated = make_metric(task, CLASSES), make_metric(task, CLASSES)
    for seed, times in drawn:
        metric.update(*masks(task, seed))
        for _ in range(times):
            repeated.update(*masks(task, seed))
    weights = np.array([[float(times) for _, times in drawn], [1.0] * len(drawn)])  # each row is a resample of its own
    if not weights[0].any():
        return
    expected = repeated.compute(protocol)
    found = {name: values[0] for name, values in metric.sample(protocol).figures(weights).items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.isnan(found[name]) if value is None else found[name] == pytest.approx(value, abs=2e-6)


def test_official_draws_batches() -> None:
    metric = BinaryMetrics(clips_per_batch=2)
    for seed in range(5):
        metric.update(*masks("binary", seed))
    sample = metric.sample("official")
    assert sample.units == 3  # two full batches and the rest
    assert float(sample.figures(np.ones((1, 3)))["f"][0]) == pytest.approx(metric.compute("official")["f"])


def mean_of(values: Array) -> BootstrapSample:
    return BootstrapSample(len(values), lambda weights: {"mean": weights @ values / weights.sum(axis=1)})


def test_the_interval_of_a_mean_agrees_with_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    low, high = intervals(mean_of(values), resamples=4000)["mean"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_intervals_depend_on_the_seed_and_not_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = mean_of(np.random.default_rng(2).normal(size=50))
    whole = intervals(sample)
    assert intervals(sample) == whole
    assert intervals(sample, seed=1) != whole
    monkeypatch.setattr("openavs.evaluation.metrics.bootstrap._BLOCK", 200)
    assert intervals(sample)["mean"] == pytest.approx(whole["mean"])


@pytest.mark.parametrize("units", [1, 7, 300])
def test_every_resample_draws_as_many_units_as_there_are(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.evaluation.metrics.bootstrap._BLOCK", 250)  # fewer than 300 units
    drawn: list[Array] = []

    def figures(weights: Array) -> dict[str, Array]:
        drawn.append(weights)
        return {"first": weights[:, 0]}

    intervals(BootstrapSample(units, figures), resamples=101)
    weights = np.concatenate(drawn)
    assert weights.shape == (101, units) and weights.dtype == np.float64
    assert (weights.sum(axis=1) == units).all() and (weights >= 0).all()
    assert max(block.size for block in drawn) <= max(250, units), "a block fits in memory"


def test_without_units_nothing_is_drawn() -> None:
    def never(weights: Array) -> dict[str, Array]:
        raise AssertionError("there is nothing to draw")

    assert intervals(BootstrapSample(0, never)) == {}


def test_undefined_resamples_are_left_out() -> None:
    sample = BootstrapSample(
        1, lambda w: {"never": np.full(len(w), np.nan), "rare": np.where(np.arange(len(w)) < 9, np.nan, 3.0)}
    )
    assert intervals(sample) == {"rare": (3.0, 3.0)}
    assert intervals(BootstrapSample(0, lambda w: {})) == {}
