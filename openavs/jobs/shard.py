"""THE LOOP over clips: open ahead, run, write, record, resume. Every executor and command calls it.

Results, sinks' files and completion files depend on the manifest and the models alone: not on which process runs a
shard, when, how often it was interrupted, or what ran beside it. Times and hosts go to `OUT/log`.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from openavs.caching.store import StageCache
from openavs.errors import InputError, InvalidOutputError, ModelError, OutOfMemoryError
from openavs.jobs.checkpoint import ShardJournal, append, complete, journal_path, read_completion, save_timings
from openavs.jobs.index import failed_row, finished_row
from openavs.jobs.job import (
    CacheCounter,
    ClipFinished,
    Job,
    PredictorOutput,
    ProbabilisticResult,
    ProgressListener,
    ShardSpec,
    Sink,
    WindowedPipeline,
    build,
    import_name,
    models_of,
)
from openavs.jobs.job_store import store_of
from openavs.jobs.loader import ClipError, ClipLoader, clip_loader
from openavs.jobs.locks import FIRST_SHARD, JOB, claim, release
from openavs.jobs.manifest import shard_samples
from openavs.jobs.sample import Row, Sample
from openavs.models.device import torch_threads, translate_oom_errors
from openavs.results.serialization import clip_folder, refuse_other_folder, result_files
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip, ClipResult
from openavs.utils.concurrency import BackgroundWriter, prefetch
from openavs.utils.fs import FATAL_ERRNOS, remove_folder, write_hashed

logger = logging.getLogger(__name__)

T = TypeVar("T")

Predict = Callable[[Clip], PredictorOutput]
OPENED_AHEAD = 1
UNWRITTEN = 2


class ShardLockedError(Exception):
    """Another process is at work on this shard."""


def run_shard(
    spec: ShardSpec,
    predict: Predict,
    *,
    on_clip: Callable[[ClipFinished], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Run the missing clips of a shard and complete it; the same spec gives the same files, bit for bit.

    Args:
        spec: The shard.
        predict: The pipeline. The clips of a window of a `WindowedPipeline` are captioned and translated first.
        on_clip: Called after every clip, from the thread that writes.
        stop: Called before every clip; True ends the loop.

    Returns:
        The content of the completion file; None if the loop was stopped, or if the spec names some clips only.

    Raises:
        ShardLockedError: another process is at work on the shard.
        OSError, OpenAVSError: a fault of the job and not of a clip, such as a full disk or a failing model server.
    """
    loop = ClipLoop(spec.job, predict, on_clip=on_clip, stop=stop)
    loop.run([spec])
    if loop.busy:
        raise ShardLockedError(f"shard {spec.number} of {spec.job.out}")
    return loop.completions.get(spec.number)


