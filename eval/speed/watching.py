"""What a run costs: wall and CPU seconds, stages, memory, and the work that it asks of the models."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from openavs.pipeline.context import RunContext

PAGE = 4096
_EVERY = 0.01  # seconds between two looks at the memory


@dataclass
class Run:
    """One way's pass over one load. `answers` are what it found, `work` counts what it asked of the models."""

    wall: float = 0.0
    cpu: float = 0.0
    inside: float = 0.0  # wall seconds in the models' forward passes
    inside_cpu: float = 0.0
    peak_mb: float = 0.0  # above what was there when it began
    stages: dict[str, float] = field(default_factory=dict)
    work: Counter[str] = field(default_factory=Counter)
    answers: list[Any] = field(default_factory=list)


def watch(way: Callable[[RunContext], Iterator[Any]], models: Models, keep: Callable[[Any], Any]) -> Run:
    """Runs a way to its end. What `keep` makes of each answer is kept, off the clock, so that the answers' own memory
    and the bench's book-keeping are not part of the figure."""
    run, notes = Run(), RunContext()
    gc.collect(1)  # the young: all that a run before this one can have left, and a hundredth of the time
    with models.watched(run), _peak(run):
        answers = way(notes)
        while True:
            started, cpu = time.perf_counter(), time.process_time()
            answer = next(answers, None)
            synchronize()
            run.wall += time.perf_counter() - started
            run.cpu += time.process_time() - cpu
            if answer is None:
                break
            run.answers.append(keep(answer))
    run.stages = {stage: round(seconds, 4) for stage, seconds in notes.seconds.items()}
    return run


class Models:
    """The networks of a pipeline, to be watched from outside while it runs unchanged.

    Their outermost forward passes are timed, which includes everything that a network's own code does. The work is
    counted inside: pictures through the detector and through the image encoder, boxes through the decoder.
    """

    def __init__(self, **networks: Any) -> None:
        self.networks = {name: network for name, network in networks.items() if isinstance(network, torch.nn.Module)}

    @contextmanager
    def watched(self, run: Run, record: list[Any] | None = None) -> Iterator[None]:
        """Adds to a run; `record` collects (module, args, kwargs) of every outermost call."""
        clock = _Clock(run, record)
        with ExitStack() as hooks:
            for network in self.networks.values():
                for module in _two_levels(network):
                    hooks.enter_context(_removed(module.register_forward_pre_hook(clock.enter, with_kwargs=True)))
                    hooks.enter_context(_removed(module.register_forward_hook(clock.leave)))
                for module, what, worth in _counted(network):
                    hook = _count(run, what, worth)
                    hooks.enter_context(_removed(module.register_forward_hook(hook, with_kwargs=True)))
            yield


class _Clock:
    """Seconds inside of outermost calls, per thread: a network calls its own parts."""

    def __init__(self, run: Run, record: list[Any] | None) -> None:
        self.run, self.record = run, record
        self.here = threading.local()

    def enter(self, module: Any, args: Any, kwargs: Any) -> None:
        depth = getattr(self.here, "depth", 0)
        if depth == 0:
            if self.record is not None:
                self.record.append((module, args, kwargs))
            self.here.started = time.perf_counter(), time.process_time()
        self.here.depth = depth + 1

    def leave(self, *_: Any) -> None:
        self.here.depth -= 1
        if self.here.depth == 0:
            synchronize()
            self.run.inside += time.perf_counter() - self.here.started[0]
            self.run.inside_cpu += time.process_time() - self.here.started[1]


def _two_levels(network: Any) -> list[Any]:
    """A network, its parts and theirs: adapters call any of them."""
    parts = [network, *network.children()]
    return list(dict.fromkeys([*parts, *(deep for part in parts[1:] for deep in part.children())]))


def _counted(network: Any) -> Iterator[tuple[Any, str, Callable[[Any, Any], int]]]:
    """The parts of a network whose passes are counted: as what, and how many each is worth."""
    if getattr(network, "can_generate", bool)():
        yield network, "questions", _questions
    for name, module in network.named_modules():
        if type(module).__name__.endswith("GroundingDinoEncoder"):
            yield module, "detections", _rows  # pictures, each with one caption
        elif name == "vision_encoder":
            yield module, "encodings", _rows  # pictures
        elif name == "mask_decoder":
            yield module, "decodings", _masks
        elif name == "audio_model":
            yield module, "hearings", _rows  # windows


def _count(run: Run, what: str, worth: Callable[[Any, Any], int]) -> Callable[..., None]:
    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        run.work[f"{what}.calls"] += 1
        run.work[what] += worth(kwargs, output)

    return hook


def _rows(_: Any, output: Any) -> int:
    values = output.values() if hasattr(output, "values") else output
    return next(len(value) for value in values if torch.is_tensor(value))


def _masks(_: Any, output: Any) -> int:
    return len(output[0].flatten(0, 1))  # [pictures, boxes, ...]


def _questions(kwargs: Any, _: Any) -> int:
    """A language model reads a question whole, then goes on token by token."""
    ids = kwargs.get("input_ids")
    return len(ids) if ids is not None and ids.shape[1] > 1 else 0


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _peak(run: Run) -> Iterator[None]:
    """The most resident memory above that at the beginning, looked at every 10 ms (on CUDA: the allocator's peak)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        yield
        run.peak_mb = (torch.cuda.max_memory_allocated() - allocated) / 2**20
        return
    give_back()
    before, ended, peak = resident_mb(), threading.Event(), [0.0]

    def look() -> None:
        while not ended.wait(_EVERY):
            peak[0] = max(peak[0], resident_mb() - before)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    try:
        yield
    finally:
        ended.set()
        looker.join()
    run.peak_mb = peak[0]


def give_back() -> None:
    """Lets the C library return what it keeps of freed memory, or an earlier run's leavings would hide a later peak."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):  # glibc
        library.malloc_trim(0)


def resident_mb() -> float:
    """Resident memory of this process now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def synchronize() -> None:
    """Waits for a GPU, so that its time is counted where it is asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
