"""Export items: results of a folder, one at a time, with their source, categories and frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_semantic import FRAMES
from openavs.results.serialization import clip_folder, is_done, read_result
from openavs.stages.vocabulary import ClassMapper
from openavs.structures.types import Clip, ClipResult, Frame, Segment
from openavs.utils.fs import safe_id
from openavs.utils.serialization import parse_json
from openavs.utils.text import did_you_mean, pluralize

if TYPE_CHECKING:
    from openavs.evaluation.benchmark import BenchmarkConfig


@dataclass(frozen=True)
class ExportItem:
    """One clip's result and its source.

    Attributes:
        result: the result.
        open: opens the clip; raises InputError if its file is gone.
        overlay: the overlay video of the result folder; its audio is the one that was captioned, also if that came
            from a separate file. None without one.
        avsbench: subset (v1s, v1m, v2) and uid of a clip of AVSBench-semantic or AVSBench-OV.
        whole: False if segments of the result were filtered out.

    Raises:
        InputError: the clip id is not a safe file name.
    """

    result: ClipResult
    open: Callable[[], Clip]
    overlay: Path | None = None
    avsbench: tuple[str, str] | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        clip = self.result.clip
        if safe_id(clip) != clip:
            raise InputError(f"the clip id {clip!r:.60} of a result cannot be a file name; change it in its JSON")


def run_items(run: Path, clips: Sequence[str] | None = None, root: Path | None = None) -> Iterator[ExportItem]:
    """Yield the finished clips of a result folder in the order of their ids; each is read when it is requested.

    Args:
        run: the result folder.
        clips: ids of the clips to export; None for all.
        root: folder from which relative sources start; None: the one in run.json, else the working directory.

    Raises:
        InputError: not a result folder, or an unknown clip.
    """
    names, sources = finished(run), read_sources(run, root)
    for clip in clips or ():
        if clip not in names:
            raise InputError(f"{run} has no finished clip {clip!r}; {did_you_mean(clip, names)}")
    for name in names if clips is None else dict.fromkeys(clips):
        result, overlay = read_result(run, name), clip_folder(run, name) / "overlay.mp4"
        beside = overlay if overlay.is_file() else None
        sound = beside or sources.sound(name)
        yield ExportItem(result, partial(open_source, result, sources.root, sound), beside, sources.avsbench(result))


def finished(run: Path) -> list[str]:
    """Return the ids of a result folder's finished clips, sorted.

    Raises:
        InputError: there are none.
    """
    places = sorted((run / "clips").glob("*/result.json"))
    names = [path.parent.name for path in places if not path.parent.name.startswith(".")]
    if not names or not all(is_done(run, name) for name in names[:1]):
        raise InputError(f"{run} has no results; give the --out folder of 'openavs segment', 'evaluate' or 'label'")
    return names


def open_source(result: ClipResult, root: Path | None = None, sound: Path | None = None) -> Clip:
    """Open the clip of a result, sampled at the same times, with the audio of the file `sound` if it has any.

    Raises:
        InputError: the source does not exist, or never was a file.
    """
    from openavs.media.clip import open_clip, probe

    if result.source is None:
        raise InputError(f"{result.clip} was made in memory, so its frames cannot be read again")
    path = (root or Path()) / result.source
    if not path.exists():
        raise InputError(
            f"the source {path} of {result.clip} does not exist; give the folder of the videos with --root"
        )
    audio = sound if sound is not None and probe(sound).audio_codec is not None else None
    return open_clip(path, fps=sampled_fps(result), audio=audio, id=result.clip)


def sampled_fps(result: ClipResult) -> float:
    """Return the sampled frames per second: the recipe's, else the rate of the times."""
    section = result.recipe.get("sample")
    stated = section.get("fps") if isinstance(section, dict) else None
    if isinstance(stated, int | float) and stated > 0:
        return float(stated)
    times = [frame.time for frame in result.frames]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 1.0


def filtered(items: Iterable[ExportItem], categories: Categories) -> Iterator[ExportItem]:
    """Yield the items with only the segments that have a category; the others are counted in `categories`."""
    for item in items:
        yield item if not categories.closed else _filtered(item, categories)