class _Shard:
    """A shard under way: its lock, its journal, and the number of its clips that are not finished."""

    def __init__(self, spec: ShardSpec, fps: float) -> None:
        out = spec.job.out
        self.spec, self.out = spec, out
        self.samples = shard_samples(spec)
        self.scratch = journal_path(out, spec.number).with_suffix("")
        self.loader = clip_loader(spec.job, self.scratch, fps)
        shutil.rmtree(self.scratch, ignore_errors=True)  # from a run that was killed
        self.journal = ShardJournal.open(out, spec.number)
        self.journal.forget_changed(out)
        wanted = [sample for sample in self.samples if spec.only is None or sample.id in spec.only]
        self.todo = [sample for sample in wanted if sample.id not in self.journal.finished]
        self.left = len(self.todo)
        if self.todo:
            self.journal.start()

    def complete(self) -> dict[str, Any] | None:
        """Write the completion file, if all clips are finished and the spec is that of the whole shard."""
        entries = [self.journal.finished.get(sample.id) for sample in self.samples]
        if self.spec.only is not None or None in entries:
            return None
        save_timings(self.out, self.spec.number, self.journal.timings)
        kept = [entry for entry in entries if entry is not None]
        return complete(self.out, self.spec.number, self.spec.job.key, kept)

    def close(self) -> None:
        """Remove copies of what is inside tars, and release the lock."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        release(self.out, FIRST_SHARD + self.spec.number)


@dataclass(frozen=True)
class _Output:
    """The outcome of a clip on its way to the thread that writes."""

    shard: _Shard
    sample: Sample
    clip: Clip | None
    output: PredictorOutput | ClipError
    seconds: float


Todo = tuple[_Shard, Sample]


class ClipLoop:
    """The loop over the clips of some shards: the next clip is opened and the last one written beside the models.

    `busy` are the shards that another process holds, `completions` what was completed, by number.

    Args:
        job: the job.
        predict: the pipeline.
        on_clip: called after every clip, from the thread that writes.
        on_completed: called with the number of every completed shard, from either thread.
        on_busy: called for a shard that another process holds.
        stop: called before every clip; True ends the loop.
        open_clip: called instead of opening a sample's files.
        call: called instead of the pipeline.
    """

    def __init__(
        self,
        job: Job,
        predict: Predict,
        *,
        on_clip: Callable[[ClipFinished], None],
        on_completed: Callable[[int], None] = lambda shard: None,
        on_busy: Callable[[ShardSpec], None] = lambda spec: None,
        stop: Callable[[], bool] = lambda: False,
        open_clip: Callable[[Sample], Clip] | None = None,
        call: Predict | None = None,
    ) -> None:
        self.job, self.predict, self.stop, self.open_clip = job, predict, stop, open_clip
        self.on_clip, self.on_completed, self.on_busy = on_clip, on_completed, on_busy
        self.call = call or predict
        self.fps = float(job.recipe.get("sample", {}).get("fps", 1.0))
        self.sink: Sink = import_name(job.sink)(job)
        self.busy: list[ShardSpec] = []
        self.completions: dict[int, dict[str, Any]] = {}
        self._open: dict[int, _Shard] = {}

    def run(self, specs: Iterable[ShardSpec]) -> bool:
        """Run the missing clips of shards; False if the loop was stopped."""
        claim(self.job.out, JOB, shared=True)
        staged = self.predict if isinstance(self.predict, WindowedPipeline) else None
        pending = self._pending(specs)
        try:
            if staged is None:
                return self._run(pending)
            while window := list(islice(pending, staged.window)):
                if not self._prepare(window, staged) or not self._run(iter(window)):
                    return False
            return True
        finally:
            for shard in list(self._open.values()):
                shard.close()

    def _pending(self, specs: Iterable[ShardSpec]) -> Iterator[Todo]:
        """Lock shard after shard and yield its missing clips."""
        for spec in specs:
            if not claim(self.job.out, FIRST_SHARD + spec.number):
                self.busy.append(spec)
                self.on_busy(spec)
                continue
            completion = read_completion(self.job.out, spec.number, self.job.key)
            if completion is not None:  # by another process meanwhile
                release(self.job.out, FIRST_SHARD + spec.number)
                self.completions[spec.number] = completion
                self.on_completed(spec.number)
                continue
            shard = self._open[spec.number] = _Shard(spec, self.fps)
            if not shard.todo:
                self._close(shard)
            for sample in shard.todo:
                yield shard, sample

    def _close(self, shard: _Shard) -> None:
        """Complete a shard whose clips are finished, and release it."""
        completion = shard.complete()
        del self._open[shard.spec.number]
        shard.close()
        if completion is not None:
            self.completions[shard.spec.number] = completion
            self.on_completed(shard.spec.number)

    # -------------------------------------------------------------------------------------------------- the models

    def _prepare(self, window: list[Todo], staged: WindowedPipeline) -> bool:
        """Caption and translate the clips of a window; their faults are recorded later. False if stopped."""
        requests: list[Request] = []
        with closing(prefetch(self._opened(iter(window)), depth=OPENED_AHEAD)) as opened:
            for shard, sample, clip in opened:
                if self.stop():
                    return False
                if not isinstance(clip, ClipError):
                    request = self._guarded(shard, sample, clip, staged.run_captioner)
                    requests += [] if isinstance(request, ClipError) else [request]
                shard.loader.close(sample)
                shard.journal.lay_aside(sample.id)
        staged.run_translator(requests)
        return True

    def _run(self, todo: Iterator[Todo]) -> bool:
        """Run the pipeline over clips and write them; False if stopped."""
        clips = prefetch(self._opened(todo), depth=OPENED_AHEAD)
        with closing(clips) as opened, BackgroundWriter(self._write, depth=UNWRITTEN) as writer:
            for shard, sample, clip in opened:
                if self.stop():
                    return False
                started = time.monotonic()
                failed = isinstance(clip, ClipError)
                output = clip if failed else self._guarded(shard, sample, clip, self.call)
                writer.put(_Output(shard, sample, None if failed else clip, output, time.monotonic() - started))
        return True

    def _opened(self, todo: Iterator[Todo]) -> Iterator[tuple[_Shard, Sample, Any]]:
        """Yield each clip, or the `ClipError` that kept it from being opened."""
        for shard, sample in todo:
            shard.journal.begin(sample.id)
            try:
                yield shard, sample, (self.open_clip or shard.loader.open)(sample)
            except ClipError as error:
                yield shard, sample, error

    def _guarded(self, shard: _Shard, sample: Sample, clip: Clip, run: Callable[[Clip], T]) -> T | ClipError:
        """Call `run(clip)`; a fault of the clip is returned, so that it does not end the job."""
        try:
            with translate_oom_errors():
                return run(clip)
        except ModelError:
            raise
        except InvalidOutputError as error:
            return ClipError("invalid_output", str(error))
        except OutOfMemoryError as error:
            logger.info("clip %s failed", sample.id, exc_info=error)
            return ClipError("out_of_memory", str(error))
        except InputError as error:
            return shard.loader.failure("failed", error, sample)
        except OSError as error:
            if error.errno in FATAL_ERRNOS:
                raise
            return _unexpected(shard, sample, error)
        except Exception as error:  # noqa: BLE001 - named in the clip's row, and logged with its traceback
            return _unexpected(shard, sample, error)

    # ------------------------------------------------------------------------------------------------- the writer

    def _write(self, done: _Output) -> None:
        started = time.monotonic()
        shard, sample, output = done.shard, done.sample, done.output
        self._remove(sample)
        row, files = self._record(done)
        shard.loader.close(sample)
        self._publish(sample, row, files)
        seconds = round(done.seconds + time.monotonic() - started, 4)
        result = output.result if isinstance(output, ProbabilisticResult) else output
        timings = result.timings if isinstance(result, ClipResult) else {}
        shard.journal.finish(row, files, {"seconds": seconds, "stages": dict(timings)})
        event = ClipFinished(
            shard.spec.number, sample.id, row["status"], row["reason"], seconds, timings, detail=row["detail"]
        )
        append(self.job.out, "clips", {key: value for key, value in asdict(event).items() if key != "cached"})
        self.on_clip(event)
        shard.left -= 1
        if not shard.left:
            self._close(shard)

    def _record(self, done: _Output) -> tuple[Row, dict[str, str]]:
        """Write the files of a clip; returns its row and the stamps of its files."""
        sample, failure = done.sample, done.output
        if not isinstance(failure, ClipError):
            try:
                return self._write_clip(done.shard, sample, done.clip, failure)
            except InputError as error:
                self._remove(sample)
                failure = ClipError("failed", done.shard.loader.portable(str(error), sample))
        return failed_row(sample, failure.reason, str(failure)), {}

    def _write_clip(
        self, shard: _Shard, sample: Sample, clip: Any, output: PredictorOutput
    ) -> tuple[Row, dict[str, str]]:
        if isinstance(output, ProbabilisticResult):
            result = _portable(output.result, shard.loader, sample)
            output = replace(output, result=result)
        else:
            output = result = _portable(output, shard.loader, sample)
        filtered = self.sink.filter(result)
        files: dict[str, str] = {}
        if not filtered.reason:
            files |= self.sink.write(sample, clip, output, filtered)
        files |= self._write_result(result if self.sink.pictures else _without_picture(result))
        return finished_row(sample, result, filtered), dict(sorted(files.items()))

    def _write_result(self, result: ClipResult) -> dict[str, str]:
        """Write `clips/<id>/`; returns the hash of each file."""
        folder = clip_folder(self.job.out, result.clip)
        files = result_files(result, self.job.values, self.job.classes)
        return {f"clips/{result.clip}/{name}": write_hashed(folder / name, content) for name, content in files}

    def _publish(self, sample: Sample, row: Row, files: Mapping[str, str]) -> None:
        """Write the files of a clip to the job's object store, if it has one; a failed clip leaves none there."""
        store = store_of(self.job.out)
        if store is None:
            return
        store.publish(files)
        if row["status"] == "failed":
            for folder in (f"clips/{sample.id}", self.sink.folder_of(sample)):
                store.objects.remove(store.objects.find(folder) if folder else ())

    def _remove(self, sample: Sample) -> None:
        """Remove the files that an interrupted run left of a clip."""
        folder = clip_folder(self.job.out, sample.id)
        refuse_other_folder(folder)
        remove_folder(folder, self.job.out)
        self.sink.remove(sample)


