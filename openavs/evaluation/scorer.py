"""Scores a folder of predicted masks against a split of a benchmark: any system's, no model is needed.

Clips are read and counted one by one; the accumulators (`metrics/accumulators.py`) keep under 2 kB of each.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import get_args

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks
from openavs.evaluation.metrics.accumulators import MetricAccumulator, Row, make_accumulator
from openavs.evaluation.metrics.aggregation import Protocol, check_protocol
from openavs.evaluation.metrics.bootstrap import intervals
from openavs.evaluation.metrics.per_clip import BenchmarkScores
from openavs.evaluation.metrics.silence import SilenceAccumulator
from openavs.evaluation.missing import find_missing, read_present, refuse_missing
from openavs.evaluation.prediction_layouts import located
from openavs.evaluation.predictions import clip_folder, extra_predictions
from openavs.pipeline.context import Progress

log = logging.getLogger(__name__)


def score(
    dataset: Dataset,
    predictions: Path,
    *,
    protocol: Protocol = "official",
    clips_per_batch: int = 1,
    allow_missing: bool = False,
    limit: int | None = None,
    numbering: int | None = None,
    resize: bool = False,
    progress: Progress | None = None,
) -> BenchmarkScores:
    """Score the masks below `predictions`, in the layout of the ground truth or one of `prediction_layouts`.

    Args:
        protocol: whose figures are asked for; those of the other are computed too.
        clips_per_batch: the batch of the `official` J and F of binary masks; no other figure depends on it.
        allow_missing: count missing masks as empty and list their clips, instead of refusing.
        limit: score the first clips only.
        numbering: the number of a clip's first mask in file names; None is the benchmark's.
        resize: resize masks of another size to the nearest pixel, instead of refusing.

    Raises:
        InputError: missing predictions, masks that seem to be numbered otherwise, a mask that is not what the layout
            says, or nothing to score.
    """
    dataset = located(dataset, predictions, numbering=numbering, resize=resize)
    clips = dataset.clips[:limit]
    check_protocol(protocol, len(clips))
    missing = find_missing(clips, predictions)
    _warn_of_extra(dataset, predictions)
    if not allow_missing:
        refuse_missing(missing, clips)
    tally = make_accumulator(dataset, clips_per_batch)
    silence = SilenceAccumulator(len(dataset.classes) if dataset.task != "binary" else 0)
    rows = []
    frames = highest = 0
    for done, clip in enumerate(clips, start=1):
        truth = dataset.read_truth(clip)
        absent = missing.frames.get(clip.id, frozenset())
        predicted = read_present(dataset, clip, predictions, truth, absent)
        published = None
        if dataset.read_published is not None:
            published = read_present(dataset, clip, predictions, truth, absent, dataset.read_published)
        rows.append(_count(tally, clip, predicted, truth, published))
        silence.add(clip, predicted, truth)
        frames, highest = frames + len(truth), max(highest, int(predicted.max()))
        if progress:
            progress("score", done, len(clips))
    if dataset.task == "binary" and highest == 1:  # one such mask may be a system's doubt, all of them are a mistake
        raise InputError(
            f"no predicted mask in {predictions} has a value above 1, which means a probability of 1/255; "
            "write masks with 0 and 255"
        )
    return BenchmarkScores(
        benchmark=dataset.benchmark,
        task=dataset.task,
        split=dataset.split,
        protocol=protocol,
        clips_per_batch=clips_per_batch,
        clips=len(clips),
        frames=frames,
        figures={name: tally.figures(name) for name in get_args(Protocol)},
        intervals={name: intervals(tally.sample(name)) for name in get_args(Protocol)},
        silence=silence.compute(),
        per_class=tuple(tally.per_class()),
        per_clip=tuple(rows),
        curve=tally.curve(),
        missing=tuple(missing.frames),
        missing_masks=missing.masks,
    )


def _count(
    tally: MetricAccumulator, clip: BenchmarkClip, predicted: Masks, truth: Masks, published: Masks | None
) -> Row:
    try:
        return tally.add(clip, predicted, truth, published)
    except InputError as problem:
        raise InputError(f"clip {clip.id}: {problem}") from problem


def _warn_of_extra(dataset: Dataset, predictions: Path) -> None:
    """Names what lies among the split's predictions and belongs to none of its clips: often a misspelt name."""
    folders = (clip_folder(clip).parts for clip in dataset.clips)
    tops = {parts[0] for parts in folders if len(parts) > 1}  # other splits have folders of their own
    extra = [path for path in extra_predictions(dataset, predictions) if not tops or Path(path).parts[0] in tops]
    if extra:
        log.warning(
            "%s holds what belongs to no clip or frame of the split %r and is not scored: %s (%d in all)",
            *(predictions, dataset.split, extra[0], len(extra)),
        )
