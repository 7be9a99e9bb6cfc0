"""`run_shard`: one shard of a job, from its lines in the plan to its commit mark. Every engine calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from openavs.jobs.engine import ClipDone
from openavs.jobs.job import ShardSpec
from openavs.types import Clip, Segmentation

Segment = Callable[[Clip], Segmentation]


class ShardBusy(Exception):
    """Another process is at work on this shard."""


def run_shard(
    spec: ShardSpec,
    segment: Segment,
    *,
    tell: Callable[[ClipDone], None] = lambda done: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Works off what is missing of a shard and commits it; the same spec gives the same files, bit for bit.

    A clip's fault becomes its row. `tell` is called after every clip, `stop` asked before every clip.

    Returns:
        The commit mark; None if it was stopped, or if the spec names a part of the shard.

    Raises:
        ShardBusy: another process is at work on it.
        OSError, OpenAVSError: a fault of the job and not of a clip: a full disk, a model server that refuses.
    """
    raise NotImplementedError
