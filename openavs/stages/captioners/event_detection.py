"""Events from label scores over time: on and off by hysteresis, one event per sounding thing and time.

Scores arrive in blocks, in order of time. The state between them is a few values per label, and scores are kept only
inside events, so a clip may be of any length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.captioners.label_selection import (
    KIND_RATIO,
    Scores,
    ThingGroup,
    kinds_of_groups,
    single_groups,
    thing_groups,
)
from openavs.structures.types import Event

Bools = npt.NDArray[np.bool_]

CURVE_DIGITS = 3
"""Decimals of an event's scores; more would only make results larger."""


@dataclass
class _Run:
    """The frames in which a thing sounds; a later run after a short pause is joined to it."""

    start: int
    end: int  # the first frame after it
    curve: list[Scores] = field(default_factory=list)
    peak: float = 0.0
    phrase: str = ""


class EventDetector:
    """Turns sigmoid scores of labels over time into events.

    As `LabelSelector` does for windows, it scores the things that the lexicon maps labels to, each by the maximum of
    its labels, and leaves a category ("Animal") or a general thing ("Bird") out while one of its kinds sounds. An
    event's phrase is the label with the highest score.

    Args:
        labels: the scored texts, in the order of the scores.
        rate: frames per second.
        threshold: score at which a thing begins to sound, in [0, 1].
        off_threshold: score below which it ends, at most `threshold`.
        min_seconds: shorter events are left out.
        merge_seconds: shorter pauses between two events of one thing belong to one event.
        top_k: maximum number of events at any moment, the highest scores first.
        things: False makes each label a thing of its own.
        name: the backend's name, for error messages.

    Raises:
        InputError: an option outside its range.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        rate: float,
        threshold: float,
        off_threshold: float,
        min_seconds: float,
        merge_seconds: float,
        top_k: int,
        things: bool = True,
        name: str = "captioner",
    ) -> None:
        if top_k < 1:
            raise InputError(f"{name}: top_k is at least 1, not {top_k}")
        if not 0.0 < off_threshold <= threshold <= 1.0:
            raise InputError(
                f"{name}: off_threshold is above 0 and at most threshold, and that at most 1, not "
                f"{off_threshold} and {threshold}"
            )
        for option, value in (("min_seconds", min_seconds), ("merge_seconds", merge_seconds)):
            if not 0.0 <= value < math.inf:
                raise InputError(f"{name}: {option} is not negative and finite, not {value}")
        self.labels, self.rate, self.top_k = tuple(labels), rate, top_k
        self.threshold, self.off_threshold = threshold, off_threshold
        # A hundredth of a frame is tolerance for rounding: 0.2 s are 5 frames at 25 Hz.
        self._shortest, self._longest_gap = (
            math.ceil(min_seconds * rate - 0.01),
            math.floor(merge_seconds * rate + 0.01),
        )
        self._groups = thing_groups(self.labels) if things else single_groups(self.labels)
        if not self._groups:
            raise InputError(f"{name}: no entry of the vocabulary names a thing; set things=false to score them all")
        self._kinds = kinds_of_groups(self._groups)

    def detect(self, blocks: Iterable[Scores], duration: float) -> list[Event]:
        """Return the events of a clip by onset; those of one phrase do not overlap.

        Args:
            blocks: scores `[labels, frames]` in [0, 1], one block after the other.
            duration: seconds of the clip; no event ends later.
        """
        count = len(self._groups)
        runs: list[list[_Run]] = [[] for _ in range(count)]
        on, recent, first = np.zeros(count, dtype=bool), np.zeros((count, 0), dtype=np.float32), 0
        for scores in blocks:
            curves = np.stack([scores[list(group.members)].max(axis=0) for group in self._groups])
            active = self._hysteresis(curves, on)
            shown = self._without_general(curves, active)
            known = np.concatenate([recent, curves], axis=1)  # with the pauses that may be filled
            start_of_known = first - recent.shape[1]
            for group in np.flatnonzero(shown.any(axis=1)):
                for start, end in _spans(shown[group]):
                    run = self._run_at(runs[group], first + start)
                    run.curve.append(known[group, run.end - start_of_known : first + end - start_of_known].copy())
                    run.end = first + end
                    self._name(run, self._groups[group], scores[:, start:end])
            on, first = active[:, -1], first + scores.shape[1]
            recent = known[:, max(known.shape[1] - self._longest_gap, 0) :]
        return self._select([run for own in runs for run in own], first, duration)

    def _hysteresis(self, curves: Scores, on: Bools) -> Bools:
        """The frames in which each curve is on, from the state before them."""
        state = np.where(curves >= self.threshold, 1, np.where(curves < self.off_threshold, 0, -1))
        state = np.concatenate([on[:, None].astype(int), state], axis=1)
        decided = np.where(state >= 0, np.arange(state.shape[1]), 0)
        active: Bools = np.take_along_axis(state, np.maximum.accumulate(decided, axis=1), axis=1)[:, 1:] == 1
        return active

    def _without_general(self, curves: Scores, active: Bools) -> Bools:
        """The active frames of each thing in which none of its kinds is active."""
        shown = active.copy()
        for position, kinds in enumerate(self._kinds):
            least = 0.0 if self._groups[position].general else KIND_RATIO
            for kind in kinds:
                shown[position] &= ~(active[kind] & (curves[kind] >= least * curves[position]))
        return shown

    def _run_at(self, runs: list[_Run], start: int) -> _Run:
        """The last run of a thing if it ended shortly before `start`, or a new one."""
        if not runs or start - runs[-1].end > self._longest_gap:
            runs.append(_Run(start, start))
        return runs[-1]

    def _name(self, run: _Run, group: ThingGroup, scores: Scores) -> None:
        """Name a run by the label with the highest score so far."""
        own = scores[list(group.members)].max(axis=1)
        best = int(own.argmax())
        if own[best] > run.peak:
            run.peak, run.phrase = float(own[best]), self.labels[group.members[best]]

    def _select(self, runs: list[_Run], frames: int, duration: float) -> list[Event]:
        """The events of runs that are long enough and among the `top_k` best wherever they sound."""
        beside = np.zeros(frames, dtype=np.int32)  # number of better events at each frame
        events = []
        for run in sorted(runs, key=lambda run: (-run.peak, run.start, run.phrase)):
            if run.end - run.start < self._shortest or beside[run.start : run.end].max() >= self.top_k:
                continue
            beside[run.start : run.end] += 1
            curve = tuple(round(float(score), CURVE_DIGITS) for score in np.concatenate(run.curve))
            onset, offset = (min(frame / self.rate, duration) for frame in (run.start, run.end))
            events.append(Event(run.phrase, onset, offset, max(curve), self.rate, curve))
        return sorted(events, key=lambda event: event.onset)


def _spans(active: Bools) -> list[tuple[int, int]]:
    """First frame and first frame after each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]
