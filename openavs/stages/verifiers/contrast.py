"""Decisions from logits of cut-outs and sounds, calibrated by shuffled pairs: pure functions of numbers.

A contrastive model is trained to give a true pair a higher logit than shuffled pairs. A cut-out's own level (large and
sharp objects get higher logits with any sound) cancels in the difference to the same cut-out with other sounds:

    evidence = logit(cut-out, sound) - log mean exp logit(cut-out, other sounds)

which is the log-odds of the pair against shuffled ones with equal prior, the quantity that the InfoNCE loss estimates
(van den Oord et al., arXiv 1807.03748). Its sigmoid is the score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from openavs.stages.verifiers.base import Choice

NO_EVIDENCE = Choice("unresolved", 0.5)
"""Of a candidate without a picture, and in silence."""


def shuffled_evidence(logit: float, shuffled: Sequence[float]) -> float:
    """Return the log-odds of a pair against the same cut-out with other sounds; at least one is needed."""
    return logit - float(np.logaddexp.reduce(np.asarray(shuffled, dtype=np.float64))) + math.log(len(shuffled))


def choose_sounding(evidence: Sequence[float | None], *, min_margin: float, off_screen: float | None) -> list[Choice]:
    """Decide which candidates of one phrase make its sound.

    The best candidate fits if its evidence is at least `min_margin`. Then those with less evidence by `min_margin` or
    more are silent; if others are as close as that, all of these are unresolved. If the best score is below
    `off_screen`, nothing in the picture fits. Between the two, all are unresolved.

    Args:
        evidence: of every candidate (see `shuffled_evidence`); None for one without, which is unresolved.
        min_margin: least difference of evidence for a decision, in nats, at least 0.
        off_screen: score below which nothing fits, in [0, 0.5]; None never rejects all candidates.

    Returns:
        One choice for each candidate. Its score is the sigmoid of its evidence: 0.5 if the sound fits no better than
        other sounds. Its margin is its evidence less the best of the other candidates' and of 0, which stands for
        shuffled pairs.
    """
    known = [value for value in evidence if value is not None]
    best = max(known, default=0.0)
    absent = off_screen is not None and len(known) == len(evidence) and _sigmoid(best) < off_screen
    close = sum(best - value < min_margin for value in known)
    # A candidate without evidence may be the one that sounds, so the others are not rejected as silent beside it.
    decided = best >= min_margin and len(known) == len(evidence)
    return [_choice(i, evidence, best, close, min_margin, absent, decided) for i in range(len(evidence))]


def _choice(
    i: int, evidence: Sequence[float | None], best: float, close: int, min_margin: float, absent: bool, decided: bool
) -> Choice:
    own = evidence[i]
    if own is None:
        return NO_EVIDENCE
    rivals = [other for j, other in enumerate(evidence) if j != i and other is not None]
    score, margin = _sigmoid(own), own - max([0.0, *rivals])
    if absent:
        return Choice("rejected", score, margin, "off-screen")
    if decided and best - own >= min_margin and own < best:
        return Choice("rejected", score, margin, "silent")
    return Choice("kept" if decided and close == 1 else "unresolved", score, margin)


def _sigmoid(value: float) -> float:
    """Return the logistic function, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * value))
