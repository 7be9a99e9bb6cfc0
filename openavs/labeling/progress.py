"""What a job has done so far: counted from the marks and from what workers tell, and kept in `OUT/run.json`."""

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
from openavs.labeling.completion import committed, read_mark
from openavs.labeling.event_log import append, log_path, now
from openavs.labeling.executors.base import ClipFinished
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.locks import FACTS, claimed
from openavs.labeling.manifest import Manifest
from openavs.pipeline.lockfile import add_to_lock
from openavs.results.run_folder import provenance
from openavs.results.serialization import json_bytes
from openavs.utils.durable import write_whole
from openavs.utils.fs import read_regular
from openavs.utils.strict_json import parse_json

log = logging.getLogger(__name__)

SAVE_INTERVAL = 2.0
"""Seconds between two writings of `run.json` while something happens."""
RESCAN_INTERVAL = 10.0
"""Seconds between two looks for the marks of other jobs on the folder."""


class JobProgress:
    """The `Watcher` of a run: counts, tells, writes. Times are monotonic, so that setting the clock changes nothing.

    `numbers` are the shards that this run is about. `counts`, `reasons` and `dropped` are sums over the committed
    shards of the whole job, whoever did them. `told` is called after every change.
    """

    def __init__(
        self,
        job: Job,
        plan: Manifest,
        numbers: Sequence[int],
        about: Mapping[str, Any],
        told: Callable[[JobProgress], None] = lambda board: None,
    ) -> None:
        self.job, self.plan, self.numbers, self.told = job, plan, numbers, told
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.shards: set[int] = set()
        self.cached: Counter[str] = Counter()
        self.deaths = 0
        self.worked = 0  # clips that this run finished
        self.stop = False
        self._live: defaultdict[int, Counter[tuple[str, str | None]]] = defaultdict(Counter)
        self._begun = time.monotonic()
        self._first: float | None = None
        self._wrote = self._looked = float("-inf")
        self._about = {**about, "format": 1, "started": now(), **provenance()}
        self._models: dict[str, Any] = {}
        self.look()

    # ------------------------------------------------------------------------------------------- what engines tell

    def ready(self, models: Mapping[str, Any]) -> None:
        """A worker has loaded its models. ModelError if they are not those that the job began with."""
        facts = {ref: {k: v for k, v in own.items() if k != "path"} for ref, own in models.items()}
        check_models(self.job.out, facts)
        if self.job.lock is not None:
            add_to_lock(self.job.lock, models)
        self._models = dict(models)
        self._changed()

    def clip(self, done: ClipFinished) -> None:
        """A clip is finished; it counts as such when its shard is committed."""
        self._first = self._first or time.monotonic() - done.seconds
        self.worked += 1
        self.cached.update(done.cached)
        self._live[done.shard][done.status, done.reason] += 1
        self._changed()

    def committed(self, shard: int) -> None:
        """A shard is committed."""
        self._add(shard)
        self._changed()

    def busy(self, spec: ShardSpec) -> None:
        """Another job holds this shard: when it is committed, `look` finds its mark."""
        log.info("shard %d is at work elsewhere", spec.number)

    def died(self, spec: ShardSpec | None, how: str) -> None:
        """A worker died."""
        self.deaths += 1
        at = None if spec is None else {"shard": spec.number, "alone": list(spec.only or ())}
        append(self.job.out, "driver", {"event": "worker died", "how": how, "at": at})
        log.warning("a worker died (%s)%s; its shard goes on", how, f" at shard {spec.number}" if spec else "")
        self._changed()

    def stopping(self) -> bool:
        """Whether to stop; this is also where a quiet run looks around and keeps `run.json` current."""
        if time.monotonic() - self._looked > RESCAN_INTERVAL:
            self.look()
            self._changed()
        return self.stop

    # ------------------------------------------------------------------------------------------- what there is to say

    @property
    def status(self) -> Counter[str]:
        """Clips by status, those of shards at work included; the rest are not done."""
        live = Counter[str]()
        for own in self._live.values():
            for (status, _), count in own.items():
                live[status] += count
        return self.counts + live

    @property
    def failures(self) -> Counter[str]:
        """Failed clips by reason, those of shards at work included."""
        found = Counter(self.reasons)
        for own in self._live.values():
            for (status, reason), count in own.items():
                if status == "failed" and reason is not None:
                    found[reason] += count
        return found

    @property
    def rate(self) -> float | None:
        """Clips a second of this run since its first; None before."""
        spent = time.monotonic() - (self._first or time.monotonic())
        return self.worked / spent if spent > 0 else None

    @property
    def missing(self) -> list[int]:
        """The shards of this run that are not committed."""
        return [number for number in self.numbers if number not in self.shards]

    @property
    def total(self) -> int:
        """Clips of this run's shards."""
        return sum(map(self.plan.clips_of, self.numbers))

    @property
    def left(self) -> int:
        """Those of them that are not done."""
        live = sum(own.total() for own in self._live.values())
        return max(0, sum(map(self.plan.clips_of, self.missing)) - live)

    def summary(self) -> dict[str, Any]:
        """What became of the job's clips so far, and of this run."""
        status = self.status
        return {
            "clips": self.plan.clips,
            **{name: status[name] for name in ("ok", "filtered", "failed")},
            "left": self.plan.clips - status.total(),
            "reasons": dict(sorted(self.failures.items())),
            "rejected": dict(sorted(self.rejected.items())),
            "shards": {"planned": self.plan.shards, "committed": len(self.shards)},
            "worked": self.worked,
            "seconds": round(time.monotonic() - self._begun, 3),
            "clips_per_second": None if self.rate is None else round(self.rate, 3),
            "cached": dict(sorted(self.cached.items())),
            "worker_deaths": self.deaths,
        }

    def look(self) -> None:
        """Counts the marks that are new, of this job or of another on the same folder."""
        for shard in sorted(committed(self.job.out) - self.shards):
            self._add(shard)
        self._looked = time.monotonic()

    def save(self, status: str) -> dict[str, Any]:
        """Writes `run.json` and returns what it says; `status` is `running`, `stopped` or `finished`.

        Of several jobs that end together the last one to write has seen all marks.
        """
        with claimed(self.job.out, FACTS, wait=True):
            if status != "running":
                self.look()
            data = self._facts(status)
            part = log_path(self.job.out, "run", ".json.part")
            write_whole(self.job.out / "run.json", json_bytes(data), part=part)
        self._wrote = time.monotonic()
        return data

    def _facts(self, status: str) -> dict[str, Any]:
        """What `run.json` is to say."""
        return {
            **self._about,
            "status": "finished" if len(self.shards) == self.plan.shards else status,
            "updated": now(),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "key": self.plan.key,
            **self.summary(),
            "counts": {name: self.status[name] for name in ("ok", "filtered", "failed")},
            "masks": {"values": self.job.values, "classes": list(self.job.classes)},
            "models": self._models,
            "recipe": self.plan.data["recipe"],
        }

    def _add(self, shard: int) -> None:
        mark = read_mark(self.job.out, shard, self.plan.key)
        self._live.pop(shard, None)
        if mark is None or shard in self.shards:
            return
        self.shards.add(shard)
        self.counts.update(mark["counts"])
        self.rejected.update(mark["rejected"])
        self.reasons.update(mark["reasons"])

    def _changed(self) -> None:
        if time.monotonic() - self._wrote > SAVE_INTERVAL:
            self.save("running")
        self.told(self)


