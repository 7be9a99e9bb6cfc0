"""A job, its shards and events as plain data, the protocol of executors, the pipeline of a job, and its sinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from openavs.caching.store import CachePlace, StageCache
from openavs.config.recipe import recipe_from_dict
from openavs.jobs.sample import Sample
from openavs.results.filters import FilteredResult
from openavs.results.serialization import Values, clip_folder
from openavs.stages.translators.base import Request
from openavs.structures.types import Clip, ClipResult, ImageArray
from openavs.utils.fs import stamp_file

PIPELINE_BUILDER = "openavs.caching.build:build_pipeline"
STUDENT_BUILDER = "openavs.training.inference:build_student"
REPORT_SINK = "openavs.jobs.job:ReportSink"


@dataclass(frozen=True)
class Job:
    """A job over the clips of a manifest.

    Attributes:
        out: The result folder, as this machine names it.
        key: The manifest's key, the same on every machine.
        root: The folder that the manifest's relative paths start from, as this machine names it.
        recipe: The resolved recipe.
        base: The folder of the recipe's own relative paths.
        sink: The class that writes further files of a clip, as `module:Class` (see `Sink`).
        options: Plain-data options of the sink.
        builder: The function that builds the recipe's pipeline, as `module:function` (see `caching/build.py`).
        classes: Labels of class masks in the order of their indices; empty: instance masks.
        threads: CPU threads of a worker. Floats on a CPU depend on them.
        lock: A file of pinned model commits.
        cache: The folder or address of the stage cache; None: no cache.
        schedule: `per-clip`, `per-stage` or `auto` (by available memory). Results are the same.
        window: Clips of a window of the schedule `per-stage`.
        share: Part of its device's memory that a worker may use.
        source: The address that relative paths start from, if the clips are on an object store.
        store: The address of the result folder, if it is on an object store; `out` is then a scratch folder.
        owner: A name of this run, for its claims on the store.
    """

    out: Path
    key: str
    root: Path
    recipe: Mapping[str, Any]
    base: Path | None = None
    sink: str = "openavs.jobs.job:Sink"
    options: Mapping[str, Any] = field(default_factory=dict)
    builder: str = PIPELINE_BUILDER
    classes: tuple[str, ...] = ()
    threads: int = 1
    lock: Path | None = None
    cache: CachePlace | None = None
    schedule: str = "per-clip"
    window: int = 256
    share: float = 1.0
    source: str | None = None
    store: str | None = None
    owner: str = ""

    @property
    def place(self) -> str:
        """The result folder as the user named it."""
        return self.store or str(self.out)

    @property
    def values(self) -> Values:
        """The meaning of the pixel values of the masks."""
        return "class" if self.classes else "instance"


@dataclass(frozen=True)
class ShardSpec:
    """One shard of a job: its number, and the offset and size in bytes of its lines in `manifest.jsonl`.

    `only` restricts the shard to some clips. They are recorded in the journal, and the shard is not completed; only
    `executors/base.py` makes such a spec.
    """

    job: Job
    number: int
    offset: int
    size: int
    only: tuple[str, ...] | None = None

    def part(self, *clips: str) -> ShardSpec:
        """Return the shard restricted to these clips."""
        return replace(self, only=clips)

    def whole(self) -> ShardSpec:
        """Return the shard with all of its clips."""
        return replace(self, only=None)


@dataclass(frozen=True)
class ClipFinished:
    """The event of one finished clip, for progress alone.

    `reason` is a short word to count failures by and `detail` the sentence (None if the clip is done). `seconds` are
    wall time, `timings` seconds by stage, `cached` hits and misses of the stage cache since the clip before, such as
    `{"captioner hits": 1}`.
    """

    shard: int
    clip: str
    status: str
    reason: str | None
    seconds: float
    timings: Mapping[str, float] = field(default_factory=dict)
    cached: Mapping[str, int] = field(default_factory=dict)
    detail: str | None = None


def import_name(name: str) -> Callable[..., Any]:
    """Import the class or function `module:name`."""
    module, _, attribute = name.partition(":")
    found: Callable[..., Any] = getattr(import_module(module), attribute)
    return found


@dataclass(frozen=True, eq=False)
class ProbabilisticResult:
    """A result with the probability of every pixel times 255, uint8 `[T, H, W]`, in the clip's size."""

    result: ClipResult
    probability: ImageArray


@runtime_checkable
class WindowedPipeline(Protocol):
    """A pipeline that captions and translates a window of clips in advance (`caching/build.py`)."""

    window: int

    def run_captioner(self, clip: Clip) -> Request:
        """Caption a clip and return its request to the translator."""

    def run_translator(self, requests: Sequence[Request]) -> None:
        """Translate the requests of a window."""


VIDEO = "video.mp4"
"""The clip without masks, which its report plays."""

PredictorOutput = ClipResult | ProbabilisticResult
"""The output of a pipeline for a clip."""


