"""Scores a folder of predicted masks against a split of a benchmark, without any model.

Clips are counted one by one, while the next one is read in a thread; the metrics keep under 2 kB of each.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, get_args

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Masks, Task, prediction_folder
from openavs.evaluation.datasets.tables import S4_CATEGORIES
from openavs.evaluation.metrics.bootstrap import Interval, intervals
from openavs.evaluation.metrics.functional import Figures, Protocol, check_protocol
from openavs.evaluation.metrics.metrics import ClipFacts, Metric, Row, make_metric
from openavs.evaluation.metrics.silence import EmptyFrameMetrics
from openavs.evaluation.metrics.track_metrics import TrackMetrics
from openavs.evaluation.metrics.twins import TwinsMetrics
from openavs.evaluation.predictions import (
    check_complete,
    extra_predictions,
    find_missing,
    locate_predictions,
    read_predictions,
)
from openavs.evaluation.track_predictions import TrackPredictions
from openavs.pipeline.context import Progress
from openavs.results.serialization import json_bytes
from openavs.utils.concurrency import prefetch
from openavs.utils.fs import atomic_write
from openavs.utils.text import pluralize

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkScores:
    """Figures of one system on one split; shares and scores are in [0, 1].

    Attributes:
        protocol: the chosen protocol; `figures` and `intervals` have both.
        clips_per_batch: the batch of the `official` J and F of binary masks.
        intervals: 95 %, by the bootstrap over clips (over batches for `official` figures of binary masks).
        silence: the output of `EmptyFrameMetrics.compute`.
        per_class: rows of `name`, `clips` and `frames` whose truth holds it, `j` or `iou`, and `f`, by the `fixed`
            definitions, which depend neither on batches nor on padding; `hota` and `map` for tracks.
        per_clip: rows of `id`, `group`, `frames`, `score` (mean J, mean IoU of the classes that truth or prediction
            hold, or FSLA) and `f`.
        curve: the mean `precision`, `recall` and `f` at the 255 values of `threshold`; None for label maps; for tracks
            `hota`, `det_a` and `ass_a` at 19 values of IoU.
        groups: rows of `TwinsMetrics.groups` or `Metric.groups`; most benchmarks have none.
        missing: the clips that lack predictions, `missing_masks` of them in total, which count as empty.
    """

    benchmark: str
    task: Task
    split: str
    protocol: Protocol
    clips_per_batch: int
    clips: int
    frames: int
    figures: dict[Protocol, Figures]
    intervals: dict[Protocol, dict[str, Interval]] = field(default_factory=dict)
    silence: Figures = field(default_factory=dict)
    per_class: tuple[Row, ...] = ()
    per_clip: tuple[Row, ...] = ()
    curve: dict[str, list[float]] | None = None
    groups: tuple[Row, ...] = ()
    missing: tuple[str, ...] = ()
    missing_masks: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; `metrics` are the figures of the chosen protocol."""
        return {
            "benchmark": self.benchmark,
            "task": self.task,
            "split": self.split,
            "protocol": self.protocol,
            "clips_per_batch": self.clips_per_batch,
            "clips": self.clips,
            "frames": self.frames,
            "missing": len(self.missing),
            "missing_masks": self.missing_masks,
            "metrics": self.figures[self.protocol],
            "figures": self.figures,
            "intervals": {name: {k: list(v) for k, v in rows.items()} for name, rows in self.intervals.items()},
            "silence": self.silence,
            "per_class": list(self.per_class),
            "per_clip": list(self.per_clip),
            "curve": self.curve,
            "groups": list(self.groups),
        }


