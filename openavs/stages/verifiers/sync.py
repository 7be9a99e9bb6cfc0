"""Sync verifier: keeps the candidates of a phrase that move in time with the sound. No model is needed.

The amount of motion inside each candidate's mask, between small frames and without the camera's motion
(`residual_motion.py`), is correlated with loudness, its change and onsets of the sound over a few seconds around the
frame (`synchrony.py`). A beat moves at onsets, a mouth as the loudness changes, and a thing that shakes moves the more
the louder it is.

Sources: the synchrony of pixels and sound finds a sounding thing (Hershey & Movellan, "Audio vision: using audio-visual
synchrony to locate sounds", 1999; Kidron, Schechner & Elad, "Pixels that sound", 2005). They search all pixels; here
the candidates are given, so that one number for each suffices.

Limits: things that sound without visible motion (a radio), motion that is hidden or too small, steady sounds (a hum), a
frame rate below 8 frames a second, and candidates that move alike. Such candidates are all kept, as `unresolved`.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.ndimage import binary_dilation
from scipy.optimize import linear_sum_assignment

from openavs.errors import InputError
from openavs.stages.verifiers.base import ClipEvidence
from openavs.stages.verifiers.residual_motion import MotionMap, MotionReader
from openavs.stages.verifiers.synchrony import Series, SoundFeatures, event_gate, synchrony
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import BoolMask, Rejection, Segment, TrackedFrame, Verdict

NAME = "sync"

_DILATION = 2  # small pixels around a mask that move with it
_MIN_IOU = 0.2  # of masks of one phrase in neighboring frames that are the same object, without a tracker
_MIN_RATE = 8.0  # different frames per second
_MIN_SECONDS = 0.8  # of weight in a window
_MIN_VARIATION = 0.1  # standard deviation of the loudness relative to its mean
_MIN_MOTION = 0.3  # gray levels beyond the rest of the picture, root mean square over the window

_OFF_SCREEN_SCORE = 0.1  # nothing fits the sound if no candidate reaches this score
_OFF_SCREEN_MARGIN = 0.015  # and none fits the sound better than its shifted copies by this

STILL = "there are no frames between the sampled ones"
SLOW = "the picture changes less than 8 times a second"
SHORT = "too little of the same scene surrounds the frame"
STEADY = "the sound has no onsets or pauses"
"""Reasons why candidates cannot be compared."""


@dataclass(frozen=True)
class _Choice:
    """Decision about one candidate; `reason` is that of its rejection."""

    score: float = 0.0
    margin: float | None = None
    kept: bool = False
    reason: str | None = None


_UNRESOLVED = _Choice()


class SyncVerifier:
    """Keeps the candidates of a phrase that move in time with the sound, if the others clearly do not.

    A candidate's score is the share of its motion's variance that a feature of the sound explains, mean over the
    features, at the best lag. Its margin is the distance to the best other candidate of the phrase, or to shifted
    copies of the sound where there is no other.

    Args:
        fps: small frames per second to decode, from 12 to 50.
        longest_side: of the small frames, in pixels.
        window: seconds around a frame that are compared.
        max_lag: largest lag of picture and sound, in seconds.
        min_score: minimum score of a candidate that is kept while others are rejected.
        min_margin: a candidate is rejected if the best one of its phrase scores higher by at least this.
        off_screen: whether all of several candidates of a phrase are rejected if they move and none fits the sound.
        drop_lone: the same for a phrase with one candidate, which is never rejected otherwise.

    Raises:
        InputError: an option is out of range.
    """

    def __init__(
        self,
        *,
        fps: float = 25.0,
        longest_side: int = 160,
        window: float = 4.0,
        max_lag: float = 0.15,
        min_score: float = 0.03,
        min_margin: float = 0.03,
        off_screen: bool = False,
        drop_lone: bool = False,
    ) -> None:
        if not (12 <= fps <= 50 and 32 <= longest_side <= 1024):
            raise InputError(
                f"{NAME}: fps must be between 12 and 50 and longest_side between 32 and 1024, not {fps} and "
                f"{longest_side}"
            )
        if not (0 <= max_lag <= 0.5 and 2 <= window <= 30):
            raise InputError(
                f"{NAME}: max_lag must be between 0 and 0.5 s and window between 2 and 30 s, not {max_lag} and {window}"
            )
        if not (0 <= min_score <= 1 and 0 < min_margin <= 1):
            raise InputError(
                f"{NAME}: min_score must be between 0 and 1, and min_margin more than 0 and at most 1, not {min_score} "
                f"and {min_margin}"
            )
        self.fps, self.longest_side, self.window, self.max_lag = fps, longest_side, window, max_lag
        self.min_score, self.min_margin = min_score, min_margin
        self.off_screen, self.drop_lone = off_screen, drop_lone

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `TemporalVerifier.verify_clip`; the output is at most half a window behind.

        Nothing is decoded before the first frame with several candidates of a phrase.
        """
        run = _ClipRun(self, evidence)
        for tracked in frames:
            run.add(tracked)
            yield from run.ready(tracked.frame.time)
        yield from run.ready(math.inf)
        run.warn()

    def choose(self, scores: Series, copies: Series, moves: npt.NDArray[np.bool_]) -> list[_Choice]:
        """Decide about the candidates of one phrase.

        Args:
            scores: how well each candidate fits the sound.
            copies: how well each fits shifted copies of it.
            moves: whether each visibly moves.
        """
        count, best = len(scores), int(np.argmax(scores))
        shown = np.clip(scores, 0.0, 1.0).tolist()
        margins = (scores - copies).tolist()
        if self.off_screen if count > 1 else self.drop_lone:
            nothing = bool(moves.all()) and scores[best] < _OFF_SCREEN_SCORE and max(margins) < _OFF_SCREEN_MARGIN
            if nothing:
                return [_Choice(*own, False, "off-screen") for own in zip(shown, margins, strict=True)]
        if count == 1:
            return [_Choice(shown[0], margins[0])]
        margins = [float(scores[i] - np.delete(scores, i).max()) for i in range(count)]
        behind = scores[best] - scores
        silent = behind >= self.min_margin
        sounds = (behind <= self.min_margin / 2) & (scores >= self.min_score) & moves
        decided = bool(sounds[best] and silent.any() and (silent | sounds).all())
        return [
            _Choice(score, margin, decided and not quiet, "silent" if decided and quiet else None)
            for score, margin, quiet in zip(shown, margins, silent.tolist(), strict=True)
        ]