def check_models(out: Path, facts: Mapping[str, Any]) -> None:
    """Refuses to go on with other models than a job began with: branches move, and `OUT/models.json` remembers."""
    path = out / "models.json"
    with claimed(out, FACTS, wait=True):
        if not os.path.lexists(path):
            write_whole(path, json_bytes(facts), durable=True, part=log_path(out, "models", ".json.part"))
            return
    known = _known_models(path)
    moved = sorted(ref for ref in known.keys() | facts.keys() if known.get(ref) != facts.get(ref))
    if moved:
        was, now = (found.get(moved[0], {}).get("revision") for found in (known, facts))
        raise ModelError(
            f"the model '{moved[0]}' is at {now} and the job in {out} began with {was}; "
            "pin it with --lock or in the recipe (@revision), or start anew with --overwrite"
        )


def _known_models(path: Path) -> dict[str, dict[str, Any]]:
    """The content of `models.json`: facts by model. InputError if it is damaged."""
    try:
        known = parse_json(read_regular(path))
        if not isinstance(known, dict) or not all(isinstance(facts, dict) for facts in known.values()):
            raise ValueError("it holds no models")
    except ValueError as problem:
        sentence = f"{path} is damaged ({problem}); remove it and run the same again to go on with the models of today"
        raise InputError(sentence) from problem
    return known
