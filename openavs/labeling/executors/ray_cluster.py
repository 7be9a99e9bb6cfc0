"""The Ray cluster of a job: the one that is there, or a new one on this machine; and whether the workers fit it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.utils.optional_deps import import_optional

log = logging.getLogger(__name__)

OBJECT_STORE = 100_000_000
"""Bytes of shared memory for a cluster of our own: specs and progress go through it, never pictures or sound."""

REACH = 10.0
"""Seconds within which a cluster is to answer."""

SETTLE = 10.0
"""Seconds to wait for room that was there: what ended a moment ago may still count."""

_KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class WorkerResources:
    """What one worker reserves on its node; the reservation is Ray's book-keeping and limits nobody."""

    cpus: float = 1.0
    gpus: float = 0.0


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """The `ray` module, connected for as long as the block lasts; nothing is reported to anybody, no page is served.

    Args:
        address: of a cluster; None: that of RAY_ADDRESS, else one that runs on this machine, else a new one that ends
            with the block. A connection that the caller has already made is used and left as it is.

    Raises:
        InputError: Ray is not installed, there is no cluster at the address, or a new one does not come up.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_optional("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    with _our_own_signals():
        _connect(ray, address or os.environ.get("RAY_ADDRESS"))
    try:
        yield ray
    finally:
        with _our_own_signals():
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}  # it warns of being safe
    found = _running() if address in (None, "auto") else address
    if found == "local" or (found is None and address is None):
        log.info("no Ray cluster runs here, so one is started for this job")
        try:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except Exception as problem:  # Ray has no class of its own for a node that does not come up
            why = str(problem).split(". ")[0]
            raise InputError(
                f"Ray could not start a cluster on this machine ({why:.200}); run the same again when it is less busy, "
                "or start one with `ray start --head`"
            ) from problem
        return
    # Ray itself would wait for a minute and then end the process.
    if found is None or not _answers(found):
        raise InputError(
            f"there is no Ray cluster to be reached at {found or address}; start one with `ray start --head`, or "
            "leave the address and RAY_ADDRESS away for one on this machine"
        )
    ray.init(found, **quiet)


def _running() -> str | None:
    """The cluster that `ray start` made on this machine; those that programs made for themselves are theirs."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(temporary) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, ValueError):
        return False
    return True


def plan_workers(ray: Any, share: WorkerResources, wanted: int | None) -> int:
    """How many workers to start: as many as wanted, or one for each GPU, or one for each CPU but one.

    Raises:
        InputError: they would not fit, or would take every CPU. Ray would wait for room without a word.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = fitting_workers(nodes, {name: sum(node.get(name, 0.0) for node in nodes) for name in _KINDS}, share, wanted)
    deadline = time.monotonic() + SETTLE
    while True:
        waited = time.monotonic() > deadline
        try:
            workers = fitting_workers(nodes, ray.available_resources(), share, wanted)
            if waited or workers == most:
                return workers
        except InputError:
            if waited:
                raise
        time.sleep(0.2)


def fitting_workers(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], share: WorkerResources, wanted: int | None
) -> int:
    """`plan_workers` on plain figures: what each node has, and what of all of it is free now."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    # One CPU stays free: a pool that takes them all starves whatever else has to run on the cluster.
    left = min(cpus - 1, free.get("CPU", 0.0))
    most = min(sum(_slots(node, share) for node in nodes), int(left / share.cpus + 1e-9))
    if share.gpus:
        most = min(most, int(free.get("GPU", 0.0) / share.gpus + 1e-9))
    workers = wanted if wanted is not None else max(most, 1)
    if workers > most:
        each = f"{share.cpus:g} CPUs" + (f" and {share.gpus:g} GPUs" if share.gpus else "")
        gpus = f" and {free.get('GPU', 0.0):g} GPUs" if share.gpus else ""
        fix = f"use --workers {most}" if most else "use --executor local, or a larger cluster"
        raise InputError(
            f"{workers} workers of {each} each do not fit the Ray cluster, of whose {cpus:g} CPUs "
            f"{free.get('CPU', 0.0):g}{gpus} are free and one has to stay so; {fix}"
        )
    return workers


def _slots(node: Mapping[str, float], share: WorkerResources) -> int:
    slots = int(node.get("CPU", 0.0) / share.cpus + 1e-9)
    return min(slots, int(node.get("GPU", 0.0) / share.gpus + 1e-9)) if share.gpus else slots


@contextmanager
def _our_own_signals() -> Iterator[None]:
    """Keeps the handlers of Ctrl-C and of termination; with those that Ray puts in their place a job ends badly."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
