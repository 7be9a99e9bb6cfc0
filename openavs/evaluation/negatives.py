"""Negatives of a benchmark: its clips with a sound that nothing in the picture makes (AVSBench-Robust).

The sound of a clip is exchanged on the fly, and the truth is empty (arXiv 2502.00358; jiali-home/AVSBench-Robust):

- `silence`: digital zeros; `room`: pink noise at -50 dBFS, which is not in AVSBench-Robust. A gate on the level removes
  digital silence whatever it does with a quiet room.
- `noise`: white noise, seeded by the clip. The published generator writes float64 words as 16-bit samples.
- `offscreen`: the sound of another clip of the split, of another group of classes (`eval/offscreen_classes.csv`) that
  is not the one to be avoided. The published pairs depend on the order of the file system; these follow from sorted
  names, and are written to `pairs.csv`.

The folders of the published generator (`audio_wav_noise/`, `audio_wav_misaligned/` beside `audio_wav/`) are read
instead, if they exist.

FPR is the share of marked pixels: the published code averages it over the frames of a batch, then over batches
(`official`), here also over frames (`fixed`).
"""

from __future__ import annotations

import csv
import io
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from openavs.config import resources
from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks
from openavs.evaluation.datasets.tables import read_table
from openavs.evaluation.metrics.bootstrap import BootstrapSample, intervals
from openavs.evaluation.metrics.functional import Floats, Protocol, check_protocol, ratio
from openavs.evaluation.metrics.metrics import Row
from openavs.evaluation.predictions import check_complete, find_missing, locate_predictions, read_predictions
from openavs.utils.fs import atomic_write
from openavs.utils.text import did_you_mean, pluralize

logger = logging.getLogger(__name__)

KINDS = ("silence", "noise", "offscreen", "room")
TITLES = {
    "silence": "digital silence",
    "noise": "white noise",
    "offscreen": "a sound from off the screen",
    "room": "a quiet room (-50 dBFS)",
}
FOLDER = "negatives"
"""The folder of an evaluation with one result folder for each kind."""

MAX_WORST = 10  # clips that a report lists

_RELEASED = {"noise": "audio_wav_noise", "offscreen": "audio_wav_misaligned"}
_METADATA = ("", "..", "../AVSBench-semantic", "../AVSS", "../AVSBench_semantic")


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse a list of kinds, separated by commas.

    Raises:
        InputError: an unknown kind, or none.
    """
    kinds = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not kinds:
        raise InputError(f"--negatives names no kind; there are {', '.join(KINDS)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"--negatives has no kind {kind!r}; {did_you_mean(kind, KINDS)}")
    return kinds


def parse_folders(text: str) -> dict[str, Path]:
    """Parse `silence=DIR,noise=DIR`: the predictions for each kind.

    Raises:
        InputError: an unknown kind, or one without a folder.
    """
    pairs = [word.partition("=") for word in text.split(",") if word.strip()]
    for kind, _, folder in pairs:
        if not folder.strip():
            raise InputError(f"--negatives {kind!r} has no folder of predictions; write KIND=DIR, such as silence=DIR")
    parse_kinds(",".join(kind for kind, _, _ in pairs))
    return {kind.strip(): Path(folder.strip()) for kind, _, folder in pairs}


@dataclass(frozen=True)
class NegativeSplit:
    """The clips of a split with the sounds of one kind, and an empty truth.

    Attributes:
        source: where the sounds come from, as text.
        pairs: rows of clip, partner and reason of off-screen sounds; empty for other kinds and released folders.
    """

    dataset: Dataset
    source: str
    pairs: tuple[tuple[str, str, str], ...] = ()


def negative_split(dataset: Dataset, kind: str, *, sounds: bool = True) -> NegativeSplit:
    """Return a split with the sounds of one kind; `sounds=False` for predictions that exist.

    Raises:
        InputError: label maps, off-screen sounds without a table of classes, or a released folder that lacks a clip.
    """
    if dataset.task != "binary":
        raise InputError(f"--negatives goes with binary masks, such as s4 and ms3, not with {dataset.benchmark}")

    def empty(clip: BenchmarkClip) -> Masks:
        return np.zeros_like(dataset.read_truth(clip))

    silent = replace(dataset, read_truth=empty, read_instances=None, read_native=None)
    if not sounds:
        return NegativeSplit(silent, "given predictions")
    change, source, pairs = _exchange(dataset, kind)
    clips = LazyClips(range(len(dataset.clips)), lambda index: change(dataset.clips[index]))
    return NegativeSplit(replace(silent, clips=clips), source, pairs)


Exchange = Callable[[BenchmarkClip], BenchmarkClip]


def _exchange(dataset: Dataset, kind: str) -> tuple[Exchange, str, tuple[tuple[str, str, str], ...]]:
    """Return the function that exchanges the sound of a clip, the source as text, and the pairs of clips."""
    if (folder := _RELEASED.get(kind)) and _has_released(dataset, folder):
        return (lambda clip: replace(clip, audio=_released(clip, folder))), f"{folder}/ of the published generator", ()
    if kind != "offscreen":
        seeded = kind != "silence"
        return (
            lambda clip: replace(clip, sound=f"{kind}:{zlib.crc32(clip.id.encode())}" if seeded else kind),
            "generated" + (", seeded by the clip's id" if seeded else ""),
            (),
        )
    rows = offscreen_pairs(dataset)
    audio = {clip.id: clip.audio for clip in dataset.clips}
    partner = {clip: audio[other] for clip, other, _ in rows}
    return (lambda clip: replace(clip, audio=partner[clip.id])), "pairs of openavs (pairs.csv)", rows


def _released(clip: BenchmarkClip, folder: str) -> Path:
    parts = list(clip.audio.parts)
    place = len(parts) - 1 - parts[::-1].index("audio_wav")
    return Path(*parts[:place], folder, *parts[place + 1 :])


def _has_released(dataset: Dataset, folder: str) -> bool:
    """Whether a folder of the published generator exists; InputError if it lacks a clip's sound."""
    if not len(dataset.clips) or "audio_wav" not in dataset.clips[0].audio.parts:
        return False
    paths = [_released(clip, folder) for clip in dataset.clips]
    home = next(parent for parent in paths[0].parents if parent.name == folder)
    if not home.is_dir():
        return False
    if missing := [path for path in paths if not os.path.isfile(path)]:
        raise InputError(
            f"{home} lacks the sounds of {len(missing):,} of {pluralize(len(paths), 'clip')} (first: {missing[0]}); "
            "complete it, or rename it to use the sounds of openavs"
        )
    return True


