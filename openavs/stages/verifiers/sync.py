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
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.verifiers.candidates import Choice, apply_choices
from openavs.stages.verifiers.residual_motion import MotionMap, MotionOutline, MotionReader, pixels_outside
from openavs.stages.verifiers.synchrony import Series, SoundFeatures, event_gate, synchrony, turn_probabilities
from openavs.structures.association import ObjectLinker
from openavs.structures.masks import resize_mask, rle_to_mask, small_size
from openavs.structures.types import BoolMask, ClipEvidence, TrackedFrame

NAME = "sync"

_MIN_RATE = 8.0  # different frames per second
_MIN_SECONDS = 0.8  # of weight in a window
_MIN_VARIATION = 0.1  # standard deviation of the loudness relative to its mean
_MIN_MOTION = 0.3  # gray levels beyond the rest of the picture, root mean square over the window

_ODDS = 3.0  # log-odds of a second with a difference of `min_margin`: 20 to 1
_MOST = 0.1  # higher scores count as much as this one: single chance agreements can be high
_TURNS = 0.05  # changes of the candidate that sounds, per second
_SURE = 0.9  # probability from which a candidate is the one that sounds
_MEMORY = 4.0  # seconds before and after a frame whose evidence counts

_OFF_SCREEN_MEMORY = 8.0  # that nothing fits the sound needs more evidence than that one thing fits it better
_OFF_SCREEN_SECONDS = 3.0  # least time with evidence
_OFF_SCREEN_SCORE = 0.03  # nothing fits the sound if what fits best, turn by turn, has a lower mean at its best lag

STILL = "there are no frames between the sampled ones"
SLOW = "the picture changes less than 8 times a second"
SHORT = "too little of the same scene surrounds the frame"
STEADY = "the sound has no onsets or pauses"
"""Reasons why candidates cannot be compared."""


_UNRESOLVED = Choice("unresolved", 0.0)
_BLANK = np.zeros((1, 1, 3), dtype=np.uint8)


class _Fits(NamedTuple):
    """The objects of a phrase and its sound around a frame.

    Attributes:
        numbers: the objects, `[C]`.
        lags: how well each fits the sound at every lag, `[C, L]`.
        copies: how well each fits shifted copies of it, `[C]`.
        moves: whether each visibly moves, `[C]`.
        scene: number of the frame's scene.
    """

    numbers: Sequence[int]
    lags: Series
    copies: Series
    moves: npt.NDArray[np.bool_]
    scene: int

    @property
    def scores(self) -> Series:
        """Score of each object at its best lag, `[C]`."""
        return np.asarray(self.lags.max(axis=1))


class _Course(NamedTuple):
    """The objects of a phrase over the seconds around a frame.

    Attributes:
        numbers: the objects, `[C]`.
        times: of the frames with evidence, in seconds, `[T]`.
        lags: how well each object fits the sound at each frame and lag, `[T, C, L]`; 0 where it is not seen.
        scores: the same at the best lag of each frame, `[T, C]`.
        moves: whether each visibly moves, `[T, C]`.
        chances: probability that each is the one that sounds, `[T, C]`.
    """

    numbers: Sequence[int]
    times: Series
    lags: Series
    scores: Series
    moves: npt.NDArray[np.bool_]
    chances: Series


class SyncVerifier:
    """Keeps the candidates of a phrase that move in time with the sound, if the others clearly do not.

    A candidate's score is the share of its motion's variance that a feature of the sound explains, mean over the
    features, at the best lag. Its margin is the distance to the best other candidate of the phrase, or to shifted
    copies of the sound where there is no other. Candidates are objects: one that is missed at a frame and seen around
    it is compared, too. The scores of the seconds around a frame decide together, as one candidate sounds at a time and
    seldom another takes over.

    Args:
        fps: small frames per second to decode, from 12 to 50.
        longest_side: of the small frames, in pixels.
        window: seconds around a frame that are compared.
        max_lag: largest lag of picture and sound, in seconds.
        min_score: minimum mean score in a window of a candidate that is kept while others are rejected.
        min_margin: difference of scores that makes the better candidate 20 times as likely within a second.
        off_screen: whether all of several candidates of a phrase are rejected if they move and none fits the sound
            within 8 seconds before and after.
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
        min_score: float = 0.02,
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
        self.hold = _OFF_SCREEN_MEMORY if off_screen or drop_lone else _MEMORY  # seconds

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `TemporalVerifier.verify_clip`; the output is at most half a window and `hold` behind.

        Nothing is decoded before the first frame with several candidates of a phrase.
        """
        run = _ClipRun(self, evidence)
        for tracked in frames:
            run.add(tracked)
            yield from run.ready(tracked.frame.time)
        yield from run.ready(math.inf)
        run.warn()


