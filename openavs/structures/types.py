"""Frozen data classes that pass between the stages.

Conventions: images are uint8 RGB `[H, W, 3]`; boxes are `(x0, y0, x1, y1)` in pixels of the
original frame; times are seconds from the start of the clip; scores are in [0, 1]; masks are kept as COCO run-length
codes (`RLE`) and decoded one frame at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.structures.masks import RLE, rle_to_mask

ImageArray = npt.NDArray[np.uint8]  # [H, W, 3], RGB
BoolMask = npt.NDArray[np.bool_]  # [H, W]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels
Interval = tuple[float, float]  # start and end in s


ADDED = {"added": True}
"""Marks a field that result.json files of earlier versions lack; they are read with its default."""


# ----------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono audio.

    Attributes:
        samples: float32 `[N]` in [-1, 1].
        rate: samples per second, in Hz.

    Raises:
        InputError: another shape or dtype, a rate that is not positive, NaN or infinite samples.
    """

    samples: npt.NDArray[np.float32]
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise InputError(f"a waveform is float32 [N], not {self.samples.dtype} {list(self.samples.shape)}")
        if self.rate <= 0:
            raise InputError(f"a sample rate is positive, not {self.rate}")
        for part in self.blocks():
            if not np.isfinite(part).all():
                raise InputError("the sound has NaN or infinite samples; repair or re-encode its track")

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def dbfs(self) -> float:
        """Root mean square level in dB relative to full scale; -inf for digital silence or no samples."""
        if not len(self.samples):
            return float("-inf")
        power = sum(float(np.sum(np.square(part, dtype=np.float64))) for part in self.blocks()) / len(self.samples)
        return 10.0 * math.log10(power) if power > 0 else float("-inf")

    def blocks(self, size: int = 1 << 20) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the samples in blocks: a long waveform may be a memory map."""
        for start in range(0, len(self.samples), size):
            yield self.samples[start : start + size]

    def cut(self, start: float, end: float) -> Waveform:
        """Return the samples between two times in seconds, clipped to the waveform (no padding)."""
        first, last = (min(max(round(t * self.rate), 0), len(self.samples)) for t in (start, end))
        return Waveform(self.samples[first : max(first, last)], self.rate)


@dataclass(frozen=True, eq=False)
class AudioWindow:
    """The audio that belongs to one frame.

    Attributes:
        audio: the samples.
        start: start in the clip, in seconds.
        end: end in the clip, in seconds.
        labels: labels of the clip.
        context: a longer window around the same moment. Captioners that score labels combine both: the short one
            says when, the long one what.
    """

    audio: Waveform
    start: float
    end: float
    labels: tuple[str, ...] = ()
    context: Waveform | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One sampled frame: its index among the sampled frames, its time in seconds and its pixels."""

    index: int
    time: float
    image: ImageArray


FrameSource = Callable[[frozenset[int] | None], Iterator[Frame]]
"""Decodes frames in order of time: those of a set of indices, or all for None. It may yield fewer frames than planned,
if the file is truncated."""


DenseFrameSource = Callable[[float, int], Iterator[Frame]]
"""Decodes the video small and often: `source(fps, longest_side)` yields frame i at (i + 0.5) / fps seconds, in order.

`longest_side` is in pixels; smaller videos keep their size. A video of fewer frames per second repeats the same image
object. Each call decodes the file from its start, one frame at a time."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A video to process; frames are decoded when `frames` is called.

    Attributes:
        id: the name of the clip's result folder.
        times: planned times of the sampled frames, in seconds. Frame i is paired with the audio window around the
            i-th interval of `1 / fps` seconds.
        fps: sampled frames per second.
        size: (height, width) in pixels.
        frames: the decoder.
        audio: the audio track; None without one.
        source: path of the file, for messages and for the audio of the overlay; None for clips made in memory.
        warnings: sentences about the file.
        labels: labels of what sounds in the clip, where a data set has them; only the `oracle` captioner uses them.
        duration: length of the file in seconds; None for images and for clips made in memory.
        dense_frames: decodes the frames between the sampled ones; None where there are none, such as for images.
        expression: a sentence that chooses the objects to segment; None: all that sound.
    """

    id: str
    times: tuple[float, ...]
    fps: float
    size: tuple[int, int]
    frames: FrameSource
    audio: Waveform | None
    source: str | None = None
    warnings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    duration: float | None = None
    dense_frames: DenseFrameSource | None = None
    expression: str | None = None


