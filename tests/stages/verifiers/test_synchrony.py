"""Motion and sound at several lags, and probabilities that each of several things sounds, over time."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.stages.verifiers.synchrony import synchrony, turn_probabilities

SECONDS = np.arange(8.0)


def evidence(first: list[float]) -> np.ndarray:
    """Log-likelihoods of two things of which the second has none."""
    return np.stack([np.array(first), np.zeros(len(first))], axis=1)


def test_a_second_without_evidence_follows_those_around() -> None:
    chances = turn_probabilities(evidence([3, 3, 3, 0, 0, 3, 3, 3]), SECONDS, 0.05)
    assert np.allclose(chances.sum(axis=1), 1) and (chances[:, 0] > 0.95).all()


def test_things_sound_one_after_the_other() -> None:
    chances = turn_probabilities(evidence([4, 4, 4, 4, -4, -4, -4, -4]), SECONDS, 0.05)
    assert (chances[:4, 0] > 0.95).all() and (chances[4:, 0] < 0.05).all()


def test_a_single_second_of_weak_evidence_changes_little() -> None:
    chances = turn_probabilities(evidence([3, 3, 3, -3, 3, 3, 3, 3]), SECONDS, 0.05)
    assert chances[3, 0] > 0.9


def test_without_evidence_all_are_as_likely() -> None:
    assert np.allclose(turn_probabilities(np.zeros((5, 3)), np.arange(5.0), 0.05), 1 / 3)
    assert turn_probabilities(np.zeros((1, 1)), np.zeros(1), 0.05).tolist() == [[1.0]]


def test_a_long_pause_weakens_the_evidence_before_it() -> None:
    near, far = (turn_probabilities(evidence([5, 0]), np.array([0.0, gap]), 0.05)[1, 0] for gap in (1.0, 60.0))
    assert near > 0.9 and far == pytest.approx(0.5, abs=0.05)


def test_far_likelihoods_do_not_overflow() -> None:
    assert np.isfinite(turn_probabilities(1e4 * evidence([1, -1, 1]), np.arange(3.0), 0.05)).all()


def test_a_motion_fits_the_sound_at_its_own_lag_only() -> None:
    most, lag = 4, 2
    sound = np.random.default_rng(0).random((1, 100 + 2 * most))
    motion = np.stack([sound[0, most + lag : most + lag + 100], np.random.default_rng(1).random(100)])
    scores, copies = synchrony(motion, sound, np.ones(100), most)
    assert scores.shape == (2, 2 * most + 1) and copies.shape == (2,)
    assert scores[0].argmax() == most + lag and scores[0].max() > 0.9
    assert np.delete(scores[0], most + lag).max() < 0.2 and scores[1].max() < 0.2 and copies.max() < 0.2
