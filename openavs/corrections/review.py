"""The queue of a run's least certain clips for a person, and the receipts of the reviewed ones.

A clip's uncertainty is the mean over its audible frames of how little captioner, detector, segmenter and verifiers
agree there. A receipt, `clips/<id>/review.json`, holds the digest of the result that was reviewed: a clip that changes
afterwards returns to the queue.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from openavs.errors import InputError
from openavs.jobs.locks import NAME as LOCK_NAME, locked_file
from openavs.results.serialization import clip_folder, is_corrected, json_bytes, read_result
from openavs.structures.types import ClipResult, FrameResult, Segment
from openavs.utils.fs import atomic_write
from openavs.utils.serialization import parse_json
from openavs.utils.text import pluralize, utc_now

RECEIPT = "review.json"
FORMAT = 1

WEIGHTS = {
    "not found": 0.25,
    "unsteady": 0.20,
    "flickers": 0.15,
    "low mask score": 0.15,
    "unresolved": 0.10,
    "low score": 0.10,
    "quiet caption": 0.05,
}
"""Share of each kind of doubt in a frame's uncertainty; they add to 1."""

_SENTENCES = {
    "not found": "{phrase} is in the sound and nothing is found",
    "unsteady": "the mask of {phrase} is larger or smaller than in other frames",
    "flickers": "{phrase} is found before and after, but not there",
    "unresolved": "the verifier could not decide about {phrase}",
    "low score": "the detector is not sure of {phrase}",
    "low mask score": "the segmenter is not sure of the mask of {phrase}",
    "quiet caption": "the captioner is not sure of {phrase}",
}
_NAMED = 0.5  # least doubt of a frame that is a reason of its clip
_SCORE, _MASK = 0.25, 0.9  # scores that leave no doubt: of a box above its threshold; of a mask
_UNSTEADY = 0.5  # change of a phrase's area, relative to its median in the clip, that is full doubt


@dataclass(frozen=True)
class ReviewItem:
    """A clip in the queue.

    Attributes:
        clip: the clip's id.
        uncertainty: from 0 (all stages agree) to 1.
        reasons: sentences with the number of frames, the weightiest first.
        corrections: number of corrections so far.
    """

    clip: str
    uncertainty: float
    reasons: tuple[str, ...] = ()
    corrections: int = 0


@dataclass(frozen=True)
class Receipt:
    """The record of a review: who, when, the digest of the result, and its number of corrections."""

    by: str
    at: str
    digest: str
    corrections: int


@dataclass
class _Doubts:
    """Doubts of one frame, 0 to 1: the largest of each kind, and all by kind and phrase."""

    largest: dict[str, float] = field(default_factory=lambda: dict.fromkeys(WEIGHTS, 0.0))
    named: set[tuple[str, str]] = field(default_factory=set)

    def add(self, kind: str, phrase: str, doubt: float) -> None:
        self.largest[kind] = max(self.largest[kind], doubt)
        if doubt >= _NAMED:
            self.named.add((kind, phrase))


def review_queue(out: str | Path) -> list[ReviewItem]:
    """Return the clips of a result folder that were not reviewed as they are, the least certain first.

    Raises:
        InputError: the folder has no results, or a damaged one.
    """
    items = [assess(read_result(out, clip)) for clip in finished_clips(Path(out)) if not is_reviewed(Path(out), clip)]
    return sorted(items, key=lambda item: (-item.uncertainty, item.clip))


def finished_clips(out: Path) -> list[str]:
    """Return the ids of the finished clips of a result folder, sorted; InputError if there are none."""
    names = sorted(path.parent.name for path in (out / "clips").glob("*/result.json") if path.parent.name[0] != ".")
    if not names:
        raise InputError(f"{out} has no results; give the --out folder of 'openavs segment', 'evaluate' or 'label'")
    return names


def assess(result: ClipResult) -> ReviewItem:
    """Return the uncertainty of a result, with its reasons; segments of a person are certain."""
    threshold, medians = _threshold(result.recipe), _median_areas(result)
    audible = [i for i, frame in enumerate(result.frames) if not frame.silent]
    counts: Counter[tuple[str, str]] = Counter()
    weights: defaultdict[tuple[str, str], float] = defaultdict(float)
    total = 0.0
    for i in audible:
        doubts = _frame_doubts(result, i, threshold, medians)
        total += sum(WEIGHTS[kind] * doubt for kind, doubt in doubts.largest.items())
        for kind, phrase in doubts.named:
            counts[kind, phrase] += 1
            weights[kind, phrase] += WEIGHTS[kind]
    order = sorted(counts, key=lambda key: (-weights[key], key))
    reasons = (
        f"{_SENTENCES[kind].format(phrase=phrase)} ({pluralize(counts[kind, phrase], 'frame')})"
        for kind, phrase in order
    )
    return ReviewItem(result.clip, round(total / max(len(audible), 1), 4), tuple(reasons), len(result.corrections))