# --------------------------------------------------------------------------------------------------- stage outputs


@dataclass(frozen=True)
class Caption:
    """A caption of one audio window.

    Attributes:
        text: the caption, or a label of the captioner's vocabulary.
        score: score in [0, 1]; None where the model gives none.
        start: start of the window, in seconds.
        end: end of the window, in seconds.
        question: the question or text template that it answers.
        weak: True below the captioner's threshold. Weak captions are reported, and have no prompts.
    """

    text: str
    score: float | None
    start: float
    end: float
    question: str = ""
    weak: bool = field(default=False, metadata=ADDED)


@dataclass(frozen=True)
class Event:
    """A phrase and the exact time in which it sounds, from a captioner that scores phrases over time.

    Attributes:
        phrase: the label of the captioner's vocabulary.
        onset: start, in seconds from the start of the clip.
        offset: end, in seconds.
        score: highest score between onset and offset, in [0, 1].
        rate: values of `curve` per second, in Hz.
        curve: scores from onset to offset, in [0, 1].
    """

    phrase: str
    onset: float
    offset: float
    score: float
    rate: float
    curve: tuple[float, ...] = ()


def strong_captions(captions: Iterable[Caption] | None) -> tuple[Caption, ...]:
    """Return the captions that reach the captioner's threshold; none for None, which is a silent frame."""
    return tuple(caption for caption in captions or () if not caption.weak)


@dataclass(frozen=True)
class Prompt:
    """One noun phrase to find at one frame.

    Attributes:
        phrase: the phrase.
        label: its class of the vocabulary; None in open vocabulary.
        origin: the translator that proposed it: `llm`, `lexicon` (also the fallback), `none` (unchanged captions),
            `expression` (the sentence of `Clip.expression`), `recipe` (its key `prompts.add`).
        captions: the captions that it came from.
    """

    phrase: str
    label: str | None = None
    origin: str = "llm"
    captions: tuple[Caption, ...] = ()

    @property
    def audio_score(self) -> float:
        """Best score of its captions, in [0, 1]; 1 for captions without scores."""
        return max((1.0 if caption.score is None else caption.score for caption in self.captions), default=1.0)


def phrases_of(prompts: Iterable[Prompt]) -> tuple[str, ...]:
    """Return the phrases of some prompts."""
    return tuple(prompt.phrase for prompt in prompts)


@dataclass(frozen=True)
class Detection:
    """One box of an image, its phrase and the score of that phrase."""

    box: Box
    phrase: str
    score: float


@dataclass(frozen=True)
class Mask:
    """One mask of an image and the segmenter's estimate of its IoU (None where it gives none)."""

    rle: RLE
    score: float | None = None


Decision = Literal["kept", "rejected", "unresolved"]
"""A verifier's decision; `unresolved`: the evidence is too weak for one, and the segment is kept."""


@dataclass(frozen=True)
class Verdict:
    """A verifier's decision about one segment.

    Attributes:
        decision: `kept`, `rejected` or `unresolved`.
        score: how well the segment fits, in [0, 1]: its phrase (`clip`), or the sound (`pe-av`, `sync`); of `reasoner`
            1 for `kept` and 0.5 for `unresolved`.
        margin: how much better it fits than what it was compared with, the larger the surer; None without a comparison.
        best_match: the phrase that it resembles most; None for none of them.
        verifier: the verifier's name in recipes.
    """

    decision: Decision
    score: float
    margin: float | None = None
    best_match: str | None = None
    verifier: str = ""

    @property
    def kept(self) -> bool:
        """Whether the segment is kept."""
        return self.decision != "rejected"


