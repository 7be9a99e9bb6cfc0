"""PE-AV verifier: which candidate of a phrase makes the sound, and is it in the picture at all?

Candidates are cut out over time, and these films are compared with the sound of the same time, alone and together with
the phrase. Every film is also compared with shuffled sounds: other moments of the clip in which the phrase does not
sound, noise, and silence; see the functions below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from openavs.errors import InputError
from openavs.models.device import resolve_device, run_with_oom_backoff
from openavs.models.hub import resolve
from openavs.stages.verifiers.candidates import (
    CandidateTimeline,
    Choice,
    FrameWindow,
    apply_choices,
    film_candidate,
    interval_of,
    window_times,
)
from openavs.stages.verifiers.pe_av_model import PeAudioVideoEmbedder
from openavs.structures.masks import small_size
from openavs.structures.types import Clip, ClipEvidence, TrackedFrame, Waveform

NAME = "pe-av"
LONGEST_WINDOW = 30.0
"""Seconds of sound that the model was trained on."""

_SILENCE_DBFS = -60.0  # a quieter window proves nothing
_NOISE_DBFS = -30.0
_MAX_TEXTS = 4096  # cached text states

Choices = dict[tuple[str, int], Choice]
"""The choice of each phrase and candidate."""


class PeAvVerifier:
    """Keeps the candidates of a phrase that fit the sound, by PE-AV.

    A clip is decided in steps of `stride` seconds: the frames of a step share the decision. Candidates are tracks, or
    segments of one phrase that overlap from frame to frame where there is no tracker. Clips without frames between the
    sampled ones, such as folders of images, are films of repeated sampled frames.

    Args:
        model: reference of a PeAudioVideoModel checkpoint.
        window: seconds of sound and film around the middle of a step, more than 0 and at most 30.
        stride: seconds of a step.
        frames: frames of a film; None for the number in the checkpoint's processor, or 16.
        text_weight: weight of the comparison with sound and phrase together, in [0, 1]; the rest is that with the
            sound alone.
        min_margin: least difference of evidence for a decision, in nats; smaller ones are unresolved.
        off_screen: score below which nothing in the picture fits the sound, in [0, 0.5]; None never rejects all.
        shuffles: number of other moments of the clip to compare with, besides noise and silence.
        margin: space around a mask, relative to its longer side.
        background: opacity of the image around a mask, in [0, 1].
        longest_side: of the decoded frames, in pixels.
        batch_size: films that are encoded together.
        seed: of the noise.
        device, dtype, offline: as everywhere; `auto` is float32, as logits are differences of small numbers.

    Raises:
        InputError: an option is out of range, or timm or torchvision is missing.
        ModelError: the model cannot be loaded, or is of another kind.
    """

    def __init__(
        self,
        *,
        model: str,
        window: float = 4.0,
        stride: float = 1.0,
        frames: int | None = None,
        text_weight: float = 0.5,
        min_margin: float = 1.0,
        off_screen: float | None = 0.4,
        shuffles: int = 6,
        margin: float = 0.1,
        background: float = 0.0,
        longest_side: int = 640,
        batch_size: int = 4,
        seed: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
    ) -> None:
        if not (0 < window <= LONGEST_WINDOW and 0 < stride <= window):
            raise InputError(
                f"{NAME}: window is more than 0 and at most {LONGEST_WINDOW:g} s, and stride more than 0 and at most "
                f"the window, not {window} and {stride}"
            )
        if not (0 <= text_weight <= 1 and 0 <= background <= 1 and margin >= 0 and math.isfinite(margin)):
            raise InputError(
                f"{NAME}: text_weight and background must be between 0 and 1, and margin at least 0, not "
                f"{text_weight}, {background}, {margin}"
            )
        if not (0 <= min_margin < math.inf and (off_screen is None or 0 <= off_screen <= 0.5)):
            raise InputError(
                f"{NAME}: min_margin must be at least 0, and off_screen between 0 and 0.5 or null, not {min_margin} "
                f"and {off_screen}"
            )
        if min(1 if frames is None else frames, batch_size, shuffles + 1) < 1 or longest_side < 32:
            raise InputError(
                f"{NAME}: frames and batch_size must be at least 1, shuffles at least 0 and longest_side at least 32, "
                f"not {frames}, {batch_size}, {shuffles}, {longest_side}"
            )
        self.window, self.stride, self.text_weight = window, stride, text_weight
        self.min_margin, self.off_screen, self.shuffles = min_margin, off_screen, shuffles
        self.margin, self.background, self.longest_side = margin, background, longest_side
        self.batch_size, self.seed = batch_size, seed
        placement = resolve_device(device, "float32" if dtype == "auto" else dtype)
        resolved = resolve(model, offline)
        self.models: dict[str, dict[str, Any]] = {model: resolved.describe()}
        self.embedder = PeAudioVideoEmbedder(resolved, placement.device, placement.dtype)
        self.frames = self.embedder.frames if frames is None else frames
        self._texts: dict[str, torch.Tensor] = {}
        self._references: list[torch.Tensor] = []

    def verify_clip(self, frames: Iterable[TrackedFrame], evidence: ClipEvidence) -> Iterator[TrackedFrame]:
        """See `TemporalVerifier.verify_clip`.

        Raises:
            InvalidOutputError: the model's output is not finite.
        """
        clip = evidence.clip
        size = small_size(clip.size, self.longest_side)
        timeline = CandidateTimeline(frames, size, self.margin)
        film = FrameWindow(clip.dense_frames, self.frames / self.window, self.longest_side, size)
        sounds = _ClipSounds(self, evidence)
        while step := timeline.next_interval(self.stride):
            index = interval_of(step[0].frame.time, self.stride)
            start, end = self._span(index, clip)
            film.offer([*step, *timeline.read_until(end)])
            choices = self._choose(step, timeline, film, sounds, (start, end))
            for tracked in step:
                keys = zip(tracked.segments, timeline.keys(tracked), strict=True)
                own = [choices.get((segment.phrase, key), NO_EVIDENCE) for segment, key in keys]
                yield apply_choices(tracked, own, NAME)
            timeline.forget(self._span(index + 1, clip)[0] - 1 / clip.fps, step)

    def _span(self, index: int, clip: Clip) -> tuple[float, float]:
        """Return start and end of a step's window, within the clip's sound."""
        middle = (index + 0.5) * self.stride
        start, end = middle - self.window / 2, middle + self.window / 2
        length = clip.audio.duration if clip.audio is not None else 0.0
        return min(max(start, 0.0), length), min(end, length)

    def _choose(
        self,
        step: Sequence[TrackedFrame],
        timeline: CandidateTimeline,
        film: FrameWindow,
        sounds: _ClipSounds,
        span: tuple[float, float],
    ) -> Choices:
        """Decide about the candidates of each phrase in some frames."""
        candidates: dict[str, list[int]] = {}
        for tracked in step:
            for segment, key in zip(tracked.segments, timeline.keys(tracked), strict=True):
                own = candidates.setdefault(segment.phrase, [])
                if key not in own:
                    own.append(key)
        sound = sounds.between(*span) if candidates else None
        if sound is None:
            return {}
        films = self._embed_films(
            list(dict.fromkeys(k for own in candidates.values() for k in own)), timeline, film, span
        )
        choices: Choices = {}
        for phrase, own in candidates.items():
            compared = [sound, *sounds.shuffled(phrase, *span)]
            found = iter(self._evidence(compared, [films[key] for key in own if key in films], phrase))
            values = [next(found) if key in films else None for key in own]
            decided = choose_sounding(values, min_margin=self.min_margin, off_screen=self.off_screen)
            choices |= {(phrase, key): choice for key, choice in zip(own, decided, strict=True)}
        return choices

    def _embed_films(
        self, keys: Sequence[int], timeline: CandidateTimeline, film: FrameWindow, span: tuple[float, float]
    ) -> dict[int, torch.Tensor]:
        """Return the embeddings of the candidates that have a picture; a batch of films exists at a time."""
        times = window_times(*span, self.frames)
        images = film.images(times)
        outlines = {key: own for key in keys if (own := timeline.outlines(key, *span))} if images else {}
        found: dict[int, torch.Tensor] = {}
        present = list(outlines)
        for first in range(0, len(present), self.batch_size):
            batch = present[first : first + self.batch_size]
            films = [film_candidate(outlines[key], times, images, self.embedder.fill, self.background) for key in batch]
            found |= zip(batch, run_with_oom_backoff(self.embedder.embed_films, films), strict=True)
        return found

    def _evidence(self, sounds: Sequence[torch.Tensor], films: Sequence[torch.Tensor], phrase: str) -> list[float]:
        """Return the evidence of each film for the first sound against the others."""
        if not films:
            return []
        logits = self.embedder.logits(sounds, films, self._text(phrase))
        mixed = (1 - self.text_weight) * logits.sound + self.text_weight * logits.sound_and_text
        return [shuffled_evidence(column[0], column[1:]) for column in mixed.T.tolist()]

    def _text(self, phrase: str) -> torch.Tensor:
        if phrase not in self._texts:
            if len(self._texts) >= _MAX_TEXTS:
                self._texts.clear()
            self._texts[phrase] = self.embedder.embed_phrase(phrase)
        return self._texts[phrase]

    def reference_sounds(self) -> list[torch.Tensor]:
        """Return the states of noise and of silence, which every film is compared with."""
        if not self._references:
            count = round(self.window * 48_000)
            noise = np.random.default_rng(self.seed).standard_normal(count) * 10 ** (_NOISE_DBFS / 20)
            both = (noise.clip(-1, 1).astype(np.float32), np.zeros(count, dtype=np.float32))
            self._references = [self.embedder.embed_sound(Waveform(samples, 48_000)) for samples in both]
        return self._references


class _ClipSounds:
    """The states of a clip's sound: around the present, and of other moments."""

    def __init__(self, verifier: PeAvVerifier, evidence: ClipEvidence) -> None:
        self._verifier, self._clip = verifier, evidence.clip
        self._phrases = [frozenset(prompt.phrase for prompt in own) for own in evidence.prompts]
        self._moments = self._plan()
        self._states: dict[tuple[float, float], torch.Tensor | None] = {}
        self._without: dict[str, list[tuple[float, float]]] = {}  # the moments in which a phrase does not sound

    def between(self, start: float, end: float) -> torch.Tensor | None:
        """Return the state of the sound between two times; None in silence and where there is no sound."""
        audio = self._clip.audio
        if audio is None:
            return None
        part = audio.cut(start, end)
        if part.dbfs < _SILENCE_DBFS:
            return None
        return self._verifier.embedder.embed_sound(part)

    def shuffled(self, phrase: str, start: float, end: float) -> list[torch.Tensor]:
        """Return the states of sounds that are not the phrase's: other moments, noise and silence."""
        if phrase not in self._without:
            self._without[phrase] = [moment for moment in self._moments if not self._sounds(phrase, *moment)]
        found = list(self._verifier.reference_sounds())
        for moment in self._without[phrase]:
            if moment[0] < end and moment[1] > start:
                continue
            if moment not in self._states:
                self._states[moment] = self.between(*moment)
            state = self._states[moment]
            if state is not None:
                found.append(state)
        return found

    def _plan(self) -> list[tuple[float, float]]:
        """Return at most `shuffles` windows that do not overlap, spread over the clip."""
        length = self._clip.audio.duration if self._clip.audio is not None else 0.0
        window = self._verifier.window
        count = min(self._verifier.shuffles, int(length / window))
        if not count:
            return []
        return [(middle - window / 2, middle + window / 2) for middle in window_times(0.0, length, count)]

    def _sounds(self, phrase: str, start: float, end: float) -> bool:
        """Whether a sampled frame whose interval overlaps with the window has the phrase among its prompts."""
        half = 0.5 / self._clip.fps
        return any(
            phrase in own and at - half < end and at + half > start
            for at, own in zip(self._clip.times, self._phrases, strict=False)
        )


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
