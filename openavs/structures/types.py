"""The one vocabulary: the frozen data classes that pass between the stages.

Conventions, the same everywhere: images are uint8 RGB `[H, W, 3]`; boxes are `(x0, y0, x1, y1)` in pixels of the
original frame; times are seconds from the start of the clip; scores lie in [0, 1]; masks rest as COCO run-length
codes (`RLE`) and become dense one frame at a time. Converters are free functions named `a_to_b`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError

ImageArray = npt.NDArray[np.uint8]  # [H, W, 3], RGB
BoolMask = npt.NDArray[np.bool_]  # [H, W]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels


ADDED = {"added": True}
"""Marks a field that results written by earlier versions lack; they are read with its default."""


# ---------------------------------------------------------------------------------------------------- what goes in


@dataclass(frozen=True, eq=False)
class Waveform:
    """Mono sound: float32 samples `[N]` in [-1, 1] and their rate in Hz. NaN and infinities are refused."""

    samples: npt.NDArray[np.float32]
    rate: int

    def __post_init__(self) -> None:
        if self.samples.ndim != 1 or self.samples.dtype != np.float32:
            raise InputError(f"a waveform is float32 [N], not {self.samples.dtype} {list(self.samples.shape)}")
        if self.rate <= 0:
            raise InputError(f"a sample rate is positive, not {self.rate}")
        for part in self._blocks():
            if not np.isfinite(part).all():
                raise InputError("the sound holds NaN or infinite samples; repair or re-encode its track")

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    @property
    def dbfs(self) -> float:
        """Root mean square level in dB relative to full scale; -inf for digital silence or no samples."""
        if not len(self.samples):
            return float("-inf")
        power = sum(float(np.sum(np.square(part, dtype=np.float64))) for part in self._blocks()) / len(self.samples)
        return 10.0 * math.log10(power) if power > 0 else float("-inf")

    def _blocks(self, size: int = 1 << 20) -> Iterator[npt.NDArray[np.float32]]:
        """The samples part by part: a long waveform may be a memory map."""
        for start in range(0, len(self.samples), size):
            yield self.samples[start : start + size]

    def cut(self, start: float, end: float) -> Waveform:
        """The samples between two times, clipped to what there is (no padding)."""
        first, last = (min(max(round(t * self.rate), 0), len(self.samples)) for t in (start, end))
        return Waveform(self.samples[first : max(first, last)], self.rate)


@dataclass(frozen=True, eq=False)
class AudioWindow:
    """The sound that belongs to one frame: its samples and where in the clip they are. `labels` are its clip's.

    `context` is a longer stretch of sound around the same moment, None without one: captioners that score labels
    combine both, the short one for the time and the long one for the name.
    """

    audio: Waveform
    start: float
    end: float
    labels: tuple[str, ...] = ()
    context: Waveform | None = None


@dataclass(frozen=True, eq=False)
class Frame:
    """One sampled picture: its index among the sampled frames, its time and its pixels."""

    index: int
    time: float
    image: ImageArray


FrameSource = Callable[[frozenset[int] | None], Iterator[Frame]]
"""Decodes frames in order of time. Given a set of indices, only those are converted to RGB and yielded; given
None, all are. A source may yield fewer frames than were planned (a truncated file): what is missing was not there."""


@dataclass(frozen=True, eq=False)
class Clip:
    """A video to work on: nothing is decoded before `frames` is called.

    `times` are the planned times of the sampled frames; frame i is paired with the sound window of length
    `audio.window_seconds` around the i-th interval of `1 / fps` seconds. `audio` is None where there is no sound track.
    `source` is the path to show a user and to take the sound from for the overlay; None for clips made in memory.
    `labels` are the names of what sounds in the clip where a data set tells; only the `oracle` captioner looks at them.
    `duration` is the length of the video file in seconds; None for pictures and for clips made in memory.
    """

    id: str
    times: tuple[float, ...]
    fps: float
    size: tuple[int, int]  # height, width
    frames: FrameSource
    audio: Waveform | None
    source: str | None = None
    warnings: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    duration: float | None = None


# ------------------------------------------------------------------------------------------- what the stages say


@dataclass(frozen=True)
class Caption:
    """What was heard in one window: the text, how sure (None where the model gives no score), when, asked by what.

    A `weak` caption scores below the captioner's threshold: it says how close the window came, and nothing is looked
    for because of it.
    """

    text: str
    score: float | None
    start: float
    end: float
    question: str = ""
    weak: bool = field(default=False, metadata=ADDED)


def strong_captions(captions: Iterable[Caption] | None) -> tuple[Caption, ...]:
    """Return the captions that reach the captioner's threshold; none for None, which is a silent frame."""
    return tuple(caption for caption in captions or () if not caption.weak)