# --------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Segment:
    """One sounding object in one frame.

    Attributes:
        mask: the mask.
        box: the detector's box.
        phrase: the prompt's phrase.
        score: the detection score.
        mask_score: the segmenter's estimate of the mask's IoU.
        label: the class that the phrase was mapped to; None in open vocabulary.
        label_how: the rule of that mapping: `exact`, `alias`, `lexicon`, `similarity` (see `stages/vocabulary.py`).
        track: the id of the same object through the clip; None without a tracker.
        verdicts: the verifiers' decisions, `kept` or `unresolved`; those about its look are of its key frame where it
            was tracked.
        author: `person` for a mask or a word that a person gave; no model replaces it.
    """

    mask: RLE
    box: Box
    phrase: str
    score: float
    mask_score: float | None = None
    label: str | None = None
    label_how: str | None = None
    track: int | None = None
    verdicts: tuple[Verdict, ...] = field(default=(), metadata=ADDED)
    author: Literal["model", "person"] = field(default="model", metadata=ADDED)

    @property
    def array(self) -> BoolMask:
        """The mask, bool `[H, W]`."""
        return rle_to_mask(self.mask)

    @property
    def verifier_score(self) -> float | None:
        """Lowest score of the verifiers of its look that decided, in [0, 1]; None without one.

        The score of `sync` is left out: it is a correlation of motion and sound, on another scale than a similarity.
        That of `reasoner` is left out as well, since it measures nothing.
        """
        looks = (v.score for v in self.verdicts if v.decision == "kept" and v.verifier not in ("sync", "reasoner"))
        return min(looks, default=None)


@dataclass(frozen=True)
class Rejection:
    """A prompt or a box that is not among the segments, and why.

    Attributes:
        phrase: the prompt's phrase.
        reason: `not found` (no box at all), `unknown word` (no class of the detector), `below threshold`, `duplicate`
            (covered by a better box), `too many` (over the limit of boxes of a frame or a phrase), `less likely` (its
            audio score times its best box is too small a share of the frame's best phrase), `empty mask` (or smaller
            than the least area), `verifier` (does not look like its phrase), `silent` (another candidate of the phrase
            sounds), `off-screen` (nothing in the picture fits the sound; the box is the best candidate's), `reasoner`
            (rejected by all evidence; `ClipResult.reasoning` has the reason), `not tracked` (between key frames),
            `person` (a correction).
        score: score of the box, or of the verifier for `verifier`, `silent` and `off-screen`.
        box: the box; None where there was none.
        margin: the verifier's margin, see `Verdict`; None for other reasons.
        verifier: name of the verifier that rejected it; None for other reasons.
    """

    phrase: str
    reason: str
    score: float | None = None
    box: Box | None = None
    margin: float | None = field(default=None, metadata=ADDED)
    verifier: str | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True, eq=False)
