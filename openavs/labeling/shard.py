"""`run_shard`: one shard of a job, from its lines in the plan to its commit mark. Every engine calls it.

What lies under `OUT/clips` and `OUT/labels`, and the mark, depends on the plan and on the models alone: not on who runs
it, when, how often it was interrupted or what ran beside it. Times and hosts go to `OUT/log`.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from openavs.caching.stagewise import StagedSchedule
from openavs.config.recipe import Recipe, recipe_from_dict
from openavs.errors import InputError, InvalidOutputError, ModelError, OutOfMemoryError
from openavs.evaluation.datasets.mask_io import png_size
from openavs.labeling.completion import commit, journal_path, read_mark
from openavs.labeling.durations import save_seconds
from openavs.labeling.event_log import append
from openavs.labeling.executors.base import ClipFinished
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.journal import ShardJournal
from openavs.labeling.label_writer import label_folder, label_places, label_pngs
from openavs.labeling.loader import ClipError, ClipLoader
from openavs.labeling.locks import FIRST_SHARD, JOB, claim, claimed
from openavs.labeling.manifest import LINES
from openavs.labeling.records import failed_row, finished_row
from openavs.labeling.sample import Row, Sample, line_to_sample, locate
from openavs.models.oom import translate_oom_errors
from openavs.results.filters import FilteredResult, apply_label_filters
from openavs.results.serialization import clip_folder, json_bytes, mask_values, palette_png, segmentation_to_json
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip, ClipResult, segments_to_label_map
from openavs.utils.background_writer import BackgroundWriter
from openavs.utils.concurrency import prefetch
from openavs.utils.durable import FATAL_ERRNOS, remove_file, remove_folder, write_hashed

log = logging.getLogger(__name__)

T = TypeVar("T")

Segment = Callable[[Clip], ClipResult]
OPENED_AHEAD = 1
UNWRITTEN = 2


class ShardLockedError(Exception):
    """Another process is at work on this shard."""


def run_shard(
    spec: ShardSpec,
    segment: Segment,
    *,
    ahead: StagedSchedule | None = None,
    tell: Callable[[ClipFinished], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Works off what is missing of a shard and commits it; the same spec gives the same files, bit for bit.

    With `ahead`, whose pipeline `segment` is, the clips of a window are heard and asked about first. A clip's fault
    becomes its row. `tell` is called after every clip (from a thread of its own), `stop` asked before every clip.

    Returns:
        The commit mark; None if it was stopped, or if the spec names a part of the shard.

    Raises:
        ShardBusy: another process is at work on it.
        OSError, OpenAVSError: a fault of the job and not of a clip: a full disk, a model server that refuses.
    """
    job = spec.job
    claim(job.out, JOB, shared=True)
    with claimed(job.out, FIRST_SHARD + spec.number) as free:
        if not free:
            raise ShardLockedError(f"shard {spec.number} of {job.out}")
        if (mark := read_mark(job.out, spec.number, job.key)) is not None:
            return mark  # by another process, meanwhile
        items = read_samples(spec)
        work = _Work(job, spec.number, tell)
        try:
            work.run([item for item in items if spec.only is None or item.id in spec.only], segment, ahead, stop)
        finally:
            work.close()
        entries = [work.journal.finished.get(item.id) for item in items]
        if spec.only is not None or None in entries:
            return None
        save_seconds(job.out, spec.number, work.journal.seconds)
        return commit(job.out, spec.number, job.key, [entry for entry in entries if entry is not None])


def read_samples(spec: ShardSpec) -> list[Sample]:
    """The clips of a shard, from its lines in the plan."""
    path = spec.job.out / LINES
    with path.open("rb") as file:
        file.seek(spec.offset)
        lines = file.read(spec.size)
    if len(lines) != spec.size:
        raise InputError(f"{path} was cut short while the job ran; run the same again, which writes it anew")
    return [line_to_sample(line) for line in lines.splitlines()]


@dataclass(frozen=True)
class _Answer:
    """What became of a clip, on its way to the writer: a result, or why there is none."""

    item: Sample
    result: ClipResult | ClipError
    seconds: float


