"""What to do about a shard whose worker died: a crash of a decoder, a kill, the machine's memory.

Clips are worked on in order, so only the few that were begun and not finished can be at fault. Each of them is tried
alone, in a worker of its own; one that kills it twice is put on record as `worker_crashed` and is not touched again.
Then the shard goes on. Every death so either finishes clips or takes one out: there is no endless loop.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from openavs.errors import ModelError
from openavs.labeling.completion import journal_path
from openavs.labeling.job import Job, ShardSpec
from openavs.labeling.journal import ShardJournal
from openavs.labeling.records import failed_row
from openavs.labeling.shard import read_samples

MAX_SOLO_ATTEMPTS = 2
"""So often a clip may kill the worker that it has for itself."""
MAX_IDLE_CRASHES = 3
"""So often workers may die at a shard without a clip under way, before the job gives up."""


@dataclass
class Recovery:
    """Remembers the deaths of one job's workers; one object serves all shards."""

    job: Job
    _suspects: dict[int, list[str]] = field(default_factory=dict)
    _alone: Counter[tuple[int, str]] = field(default_factory=Counter)
    _idle: Counter[int] = field(default_factory=Counter)

    def after(self, spec: ShardSpec, *, died: bool) -> ShardSpec | None:
        """What to run next of the shard that `spec` was of; None: nothing, it is committed.

        Raises:
            ModelError: workers die at this shard while no clip is under way.
        """
        suspects = self._suspects.setdefault(spec.number, [])
        if spec.only is None:
            if not died:
                return None
            suspects[:] = self._begun(spec)
        elif not died:
            suspects.remove(spec.only[0])
        else:
            self._count(spec, spec.only[0], suspects)
        return spec.part(suspects[0]) if suspects else spec.whole()

    def _begun(self, spec: ShardSpec) -> list[str]:
        """The clips that were under way, in their order."""
        begun = self._journal(spec).begun
        found = [item.id for item in read_samples(spec) if item.id in begun]
        if not found:
            self._idle[spec.number] += 1
            if self._idle[spec.number] >= MAX_IDLE_CRASHES:
                raise ModelError(
                    f"workers died {MAX_IDLE_CRASHES} times at shard {spec.number} with no clip under way; "
                    f"see {self.job.out / 'log'}, and use fewer --workers if memory is short"
                )
        return found

    def _count(self, spec: ShardSpec, clip: str, suspects: list[str]) -> None:
        self._alone[spec.number, clip] += 1
        if self._alone[spec.number, clip] < MAX_SOLO_ATTEMPTS:
            return
        item = next(item for item in read_samples(spec) if item.id == clip)
        sentence = f"the worker died {MAX_SOLO_ATTEMPTS} times when it had nothing but this clip to do"
        self._journal(spec).finish(failed_row(item, "worker_crashed", sentence), {})
        suspects.remove(clip)

    def _journal(self, spec: ShardSpec) -> ShardJournal:
        return ShardJournal.read(journal_path(self.job.out, spec.number))
