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
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.stages.objects import ObjectLinker
from openavs.stages.verifiers.base import Choice, apply_choices
from openavs.stages.verifiers.residual_motion import MotionMap, MotionOutline, MotionReader, pixels_outside
from openavs.stages.verifiers.synchrony import Series, SoundFeatures, event_gate, synchrony
from openavs.structures.masks import resize_mask, rle_to_mask, small_size
from openavs.structures.types import BoolMask, ClipEvidence, TrackedFrame

NAME = "sync"

_MIN_RATE = 8.0  # different frames per second
_MIN_SECONDS = 0.8  # of weight in a window
_MIN_VARIATION = 0.1  # standard deviation of the loudness relative to its mean
_MIN_MOTION = 0.3  # gray levels beyond the rest of the picture, root mean square over the window

_OFF_SCREEN_SECONDS = 8.0  # that nothing fits the sound needs more evidence than that one thing fits it better
_OFF_SCREEN_SCORE = 0.1  # nothing fits the sound if no candidate reaches this score
_OFF_SCREEN_MARGIN = 0.015  # and none fits the sound better than its shifted copies by this

STILL = "there are no frames between the sampled ones"
SLOW = "the picture changes less than 8 times a second"
SHORT = "too little of the same scene surrounds the frame"
STEADY = "the sound has no onsets or pauses"
"""Reasons why candidates cannot be compared."""


_UNRESOLVED = Choice("unresolved", 0.0)
_BLANK = np.zeros((1, 1, 3), dtype=np.uint8)