def _threshold(recipe: Mapping[str, Any]) -> float:
    section = recipe.get("filtering")
    value = section.get("box_threshold") if isinstance(section, Mapping) else None
    return float(value) if isinstance(value, int | float) else 0.0


def _median_areas(result: ClipResult) -> dict[str, float]:
    """Return the median area of each phrase over the frames that have it, in pixels."""
    areas: defaultdict[str, list[int]] = defaultdict(list)
    for frame in result.frames:
        for phrase in {s.phrase for s in frame.segments}:
            areas[phrase].append(_area(frame, phrase))
    return {phrase: float(median(own)) for phrase, own in areas.items()}


def _area(frame: FrameResult, phrase: str) -> int:
    return sum(s.mask.area for s in frame.segments if s.phrase == phrase)


def _frame_doubts(result: ClipResult, place: int, threshold: float, medians: Mapping[str, float]) -> _Doubts:
    frame, doubts = result.frames[place], _Doubts()
    for phrase in dict.fromkeys([p.phrase for p in frame.prompts] + [s.phrase for s in frame.segments]):
        own = [s for s in frame.segments if s.phrase == phrase]
        if any(s.author == "person" for s in own) or any(
            r.reason == "person" for r in frame.rejected if r.phrase == phrase
        ):
            continue
        if not own:
            flickers = _has(result, place - 1, phrase) and _has(result, place + 1, phrase)
            doubts.add("flickers" if flickers else "not found", phrase, 1.0)
            doubts.add("low score", phrase, 1.0)
            continue
        best = max(own, key=lambda s: s.score)
        doubts.add("low score", phrase, min(max(1 - (best.score - threshold) / _SCORE, 0.0), 1.0))
        if best.mask_score is not None:
            doubts.add("low mask score", phrase, min(max((_MASK - best.mask_score) / 0.3, 0.0), 1.0))
        change = abs(_area(frame, phrase) / max(medians[phrase], 1.0) - 1.0)
        doubts.add("unsteady", phrase, min(change / _UNSTEADY, 1.0))
        if any(_unresolved(s) for s in own):
            doubts.add("unresolved", phrase, 1.0)
        captions = [c for p in frame.prompts if p.phrase == phrase for c in p.captions if c.score is not None]
        if captions:
            doubts.add("quiet caption", phrase, 1.0 - min(max(c.score or 0.0 for c in captions), 1.0))
    return doubts


def _unresolved(segment: Segment) -> bool:
    return any(verdict.decision == "unresolved" for verdict in segment.verdicts)


def _has(result: ClipResult, place: int, phrase: str) -> bool:
    frames: tuple[FrameResult, ...] = result.frames
    return 0 <= place < len(frames) and any(s.phrase == phrase for s in frames[place].segments)


# ----------------------------------------------------------------------------------------------------------- receipts


def accept(out: str | Path, clip: str, by: str) -> Receipt:
    """Write the receipt of a clip that a person reviewed, with or without corrections.

    Raises:
        InputError: no such finished clip.
    """
    folder = clip_folder(Path(out), clip)
    result = read_result(out, clip)
    with locked_file(folder / LOCK_NAME):
        receipt = Receipt(by, utc_now(), _digest(folder), len(result.corrections))
        data = {"format": FORMAT, "by": by, "at": receipt.at, "digest": receipt.digest}
        atomic_write(folder / RECEIPT, json_bytes({**data, "corrections": receipt.corrections}))
    return receipt


def read_receipt(out: Path, clip: str) -> Receipt | None:
    """Return the receipt of a clip; None without one, or if the result changed since.

    Raises:
        InputError: the file is damaged.
    """
    folder = clip_folder(out, clip)
    path = folder / RECEIPT
    if not path.is_file():  # opening a FIFO would block
        return None
    try:
        data = parse_json(path.read_bytes())
        receipt = Receipt(str(data["by"]), str(data["at"]), str(data["digest"]), int(data["corrections"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a receipt of a review ({error}); delete it and review the clip again"
        ) from error
    return receipt if receipt.digest == _digest(folder) else None


def is_reviewed(out: Path, clip: str) -> bool:
    """Return whether a person reviewed the clip's result as it is now."""
    return read_receipt(out, clip) is not None


def person_clips(out: Path, names: Iterable[str]) -> dict[str, str]:
    """Return those of the clips of a result folder that a person corrected or reviewed, with their results' digests."""
    if not (out / "clips").is_dir():
        return {}
    own = (name for name in names if is_corrected(out, name) or is_reviewed(out, name))
    return {name: _digest(clip_folder(out, name)) for name in own}


def combined_digest(clips: Mapping[str, str]) -> str:
    """Return a short hash of the clips of `person_clips` and their results."""
    return hashlib.sha256("\n".join(f"{name} {own}" for name, own in sorted(clips.items())).encode()).hexdigest()[:8]


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "result.json").read_bytes()).hexdigest()