@dataclass(frozen=True)
class Prompt:
    """One noun phrase to look for at one frame, the class it stands for if any, and the captions it came from.

    `origin` says who proposed it: `llm`, `lexicon` (a translator or the fallback), `none` (captions used as they are).
    """

    phrase: str
    label: str | None = None
    origin: str = "llm"
    captions: tuple[Caption, ...] = ()

    @property
    def audio_score(self) -> float:
        """The score of the best of its captions, in [0, 1]; 1 for captions without scores."""
        return max((1.0 if caption.score is None else caption.score for caption in self.captions), default=1.0)


@dataclass(frozen=True)
class Detection:
    """One box of an image, the phrase it answers and the score of that phrase."""

    box: Box
    phrase: str
    score: float


@dataclass(frozen=True)
class Mask:
    """One mask of an image and the segmenter's own estimate of its IoU (None where it gives none)."""

    rle: RLE
    score: float | None = None


# ------------------------------------------------------------------------------------------------ what comes out


@dataclass(frozen=True)
class RLE:
    """A binary mask as COCO's compressed run-length code (column-major); `size` is (height, width)."""

    size: tuple[int, int]
    counts: str

    @cached_property
    def area(self) -> int:
        """Number of foreground pixels."""
        from pycocotools import mask as coco

        return int(coco.area(self._coco))

    @property
    def _coco(self) -> dict[str, Any]:
        return {"size": list(self.size), "counts": self.counts.encode("ascii")}


def mask_to_rle(mask: BoolMask) -> RLE:
    """Encodes a boolean mask `[H, W]`."""
    from pycocotools import mask as coco

    if mask.ndim != 2:
        raise ValueError(f"a mask is [H, W], not {list(mask.shape)}")
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE((int(mask.shape[0]), int(mask.shape[1])), code["counts"].decode("ascii"))


def rle_to_mask(rle: RLE) -> BoolMask:
    """Decodes to a boolean mask `[H, W]`."""
    from pycocotools import mask as coco

    return np.asarray(coco.decode(rle._coco), dtype=np.bool_)


@dataclass(frozen=True)
class Segment:
    """One sounding thing found in one frame.

    `score` is the detection score; `mask_score` the segmenter's own IoU estimate. `label` is the class the phrase was
    mapped to and `label_how` how (`exact`, `alias`, `lexicon`, `similarity`: see `class_mapping.py`); both None in
    open vocabulary. `track` is the id of the same thing through the clip, None without a tracker. `verifier_score` is
    how much it looks like its phrase (where it was tracked from a key frame: there), None without a verifier.
    """

    mask: RLE
    box: Box
    phrase: str
    score: float
    mask_score: float | None = None
    label: str | None = None
    label_how: str | None = None
    track: int | None = None
    verifier_score: float | None = field(default=None, metadata=ADDED)


@dataclass(frozen=True)
class Rejection:
    """Something that was asked for and is not among the segments, and why.

    `reason` is one of `not found` (no box at all), `below threshold`, `duplicate` (covered by a better box), `too many`
    (over the number of boxes that a frame or a phrase may have), `less likely` (its audio score times its best box is
    too small a share of the frame's best phrase), `empty mask` (none, or smaller than the least area),
    `verifier` (does not look like its phrase; the score is the verifier's), `not tracked` (between key frames).
    """

    phrase: str
    reason: str
    score: float | None = None
    box: Box | None = None


@dataclass(frozen=True)
class FrameResult:
    """One frame's answer: what was heard, asked, found and dropped. `silent` frames hear and ask nothing.

    `weak` holds captions below the captioner's threshold: they were not asked about.
    """

    index: int
    time: float
    silent: bool = False
    captions: tuple[Caption, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    segments: tuple[Segment, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    weak: tuple[Caption, ...] = field(default=(), metadata=ADDED)


@dataclass(frozen=True)
class ClipResult:
    """One clip's results, with all that is needed to know where they came from.

    `recipe` is the resolved recipe as plain data, `models` what each model reference resolved to (revision,
    license), `timings` seconds by stage, `warnings` sentences about this clip.
    """

    clip: str
    size: tuple[int, int]  # height, width
    frames: tuple[FrameResult, ...]
    source: str | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    models: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def segments_to_mask(segments: Sequence[Segment], size: tuple[int, int]) -> BoolMask:
    """The union of the segments as one binary mask `[H, W]` (OpenAVS, eq. 2: one mask of all that sounds)."""
    union = np.zeros(size, dtype=np.bool_)
    for segment in segments:
        union |= rle_to_mask(segment.mask)
    return union


def segments_to_label_map(segments: Sequence[Segment], values: Sequence[int], size: tuple[int, int]) -> ImageArray:
    """Paints each segment's value, lowest score first, so that the highest score lies on top; 0 is background.

    `values` gives the number to paint for each segment (a class index or an instance number), uint8 `[H, W]`.
    """
    painted = np.zeros(size, dtype=np.uint8)
    for position in sorted(range(len(segments)), key=lambda i: segments[i].score):
        painted[rle_to_mask(segments[position].mask)] = values[position]
    return painted
