"""Inference of the web page: which recipes it offers, their models in memory, and one clip through the pipeline."""

from __future__ import annotations

import queue
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from openavs.caching.build import load_pipeline
from openavs.caching.store import StageCache
from openavs.caching.wrappers import with_cache
from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe, override_recipe, stage_of
from openavs.errors import InputError, ModelError
from openavs.media.clip import open_clip, probe
from openavs.media.limits import MediaLimits
from openavs.models.catalog import find_known_model, is_only_synthetic
from openavs.models.chat_api.endpoint import SERVER_BACKENDS
from openavs.models.hub import resolve
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import BackendCache, Registry
from openavs.results.result import Result
from openavs.structures.types import Caption, Clip
from openavs.utils.fs import safe_id
from openavs.utils.optional_deps import EXTRAS
from openavs.web import TINY, SegmentRequest, ServerConfig

T = TypeVar("T")
CaptionBatch = Sequence[tuple[Caption, ...] | None]

CACHED_STAGES = ("captioner", "translator", "detector", "reasoner")
CACHE_LIMIT = 200_000_000  # bytes on disk
ENCODINGS_LIMIT = 500_000_000  # bytes in memory, of a segmenter's encodings of images
PRIVATE_BACKENDS = SERVER_BACKENDS | {"oracle"}
"""Offered only in a recipe that is named: one sends captions elsewhere, one needs the labels of a benchmark."""
MIN_UPDATE_INTERVAL = 0.15  # seconds between two updates of the page


# ------------------------------------------------------------------------------------------------------------ requests


def open_request(request: SegmentRequest, fps: float, config: ServerConfig) -> Clip:
    """Open the clip of a request; its `source` and error messages contain the file's name without its folder.

    Raises:
        InputError: no media file, too large, too long, a video without audio, an image without an audio file.
    """
    try:
        return _open(request, fps, config)
    except InputError as error:
        message = str(error)
        for path in filter(None, (request.source, request.audio)):
            message = message.replace(str(path), path.name)
        raise InputError(message) from error


def _open(request: SegmentRequest, fps: float, config: ServerConfig) -> Clip:
    files = [path for path in (request.source, request.audio) if path is not None]
    for path in files:
        if path.stat().st_size > config.max_upload:
            raise InputError(
                f"{path.name} is larger than the limit of {config.max_upload_mb} MB; cut it or scale it down"
            )
    infos = [probe(path) for path in files]
    if infos[0].kind == "image" and request.audio is None:
        raise InputError(f"{request.source.name} is an image; add an audio file")
    for path, info in zip(files, infos, strict=True):
        if info.duration > config.max_seconds + 0.5:  # containers round up to whole frames of audio
            raise InputError(
                f"{path.name} is {info.duration:.0f} s long and the limit is {config.max_seconds:g} s; cut it, or run "
                "'openavs segment' on the file"
            )
    if infos[-1].audio_codec is None:
        raise InputError(f"{files[-1].name} has no audio track; give a clip with audio")
    limits = MediaLimits(max_duration=config.max_seconds + 1)
    name = safe_id(request.source.stem or "clip")
    return open_clip(request.source, fps=fps, audio=request.audio, id=name, limits=limits)


# ------------------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class ModelFacts:
    """A model as the page and the API describe it."""

    stage: str
    title: str
    reference: str
    license: str


@dataclass(frozen=True)
class RecipeOption:
    """A recipe that the page offers; `arguments` select it on the command line."""

    recipe: Recipe
    models: tuple[ModelFacts, ...]
    arguments: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return self.recipe.name

    @property
    def threshold(self) -> float:
        """Box threshold of the recipe, the initial value of the slider."""
        return self.recipe.filtering.box_threshold

    @property
    def only_synthetic(self) -> bool:
        """True if its models were trained on the synthetic world alone."""
        return is_only_synthetic(dict.fromkeys(model.reference for model in self.models))

    @property
    def uses_remote_server(self) -> bool:
        """True if captions or audio are sent to a model on another machine."""
        return any(section.use in SERVER_BACKENDS for section in self.recipe.stages().values())


