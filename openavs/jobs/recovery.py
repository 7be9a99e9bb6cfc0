"""Recovery after the crash of a worker: of a decoder, by a kill, by missing memory.

Clips are processed in order, so only the few that were begun and not finished can be the cause. Each of them is tried
alone, in a worker of its own; one that crashes it twice is recorded as `worker_crashed` and not tried again. Then the
shard is resumed. Every crash either finishes clips or records one as failed: there is no endless loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from openavs.errors import ModelError
from openavs.jobs.checkpoint import ShardJournal, journal_path
from openavs.jobs.index import failed_row
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.shard import read_samples

MAX_SOLO_ATTEMPTS = 2
"""Maximum crashes of a clip that runs alone."""
MAX_IDLE_CRASHES = 3
"""Maximum crashes at a shard while no clip is under way."""


@dataclass
class Recovery:
    """The crashes of a job's workers, over all shards."""

    job: Job
    _suspects: dict[int, list[str]] = field(default_factory=dict)
    _alone: Counter[tuple[int, str]] = field(default_factory=Counter)
    _idle: Counter[int] = field(default_factory=Counter)

    def after(self, spec: ShardSpec, *, crashed: bool) -> ShardSpec | None:
        """Return the spec to run after `spec` ended; None: the shard is completed.

        Raises:
            ModelError: workers crash at this shard while no clip is under way.
        """
        suspects = self._suspects.setdefault(spec.number, [])
        if spec.only is None:
            if not crashed:
                return None
            suspects[:] = self._begun(spec)
        elif not crashed:
            suspects.remove(spec.only[0])
        else:
            self._count(spec, spec.only[0], suspects)
        return spec.part(suspects[0]) if suspects else spec.whole()

    def _begun(self, spec: ShardSpec) -> list[str]:
        """Return the clips that were under way, in order."""
        begun = self._journal(spec).begun
        found = [sample.id for sample in read_samples(spec) if sample.id in begun]
        if not found:
            self._idle[spec.number] += 1
            if self._idle[spec.number] >= MAX_IDLE_CRASHES:
                raise ModelError(
                    f"workers crashed {MAX_IDLE_CRASHES} times at shard {spec.number} with no clip under way; "
                    f"see {self.job.out / 'log'}, and use fewer --workers if memory is short"
                )
        return found

    def _count(self, spec: ShardSpec, clip: str, suspects: list[str]) -> None:
        self._alone[spec.number, clip] += 1
        if self._alone[spec.number, clip] < MAX_SOLO_ATTEMPTS:
            return
        sample = next(sample for sample in read_samples(spec) if sample.id == clip)
        sentence = f"the worker crashed {MAX_SOLO_ATTEMPTS} times while it ran nothing but this clip"
        self._journal(spec).finish(failed_row(sample, "worker_crashed", sentence), {})
        suspects.remove(clip)

    def _journal(self, spec: ShardSpec) -> ShardJournal:
        return ShardJournal.read(journal_path(self.job.out, spec.number))
