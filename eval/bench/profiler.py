"""Profiles a run of a pipeline: seconds, stages, memory, and the work of its networks, with nothing replaced."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import MB

from openavs.pipeline.context import RunContext

_PAGE = 4096
_SAMPLING_INTERVAL = 0.01  # seconds between two samples of the resident memory

Call = tuple[Any, Any, Any]
"""A recorded forward pass: module, positional and keyword arguments."""


@dataclass
class Profile:
    """One pass of a system over a workload.

    `forward` and `forward_cpu` are the seconds within forward passes, `peak_mb` is the memory above that at the start,
    `work` counts the inputs of the networks and their calls, `outputs` are the results by frame.
    """

    wall: float = 0.0
    cpu: float = 0.0
    forward: float = 0.0
    forward_cpu: float = 0.0
    peak_mb: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    work: Counter[str] = field(default_factory=Counter)
    outputs: list[Any] = field(default_factory=list)


def profile(
    start: Callable[[RunContext], Iterator[Any]], networks: Networks, keep: Callable[[Any], Any] = lambda output: None
) -> Profile:
    """Run a system to its end.

    `keep` converts each output before it is stored, with the clock stopped, so that neither the memory of the outputs
    nor the conversion is part of the figures.
    """
    found, context = Profile(), RunContext()
    gc.collect(1)  # the young generations: garbage of earlier runs, at a hundredth of the time of a full collection
    with networks.measured(found), _peak_memory(found):
        outputs = start(context)
        while True:
            wall, cpu = time.perf_counter(), time.process_time()
            output = next(outputs, None)
            synchronize()
            found.wall += time.perf_counter() - wall
            found.cpu += time.process_time() - cpu
            if output is None:
                break
            found.outputs.append(keep(output))
    found.stages = {stage: round(seconds, 4) for stage, seconds in context.seconds.items()}
    return found


class Networks:
    """The networks of a pipeline, measured by hooks while the pipeline runs unchanged.

    Their outermost forward passes are timed, everything that a network's code does included. Work is counted within:
    images through the detector and through the image encoder, boxes through the decoder.
    """

    def __init__(self, **networks: Any) -> None:
        self.networks = [network for network in networks.values() if isinstance(network, torch.nn.Module)]

    @classmethod
    def of_pipeline(cls, pipeline: Any) -> Networks:
        """Return the networks of a pipeline's stages."""
        stages = ("captioner", "translator", "detector", "segmenter")
        return cls(**{stage: getattr(getattr(pipeline, stage), "model", None) for stage in stages})

    @contextmanager
    def measured(self, found: Profile, record: list[Call] | None = None) -> Iterator[None]:
        """Add time and work to a profile; `record` collects the outermost calls."""
        timer = _ForwardTimer(found, record)
        handles = []
        for network in self.networks:
            for module in _two_levels(network):
                handles.append(module.register_forward_pre_hook(timer.enter, with_kwargs=True))
                handles.append(module.register_forward_hook(timer.leave))
            for module, name, count in _counted_modules(network):
                hook = partial(_count_work, found, name, count)
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _ForwardTimer:
    """Times the outermost calls of each thread: a network calls its own parts."""

    def __init__(self, found: Profile, record: list[Call] | None) -> None:
        self.found, self.record = found, record
        self.local = threading.local()

    def enter(self, module: Any, args: Any, kwargs: Any) -> None:
        depth = getattr(self.local, "depth", 0)
        if depth == 0:
            if self.record is not None:
                self.record.append((module, args, kwargs))
            self.local.started = time.perf_counter(), time.process_time()
        self.local.depth = depth + 1

    def leave(self, *_: Any) -> None:
        self.local.depth -= 1
        if self.local.depth == 0:
            synchronize()
            self.found.forward += time.perf_counter() - self.local.started[0]
            self.found.forward_cpu += time.process_time() - self.local.started[1]


def _two_levels(network: Any) -> list[Any]:
    """Return a network, its children and theirs: adapters call any of them."""
    children = [network, *network.children()]
    return list(dict.fromkeys([*children, *(module for child in children[1:] for module in child.children())]))


def _counted_modules(network: Any) -> Iterator[tuple[Any, str, Callable[[Any, Any], int]]]:
    """Yield the modules with counted passes, the name of the count, and a function of kwargs and output."""
    if getattr(network, "can_generate", bool)():
        yield network, "questions", _prompts
    for name, module in network.named_modules():
        if type(module).__name__.endswith(("GroundingDinoEncoder", "GroundingDINO")):  # the latter: its package
            yield module, "detections", _batch_size  # images, each with one caption
        elif name in ("vision_encoder", "image_encoder"):
            yield module, "encodings", _batch_size  # images
        elif name in ("mask_decoder", "sam_mask_decoder"):
            yield module, "decodings", lambda _, output: len(output[0].flatten(0, 1))  # [images, boxes, ...]
        elif name == "audio_model":
            yield module, "hearings", _batch_size  # audio windows


def _count_work(
    found: Profile, name: str, count: Callable[[Any, Any], int], _: Any, args: Any, kwargs: Any, output: Any
) -> None:
    found.work[f"{name}.calls"] += 1
    found.work[name] += count(kwargs, output)


def _batch_size(_: Any, output: Any) -> int:
    if torch.is_tensor(output):
        return len(output)
    values = output.values() if hasattr(output, "values") else output
    return next(len(value) for value in values if torch.is_tensor(value))


def _prompts(kwargs: Any, _: Any) -> int:
    # A language model reads its prompt in one pass, then one token in each further pass.
    ids = kwargs.get("input_ids")
    return len(ids) if ids is not None and ids.shape[1] > 1 else 0


@contextmanager
def _peak_memory(found: Profile) -> Iterator[None]:
    """Measure the peak of resident memory by samples; on CUDA, the peak of the allocator."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        yield
        found.peak_mb = (torch.cuda.max_memory_allocated() - allocated) / MB
        return
    _release_freed_memory()
    before, ended = resident_mb(), threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLING_INTERVAL):
            found.peak_mb = max(found.peak_mb, resident_mb() - before)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()


def _release_freed_memory() -> None:
    """Return freed memory to the system, or memory freed by an earlier run would hide a later peak."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


def resident_mb() -> float:
    """Return the resident memory of this process in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE / MB


def synchronize() -> None:
    """Wait for the GPU, if any, so that its time is counted where it is caused."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