class Sink:
    """The base of all sinks, which writes nothing further.

    A job names its sink as `module:Class`. Files are written before `result.json`, and their stamps are recorded with
    the clip. The same clip and result give the same bytes: no file may depend on the time or the machine.
    """

    pictures = True
    """Whether results keep the picture that a reasoner was shown."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def filter(self, result: ClipResult) -> FilteredResult:
        """Return what is left of a result; a clip that is dropped as a whole has the status `filtered`."""
        return FilteredResult(result, None, {})

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> Mapping[str, str]:
        """Write the files of a clip and return their stamps by path below the result folder.

        Raises:
            InputError: the clip cannot be written; it is recorded as failed.
        """
        return {}

    def remove(self, sample: Sample) -> None:
        """Remove the files that an interrupted run left outside of the clip's folder."""

    def folder_of(self, sample: Sample) -> str | None:
        """Return the folder below the result folder that holds what the sink writes of this clip alone, if one does."""
        return None


RENDERED = ("overlay.mp4", "report.html")
"""The files of a clip that show its masks."""


class ReportSink(Sink):
    """`overlay.mp4` and `report.html` in the clip's folder; the option `files` may name only one of them.

    The report plays `video.mp4`, the clip without masks, which is written with it.
    """

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> Mapping[str, str]:
        """Write the video with the masks painted on it, and the report with its video."""
        from openavs.media.remux import copy_streams

        folder = clip_folder(self.job.out, sample.id)
        wanted = set(self.job.options.get("files", RENDERED))
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
        encoded = "report.html" in wanted and not copy_streams(folder / VIDEO, clip)
        render_masks(folder, clip, filtered.result, wanted, encoded)
        wanted |= {VIDEO} if "report.html" in wanted else set()
        return {f"clips/{sample.id}/{name}": stamp_file(folder / name) for name in sorted(wanted)}


def render_masks(
    folder: Path, clip: Clip, result: ClipResult, names: Collection[str], encode_video: bool = False
) -> None:
    """Write those of `RENDERED` that are in `names`; the report plays the folder's `video.mp4`, if there is one.

    With `encode_video` that is encoded as well, in one pass with the overlay.
    """
    from openavs.media.remux import write_overlay, write_player_video
    from openavs.visualization.colors import palette_of
    from openavs.visualization.overlay import OverlayPainter
    from openavs.visualization.player import MotionRecorder, record_motion
    from openavs.visualization.report import report_frames, write_report

    palette, moving = palette_of(result.frames), MotionRecorder()
    if "overlay.mp4" in names:
        plain = folder / VIDEO if encode_video else None
        write_overlay(folder / "overlay.mp4", clip, OverlayPainter(result, palette, clip, moving), plain=plain)
    elif encode_video:
        write_player_video(folder / VIDEO, clip)
    if "report.html" in names:
        if "overlay.mp4" not in names:
            moving = record_motion(result, palette, clip)
        video = VIDEO if (folder / VIDEO).is_file() else None
        frames = clip.frames(report_frames(result))
        write_report(folder / "report.html", result, frames, clip.audio, clip.duration, video, moving)


def build(job: Job) -> tuple[Any, StageCache | None]:
    """Build the pipeline of a job; returns it with its stage cache.

    Raises:
        OpenAVSError: the recipe or one of its models cannot be used.
    """
    recipe = recipe_from_dict(dict(job.recipe), base=job.base)
    built: tuple[Any, StageCache | None] = import_name(job.builder)(
        recipe,
        lock=job.lock,
        schedule=job.schedule,
        cache=job.cache,
        scratch=job.out / "work" / "stages",
        window=job.window,
        threads=job.threads,
        share=job.share,
    )
    return built


def models_of(predict: Any) -> dict[str, Any]:
    """Return what the model references of a pipeline, or of one of its methods, resolved to."""
    owner = predict if hasattr(predict, "models") else getattr(predict, "__self__", None)
    return dict(getattr(owner, "models", {}))


class CacheCounter:
    """Hits and misses of a stage cache since the last call."""

    def __init__(self, cache: StageCache | None) -> None:
        self.cache = cache
        self._known: Counter[str] = Counter()

    def __call__(self) -> dict[str, int]:
        """Return the counts since the last call, such as `{"captioner hits": 1}`."""
        if self.cache is None:
            return {}
        counts = Counter({f"{stage} {what}": count for (stage, what), count in dict(self.cache.counts).items()})
        new = counts - self._known
        self._known = counts
        return dict(sorted(new.items()))


class ProgressListener(Protocol):
    """The events of an executor; calls do not overlap."""

    def ready(self, models: Mapping[str, Any]) -> None:
        """A worker has loaded its models."""

    def clip(self, done: ClipFinished) -> None:
        """A clip is finished."""

    def completed(self, shard: int) -> None:
        """A shard is completed."""

    def busy(self, spec: ShardSpec) -> None:
        """Another job holds this shard."""

    def crashed(self, spec: ShardSpec | None, how: str) -> None:
        """A worker crashed at this shard (None: before it had one); `how` is a phrase such as `exit code -9`."""

    def stopping(self) -> bool:
        """Whether to finish the clips under way and stop; called at least once a second."""


class Executor(Protocol):
    """Runs shards."""

    def run(self, job: Job, shards: Iterable[ShardSpec], listener: ProgressListener) -> None:
        """Return when all shards are completed or held by another job, or after `listener.stopping()` was true."""