def write_scores(out: Path, report: dict[str, Any]) -> None:
    """Write `report.json` (`BenchmarkScores.to_dict()` with additions) and `per_clip.csv` to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ("id", "group", "frames", "score", "f"))
    writer.writeheader()
    writer.writerows(report["per_clip"])
    atomic_write(out / "per_clip.csv", table.getvalue().encode())
    atomic_write(out / "report.json", json_bytes(report))


class ScoringOptions(TypedDict, total=False):
    """Options of everything that scores a split; `score` describes them."""

    protocol: Protocol
    clips_per_batch: int | None
    allow_missing: bool
    limit: int | None


def score(
    dataset: Dataset,
    predictions: Path,
    *,
    protocol: Protocol = "official",
    clips_per_batch: int | None = None,
    allow_missing: bool = False,
    limit: int | None = None,
    numbering: int | None = None,
    resize: bool = False,
    progress: Progress | None = None,
) -> BenchmarkScores:
    """Score the masks below `predictions`, in the layout of the ground truth or of the published scripts.

    Tracks are one file, or the only JSON file of a folder.

    Args:
        dataset: the split to score on.
        predictions: the folder of masks; `locate_predictions` recognizes its layout.
        protocol: the protocol of `metrics`; the figures of the other are computed too.
        clips_per_batch: the batch of the `official` J and F of binary masks; no other figure depends on it. None: that
            of the published evaluation.
        allow_missing: count missing masks as empty and list their clips, instead of raising.
        limit: score the first clips only.
        numbering: the number of a clip's first mask in file names; None means that of the benchmark.
        resize: resize masks of another size to the nearest pixel, instead of raising.
        progress: called with `score`, the number of clips done and their total.

    Raises:
        InputError: missing predictions, masks that seem to be numbered otherwise, a mask that does not match the
            layout, or nothing to score.
    """
    if dataset.task == "instances":
        if numbering is not None or resize:
            raise InputError(f"the predictions of {dataset.benchmark} are one file; leave --numbering and --resize out")
        return _score_tracks(dataset, predictions, protocol, limit, progress)
    dataset = locate_predictions(dataset, predictions, numbering=numbering, resize=resize)
    clips = dataset.clips[:limit]
    check_protocol(protocol, len(clips))
    missing = find_missing(clips, predictions)
    _warn_extra(dataset, predictions)
    if not allow_missing:
        check_complete(missing, clips)
    clips_per_batch = clips_per_batch or dataset.clips_per_batch
    if dataset.make_metric is not None:
        metric: Metric = dataset.make_metric(clips_per_batch)
    else:
        metric = make_metric(dataset.task, dataset.classes, clips_per_batch)
    silence = EmptyFrameMetrics(len(dataset.classes) if dataset.task != "binary" else 0)
    twins = TwinsMetrics() if dataset.read_instances is not None else None
    table_names = _table_names(dataset)
    rows: list[Row] = []
    highest = 0

    def read(clip: BenchmarkClip) -> tuple[BenchmarkClip, Masks, Masks, Masks | None]:
        truth = dataset.read_truth(clip)
        absent = missing.frames.get(clip.id, frozenset())
        predicted = read_predictions(dataset, clip, predictions, truth, absent)
        if dataset.read_published is None:
            return clip, truth, predicted, None
        published = read_predictions(dataset, clip, predictions, truth, absent, dataset.read_published)
        return clip, truth, predicted, published

    with closing(prefetch(map(read, clips), depth=1)) as masks:  # decoding PNG files is half of the time
        for done, (clip, truth, predicted, published) in enumerate(masks, start=1):
            try:
                own = metric.update(predicted, truth, ClipFacts(published, table_names(clip), clip))
            except InputError as error:
                raise InputError(f"clip {clip.id}: {error}") from error
            rows.append({"id": clip.id, "group": clip.group, "frames": len(truth), "score": own.score, "f": own.f})
            if dataset.make_metric is None:
                silence.update(clip, predicted, truth)
            if twins is not None and dataset.read_instances is not None:
                twins.update(predicted, dataset.read_instances(clip), clip.group)
            highest = max(highest, int(predicted.max()))
            if progress:
                progress("score", done, len(clips))
    # A single mask with a maximum of 1 may be an unsure prediction; if all are, they were written as 0 and 1.
    if dataset.task == "binary" and highest == 1:
        raise InputError(
            f"no predicted mask in {predictions} has a value above 1, which means a probability of 1/255; "
            "write masks with 0 and 255"
        )
    # The figures of twins hold for both protocols; their mIoU leaves out frames without a visible sounding instance.
    figures: Figures = {} if twins is None else twins.compute()
    bounds = {} if twins is None else intervals(twins.sample())
    return BenchmarkScores(
        benchmark=dataset.benchmark,
        task=dataset.task,
        split=dataset.split,
        protocol=protocol,
        clips_per_batch=clips_per_batch,
        clips=len(clips),
        frames=metric.frames,
        figures={name: metric.compute(name) | figures for name in get_args(Protocol)},
        intervals={name: intervals(metric.sample(name)) | bounds for name in get_args(Protocol)},
        silence=silence.compute() if dataset.make_metric is None else {},
        per_class=tuple(metric.per_class()),
        per_clip=tuple(rows),
        curve=metric.curve(),
        groups=tuple(metric.groups() if twins is None else twins.groups()),
        missing=tuple(missing.frames),
        missing_masks=missing.masks,
    )


def _score_tracks(
    dataset: Dataset, predictions: Path, protocol: Protocol, limit: int | None, progress: Progress | None
) -> BenchmarkScores:
    """Score a file of predicted tracks; a clip without any is predicted to be silent."""
    assert dataset.read_tracks is not None and dataset.track_layout is not None
    clips = dataset.clips[:limit]
    check_protocol(protocol, len(clips))
    predicted = TrackPredictions(predictions, dataset.track_layout)
    metric = TrackMetrics(dataset.classes)
    rows: list[Row] = []
    for done, clip in enumerate(clips, start=1):
        frames = len(clip.frames)
        own = metric.update(dataset.read_tracks(clip), predicted.tracks(clip.id), frames)
        rows.append({"id": clip.id, "group": clip.group, "frames": frames, "score": own, "f": None})
        if progress:
            progress("score", done, len(clips))
    if metric.failed:
        logger.warning(
            "the published FSLA ends in an IndexError for %s, in which tracks have null in place of masks, and is "
            "undefined; write empty masks as the published code does, or use the protocol fixed",
            pluralize(metric.failed, "clip"),
        )
    return BenchmarkScores(
        benchmark=dataset.benchmark,
        task=dataset.task,
        split=dataset.split,
        protocol=protocol,
        clips_per_batch=1,
        clips=len(clips),
        frames=metric.frames,
        figures={name: metric.compute(name) for name in get_args(Protocol)},
        intervals={name: intervals(metric.sample(name)) for name in get_args(Protocol)},
        per_class=tuple(metric.per_class()),
        per_clip=tuple(rows),
        curve=metric.curve(),
    )


def _table_names(dataset: Dataset) -> Callable[[BenchmarkClip], Sequence[str]]:
    """The rows of the per-class table that a clip counts in: its S4 category, or else its sounding classes."""
    if all(clip.group in S4_CATEGORIES or not clip.classes for clip in dataset.clips):
        return lambda clip: (clip.group,) if clip.group else ()
    return lambda clip: clip.classes


def _warn_extra(dataset: Dataset, predictions: Path) -> None:
    """Warns of predictions that belong to no clip of the split, often because of a misspelled name."""
    folders = (prediction_folder(clip).parts for clip in dataset.clips)
    tops = {parts[0] for parts in folders if len(parts) > 1}  # other splits have folders of their own
    extra = [path for path in extra_predictions(dataset, predictions) if not tops or Path(path).parts[0] in tops]
    if extra:
        logger.warning(
            "%s holds what belongs to no clip or frame of the split %r and is not scored: %s (%d in total)",
            *(predictions, dataset.split, extra[0], len(extra)),
        )