def _unexpected(shard: _Shard, sample: Sample, error: Exception) -> ClipError:
    logger.error("clip %s failed", sample.id, exc_info=error)
    kind = type(error).__name__
    return ClipError(f"unexpected {kind}", shard.loader.portable(f"{kind}: {error}", sample))


def _without_picture(result: ClipResult) -> ClipResult:
    """Return the result without the picture that a reasoner was shown."""
    reasoning = result.reasoning
    return result if reasoning is None else replace(result, reasoning=replace(reasoning, picture=None))


def _portable(result: ClipResult, loader: ClipLoader, sample: Sample) -> ClipResult:
    """Return the result without what differs from run to run and from machine to machine."""
    models = {ref: {k: v for k, v in facts.items() if k != "path"} for ref, facts in result.models.items()}
    warnings = tuple(loader.portable(warning, sample) for warning in result.warnings)
    return replace(result, timings={}, models=models, warnings=warnings, source=sample.source or None)


def no_pipeline(clip: Clip) -> Any:
    """Stand-in for the pipeline in a run whose clips cannot be opened, so that it loads no models.

    Raises:
        InputError: a clip was opened.
    """
    raise InputError(f"{clip.source or clip.id} has changed since it was checked; run the same command again")


Built = tuple[Any, StageCache | None]
"""A pipeline (or one of its methods, or a function of a clip) and its stage cache."""