# ------------------------------------------------------------------------------------------------------ one clip


@dataclass(eq=False)
class _Sampled:
    """A tracked frame without its pixels.

    Attributes:
        tracked: the frame; its image is blank, as frames that wait would take much memory.
        outlines: one per segment.
        outside: the pixels away from all segments, `[h, w]`.
        numbers: the object of each segment.
        fits: by phrase, how well its objects fit the sound around the frame, or why that is not known; filled later.
    """

    tracked: TrackedFrame
    outlines: Sequence[MotionOutline]
    outside: BoolMask
    numbers: Sequence[int]
    fits: dict[str, _Fits | str] = field(default_factory=dict)

    @property
    def time(self) -> float:
        """Seconds from the start of the clip."""
        return self.tracked.frame.time

    def objects(self, phrase: str) -> list[int]:
        """Return the objects of a phrase in this frame."""
        return [n for n, segment in zip(self.numbers, self.tracked.segments, strict=True) if segment.phrase == phrase]


class _ClipRun:
    """The state of one clip: frames around the present, the motion and the sound."""

    def __init__(self, options: SyncVerifier, evidence: ClipEvidence) -> None:
        self._options, self._evidence = options, evidence
        self._around: deque[_Sampled] = deque()
        self._fitted = self._done = 0  # frames of `_around` that have their fits, and that have been yielded
        self._reasons: Counter[str] = Counter()
        self._compared = 0
        self._size = small_size(evidence.clip.size, options.longest_side)
        self._linker = ObjectLinker()
        self._step = min(1.0 / evidence.clip.fps, 1.0)  # seconds that a frame stands for
        self._reader: MotionReader | None = None
        self._sound: SoundFeatures | None = None

    def add(self, tracked: TrackedFrame) -> None:
        """Take the next frame."""
        masks = [resize_mask(rle_to_mask(segment.mask), self._size) for segment in tracked.segments]
        nothing = np.zeros(self._size, dtype=np.bool_)
        others = (np.logical_or.reduce([nothing, *masks[:i], *masks[i + 1 :]]) for i in range(len(masks)))
        sampled = _Sampled(
            replace(tracked, frame=replace(tracked.frame, image=_BLANK)),
            [MotionOutline(mask, rest) for mask, rest in zip(masks, others, strict=True)],
            pixels_outside(masks, self._size),
            self._linker.link(tracked.frame.time, tracked.segments),
        )
        self._around.append(sampled)

    def ready(self, time: float) -> Iterator[TrackedFrame]:
        """Yield the frames that can be decided once the frames up to a time have been taken."""
        half, hold = self._options.window / 2, self._options.hold
        while self._fitted < len(self._around) and self._around[self._fitted].time + half <= time:
            self._fit(self._around[self._fitted])
            self._fitted += 1
        known = self._around[self._fitted].time if self._fitted < len(self._around) else math.inf
        while self._done < len(self._around) and self._around[self._done].time + hold < known:
            yield self._decide(self._around[self._done])
            self._done += 1
        while self._done and self._around[0].time < self._around[self._done - 1].time - half - hold:
            self._around.popleft()
            self._done, self._fitted = self._done - 1, self._fitted - 1

    def warn(self) -> None:
        """Record a sentence if candidates of a phrase could not be compared."""
        if self._reasons:
            (reason, _), count = self._reasons.most_common(1)[0], self._reasons.total()
            if reason == STILL:  # of the whole clip, and of all clips of images: one sentence for all
                self._evidence.warn(f"sync: candidates of a phrase are not compared, and all are kept; {STILL}")
                return
            self._evidence.warn(
                f"sync: several candidates of a phrase could not be compared with the sound at {count} of "
                f"{self._compared} frames, and all are kept; {reason}"
            )

    # ------------------------------------------------------------------------------------------------ decisions

    def _decide(self, sampled: _Sampled) -> TrackedFrame:
        """Return a frame with a verdict on every segment."""
        choices: dict[int, Choice] = {}
        reasons = []
        for phrase, fits in sampled.fits.items():
            if isinstance(fits, str):
                reasons.append(fits)
            else:
                choices |= dict(zip(fits.numbers, self._choose(sampled, phrase, fits), strict=True))
        self._compared += bool(sampled.fits)
        if reasons:
            self._reasons[reasons[0]] += 1
        own = [choices.get(number, _UNRESOLVED) for number in sampled.numbers]
        return apply_choices(sampled.tracked, own, NAME)

    def _choose(self, sampled: _Sampled, phrase: str, fits: _Fits) -> list[Choice]:
        """Decide which objects of a phrase sound at a frame."""
        options, count = self._options, len(fits.numbers)
        others = [np.delete(fits.scores, i).max() if count > 1 else fits.copies[i] for i in range(count)]
        margins = (fits.scores - np.asarray(others)).tolist()
        shown = np.clip(fits.scores, 0.0, 1.0).tolist()
        rejects = options.off_screen if count > 1 else options.drop_lone
        if rejects and self._nothing_fits(self._course(sampled, phrase, fits.scene, _OFF_SCREEN_MEMORY)):
            return [Choice("rejected", *own, "off-screen") for own in zip(shown, margins, strict=True)]
        course = self._course(sampled, phrase, fits.scene, _MEMORY)
        sounding = self._sounding(sampled.time, course) if count > 1 else None
        return [
            Choice("rejected", score, margin, "silent")
            if sounding in fits.numbers and number != sounding
            else Choice("kept" if number == sounding else "unresolved", score, margin)
            for number, score, margin in zip(fits.numbers, shown, margins, strict=True)
        ]

    def _sounding(self, time: float, course: _Course) -> int | None:
        """Return the object that sounds at a frame, which may lack it; None if that is not clear."""
        chances = course.chances[int(np.abs(course.times - time).argmin())]
        best = int(np.argmax(chances))
        number, near = course.numbers[best], np.abs(course.times - time) <= self._options.window / 2
        fits = course.scores[near, best].mean() >= self._options.min_score and course.moves[near, best].any()
        return number if fits and chances[best] >= _SURE else None

    def _nothing_fits(self, course: _Course) -> bool:
        """Whether all objects move and none fits the sound at any lag, also not one after the other.

        A picture is ahead of its sound or behind it by the same time throughout; chance agreements are not.
        """
        fit = float((course.chances[..., None] * course.lags).sum(axis=1).mean(axis=0).max())
        enough = len(course.times) * self._step >= _OFF_SCREEN_SECONDS
        return bool(enough and course.moves.any(axis=0).all() and fit < _OFF_SCREEN_SCORE)

    def _course(self, sampled: _Sampled, phrase: str, scene: int, memory: float) -> _Course:
        """Return the evidence of a phrase in the same scene, `memory` seconds before and after a frame."""
        found = [
            (other.time, fits)
            for other in self._around
            if abs(other.time - sampled.time) <= memory and isinstance(fits := other.fits.get(phrase), _Fits)
            if fits.scene == scene
        ]
        numbers = sorted({number for _, fits in found for number in fits.numbers})
        lags = np.zeros((len(found), len(numbers), found[0][1].lags.shape[1]))
        moves = np.zeros(lags.shape[:2], dtype=np.bool_)
        for row, (_, fits) in enumerate(found):
            columns = [numbers.index(number) for number in fits.numbers]
            lags[row, columns], moves[row, columns] = fits.lags, fits.moves
        times, scores = np.asarray([time for time, _ in found]), lags.max(axis=2)
        evidence = np.minimum(scores, _MOST) * (_ODDS * self._step / self._options.min_margin)
        return _Course(numbers, times, lags, scores, moves, turn_probabilities(evidence, times, _TURNS))

    # ------------------------------------------------------------------------------------------------ evidence

    def _fit(self, sampled: _Sampled) -> None:
        """Compare the objects of each phrase of a frame with the sound around it."""
        for phrase in dict.fromkeys(segment.phrase for segment in sampled.tracked.segments):
            numbers = [*sampled.objects(phrase), *self._missed(sampled, phrase)]
            if len(numbers) >= (1 if self._options.drop_lone else 2):
                sampled.fits[phrase] = self._compare(sampled, phrase, numbers)

    def _near(self, sampled: _Sampled) -> list[_Sampled]:
        """Return the frames within half a window, the frame itself included."""
        return [other for other in self._around if abs(other.time - sampled.time) <= self._options.window / 2]

    def _missed(self, sampled: _Sampled, phrase: str) -> list[int]:
        """Return the objects of a phrase that a frame lacks, and that frames before and after it have.

        At least two of the frames around and half of them have it; at an end of the clip, there is only one side.
        """
        own, near = sampled.objects(phrase), self._near(sampled)
        here = near.index(sampled)
        before, after = (
            Counter(n for other in side for n in other.objects(phrase)) for side in (near[:here], near[here + 1 :])
        )
        least = max(2, (len(near) - 1) / 2)
        return [
            number
            for number, count in sorted((before + after).items())
            if number not in own and count >= least
            if (before[number] or not here) and (after[number] or here + 1 == len(near))
        ]

    def _compare(self, sampled: _Sampled, phrase: str, numbers: Sequence[int]) -> _Fits | str:
        """Compare objects of a phrase with its sound, or return why that is not possible."""
        options, clip = self._options, self._evidence.clip
        if clip.dense_frames is None or clip.audio is None:
            return STILL
        if self._reader is None or self._sound is None:
            self._reader = MotionReader(clip.dense_frames, options.fps, options.longest_side)
            self._sound = SoundFeatures(clip.audio, options.fps)
        middle, half = round(sampled.time * options.fps), int(options.window / 2 * options.fps)
        maps = self._reader.read(max(middle - half, 1), middle + half, self._outside)
        weight = self._weight(maps, middle, half)
        if isinstance(weight, str):
            return weight
        lag = round(options.max_lag * options.fps)
        sound = self._sound.window(maps[0].index - lag, maps[-1].index + lag, self._gate(sampled, phrase))
        loudness = sound[0, lag : lag + len(maps)]
        mean = float(loudness @ weight / weight.sum())
        spread = math.sqrt(float(np.square(loudness - mean) @ weight / weight.sum()))
        if mean <= 0 or spread < _MIN_VARIATION * mean:
            return STEADY
        near = self._near(sampled)
        motion = np.asarray([self._levels(number, near, maps) for number in numbers])
        lags, copies = synchrony(np.sqrt(np.sqrt(motion)), sound, weight, lag)  # single large changes count less
        moves = np.sqrt(motion @ weight / weight.sum()) >= _MIN_MOTION
        return _Fits(numbers, lags, copies, moves, maps[int(np.argmax(weight))].scene)

    def _weight(self, maps: Sequence[MotionMap], middle: int, half: int) -> Series | str:
        """Return the weight of each small frame around one, or a reason why they are not enough."""
        fps = self._options.fps
        if not maps:
            return SLOW
        indices = np.asarray([change.index for change in maps])
        scenes = np.asarray([change.scene for change in maps])
        weight = np.maximum(1 - np.square((indices - middle) / (half + 1)), 0.0)
        weight[scenes != scenes[int(np.abs(indices - middle).argmin())]] = 0.0
        fresh = np.asarray([change.fresh for change in maps])
        weight[len(maps) - int(np.argmax(fresh[::-1])) :] = 0.0  # repeats whose next picture is not known yet
        counted = weight > 0
        if not fresh.any() or fresh[counted].sum() < _MIN_RATE / fps * np.count_nonzero(counted):
            return SLOW
        return SHORT if weight.sum() < _MIN_SECONDS * fps else weight

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

    def _outside(self, index: int) -> BoolMask:
        """Return the pixels away from all segments of the sampled frame nearest to a small one."""
        time = index / self._options.fps
        return min(self._around, key=lambda sampled: abs(sampled.time - time)).outside

    def _levels(self, number: int, near: Sequence[_Sampled], maps: Sequence[MotionMap]) -> Series:
        """Return an object's motion in every map, inside its mask at the nearest frame that has it."""
        seen = [other for other in near if number in other.numbers]
        chain = [other.outlines[other.numbers.index(number)] for other in seen]
        times = np.asarray([other.time for other in seen])
        moments = np.asarray([change.index for change in maps]) / self._options.fps
        nearest = np.abs(times[None] - moments[:, None]).argmin(axis=1)
        return np.asarray([chain[k].level(change) for k, change in zip(nearest, maps, strict=True)])