def _filtered(item: ExportItem, categories: Categories) -> ExportItem:
    frames, whole = [], item.whole
    for frame in item.result.frames:
        kept = tuple(segment for segment in frame.segments if categories.id(segment) is not None)
        for segment in frame.segments:
            if categories.id(segment) is None:
                categories.leave_out(segment)
                whole = False
        frames.append(replace(frame, segments=kept))
    return replace(item, result=replace(item.result, frames=tuple(frames)), whole=whole)


def filtered_by_recipe(items: Iterable[ExportItem]) -> Iterator[ExportItem]:
    """Yield the items with the segments that the recipe's `label_filter` accepts; rejected clips are left out."""
    from pydantic import ValidationError

    from openavs.config.recipe import LabelFilterConfig
    from openavs.results.filters import apply_label_filters

    for item in items:
        section = item.result.recipe.get("label_filter", {})
        try:
            rules = LabelFilterConfig.model_validate(section)
        except ValidationError as error:
            raise InputError(
                f"the recipe of {item.result.clip} has an invalid 'label_filter'; label it again"
            ) from error
        accepted = apply_label_filters(item.result, rules)
        if accepted.reason is None:
            yield replace(item, result=accepted.result, whole=item.whole and not accepted.rejected)


class Categories:
    """Category ids from 1, as COCO tools expect them (0 is the background of masks).

    Without `names` every label (else phrase) is a category, in order of first appearance. With `names` the ids are
    their positions; a segment's label or phrase is mapped to them like phrases to a vocabulary (exact name, alias,
    lexicon). A segment without a match has no id and is counted. A leading `background` is ignored.
    """

    def __init__(self, names: Sequence[str] = (), aliases: Mapping[str, str] | None = None) -> None:
        given = list(names[1:] if names and names[0] == "background" else names)
        self.closed = bool(given)
        self._ids: dict[str, int] = {name: place for place, name in enumerate(given, start=1)}
        self._mapper = ClassMapper(given, aliases) if given else None
        self._left_out: Counter[str] = Counter()
        self._written: tuple[str, ...] = ()
        self._found: set[int] = set()

    @classmethod
    def of_benchmark(cls, benchmark: BenchmarkConfig) -> Categories:
        """Return a benchmark's classes: segments are matched by its phrases, names are the published ones."""
        made = cls(benchmark.vocabulary or (), benchmark.aliases)
        made._written = tuple(benchmark.classes[1:])
        return made

    @classmethod
    def of_vocabulary(cls, names: Sequence[str]) -> Categories:
        """Return the categories of a vocabulary; that of a benchmark gets the benchmark's class names."""
        from openavs.config import resources
        from openavs.evaluation.benchmark import load_benchmark

        given = list(names[1:] if names and names[0] == "background" else names)
        benchmarks = map(load_benchmark, resources.names("eval")) if given else iter(())
        own = next((benchmark for benchmark in benchmarks if benchmark.vocabulary == given), None)
        return cls(given) if own is None else cls.of_benchmark(own)

    @classmethod
    def of_clip(cls, result: ClipResult) -> Categories:
        """Return the categories of a whole clip, so that ids do not depend on the frame that is exported first."""
        known = cls()
        for frame in result.frames:
            for segment in frame.segments:
                known.id(segment)
        return known

    def id(self, segment: Segment) -> int | None:
        """Return the id of a segment's category; None without one in the closed list."""
        name = segment.label or segment.phrase
        if self._mapper is None:
            return self._ids.setdefault(name, len(self._ids) + 1)
        label = name if name in self._ids else self._mapper(name)[0]
        if label is None:
            return None
        self._found.add(self._ids[label])
        return self._ids[label]

    def leave_out(self, segment: Segment) -> None:
        """Count a segment without a category."""
        self._left_out[segment.label or segment.phrase] += 1

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the categories so far, in the order of their ids."""
        return self._written or tuple(self._ids)

    def not_found(self) -> list[str]:
        """Return a sentence about categories of the closed list without segments; an empty list if there are none."""
        found = [name for place, name in enumerate(self.names, start=1) if place in self._found]
        missing = [name for name in self.names if name not in found]
        there = ", ".join(sorted({*found, *self._left_out})) or "no segments at all"
        return [f"no segment is of {', '.join(missing)}; the results have {there}"] if missing else []

    def notes(self) -> list[str]:
        """Return a sentence about segments that were left out; an empty list if there are none."""
        if not self._left_out:
            return []
        named = ", ".join(f"{name} ({count})" for name, count in self._left_out.most_common(5))
        return [f"{pluralize(self._left_out.total(), 'segment')} of other categories left out: {named}"]


QUALITY = 95  # of the JPEG files


def image_name(clip: str, index: int) -> str:
    """Return the path of a frame below the folder of images."""
    return f"{clip}/{index:05d}.jpg"


def result_frames(result: ClipResult, clip: Clip) -> Iterator[Frame]:
    """Yield the sampled frames of a result, decoded one by one from its clip.

    Raises:
        InputError: the clip is another video than the result's, or ends early.
    """
    if clip.size != result.size:
        sizes = [f"{size[1]} x {size[0]}" for size in (clip.size, result.size)]
        raise InputError(
            f"{clip.source} has {sizes[0]} pixels and the result of {result.clip} {sizes[1]}, so it is another video"
        )
    missing = {frame.index for frame in result.frames}
    for frame in clip.frames(frozenset(missing)):
        missing.discard(frame.index)
        yield frame
    if missing:
        raise InputError(
            f"{pluralize(len(missing), 'frame')} of {clip.source} can no longer be read, such as {min(missing)}"
        )


def write_images(folder: Path, item: ExportItem, rename: Callable[[str], str] = str) -> None:
    """Write the frames of an item as JPEG files below `folder`; `rename` may change their `image_name`."""
    for frame in result_frames(item.result, item.open()):
        path = folder / rename(image_name(item.result.clip, frame.index))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame.image).save(path, quality=QUALITY)


@dataclass(frozen=True)
class ClipSources:
    """Sources of a result folder's clips.

    Attributes:
        root: folder from which relative sources start; None for the working directory.
        sounds: separate audio files by clip id.
        subsets: subset of AVSBench-semantic (v1s, v1m, v2) by uid.
    """

    root: Path | None
    sounds: Mapping[str, str]
    subsets: Mapping[str, str]

    def sound(self, clip: str) -> Path | None:
        """Return the separate audio file of a clip; None without one."""
        return (self.root or Path()) / self.sounds[clip] if clip in self.sounds else None

    def avsbench(self, result: ClipResult) -> tuple[str, str] | None:
        """Return the subset and uid of a clip of AVSBench-semantic or AVSBench-OV; None for other clips."""
        source = PurePath(result.source or "")  # .../<subset>/<uid>/frames or .../JPEGImages/<uid>
        uid = source.parent.name if source.name == "frames" else source.name
        return (self.subsets[uid], uid) if uid in self.subsets else None


def read_sources(run: Path, root: Path | None = None) -> ClipSources:
    """Read the sources of a result folder's clips; `root` replaces the one in run.json.

    Raises:
        InputError: run.json or the manifest is damaged.
    """
    recorded = _run_json(run, "root")
    if root is None and isinstance(recorded, str):
        root = Path(recorded)
    lines_path, predictions = run / "manifest.jsonl", run / "predictions"
    sounds: dict[str, str] = {}
    places = [path.relative_to(predictions).as_posix() for path in predictions.glob("*/*")]
    try:
        with lines_path.open("rb") if lines_path.is_file() else nullcontext(()) as lines:
            for line in map(parse_json, lines):
                places += line.get("places", ())[:1]
                if "audio" in line and "audio_slice" not in line:
                    sounds[line["id"]] = str(line["audio"])
        parts = [PurePath(place).parts for place in places]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{lines_path} is damaged ({error}); give another result folder") from error
    return ClipSources(root, sounds, {own[1]: own[0] for own in parts if len(own) > 1 and own[0] in FRAMES})


def run_classes(run: Path) -> tuple[str, ...]:
    """Return the closed list of classes of a result folder; empty in open vocabulary or without run.json."""
    masks = _run_json(run, "masks") or {}
    classes = (masks.get("classes") if isinstance(masks, dict) else masks) or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{run / 'run.json'} has classes that are not texts; give another result folder")
    return tuple(classes)


def run_benchmark(run: Path) -> str | None:
    """Return the benchmark of a label job or an evaluation; None if the folder does not record it."""
    data = _run_json(run, "data")
    name = data.get("benchmark") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def _run_json(run: Path, key: str) -> Any:
    path = run / "run.json"
    try:
        return parse_json(path.read_bytes()).get(key) if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} was not written by this openavs ({error}); give another result folder") from error
