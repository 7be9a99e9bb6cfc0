"""The progress of a job: counted from completion files and from the events of workers, and kept in `OUT/run.json`."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openavs.errors import InputError, ModelError
from openavs.jobs.checkpoint import WORK, append, completed, log_path, now, read_completion
from openavs.jobs.job import ClipFinished, Job, ShardSpec
from openavs.jobs.job_store import store_of
from openavs.jobs.locks import RUN, claimed
from openavs.jobs.manifest import Manifest
from openavs.models.hub import split_reference
from openavs.pipeline.lockfile import add_to_lock
from openavs.results.provenance import provenance
from openavs.results.serialization import json_bytes
from openavs.utils.fs import atomic_write, read_regular, write_whole
from openavs.utils.serialization import parse_json

logger = logging.getLogger(__name__)

FORMAT = 2
MODELS = f"{WORK}/models.json"
SAVE_INTERVAL = 2.0
"""Seconds between two writes of `run.json`."""
STORE_INTERVAL = 30.0
"""The same, where each is a request to an object store."""
RESCAN_INTERVAL = 10.0
"""Seconds between two scans for completion files of other jobs on the folder."""


class JobProgress:
    """The listener of a run: counts, logs, and writes `run.json`. Durations are monotonic: the clock may be set.

    Args:
        job: The job.
        manifest: Its manifest.
        numbers: The shards of this run.
        about: Entries of `run.json`: `command`, `executor`, `source`, `root`.

    Attributes:
        on_change: Called after every change with the progress.
        on_clip: Called with the event of every finished clip.

    `counts`, `reasons` and `rejected` are sums over the completed shards of the whole folder, whichever process
    completed them. Setting `stop` ends the run after the clips under way.
    """

    def __init__(self, job: Job, manifest: Manifest, numbers: Sequence[int], about: Mapping[str, Any]) -> None:
        self.job, self.manifest, self.numbers = job, manifest, numbers
        self.on_change: Callable[[JobProgress], None] = lambda progress: None
        self.on_clip: Callable[[ClipFinished], None] = lambda done: None
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.shards: set[int] = set()
        self.cached: Counter[str] = Counter()
        self.worker_crashes = 0
        self.worked = 0  # clips that this run finished
        self.loaded = False  # whether a worker has loaded its models
        self.stop = False
        self._live: defaultdict[int, Counter[tuple[str, str | None]]] = defaultdict(Counter)
        self._begun = time.monotonic()
        self._first: float | None = None
        self._wrote = self._scanned = float("-inf")
        known = {"command": "", "executor": "inline", "source": None, "root": str(job.root)}
        self._about = {
            "format": FORMAT,
            **known,
            **about,
            "started": _started(job.out, manifest.key) or now(),
            **provenance(),
        }
        self._models: dict[str, Any] = {}
        self._store = store_of(job.out)
        self.rescan()

    # ---------------------------------------------------------------------------------------- events of an executor

    def ready(self, models: Mapping[str, Any]) -> None:
        """Record that a worker has loaded its models.

        Raises:
            ModelError: these are not the models that the job began with.
        """
        facts = {ref: {k: v for k, v in own.items() if k != "path"} for ref, own in models.items()}
        check_models(self.job.out, facts)
        if self.job.lock is not None:
            add_to_lock(self.job.lock, models)
        self._models, self.loaded = facts, True
        self._changed()

    def clip(self, done: ClipFinished) -> None:
        """Record a finished clip; it is counted as such when its shard is completed."""
        self._first = self._first or time.monotonic() - done.seconds
        self.worked += 1
        self.cached.update(done.cached)
        self._live[done.shard][done.status, done.reason] += 1
        self.on_clip(done)
        self._changed()

    def completed(self, shard: int) -> None:
        """Record a completed shard."""
        self._add(shard)
        self._changed()

    def busy(self, spec: ShardSpec) -> None:
        """Record that another job holds a shard; `rescan` finds its completion file later."""
        logger.info("shard %d is at work elsewhere", spec.number)

    def crashed(self, spec: ShardSpec | None, how: str) -> None:
        """Record the crash of a worker."""
        self.worker_crashes += 1
        at = None if spec is None else {"shard": spec.number, "alone": list(spec.only or ())}
        append(self.job.out, "driver", {"event": "worker crashed", "how": how, "at": at})
        logger.warning("a worker crashed (%s)%s; its shard is resumed", how, f" at shard {spec.number}" if spec else "")
        self._changed()

    def stopping(self) -> bool:
        """Return whether to stop; also rescans and keeps `run.json` current while nothing else happens."""
        if time.monotonic() - self._scanned > RESCAN_INTERVAL:
            self.rescan()
            self._changed()
        return self.stop

    # -------------------------------------------------------------------------------------------------- the figures

    @property
    def status(self) -> Counter[str]:
        """Clips by status, including those of shards under way."""
        live = Counter[str]()
        for own in self._live.values():
            for (status, _), count in own.items():
                live[status] += count
        return self.counts + live

    @property
    def failures(self) -> Counter[str]:
        """Failed clips by reason, including those of shards under way."""
        found = Counter(self.reasons)
        for own in self._live.values():
            for (status, reason), count in own.items():
                if status == "failed" and reason is not None:
                    found[reason] += count
        return found

    @property
    def rate(self) -> float | None:
        """Clips per second of this run since its first clip; None before."""
        spent = time.monotonic() - (self._first or time.monotonic())
        return self.worked / spent if spent > 0 else None

    @property
    def missing(self) -> list[int]:
        """The shards of this run that are not completed."""
        return [number for number in self.numbers if number not in self.shards]

    @property
    def total(self) -> int:
        """Number of clips of this run's shards."""
        return sum(map(self.manifest.clips_of, self.numbers))

    @property
    def left(self) -> int:
        """Number of clips of this run's shards that are not finished."""
        live = sum(own.total() for own in self._live.values())
        return max(0, sum(map(self.manifest.clips_of, self.missing)) - live)

    def summary(self) -> dict[str, Any]:
        """Return the figures of the folder's clips so far, and of this run."""
        status = self.status
        return {
            "clips": self.manifest.clips,
            **{name: status[name] for name in ("ok", "filtered", "failed")},
            "left": self.manifest.clips - status.total(),
            "reasons": dict(sorted(self.failures.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "shards": {"planned": self.manifest.shards, "completed": len(self.shards)},
            "worked": self.worked,
            "seconds": round(time.monotonic() - self._begun, 3),
            "clips_per_second": None if self.rate is None else round(self.rate, 3),
            "cached": dict(sorted(self.cached.items())),
            "worker_crashes": self.worker_crashes,
        }

    def rescan(self) -> None:
        """Count new completion files, of this job or of another one on the same folder."""
        for shard in sorted(completed(self.job.out) - self.shards):
            self._add(shard)
        self._scanned = time.monotonic()

    def save(self, status: str) -> dict[str, Any]:
        """Write `run.json` and return its content; `status` becomes `finished` if all is done.

        Of several jobs that end together, the last one to write finds all completion files.
        """
        with claimed(self.job.out, RUN, wait=True):
            if status != "running":
                self.rescan()
            data = self._contents(status)
            part = log_path(self.job.out, "run", ".json.part")
            write_whole(self.job.out / "run.json", json_bytes(data), part=part)
            if self._store is not None:
                self._store.push("run.json")
        self._wrote = time.monotonic()
        return data

    def _contents(self, status: str) -> dict[str, Any]:
        known = self.manifest.data
        return {
            **self._about,
            "status": "finished" if len(self.shards) == self.manifest.shards else status,
            "updated": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "key": self.manifest.key,
            **self.summary(),
            "counts": {name: self.status[name] for name in ("ok", "filtered", "failed")},
            "data": known["data"],
            "masks": known["masks"],
            "models": self._models or _known_models(self.job.out / MODELS),
            "recipe": known["recipe"],
        }

    def _add(self, shard: int) -> None:
        completion = read_completion(self.job.out, shard, self.manifest.key)
        self._live.pop(shard, None)
        if completion is None or shard in self.shards:
            return
        self.shards.add(shard)
        self.counts.update(completion["counts"])
        self.rejected.update(completion["rejected"])
        self.reasons.update(completion["reasons"])

    def _changed(self) -> None:
        if time.monotonic() - self._wrote > (SAVE_INTERVAL if self._store is None else STORE_INTERVAL):
            self.save("running")
        self.on_change(self)


def _started(out: Path, key: str) -> str | None:
    """Return the time at which the first run of the job began; None if this is the first."""
    try:
        known = parse_json(read_regular(out / "run.json"))
    except (OSError, ValueError):
        return None
    started = known.get("started") if isinstance(known, dict) and known.get("key") == key else None
    return started if isinstance(started, str) else None


def check_models(out: Path, facts: Mapping[str, Any]) -> None:
    """Refuse other models than the job began with, which `work/models.json` records: branches of a hub move.

    Raises:
        ModelError: a model has another revision.
        InputError: the record is damaged.
    """
    path = out / MODELS
    with claimed(out, RUN, wait=True):
        if not os.path.lexists(path):
            path.parent.mkdir(exist_ok=True)
            atomic_write(path, json_bytes(facts))
            store = store_of(out)
            if store is None or store.objects.create(MODELS, json_bytes(facts)):
                return
            store.pull(MODELS)  # of a run that began at the same time
    known = _known_models(path)
    # The run that makes a lock file names a branch, and the next one its commit: both are the same model.
    before, after = _revisions(known), _revisions(facts)
    refs = {split_reference(ref)[0]: ref for ref in (*known, *facts)}
    moved = sorted(refs[name] for name in refs if before.get(name) != after.get(name))
    if moved:
        name = split_reference(moved[0])[0]
        was, now = (", ".join(str(own.get("revision")) for own in found.get(name, ())) for found in (before, after))
        was, now = was or "None", now or "None"
        how = f"is at {now} and the job in {out} began with {was}"
        if was == now:
            how = f"has changed since {out} was begun"
        raise ModelError(
            f"the model '{moved[0]}' {how}; pin it with --lock or in the recipe (@revision), "
            "or start again with --overwrite"
        )


def _revisions(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group the facts of models by reference without revision: a recipe may use two branches of one repository."""
    grouped: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for ref, own in facts.items():
        grouped[split_reference(ref)[0]].append(own)
    return {name: sorted(own, key=lambda one: str(one.get("revision"))) for name, own in grouped.items()}


def _known_models(path: Path) -> dict[str, dict[str, Any]]:
    """Return the models of `work/models.json` by reference; none if it does not exist."""
    try:
        known = parse_json(read_regular(path))
        if not isinstance(known, dict) or not all(isinstance(facts, dict) for facts in known.values()):
            raise ValueError("it holds no models")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        sentence = f"{path} is damaged ({error}); remove it and run the same command again to use the present models"
        raise InputError(sentence) from error
    return known
