"""Selection of captions from label scores: one per sounding thing, specific names before general ones.

AudioSet has ten names for a dog ("Dog", "Bark", "Yip", "Domestic animals, pets"), so possibly no label of a barking dog
scores high, and three labels may name one thing. `LabelSelector` scores the things that the lexicon maps labels to, and
keeps one caption per thing. All captioners that score labels share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.lexicon import category, invisible_sound, is_collective, lexicon, members, names_nothing
from openavs.structures.types import AudioWindow, Caption, Waveform

Scores = npt.NDArray[np.float32]
Combine = Literal["sum", "max"]

INVISIBLE_RATIO = 0.5
"""Minimum score of a thing as a share of the best sound without a visible source (rain, noise), under a softmax."""

KIND_RATIO = 1 / 3
"""Minimum score of a kind, as a share of its thing's, to replace it: a crow of 0.2 replaces a bird of 0.6.

Category labels ("Vehicle", "Music") are replaced by any kept member, since they score high beside every one of them.
"""

CATEGORY_RATIO = 0.1
"""Minimum score of a thing as a share of the best category's: speech of 0.03 is noise beside music of 0.8."""

LABELS_PER_THING = 3
"""Number of best labels of a thing in its sum. Over all, noise would favor things with many labels (a person)."""


@dataclass(frozen=True)
class ThingGroup:
    """The labels of one thing, of several alternatives ("Siren": three vehicles), or of one invisible sound."""

    things: frozenset[str]
    members: tuple[int, ...]  # positions of labels
    general: bool  # a category ("Animal", "Livestock"), which adds little to one of its members
    invisible: bool  # a sound without a visible source


class LabelSelector:
    """Turns the label scores of a window into captions.

    A thing's score combines the scores of all labels that the lexicon maps to it: their sum if scores are shares of one
    softmax, their maximum if each label has a sigmoid of its own. Each kept thing becomes one caption with the text of
    its best label. A category ("Animal") is kept only without any of its members. Sounds without a visible source
    (rain, noise) become captions, too; under a softmax a thing needs half of such a sound's score.

    Args:
        labels: the scored texts, in the order of the scores.
        top_k: maximum number of things per window.
        threshold: minimum score of a thing, in [0, 1].
        min_ratio: minimum score as a share of the window's best specific thing, in [0, 1].
        combine: `sum` for softmax scores, `max` for sigmoid scores.
        things: False scores every label for itself, without `min_ratio` and the lexicon.
        name: the backend's name, for error messages.

    Raises:
        InputError: an option outside its range.
    """

    def __init__(
        self,
        labels: Sequence[str],
        *,
        top_k: int,
        threshold: float,
        min_ratio: float,
        combine: Combine,
        things: bool = True,
        name: str = "captioner",
    ) -> None:
        if top_k < 1:
            raise InputError(f"{name}: top_k is at least 1, not {top_k}")
        for option, value in (("threshold", threshold), ("min_ratio", min_ratio)):
            if not 0.0 <= value <= 1.0:
                raise InputError(f"{name}: {option} is in [0, 1], not {value}")
        self.labels = tuple(labels)
        self.top_k, self.threshold, self.min_ratio, self.combine = top_k, threshold, min_ratio, combine
        self._groups = thing_groups(self.labels) if things else None

    def captions(self, scores: Scores, window: AudioWindow, question: str) -> list[Caption]:
        """Return the captions of one window, best first, from the label scores `[labels]`.

        If no thing is kept, the best one follows as a weak caption (`Caption.weak`), which shows how close it came.
        """

        def caption(position: int, score: float, weak: bool = False) -> Caption:
            return Caption(self.labels[position], score, window.start, window.end, question, weak)

        if self._groups is None:
            best = np.argsort(-scores, kind="stable")[: self.top_k]
            kept = [caption(int(i), float(scores[i])) for i in best if scores[i] >= self.threshold]
            return kept or [caption(int(i), float(scores[i]), weak=True) for i in best[:1]]
        ranked = sorted(
            ((float(self._combined(scores, group)), group) for group in self._groups), key=lambda pair: -pair[0]
        )
        kept_groups = self._kept(ranked)
        named = any(not group.invisible for _, group in kept_groups)
        best_thing = next(((score, group) for score, group in ranked if not group.invisible), None)
        captions = [caption(_best(scores, group), min(score, 1.0)) for score, group in kept_groups]
        if not named and best_thing is not None:
            captions.append(caption(_best(scores, best_thing[1]), min(best_thing[0], 1.0), weak=True))
        return captions

    def _combined(self, scores: Scores, group: ThingGroup) -> np.float32:
        own = scores[list(group.members)]
        combined: np.float32 = np.sort(own)[-LABELS_PER_THING:].sum() if self.combine == "sum" else own.max()
        return combined

    def _kept(self, ranked: Sequence[tuple[float, ThingGroup]]) -> list[tuple[float, ThingGroup]]:
        """The groups that become captions, best first."""
        specific = [(score, group) for score, group in ranked if not (group.general or group.invisible)]
        invisible = [(score, group) for score, group in ranked if group.invisible and score >= self.threshold][:1]
        least = max(self.threshold, self.min_ratio * (specific[0][0] if specific else 0.0))
        least = max(least, CATEGORY_RATIO * max((score for score, group in ranked if group.general), default=0.0))
        if self.combine == "sum" and invisible:
            least = max(least, INVISIBLE_RATIO * invisible[0][0])
        kept: list[tuple[float, ThingGroup]] = []
        for score, group in [*specific, *((score, group) for score, group in ranked if group.general)]:
            if score < least or any(_is_redundant(group, score, other, s) for s, other in kept):
                continue
            kept = [(s, other) for s, other in kept if not _is_redundant(other, s, group, score)]
            kept.append((score, group))
        kept = sorted(kept, key=lambda pair: -pair[0])[: self.top_k]
        return sorted([*kept, *invisible], key=lambda pair: -pair[0])


