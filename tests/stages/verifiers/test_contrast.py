"""The rule of pe-av on made-up logits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from openavs.stages.verifiers.pe_av import NO_EVIDENCE, choose_sounding, shuffled_evidence

EVIDENCE = st.lists(st.none() | st.floats(-50, 50), min_size=1, max_size=6)


def choose(*evidence: float | None, off_screen: float | None = 0.4) -> list[str]:
    choices = choose_sounding(evidence, min_margin=1.0, off_screen=off_screen)
    return [choice.reason or choice.decision for choice in choices]


def test_evidence_is_the_log_odds_against_shuffled_pairs() -> None:
    assert shuffled_evidence(2.0, [2.0, 2.0]) == pytest.approx(0.0)
    odds = math.exp(3.0) / ((math.exp(1.0) + math.exp(-1.0)) / 2)
    assert shuffled_evidence(3.0, [1.0, -1.0]) == pytest.approx(math.log(odds))


def test_evidence_does_not_depend_on_the_level_of_a_cut_out() -> None:
    assert shuffled_evidence(103.0, [101.0, 99.0]) == pytest.approx(shuffled_evidence(3.0, [1.0, -1.0]))
    assert math.isfinite(shuffled_evidence(1e4, [-1e4, 1e4]))


@pytest.mark.parametrize(
    ("evidence", "expected"),
    [
        ((3.0, 0.5), ["kept", "silent"]),
        ((0.5, 3.0, -2.0), ["silent", "kept", "silent"]),
        ((3.0,), ["kept"]),
        ((3.0, 2.8), ["unresolved", "unresolved"]),
        ((3.0, 2.8, -4.0), ["unresolved", "unresolved", "silent"]),
        ((0.5, -3.0), ["unresolved", "unresolved"]),  # the best one does not clearly fit
        ((0.2,), ["unresolved"]),
        ((-0.3,), ["unresolved"]),  # a score of 0.43
        ((-0.5,), ["off-screen"]),
        ((-0.5, -4.0), ["off-screen", "off-screen"]),
        ((2.0, 2.0), ["unresolved", "unresolved"]),
        ((None,), ["unresolved"]),
        ((3.0, None), ["unresolved", "unresolved"]),  # the one without a picture may be the one that sounds
        ((-3.0, None), ["unresolved", "unresolved"]),
    ],
)
def test_decisions(evidence: tuple[float | None, ...], expected: list[str]) -> None:
    assert choose(*evidence) == expected


def test_nothing_is_off_screen_if_the_recipe_turns_it_off() -> None:
    assert choose(-9.0, -20.0, off_screen=None) == ["unresolved", "unresolved"]


def test_the_margin_is_measured_against_rivals_and_shuffled_pairs() -> None:
    best, second = choose_sounding([3.0, 0.5], min_margin=1.0, off_screen=0.4)
    assert (best.margin, second.margin) == (2.5, -2.5)
    (alone,) = choose_sounding([3.0], min_margin=1.0, off_screen=0.4)
    assert alone.margin == 3.0 and alone.score == pytest.approx(1 / (1 + math.exp(-3.0)))


@given(EVIDENCE, st.floats(0, 5), st.none() | st.floats(0, 0.5))
def test_choices_are_consistent(evidence: list[float | None], min_margin: float, off_screen: float | None) -> None:
    choices = choose_sounding(evidence, min_margin=min_margin, off_screen=off_screen)
    reasons = {choice.reason for choice in choices}
    assert len(choices) == len(evidence) and all(0 <= choice.score <= 1 for choice in choices)
    assert all((choice.reason is not None) == (choice.decision == "rejected") for choice in choices)
    assert sum(choice.decision == "kept" for choice in choices) <= 1
    assert "off-screen" not in reasons or reasons == {"off-screen"}  # all or none
    assert "silent" not in reasons or any(choice.reason is None for choice in choices)
    if None in evidence:
        assert reasons == {None}
        assert all(choice is NO_EVIDENCE for own, choice in zip(evidence, choices, strict=True) if own is None)