# ------------------------------------------------------------------------------------------------------ one clip


@dataclass(frozen=True, eq=False)
class _Outline:
    """A segment at the size of the small frames.

    Attributes:
        mask: the mask, `[h, w]`.
        pixels: flat indices of the pixels that move with it.
        levels: motion in them, by number of the small frame; filled as needed.
    """

    mask: BoolMask
    pixels: npt.NDArray[np.intp]
    levels: dict[int, float] = field(default_factory=dict)

    def level(self, change: MotionMap) -> float:
        """Return the mean square of the change, in gray levels, beyond that of the rest of the picture; at least 0."""
        if change.index not in self.levels:
            inside = change.change.ravel()[self.pixels]
            power = float(inside @ inside) / max(len(inside), 1)
            self.levels[change.index] = max(power - change.outside, 0.0)
        return self.levels[change.index]


class _Sampled:
    """A tracked frame without its pixels, and the outlines of its segments."""

    def __init__(self, tracked: TrackedFrame) -> None:
        blank = np.zeros((1, 1, 3), dtype=np.uint8)  # frames that wait would take much memory
        self.tracked = replace(tracked, frame=replace(tracked.frame, image=blank))
        self.time, self.segments = tracked.frame.time, tracked.segments
        self.shape = (1, 1)

    @cached_property
    def outlines(self) -> list[_Outline]:
        """Outlines of the segments; `shape` must be set before."""
        masks = [_small(rle_to_mask(segment.mask), self.shape) for segment in self.segments]
        found = []
        for i, mask in enumerate(masks):
            others = [other for j, other in enumerate(masks) if j != i]
            near = binary_dilation(mask, iterations=_DILATION) & ~np.logical_or.reduce([*others, ~np.ones_like(mask)])
            found.append(_Outline(mask, np.flatnonzero(near if near.any() else mask)))
        return found

    @cached_property
    def outside(self) -> BoolMask:
        """The pixels away from all segments."""
        free = np.ones(self.shape, dtype=np.bool_)
        for outline in self.outlines:
            free &= ~outline.mask
        return ~binary_dilation(~free, iterations=_DILATION + 1) if self.segments else free