# -------------------------------------------------------------------------------------------------- off-screen pairs


@dataclass(frozen=True)
class _Group:
    name: str
    avoided: str


def offscreen_pairs(dataset: Dataset) -> tuple[tuple[str, str, str], ...]:
    """Return clip, partner and reason for every clip of the split, in the order of their ids.

    S4: the partner's category is one of another group that is not avoided; categories and their clips are taken in
    sorted order, one after the other. MS3: the partner shares no group with the clip and has none that is avoided,
    else it is any other clip, as published.

    Raises:
        InputError: a benchmark without a table of classes, or a split of one clip.
    """
    groups = _groups(dataset.benchmark)
    if len(dataset.clips) < 2:
        raise InputError(f"the split {dataset.split!r} has one clip; an off-screen sound comes from another clip")
    if dataset.benchmark == "s4":
        return _s4_pairs({clip.id: clip.group or "" for clip in dataset.clips}, groups)
    return _ms3_pairs(_ms3_classes(dataset), groups)


def _groups(benchmark: str) -> dict[str, _Group]:
    """The group of each class of a benchmark, and the group to avoid."""
    with resources.shipped("eval", "offscreen_classes.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file, strict=True) if row["benchmark"] == benchmark]
    if not rows:
        raise InputError(f"--negatives offscreen goes with s4 and ms3, whose pairs have rules, not with {benchmark}")
    return {row["class"]: _Group(row["group"], row["avoided"]) for row in rows}


def _s4_pairs(categories: Mapping[str, str], groups: Mapping[str, _Group]) -> tuple[tuple[str, str, str], ...]:
    members: dict[str, list[str]] = {}
    for name in sorted(categories):
        members.setdefault(categories[name], []).append(name)
    found = []
    turns: Counter[str] = Counter()  # by group, so that the clips of a group go through all fitting categories
    for category, names in sorted(members.items()):
        own = groups.get(category)
        others = sorted(other for other in members if other != category)
        fitting = [other for other in others if own and _differs(own, groups.get(other))]
        for name in names:
            turn = turns[_name(own)]
            turns[_name(own)] += 1
            chosen = (fitting or others)[turn % len(fitting or others)] if others else category
            pool = [other for other in members[chosen] if other != name]
            partner = pool[(turn // max(1, len(fitting or others))) % len(pool)]
            words = f"{category} ({_name(own)}), {chosen} ({_name(groups.get(chosen))})"
            found.append((name, partner, words if fitting else f"no other group in the split: {words}"))
    return tuple(sorted(found))


def _ms3_pairs(classes: Mapping[str, frozenset[str]], groups: Mapping[str, _Group]) -> tuple[tuple[str, str, str], ...]:
    held = {name: {groups[c].name for c in own if c in groups} for name, own in classes.items()}
    avoided = {name: {groups[c].avoided for c in own if c in groups} for name, own in classes.items()}
    found = []
    for turn, name in enumerate(sorted(held)):
        others = [other for other in sorted(held) if other != name]
        fitting = [
            other for other in others if held[name] and held[other] and not held[other] & (held[name] | avoided[name])
        ]
        partner = (fitting or others)[turn % len(fitting or others)]
        words = f"{_set(held[name])}, {_set(held[partner])}"
        found.append((name, partner, words if fitting else f"any other clip: {words}"))
    return tuple(found)


def _differs(own: _Group, other: _Group | None) -> bool:
    return other is not None and other.name not in (own.name, own.avoided)


def _name(group: _Group | None) -> str:
    return group.name if group else "no group"


def _set(names: set[str]) -> str:
    return " and ".join(sorted(names)) or "no group"


def _ms3_classes(dataset: Dataset) -> dict[str, frozenset[str]]:
    """The classes of each clip from AVSBench-semantic's metadata.csv; MS3's own table has none."""
    table = next((p for place in _METADATA if os.path.isfile(p := dataset.root / place / "metadata.csv")), None)
    listed: dict[str, frozenset[str]] = {}
    if table is None:
        logger.warning(
            "%s has no metadata.csv of AVSBench-semantic in it or beside it, so the classes of MS3 are not known; an "
            "off-screen sound may be of a class in the picture, and its figure too high",
            dataset.root,
        )
    else:
        rows = read_table(table, {"vid": 0, "a_obj": 4, "split": 5, "label": 6})
        listed = {row["vid"]: frozenset(row["a_obj"].split("_")) for row in rows if row["label"] == "v1m"}
    return {clip.id: listed.get(clip.id, frozenset()) for clip in dataset.clips}


def write_pairs(path: Path, pairs: Sequence[tuple[str, str, str]]) -> None:
    """Write clip, partner and reason as a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("clip", "partner", "reason"), *pairs])
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text.getvalue().encode())


# ----------------------------------------------------------------------------------------------------------- figures


@dataclass(frozen=True)
class NegativeScores:
    """The figures of one kind, and the share of the frames of each clip (by id) that are left empty."""

    figures: Row
    left_empty: dict[str, float]


def score_negatives(
    split: NegativeSplit,
    predictions: Path,
    *,
    protocol: Protocol = "official",
    clips_per_batch: int | None = None,
    allow_missing: bool = False,
    limit: int | None = None,
    numbering: int | None = None,
    resize: bool = False,
) -> NegativeScores:
    """Score the masks that a system has marked with the sounds of one kind; the arguments are those of `score`."""
    dataset = locate_predictions(split.dataset, predictions, numbering=numbering, resize=resize)
    clips = dataset.clips[:limit]
    missing = find_missing(clips, predictions)
    if not allow_missing:
        check_complete(missing, clips)
    marked: list[Floats] = []
    left_empty: dict[str, float] = {}
    worst: list[Row] = []
    for clip in clips:
        absent = missing.frames.get(clip.id, frozenset())
        predicted = read_predictions(dataset, clip, predictions, dataset.read_truth(clip), absent)
        marked.append(np.mean(predicted > 127, axis=(1, 2)))
        left_empty[clip.id] = float(np.mean(marked[-1] == 0))
        worst.append({"id": clip.id, "fpr": float(marked[-1].mean())})
    worst = sorted((row for row in worst if row["fpr"]), key=lambda row: (-row["fpr"], row["id"]))[:MAX_WORST]
    figures = fpr_figures(marked, protocol, clips_per_batch or dataset.clips_per_batch) | {
        "source": split.source,
        "worst": worst,
    }
    return NegativeScores(figures, left_empty)


def fpr_figures(marked: Sequence[Floats], protocol: Protocol, clips_per_batch: int) -> Row:
    """Return FPR in both protocols from the share of marked pixels in each frame `[T]` of each clip.

    `fpr` is that of the chosen protocol, `interval` the one of `fixed` by the bootstrap over clips, `left_empty` the
    share of frames without any marked pixel.
    """
    check_protocol(protocol, len(marked))
    batches = [np.concatenate(marked[i : i + clips_per_batch]) for i in range(0, len(marked), clips_per_batch)]
    frames = np.concatenate(marked)
    fpr = {"official": float(np.mean([batch.mean() for batch in batches])), "fixed": float(frames.mean())}
    sums = np.array([(own.sum(), len(own)) for own in marked])
    sample = BootstrapSample(len(sums), lambda weights: {"fpr": ratio(*(weights @ sums).T)})
    return {
        "fpr": fpr[protocol],
        **fpr,
        "interval": list(intervals(sample)["fpr"]),
        "left_empty": float(np.mean(frames == 0)),
        "frames": len(frames),
    }


def selective_miou(positive: Sequence[Row], negatives: Sequence[NegativeScores]) -> float:
    """Return our aggregate over sounds: the mean over clips of J times the share of negative frames left empty.

    A system that marks the same with any sound has 0; one that marks what sounds, and nothing else, has 1. The
    published G-mIoU, G-F and G-FPR were aggregated by hand, without code; this is none of them.

    Args:
        positive: rows of `BenchmarkScores.per_clip`.
        negatives: the scores of each kind, which count alike.
    """
    return float(np.mean([row["score"] * np.mean([n.left_empty[row["id"]] for n in negatives]) for row in positive]))


def negatives_report(positive: Sequence[Row], scores: Mapping[str, NegativeScores]) -> Row:
    """Return `negatives` (the figures of each kind) and `robustness` (our aggregates) for a report; empty without any.

    `robustness` has `selective_miou` and `fpr`, the mean over the kinds.
    """
    if not scores:
        return {}
    figures = {kind: own.figures for kind, own in scores.items()}
    mean = float(np.mean([own["fpr"] for own in figures.values()]))
    return {
        "negatives": figures,
        "robustness": {"selective_miou": selective_miou(positive, list(scores.values())), "fpr": mean},
    }