class TrackedFrame:
    """A frame with its segments, between the stages.

    Attributes:
        frame: index, time and image.
        phrases: the phrases that sound at this frame.
        segments: one per object; empty before tracking unless this is a key frame.
        rejected: phrases and boxes without a segment, with the reason.
        key: True for a key frame, in which detector and segmenter ran.
    """

    frame: Frame
    phrases: tuple[str, ...]
    segments: tuple[Segment, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    key: bool = True


@dataclass(frozen=True, eq=False)
class ClipEvidence:
    """A clip's sound and picture over time, with what earlier stages found in the sound.

    Attributes:
        clip: the clip; its `dense_frames` are the frames between the sampled ones, None where there are none.
        prompts: the prompts of every sampled frame, by index.
        events: what sounds when, by onset; none without a captioner that scores phrases over time.
        warn: records a sentence about the clip.
        captions: the captions of every sampled frame, weak ones included; None for a silent frame.
        record: records the reasoner's question and answer.
    """

    clip: Clip
    prompts: Sequence[tuple[Prompt, ...]]
    events: Sequence[Event] = ()
    warn: Callable[[str], None] = lambda sentence: None
    captions: Sequence[tuple[Caption, ...] | None] = ()
    record: Callable[[Reasoning], None] = lambda reasoning: None


def frame_intervals(times: Sequence[float]) -> list[Interval]:
    """Return half a sampling interval around each frame's time, at most half way to a neighbor."""
    gaps = [after - before for before, after in pairwise(times)]
    gap = median(gaps) if gaps else 1.0
    reaches = [gap / 2, *(min(own, gap) / 2 for own in gaps), gap / 2]
    return [(max(time - reaches[i], 0.0), time + reaches[i + 1]) for i, time in enumerate(times)]


@dataclass(frozen=True)
class FrameResult:
    """Results of one frame: captions, prompts, segments and rejections.

    Attributes:
        index: index among the sampled frames.
        time: seconds from the start.
        silent: True for audio below the silence level; such frames have no captions.
        captions: captions above the captioner's threshold, best first.
        prompts: the phrases to find.
        segments: the segments.
        rejected: prompts and boxes that are not among the segments.
        weak: captions below the captioner's threshold; they have no prompts.
        interpolated: True for a time between sampled frames, whose masks were carried along by the picture's motion
            (`visualization/moving_masks.py`). Only overlays have such frames.
    """

    index: int
    time: float
    silent: bool = False
    captions: tuple[Caption, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    segments: tuple[Segment, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    weak: tuple[Caption, ...] = field(default=(), metadata=ADDED)
    interpolated: bool = field(default=False, metadata=ADDED)

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """The masks of its segments, bool `[N, H, W]`; `[0, 0, 0]` without segments."""
        return np.stack([s.array for s in self.segments]) if self.segments else np.zeros((0, 0, 0), dtype=np.bool_)

    def __repr__(self) -> str:
        found = ", ".join(f"{s.phrase} {s.score:.2f}" for s in self.segments)
        return f"<FrameResult {self.index} at {self.time:.2f} s: {found or ('silent' if self.silent else 'nothing')}>"


@dataclass(frozen=True)
class CandidateDecision:
    """A candidate that the reasoner was shown, and the decision about it.

    Attributes:
        number: its number in the picture, from 1.
        phrase: its phrase.
        track: its track.
        score: its best detection score.
        start: time of the first frame that has it, in seconds.
        end: time of the last one, in seconds.
        decision: `kept`, `rejected` or `unresolved`.
        reason: the reasoner's reason in its own words; empty without a usable answer.
    """

    number: int
    phrase: str
    track: int | None
    score: float
    start: float
    end: float
    decision: Decision
    reason: str = ""


@dataclass(frozen=True)
class Reasoning:
    """The question about a clip that a reasoner was given, and its answers.

    Attributes:
        question: the text of the request.
        answers: the answers as the model gave them, cut at a limit; the second follows an unusable first one.
        candidates: the numbered candidates and their decisions.
        frames: indices of the frames in the picture.
        digest: SHA-256 of the picture's JPEG, in hex.
        picture: the JPEG in base64; None where it is not kept.
        none: whether the answer is that nothing in the picture makes the sound.
    """

    question: str
    answers: tuple[str, ...]
    candidates: tuple[CandidateDecision, ...]
    frames: tuple[int, ...]
    digest: str
    picture: str | None = None
    none: bool = False


CorrectionAction = Literal["add point", "remove point", "keep", "reject", "rename", "span", "mask"]
"""A person's action, see `Correction`."""


@dataclass(frozen=True)
class Correction:
    """The record of one change of a result.

    Attributes:
        action: `add point` and `remove point` (a point of the picture belongs to the mask, or does not), `keep` (a
            rejected candidate, after all), `reject` (it makes no sound), `rename` (another phrase), `span` (it sounds
            from and to), `mask` (a mask drawn by hand, or in another tool).
        frame: index of the frame; None: the whole clip.
        track: the track; None: a new one, or all of the phrase.
        phrase: the phrase.
        value: data of the action as plain JSON: a point `[x, y]` in pixels, the new phrase, a span `[start, end]` in
            seconds, the box `[x0, y0, x1, y1]` of the candidate to keep.
        author: the person's name, or `model`.
        tool: `page`, `cli`, `python`, or the tool that the correction was imported from.
        at: date and time in UTC, ISO 8601.
    """

    action: CorrectionAction
    frame: int | None = None
    track: int | None = None
    phrase: str = ""
    value: Any = None
    author: str = "person"
    tool: str = "python"
    at: str = ""


@dataclass(frozen=True)
class ClipResult:
    """Results of one clip, with their provenance.

    Attributes:
        clip: the clip's id.
        size: (height, width) in pixels.
        frames: one result per sampled frame.
        source: path of the file.
        recipe: the resolved recipe as plain data.
        models: resolved model references: reference -> revision, license.
        timings: seconds by stage.
        warnings: sentences about this clip.
        events: what sounds when, by onset, from a captioner that scores phrases over time; none from others.
        reasoning: the reasoner's question and answer; None without a reasoner or a candidate.
        corrections: what was changed afterwards, in order.
    """

    clip: str
    size: tuple[int, int]
    frames: tuple[FrameResult, ...]
    source: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    events: tuple[Event, ...] = field(default=(), metadata=ADDED)
    reasoning: Reasoning | None = field(default=None, metadata=ADDED)
    corrections: tuple[Correction, ...] = field(default=(), metadata=ADDED)