class _ClipRun:
    """The state of one clip: frames around the present, the motion and the sound."""

    def __init__(self, options: SyncVerifier, evidence: ClipEvidence) -> None:
        self._options, self._evidence = options, evidence
        self._waiting: deque[_Sampled] = deque()
        self._around: deque[_Sampled] = deque()
        self._reasons: Counter[str] = Counter()
        self._compared = 0
        clip = evidence.clip
        self._reader: MotionReader | None = None
        self._sound: SoundFeatures | None = None
        self._usable = clip.dense_frames is not None and clip.audio is not None

    def add(self, tracked: TrackedFrame) -> None:
        """Take the next frame."""
        sampled = _Sampled(tracked)
        self._waiting.append(sampled)
        self._around.append(sampled)

    def ready(self, time: float) -> Iterator[TrackedFrame]:
        """Yield the frames that can be decided once the frames up to a time have been taken."""
        half = self._options.window / 2
        while self._waiting:
            sampled = self._waiting[0]
            groups = self._groups(sampled)
            if groups and self._usable and time < sampled.time + half:
                return
            self._waiting.popleft()
            while self._around[0].time < sampled.time - half:
                self._around.popleft()
            yield _apply(sampled.tracked, self._decide(sampled, groups) if groups else {})

    def warn(self) -> None:
        """Record a sentence if candidates of a phrase could not be compared."""
        if self._reasons:
            (reason, _), count = self._reasons.most_common(1)[0], self._reasons.total()
            self._evidence.warn(
                f"sync: several candidates of a phrase could not be compared with the sound at {count} of "
                f"{self._compared} frames, and all are kept; {reason}"
            )

    def _groups(self, sampled: _Sampled) -> dict[str, list[int]]:
        """Return the numbers of the segments to compare, by phrase."""
        groups: dict[str, list[int]] = {}
        for i, segment in enumerate(sampled.segments):
            groups.setdefault(segment.phrase, []).append(i)
        least = 1 if self._options.drop_lone else 2
        return {phrase: own for phrase, own in groups.items() if len(own) >= least}

    def _decide(self, sampled: _Sampled, groups: dict[str, list[int]]) -> dict[int, _Choice]:
        several = any(len(own) > 1 for own in groups.values())
        self._compared += several
        choices: dict[int, _Choice] = {}
        reasons = []
        window = self._window(sampled)
        for phrase, own in groups.items():
            found = window if isinstance(window, str) else self._compare(sampled, phrase, own, *window)
            if isinstance(found, str):
                reasons.append(found)
            else:
                choices |= dict(zip(own, found, strict=True))
        if several and reasons:
            self._reasons[reasons[0]] += 1
        return choices

    def _window(self, sampled: _Sampled) -> tuple[list[MotionMap], Series] | str:
        """Return the motion around a frame and the weight of each small frame, or why there is none."""
        options, clip = self._options, self._evidence.clip
        if clip.dense_frames is None or clip.audio is None:
            return STILL
        if self._reader is None:
            self._reader = MotionReader(clip.dense_frames, options.fps, options.longest_side)
            self._sound = SoundFeatures(clip.audio, options.fps)
        middle, half = round(sampled.time * options.fps), int(options.window / 2 * options.fps)
        maps = self._reader.read(max(middle - half, 1), middle + half, self._outside)
        if not maps:
            return SLOW
        indices = np.asarray([change.index for change in maps])
        scenes = np.asarray([change.scene for change in maps])
        weight = np.maximum(1 - np.square((indices - middle) / (half + 1)), 0.0)
        weight[scenes != scenes[int(np.abs(indices - middle).argmin())]] = 0.0
        fresh = np.asarray([change.fresh for change in maps])
        weight[len(maps) - int(np.argmax(fresh[::-1])) :] = 0.0  # repeats whose next picture is not known yet
        counted = weight > 0
        if not fresh.any() or fresh[counted].sum() < _MIN_RATE / options.fps * np.count_nonzero(counted):
            return SLOW
        if weight.sum() < _MIN_SECONDS * options.fps:
            return SHORT
        return maps, weight

    def _compare(
        self, sampled: _Sampled, phrase: str, own: list[int], maps: list[MotionMap], weight: Series
    ) -> list[_Choice] | str:
        """Compare the candidates of a phrase with its sound, or return why that is not possible."""
        assert self._sound is not None
        options = self._options
        lag = round(options.max_lag * options.fps)
        first, last = maps[0].index, maps[-1].index
        sound = self._sound.window(first - lag, last + lag, self._gate(sampled, phrase))
        loudness = sound[0, lag : lag + len(maps)]
        mean = float(loudness @ weight / weight.sum())
        spread = math.sqrt(float(np.square(loudness - mean) @ weight / weight.sum()))
        if mean <= 0 or spread < _MIN_VARIATION * mean:
            return STEADY
        motion = np.asarray([self._levels(chain, maps) for chain in self._chains(sampled, phrase, own)])
        scores, copies = synchrony(np.sqrt(np.sqrt(motion)), sound, weight, lag)  # single large changes count less
        return options.choose(scores, copies, np.sqrt(motion @ weight / weight.sum()) >= _MIN_MOTION)

    def _gate(self, sampled: _Sampled, phrase: str) -> Callable[[Series], Series] | None:
        """Return the phrase's own curve, from the events of the captions that it came from."""
        prompts = self._evidence.prompts
        index = sampled.tracked.frame.index
        known = {phrase}
        for prompt in prompts[index] if index < len(prompts) else ():
            if prompt.phrase == phrase:
                known |= {caption.text for caption in prompt.captions}
        reach = self._options.window
        return event_gate(
            [
                event
                for event in self._evidence.events
                if event.phrase in known and event.onset < sampled.time + reach and event.offset > sampled.time - reach
            ]
        )

    # --------------------------------------------------------------------------------------- candidates over time

    def _nearest(self, time: float) -> _Sampled:
        return min(self._around, key=lambda sampled: abs(sampled.time - time))

    def _outside(self, index: int, shape: tuple[int, int]) -> BoolMask:
        for sampled in self._around:
            sampled.shape = shape
        return self._nearest(index / self._options.fps).outside

    def _chains(self, sampled: _Sampled, phrase: str, own: list[int]) -> list[list[tuple[float, _Outline]]]:
        """Return each candidate's outlines in the frames around, by time."""
        here = self._around.index(sampled)
        frames = list(self._around)
        chains = [[(sampled.time, sampled.outlines[i])] for i in own]
        for path in (frames[here + 1 :], frames[:here][::-1]):
            last = [(sampled.segments[i], sampled.outlines[i]) for i in own]
            for other in path:
                for i, j in _match(last, other, phrase):
                    last[i] = other.segments[j], other.outlines[j]
                    chains[i].append((other.time, other.outlines[j]))
        return [sorted(chain, key=lambda part: part[0]) for chain in chains]

    def _levels(self, chain: list[tuple[float, _Outline]], maps: Sequence[MotionMap]) -> Series:
        """Return a candidate's motion in every map, inside its mask at the nearest frame that has it."""
        times = np.asarray([time for time, _ in chain])
        moments = np.asarray([change.index for change in maps]) / self._options.fps
        nearest = np.abs(times[None] - moments[:, None]).argmin(axis=1)
        return np.asarray([chain[k][1].level(change) for k, change in zip(nearest, maps, strict=True)])