def combine_scales(
    windows: Sequence[AudioWindow],
    score: Callable[[Sequence[tuple[AudioWindow, Waveform]]], Sequence[Scores | None]],
    *,
    softmax: bool,
) -> list[Scores | None]:
    """Return scores `[labels]` of each window: the geometric mean of its own audio and its longer context.

    One second locates a sound in time and five identify it better; the geometric mean is low unless both agree.

    Args:
        windows: with or without `context`.
        score: returns label scores of audio, each with its window; None for audio without samples.
        softmax: True if the scores of one audio sum to one; the returned scores do so, too, or are all 0 if no label
            has a score above 0 in both.
    """
    contexts = [(window, window.context) for window in windows if window.context is not None]
    rows = iter(score([*((window, window.audio) for window in windows), *contexts]))
    combined = [next(rows) for _ in windows]
    for i, window in enumerate(windows):
        if window.context is None:
            continue
        row, context = combined[i], next(rows)
        if row is not None and context is not None:
            mean = np.sqrt(row * context)
            total = mean.sum()
            combined[i] = mean / total if softmax and total > 0 else mean
    return combined


def _is_redundant(group: ThingGroup, score: float, other: ThingGroup, other_score: float) -> bool:
    """True if `group` adds nothing beside `other`: the same things and more, or the category of one of them."""
    return (group.general or other_score >= KIND_RATIO * score) and _includes(group, other)


def _includes(group: ThingGroup, other: ThingGroup) -> bool:
    """True if `other` names one of the things or a kind of `group`, or a member of its category."""
    near = category if group.general else members
    return other.things <= group.things or any(near(thing) & other.things for thing in group.things)


def _best(scores: Scores, group: ThingGroup) -> int:
    """The position of a group's best label."""
    return max(group.members, key=lambda position: float(scores[position]))


def kinds_of_groups(groups: Sequence[ThingGroup]) -> list[list[int]]:
    """Return, for each group, the positions of the groups beside which it adds nothing (Bird beside Crow).

    Of two groups of the same things the more specific one stays, or else the first.
    """
    visible = [i for i, group in enumerate(groups) if not group.invisible]

    def replaced(i: int, j: int) -> bool:
        if i == j or not _includes(groups[i], groups[j]):
            return False
        return not _includes(groups[j], groups[i]) or (groups[j].general, j) < (groups[i].general, i)

    return [[j for j in visible if replaced(i, j)] if i in visible else [] for i in range(len(groups))]


def single_groups(labels: Sequence[str]) -> tuple[ThingGroup, ...]:
    """Return a group for each label by itself, without the lexicon."""
    return tuple(ThingGroup(frozenset({label}), (i,), False, False) for i, label in enumerate(labels))


def thing_groups(labels: Sequence[str]) -> tuple[ThingGroup, ...]:
    """Labels by the things that the lexicon maps them to; a label without an entry is a thing of its own.

    AudioSet's labels of rooms, textures and genres name nothing and are in no group.
    """
    positions: dict[tuple[frozenset[str], bool, bool], list[int]] = {}
    for position, label in enumerate(labels):
        sound = invisible_sound(label)
        if sound is None and names_nothing(label):
            continue
        things = frozenset({sound} if sound else lexicon(label) or {label})
        general = sound is None and is_collective(label)
        positions.setdefault((things, general, sound is not None), []).append(position)
    return tuple(
        ThingGroup(things, tuple(own), general, invisible) for (things, general, invisible), own in positions.items()
    )