class _Fits(NamedTuple):
    """The candidates of a phrase and its sound, `[C]` each.

    Attributes:
        scores: how well each candidate fits the sound.
        copies: how well each fits shifted copies of it.
        moves: whether each visibly moves.
    """

    scores: Series
    copies: Series
    moves: npt.NDArray[np.bool_]


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
        off_screen: whether all of several candidates of a phrase are rejected if they move and none fits the sound of
            8 seconds, or of `window` where that is longer.
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
        rejects = off_screen or drop_lone
        self.reach = max(window, _OFF_SCREEN_SECONDS) if rejects else window  # seconds of motion around a frame

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `TemporalVerifier.verify_clip`; the output is at most half of `reach` behind.

        Nothing is decoded before the first frame with several candidates of a phrase.
        """
        run = _ClipRun(self, evidence)
        for tracked in frames:
            run.add(tracked)
            yield from run.ready(tracked.frame.time)
        yield from run.ready(math.inf)
        run.warn()

    def rejects_all(self, fits: _Fits) -> list[Choice] | None:
        """Reject all candidates of a phrase if they move and none fits the sound; None if one may fit it."""
        if not (self.off_screen if len(fits.scores) > 1 else self.drop_lone):
            return None
        margins = fits.scores - fits.copies
        if not fits.moves.all() or fits.scores.max() >= _OFF_SCREEN_SCORE or margins.max() >= _OFF_SCREEN_MARGIN:
            return None
        shown = np.clip(fits.scores, 0.0, 1.0).tolist()
        return [Choice("rejected", *own, "off-screen") for own in zip(shown, margins.tolist(), strict=True)]

    def choose(self, fits: _Fits) -> list[Choice]:
        """Decide which candidates of a phrase sound."""
        scores, copies, moves = fits
        count, best = len(scores), int(np.argmax(scores))
        shown = np.clip(scores, 0.0, 1.0).tolist()
        if count == 1:
            return [Choice("unresolved", shown[0], float(scores[0] - copies[0]))]
        margins = [float(scores[i] - np.delete(scores, i).max()) for i in range(count)]
        behind = scores[best] - scores
        silent = behind >= self.min_margin
        sounds = (behind <= self.min_margin / 2) & (scores >= self.min_score) & moves
        decided = bool(sounds[best] and silent.any() and (silent | sounds).all())
        return [
            Choice("rejected", score, margin, "silent")
            if decided and quiet
            else Choice("kept" if decided else "unresolved", score, margin)
            for score, margin, quiet in zip(shown, margins, silent.tolist(), strict=True)
        ]


# ------------------------------------------------------------------------------------------------------ one clip


@dataclass(frozen=True, eq=False)
class _Sampled:
    """A tracked frame without its pixels.

    Attributes:
        tracked: the frame; its image is blank, as frames that wait would take much memory.
        outlines: one per segment.
        outside: the pixels away from all segments, `[h, w]`.
        numbers: the object of each segment.
    """

    tracked: TrackedFrame
    outlines: Sequence[MotionOutline]
    outside: BoolMask
    numbers: Sequence[int]

    @property
    def time(self) -> float:
        """Seconds from the start of the clip."""
        return self.tracked.frame.time


class _ClipRun:
    """The state of one clip: frames around the present, the motion and the sound."""

    def __init__(self, options: SyncVerifier, evidence: ClipEvidence) -> None:
        self._options, self._evidence = options, evidence
        self._waiting: deque[_Sampled] = deque()
        self._around: deque[_Sampled] = deque()
        self._reasons: Counter[str] = Counter()
        self._compared = 0
        self._size = small_size(evidence.clip.size, options.longest_side)
        self._linker = ObjectLinker()
        clip = evidence.clip
        self._reader: MotionReader | None = None
        self._sound: SoundFeatures | None = None
        self._usable = clip.dense_frames is not None and clip.audio is not None

    def add(self, tracked: TrackedFrame) -> None:
        """Take the next frame."""
        masks = [resize_mask(rle_to_mask(segment.mask), self._size) for segment in tracked.segments]
        nothing = np.zeros(self._size, dtype=np.bool_)
        others = (np.logical_or.reduce([nothing, *masks[:i], *masks[i + 1 :]]) for i in range(len(masks)))
        sampled = _Sampled(
            replace(tracked, frame=replace(tracked.frame, image=_BLANK)),
            [MotionOutline(mask, rest) for mask, rest in zip(masks, others, strict=True)],
            pixels_outside(masks, self._size),
            self._linker.link(tracked.frame.time, tracked.segments, masks),
        )
        self._waiting.append(sampled)
        self._around.append(sampled)

    def ready(self, time: float) -> Iterator[TrackedFrame]:
        """Yield the frames that can be decided once the frames up to a time have been taken."""
        half = self._options.reach / 2
        while self._waiting:
            sampled = self._waiting[0]
            groups = self._groups(sampled)
            if groups and self._usable and time < sampled.time + half:
                return
            self._waiting.popleft()
            while self._around[0].time < sampled.time - half:
                self._around.popleft()
            choices = self._decide(sampled, groups) if groups else {}
            own = [choices.get(i, _UNRESOLVED) for i in range(len(sampled.tracked.segments))]
            yield apply_choices(sampled.tracked, own, NAME)

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
        for i, segment in enumerate(sampled.tracked.segments):
            groups.setdefault(segment.phrase, []).append(i)
        least = 1 if self._options.drop_lone else 2
        return {phrase: own for phrase, own in groups.items() if len(own) >= least}

    def _decide(self, sampled: _Sampled, groups: dict[str, list[int]]) -> dict[int, Choice]:
        several = any(len(own) > 1 for own in groups.values())
        self._compared += several
        choices: dict[int, Choice] = {}
        reasons = []
        maps = self._maps(sampled)
        for phrase, own in groups.items():
            found = STILL if maps is None else self._compare(sampled, phrase, own, maps)
            if isinstance(found, str):
                reasons.append(found)
            else:
                choices |= dict(zip(own, found, strict=True))
        if several and reasons:
            self._reasons[reasons[0]] += 1
        return choices

    def _maps(self, sampled: _Sampled) -> list[MotionMap] | None:
        """Return the motion around a frame; None where there are no frames between the sampled ones."""
        options, clip = self._options, self._evidence.clip
        if clip.dense_frames is None or clip.audio is None:
            return None
        if self._reader is None:
            self._reader = MotionReader(clip.dense_frames, options.fps, options.longest_side)
            self._sound = SoundFeatures(clip.audio, options.fps)
        middle, half = self._middle(sampled), int(options.reach / 2 * options.fps)
        return self._reader.read(max(middle - half, 1), middle + half, self._outside)

    def _middle(self, sampled: _Sampled) -> int:
        return round(sampled.time * self._options.fps)

    def _window(self, sampled: _Sampled, maps: list[MotionMap], seconds: float) -> tuple[list[MotionMap], Series] | str:
        """Return the motion of some seconds around a frame and the weight of each small frame, or a reason without."""
        options = self._options
        middle, half = self._middle(sampled), int(seconds / 2 * options.fps)
        maps = [change for change in maps if abs(change.index - middle) <= half]
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

    def _compare(self, sampled: _Sampled, phrase: str, own: list[int], maps: list[MotionMap]) -> list[Choice] | str:
        """Decide about the candidates of a phrase, or return why that is not possible."""
        options = self._options
        if options.reach > options.window:
            long = self._fits(sampled, phrase, own, maps, options.reach)
            if not isinstance(long, str) and (rejected := options.rejects_all(long)):
                return rejected
        fits = self._fits(sampled, phrase, own, maps, options.window)
        if isinstance(fits, str):
            return fits
        return (options.reach == options.window and options.rejects_all(fits)) or options.choose(fits)

    def _fits(
        self, sampled: _Sampled, phrase: str, own: list[int], maps: list[MotionMap], seconds: float
    ) -> _Fits | str:
        """Compare the candidates of a phrase with its sound, or return why that is not possible."""
        assert self._sound is not None
        options = self._options
        window = self._window(sampled, maps, seconds)
        if isinstance(window, str):
            return window
        maps, weight = window
        lag = round(options.max_lag * options.fps)
        first, last = maps[0].index, maps[-1].index
        sound = self._sound.window(first - lag, last + lag, self._gate(sampled, phrase))
        loudness = sound[0, lag : lag + len(maps)]
        mean = float(loudness @ weight / weight.sum())
        spread = math.sqrt(float(np.square(loudness - mean) @ weight / weight.sum()))
        if mean <= 0 or spread < _MIN_VARIATION * mean:
            return STEADY
        motion = np.asarray([self._levels(self._chain(sampled.numbers[i]), maps) for i in own])
        scores, copies = synchrony(np.sqrt(np.sqrt(motion)), sound, weight, lag)  # single large changes count less
        return _Fits(scores, copies, np.sqrt(motion @ weight / weight.sum()) >= _MIN_MOTION)

    def _gate(self, sampled: _Sampled, phrase: str) -> Callable[[Series], Series] | None:
        """Return the phrase's own curve, from the events of the captions that it came from."""
        prompts = self._evidence.prompts
        index = sampled.tracked.frame.index
        known = {phrase}
        for prompt in prompts[index] if index < len(prompts) else ():
            if prompt.phrase == phrase:
                known |= {caption.text for caption in prompt.captions}
        reach = self._options.reach
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

    def _outside(self, index: int) -> BoolMask:
        return self._nearest(index / self._options.fps).outside

    def _chain(self, number: int) -> list[tuple[float, MotionOutline]]:
        """Return an object's outlines in the frames around, by time."""
        return [
            (other.time, outline)
            for other in self._around
            for found, outline in zip(other.numbers, other.outlines, strict=True)
            if found == number
        ]

    def _levels(self, chain: list[tuple[float, MotionOutline]], maps: Sequence[MotionMap]) -> Series:
        """Return a candidate's motion in every map, inside its mask at the nearest frame that has it."""
        times = np.asarray([time for time, _ in chain])
        moments = np.asarray([change.index for change in maps]) / self._options.fps
        nearest = np.abs(times[None] - moments[:, None]).argmin(axis=1)
        return np.asarray([chain[k][1].level(change) for k, change in zip(nearest, maps, strict=True)])