def _match(last: Sequence[tuple[Segment, _Outline]], other: _Sampled, phrase: str) -> list[tuple[int, int]]:
    """Return pairs of a candidate and a segment of another frame that are the same object: by track or by IoU."""
    pool = [j for j, segment in enumerate(other.segments) if segment.phrase == phrase]
    pairs = []
    gain = np.zeros((len(last), len(pool)))
    for i, (segment, outline) in enumerate(last):
        for k, j in enumerate(pool):
            if segment.track is not None or other.segments[j].track is not None:
                gain[i, k] = segment.track == other.segments[j].track
            else:
                gain[i, k] = _iou(outline.mask, other.outlines[j].mask)
    for i, k in zip(*linear_sum_assignment(gain, maximize=True), strict=True):
        if gain[i, k] >= _MIN_IOU:
            pairs.append((int(i), pool[int(k)]))
    return pairs


def _iou(one: BoolMask, other: BoolMask) -> float:
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 0.0


def _small(mask: BoolMask, shape: tuple[int, int]) -> BoolMask:
    """Resize a mask to (height, width); where no part of it is left, all pixels that it touches."""
    if mask.shape == shape:
        return mask
    rows, columns = (
        ((np.arange(small) + 0.5) * size / small).astype(np.intp) for small, size in zip(shape, mask.shape, strict=True)
    )
    small: BoolMask = mask[rows][:, columns]
    if not small.any() and mask.any():
        y, x = np.nonzero(mask)
        small = np.zeros(shape, dtype=np.bool_)
        small[y * shape[0] // mask.shape[0], x * shape[1] // mask.shape[1]] = True
    return small


def _apply(tracked: TrackedFrame, choices: dict[int, _Choice]) -> TrackedFrame:
    """Return the frame with a verdict on every segment; rejected ones become rejections, the best one first."""
    segments: list[Segment] = []
    rejected: list[Rejection] = []
    for i, segment in enumerate(tracked.segments):
        choice = choices.get(i, _UNRESOLVED)
        if choice.reason is not None:
            rejected.append(Rejection(segment.phrase, choice.reason, choice.score, segment.box, choice.margin, NAME))
            continue
        verdict = Verdict("kept" if choice.kept else "unresolved", choice.score, choice.margin, None, NAME)
        segments.append(replace(segment, verdicts=(*segment.verdicts, verdict)))
    rejected.sort(key=lambda rejection: -(rejection.score or 0.0))
    return replace(tracked, segments=tuple(segments), rejected=(*tracked.rejected, *rejected))