class _Work:
    """The clips of one shard, one after another: the next is opened and the last one written beside the models."""

    def __init__(self, job: Job, number: int, tell: Callable[[ClipFinished], None]) -> None:
        self.job, self.number, self.tell = job, number, tell
        self.recipe: Recipe = recipe_from_dict(dict(job.recipe))
        self.scratch = journal_path(job.out, number).with_suffix("")
        self.media = ClipLoader(job.root, self.scratch, self.recipe.sample.fps)
        shutil.rmtree(self.scratch, ignore_errors=True)  # what a killed run left
        self.journal = ShardJournal.read(journal_path(job.out, number))
        self.journal.believe(job.out)

    def run(
        self, items: list[Sample], segment: Segment, ahead: StagedSchedule | None, stop: Callable[[], bool]
    ) -> None:
        """Finishes the clips that are not finished, until it is told to stop."""
        todo = [item for item in items if item.id not in self.journal.finished]
        if not todo:
            return
        self.journal.start()
        size = len(todo) if ahead is None else ahead.window
        for start in range(0, len(todo), size):
            window = todo[start : start + size]
            if ahead is not None:
                self._go_ahead(window, ahead, stop)
            if not self._finish(window, segment, stop):
                return

    def _go_ahead(self, items: list[Sample], ahead: StagedSchedule, stop: Callable[[], bool]) -> None:
        """Has the clips of a window heard and asked about; a fault of one is put on record when it has its turn."""
        requests: list[Request] = []
        with closing(prefetch(self._opened(items), depth=OPENED_AHEAD)) as opened:
            for item, clip in opened:
                if stop():
                    return
                if not isinstance(clip, ClipError):
                    heard = self._guarded(item, clip, ahead.run_captioner)
                    requests += [] if isinstance(heard, ClipError) else [heard]
                self.media.close(item)
                self.journal.lay_aside(item.id)
        ahead.run_translator(requests)

    def _finish(self, todo: list[Sample], segment: Segment, stop: Callable[[], bool]) -> bool:
        """Segments and writes clips; False if it was told to stop."""
        clips = prefetch(self._opened(todo), depth=OPENED_AHEAD)
        with closing(clips) as opened, BackgroundWriter(self._write, depth=UNWRITTEN) as writer:
            for item, clip in opened:
                if stop():
                    return False
                started = time.monotonic()
                result = clip if isinstance(clip, ClipError) else self._guarded(item, clip, segment)
                writer.put(_Answer(item, result, time.monotonic() - started))
        return True

    def close(self) -> None:
        """Removes what was copied out of tars."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _opened(self, items: list[Sample]) -> Iterator[tuple[Sample, Clip | ClipError]]:
        for item in items:
            self.journal.begin(item.id)
            try:
                yield item, self.media.open(item)
            except ClipError as problem:
                yield item, problem

    def _guarded(self, item: Sample, clip: Clip, segment: Callable[[Clip], T]) -> T | ClipError:
        """One clip through models; whatever is its own fault is a row, so that one clip does not end the job."""
        try:
            with translate_oom_errors():
                return segment(clip)
        except ModelError:
            raise
        except InvalidOutputError as problem:
            return ClipError("invalid_output", str(problem))
        except OutOfMemoryError as problem:
            log.error("clip %s failed", item.id, exc_info=problem)
            return ClipError("out_of_memory", str(problem))
        except InputError as problem:
            return self.media.failure("failed", problem, item)
        except OSError as problem:
            if problem.errno in FATAL_ERRNOS:
                raise
            return self._unexpected(item, problem)
        except Exception as problem:  # noqa: BLE001 - named in the clip's row, and logged with its traceback
            return self._unexpected(item, problem)

    def _unexpected(self, item: Sample, problem: Exception) -> ClipError:
        log.error("clip %s failed", item.id, exc_info=problem)
        kind = type(problem).__name__
        return ClipError(f"unexpected {kind}", self.media.tell(f"{kind}: {problem}", item))

    # ------------------------------------------------------------------------------------------------- the writer

    def _write(self, answer: _Answer) -> None:
        started = time.monotonic()
        item, result = answer.item, answer.result
        _remove(self.job.out, item)
        row, files = self._put_on_record(item, result)
        self.media.close(item)
        seconds = round(answer.seconds + time.monotonic() - started, 4)
        self.journal.finish(row, files, seconds)
        timings = result.timings if isinstance(result, ClipResult) else {}
        done = ClipFinished(self.number, item.id, row["status"], row["reason"], seconds, timings)
        append(self.job.out, "clips", {key: value for key, value in asdict(done).items() if key != "cached"})
        self.tell(done)

    def _put_on_record(self, item: Sample, result: ClipResult | ClipError) -> tuple[Row, dict[str, str]]:
        """The row of a clip, and its files, which are written."""
        if isinstance(result, ClipResult):
            try:
                return self._write_result(item, result)
            except InputError as problem:
                _remove(self.job.out, item)
                result = ClipError("failed", self.media.tell(str(problem), item))
        return failed_row(item, result.reason, str(result)), {}

    def _write_result(self, item: Sample, result: ClipResult) -> tuple[Row, dict[str, str]]:
        clean = _impersonal(result, self.media, item)
        filtered = apply_label_filters(clean, self.recipe.label_filter)
        files = {} if filtered.reason else self._write_labels(item, filtered)
        files |= self._write_clip(clean)
        return finished_row(item, clean, filtered), dict(sorted(files.items()))

    def _write_labels(self, item: Sample, filtered: FilteredResult) -> dict[str, str]:
        like = None if item.like is None else locate(self.job.root, item.like)
        size = None if like is None or not os.path.isfile(like) else png_size(like)
        places = label_places(item, filtered.result)
        return {
            f"labels/{place}": write_hashed(self.job.out / "labels" / place, png)
            for place, png in zip(places, label_pngs(filtered.result, self.job.classes, size), strict=True)
        }

    def _write_clip(self, result: ClipResult) -> dict[str, str]:
        """`clips/<id>/`: the masks as `segment` writes them, and `result.json` last."""
        folder = clip_folder(self.job.out, result.clip)
        files = {}
        numbers = mask_values(result, self.job.values, self.job.classes)
        for frame, own in zip(result.frames, numbers, strict=True):
            png = palette_png(segments_to_label_map(frame.segments, own, result.size))
            files[f"masks/{frame.index:05d}.png"] = write_hashed(folder / "masks" / f"{frame.index:05d}.png", png)
        files["result.json"] = write_hashed(folder / "result.json", json_bytes(segmentation_to_json(result)))
        return {f"clips/{result.clip}/{name}": digest for name, digest in files.items()}


def _impersonal(result: ClipResult, media: ClipLoader, item: Sample) -> ClipResult:
    """The result without what differs from run to run and from machine to machine."""
    models = {ref: {k: v for k, v in facts.items() if k != "path"} for ref, facts in result.models.items()}
    warnings = tuple(media.tell(warning, item) for warning in result.warnings)
    return replace(result, timings={}, models=models, warnings=warnings, source=item.source)


def _remove(out: Path, item: Sample) -> None:
    """Removes whatever an interrupted run left of a clip."""
    remove_folder(clip_folder(out, item.id), out)
    if item.places:
        for place in item.places:
            remove_file(out / "labels" / place, out)
    else:
        remove_folder(out / "labels" / label_folder(item), out)