def recipe_options(config: ServerConfig) -> dict[str, RecipeOption]:
    """By name: the recipe of the configuration with its overrides, then all shipped ones that can run offline.

    Raises:
        InputError: unknown recipe, or a trained student, which has no captions to show.
    """
    shared = {"device": config.device, "dtype": config.dtype, "offline": "true" if config.offline else None}
    changes = [f"{key}={value}" for key, value in shared.items() if value is not None]
    first = load_recipe(config.pipeline, [*config.overrides, *changes])
    if first.student is not None:
        raise InputError(f"{first.name} is a trained student, which has no captions to show; give a recipe")
    others = (load_recipe(name, [*changes, "offline=true"]) for name in resources.names("pipelines"))
    recipes = [first, *(recipe for recipe in others if recipe.name != first.name and is_runnable(recipe))]
    arguments = {recipe.name: ("--pipeline", recipe.name, *changes) for recipe in recipes}
    arguments[first.name] = ("--pipeline", config.pipeline, *config.overrides, *changes)
    return {
        recipe.name: RecipeOption(
            recipe, tuple(_model_facts(*item) for item in recipe.models().items()), arguments[recipe.name]
        )
        for recipe in recipes
    }


def command_text(request: SegmentRequest, option: RecipeOption) -> str:
    """Return the command of `openavs segment` that gives the same result."""
    source, *audio = (f"./{path.name}" for path in (request.source, request.audio) if path is not None)
    if request.threshold == option.threshold:
        request = replace(request, threshold=None)
    sound = ["--audio", *audio] if audio else []
    return shlex.join(["openavs", "segment", source, *sound, *option.arguments, *request.overrides()])


def is_runnable(recipe: Recipe) -> bool:
    """True if a recipe needs no other package, download or remote server."""
    for stage, section in recipe.stages().items():
        extra = Registry(stage_of(stage)).entry(section.use).extra
        if section.use in PRIVATE_BACKENDS:
            return False
        if extra is not None and (extra not in EXTRAS or EXTRAS[extra].version() is None):
            return False
    try:
        for reference in recipe.models().values():
            resolve(reference, offline=True)
    except ModelError:
        return False
    return True


def _model_facts(stage: str, reference: str) -> ModelFacts:
    """From the table of known models, else from the model card if it is on this disk."""
    if known := find_known_model(reference):
        return ModelFacts(stage, known.title, reference, known.license)
    license = None
    with suppress(ModelError):
        license = resolve(reference, offline=True).license
    return ModelFacts(stage, reference.rpartition("/")[2], reference, license or "not stated")


# -------------------------------------------------------------------------------------------------------------- models


class CaptioningPipeline(Pipeline):
    """Reports the captions before the later stages run."""

    on_captions: Callable[[CaptionBatch], None]
    """Set for each run."""

    def caption(self, *args: Any, **kwargs: Any) -> Any:
        """Caption the windows of a clip and report the captions."""
        captions = super().caption(*args, **kwargs)
        self.on_captions(captions)
        return captions


