"""The Ray cluster of a job: a running one, or a new one on this machine; and whether the workers fit it."""

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

logger = logging.getLogger(__name__)

OBJECT_STORE = 100_000_000
"""Bytes of shared memory of a new cluster: specs and events go through it, never images or sound."""

CONNECT_TIMEOUT = 10.0
"""Seconds within which a cluster has to answer."""

RELEASE_TIMEOUT = 10.0
"""Seconds to wait for resources of processes that have just ended."""

_KINDS = ("CPU", "GPU")


@dataclass(frozen=True)
class WorkerResources:
    """The CPUs and GPUs that Ray reserves for a worker; it does not enforce them."""

    cpus: float = 1.0
    gpus: float = 0.0


@contextmanager
def connected(address: str | None = None) -> Iterator[Any]:
    """Connect to a cluster for the duration of the block and yield the `ray` module; no usage report, no dashboard.

    Args:
        address: Address of a cluster; None: that of RAY_ADDRESS, else one that runs on this machine, else a new one
            that ends with the block. A connection of the caller is used and kept.

    Raises:
        InputError: Ray is not installed, no cluster is at the address, or a new one does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_optional("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    with _signal_handlers_kept():
        _connect(ray, address or os.environ.get("RAY_ADDRESS"))
    try:
        yield ray
    finally:
        with _signal_handlers_kept():
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}  # it warns about safe settings
    found = _running() if address in (None, "auto") else address
    if found == "local" or (found is None and address is None):
        logger.info("no Ray cluster runs on this machine: starting one for this job")
        try:
            ray.init("local", include_dashboard=False, object_store_memory=OBJECT_STORE, **quiet)
        except Exception as error:  # Ray has no exception class for a node that does not start
            why = str(error).split(". ")[0]
            raise InputError(
                f"Ray could not start a cluster on this machine ({why:.200}); run the same command again when it is "
                "less busy, or start one with `ray start --head`"
            ) from error
        return
    # Ray would wait for a minute and then end the process.
    if found is None or not _answers(found):
        raise InputError(
            f"no Ray cluster can be reached at {found or address}; start one with `ray start --head`, or "
            "leave the address and RAY_ADDRESS away for one on this machine"
        )
    ray.init(found, **quiet)


def _running() -> str | None:
    """Return the address of the cluster that `ray start` made on this machine, not that of another program."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    try:
        address = (Path(temporary) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return None
    return address if address and _answers(address) else None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT).close()
    except (OSError, ValueError):
        return False
    return True


def plan_workers(ray: Any, each: WorkerResources, wanted: int | None) -> int:
    """Return the number of workers: as many as wanted, or one for each GPU, or one for each CPU but one.

    Raises:
        InputError: they do not fit, or would take every CPU. Ray would wait silently.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    most = fitting_workers(nodes, {name: sum(node.get(name, 0.0) for node in nodes) for name in _KINDS}, each, wanted)
    deadline = time.monotonic() + RELEASE_TIMEOUT
    while True:
        waited = time.monotonic() > deadline
        try:
            workers = fitting_workers(nodes, ray.available_resources(), each, wanted)
            if waited or workers == most:
                return workers
        except InputError:
            if waited:
                raise
        time.sleep(0.2)


def fitting_workers(
    nodes: Sequence[Mapping[str, float]], free: Mapping[str, float], each: WorkerResources, wanted: int | None
) -> int:
    """Return `plan_workers` from the resources of each node and those that are free in all."""
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    # One CPU stays free: a pool that takes all of them starves everything else on the cluster.
    left = min(cpus - 1, free.get("CPU", 0.0))
    most = min(sum(_slots(node, each) for node in nodes), int(left / each.cpus + 1e-9))
    if each.gpus:
        most = min(most, int(free.get("GPU", 0.0) / each.gpus + 1e-9))
    workers = wanted if wanted is not None else max(most, 1)
    if workers > most:
        size = f"{each.cpus:g} CPUs" + (f" and {each.gpus:g} GPUs" if each.gpus else "")
        gpus = f" and {free.get('GPU', 0.0):g} GPUs" if each.gpus else ""
        fix = f"use --workers {most}" if most else "use --executor local, or a larger cluster"
        raise InputError(
            f"{workers} workers of {size} each do not fit the Ray cluster, of whose {cpus:g} CPUs "
            f"{free.get('CPU', 0.0):g}{gpus} are free and one has to stay so; {fix}"
        )
    return workers


def _slots(node: Mapping[str, float], each: WorkerResources) -> int:
    slots = int(node.get("CPU", 0.0) / each.cpus + 1e-9)
    return min(slots, int(node.get("GPU", 0.0) / each.gpus + 1e-9)) if each.gpus else slots


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Keep the handlers of SIGINT and SIGTERM, which Ray replaces with its own."""
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