@dataclass
class InlineExecutor:
    """Runs shards in this process, one clip after the other.

    Attributes:
        build: Builds the pipeline, when there is a shard to run; by default as a worker does.
        wrap: Returns the function of a clip that is called instead of the pipeline; for progress of stages.
        open_clip: Opens the clip of a sample; by default its files are.
    """

    build: Callable[[], Built] | None = None
    wrap: Callable[[Any], Callable[[Clip], Any]] | None = None
    open_clip: Callable[[Sample], Clip] | None = None

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """See `Executor.run`. KeyboardInterrupt ends it; the clip under way is run again by the next run."""
        predict, cache = self.build() if self.build is not None else build(job)
        if predict is not no_pipeline:
            listener.ready(models_of(predict))
        cached, lock = CacheCounter(cache), threading.Lock()

        def send(event: Callable[..., T], *values: Any) -> T:
            with lock:  # calls of a listener do not overlap, and the loop has two threads
                return event(*values)

        loop = ClipLoop(
            job,
            predict,
            on_clip=lambda done: send(listener.clip, replace(done, cached=cached())),
            on_completed=partial(send, listener.completed),
            on_busy=partial(send, listener.busy),
            stop=partial(send, listener.stopping),
            open_clip=self.open_clip,
            call=None if self.wrap is None else self.wrap(predict),
        )
        with torch_threads(job.threads):
            loop.run(shards)