class ModelCache:
    """Holds one pipeline beside `tiny`, used by one run at a time; stages that two recipes share stay loaded.

    Outputs of the stages are cached in `cache_folder`, and encodings of images in memory: another threshold runs the
    mask decoder only, other prompts the detector as well.
    """

    def __init__(self, options: Mapping[str, RecipeOption], cache_folder: Path) -> None:
        self.options = dict(options)
        self._cache_folder = cache_folder
        self._backends: dict[bool, BackendCache] = {True: {}, False: {}}  # by "is it tiny?"
        self._loaded: dict[bool, str] = {}
        self._lock = threading.Lock()
        StageCache(cache_folder).set_limit(CACHE_LIMIT)

    @property
    def is_busy(self) -> bool:
        """True while a run uses the models."""
        return self._lock.locked()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Recipes whose models are in memory."""
        return tuple(self._loaded.values())

    def option(self, name: str) -> RecipeOption:
        """The recipe of that name; InputError if the page does not offer it."""
        if name not in self.options:
            raise InputError(f"unknown recipe {name!r:.60}; this page offers {', '.join(self.options)}")
        return self.options[name]

    @contextmanager
    def pipeline(self, name: str, overrides: Sequence[str] = ()) -> Iterator[tuple[CaptioningPipeline, StageCache]]:
        """The pipeline of a recipe with overrides, for the exclusive use of the block.

        The cache counts the hits of this run.

        Raises:
            InputError: the page does not offer the recipe.
            ModelError: its models cannot be loaded.
        """
        recipe = override_recipe(self.option(name).recipe, overrides)
        is_tiny = name == TINY
        with self._lock:
            self._loaded.pop(is_tiny, None)  # a build that fails half-way leaves no recipe loaded
            pipeline = load_pipeline(CaptioningPipeline, recipe, self._backends[is_tiny])
            self._loaded[is_tiny] = name
            kept = vars(pipeline.segmenter).get("kept")  # of the SAM family, if it is in memory
            if kept is not None:
                kept.limit = ENCODINGS_LIMIT
            yield pipeline, with_cache(pipeline, recipe, self._cache_folder, CACHED_STAGES)


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True)
class InferenceProgress:
    """State of a run.

    Attributes:
        steps: `(done, total)` of each stage that has begun.
        captions: distinct captions, the highest score first.
        cached: stages whose answers all came from the cache.
        result: set in the last state.
        seconds: duration of the whole run.
    """

    steps: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    captions: tuple[Caption, ...] = ()
    cached: tuple[str, ...] = ()
    result: Result | None = None
    seconds: float = 0.0

    def at(self, stage: str, done: int, total: int) -> InferenceProgress:
        """A copy with the progress of one stage."""
        return replace(self, steps={**self.steps, stage: (done, total)})


class RunStopped(Exception):
    """The result of a run is not needed any more."""


def run_request(
    request: SegmentRequest,
    models: ModelCache,
    config: ServerConfig,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Iterator[InferenceProgress]:
    """Segment a clip and yield its progress, at last with the result.

    When `is_stopped` returns True or the caller closes the iterator, the models stop at their next step and the last
    state has no result.

    Raises:
        InputError, ModelError: see `open_request` and `ModelCache.pipeline`.
    """
    return stream_latest(lambda report: _run(request, models, config, report), is_stopped)


def _run(
    request: SegmentRequest, models: ModelCache, config: ServerConfig, report: Callable[[InferenceProgress], None]
) -> None:
    started = time.monotonic()
    state = InferenceProgress()

    def on_progress(stage: str, done: int, total: int) -> None:
        nonlocal state
        state = state.at(stage, done, total)
        report(state)

    def on_captions(captions: CaptionBatch) -> None:
        nonlocal state
        state = replace(state, captions=distinct_captions(captions))
        report(state)

    on_progress("load", 0, 1)
    with models.pipeline(request.recipe, request.overrides()) as (pipeline, cache):
        clip = open_request(request, pipeline.fps, config)
        on_progress("load", 1, 1)
        pipeline.on_captions = on_captions
        result = pipeline(clip, on_progress)
    counts = cache.counts
    cached = tuple(stage for stage in CACHED_STAGES if counts[stage, "hits"] and not counts[stage, "misses"])
    named = Result.of(replace(result, source=request.source.name), clip)
    report(replace(state, cached=cached, result=named, seconds=time.monotonic() - started))


def distinct_captions(captions: CaptionBatch) -> tuple[Caption, ...]:
    """For each text the caption with the highest score, the highest first."""
    ranked = sorted((one for window in captions for one in window or ()), key=lambda one: -(one.score or 0.0))
    best: dict[str, Caption] = {}
    for caption in ranked:
        best.setdefault(caption.text, caption)
    return tuple(best.values())


def stream_latest(
    work: Callable[[Callable[[T], None]], None], is_stopped: Callable[[], bool] = lambda: False
) -> Iterator[T]:
    """Run `work(report)` in a thread and yield the newest reported values, always including the last one.

    `report` raises RunStopped when `is_stopped` returns True or the iterator is closed.
    """
    reports: queue.SimpleQueue[T | BaseException | None] = queue.SimpleQueue()
    is_closed = threading.Event()

    def report(value: T) -> None:
        if is_closed.is_set() or is_stopped():
            raise RunStopped
        reports.put(value)

    def target() -> None:
        end: BaseException | None = None
        try:
            work(report)
        except RunStopped:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the thread of the caller
            end = error
        reports.put(end)

    threading.Thread(target=target, name="openavs-run", daemon=True).start()
    try:
        while True:
            batch = [reports.get(), *(reports.get_nowait() for _ in range(reports.qsize()))]
            is_over = batch[-1] is None or isinstance(batch[-1], BaseException)
            values = batch[:-1] if is_over else batch
            if values:
                yield values[-1]  # type: ignore[misc]
            if is_over:
                break
            time.sleep(MIN_UPDATE_INTERVAL)
        if isinstance(batch[-1], BaseException):
            raise batch[-1]
    finally:  # without waiting for the thread: the server has other requests to answer
        is_closed.set()
