"""What is exported: results, one at a time, each with a way to open the video it was made from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.exports.sources import read_origins
from openavs.pipeline.class_mapping import ClassMapper
from openavs.results.serialization import clip_folder, is_done, read_result
from openavs.structures.types import Clip, ClipResult, Frame, Segment
from openavs.utils.fs import safe_id
from openavs.utils.text import did_you_mean, pluralize

if TYPE_CHECKING:
    from openavs.evaluation.benchmark import BenchmarkConfig


@dataclass(frozen=True)
class ExportItem:
    """One clip's result; `open` gives the clip itself and raises InputError where that is gone.

    `overlay` is the painted video of the result folder, if there is one: its sound is what was heard, even where that
    had come from another file than the video.

    Raises:
        InputError: the result's clip id is no plain name, as in a file that somebody else wrote; exports name files so.
    """

    result: ClipResult
    open: Callable[[], Clip]
    overlay: Path | None = None
    avsbench: tuple[str, str] | None = None  # the subset (v1s, v1m, v2) and uid of a clip of AVSBench-semantic or -OV
    whole: bool = True  # nothing of the result was filtered out

    def __post_init__(self) -> None:
        clip = self.result.clip
        if safe_id(clip) != clip:
            raise InputError(f"the clip id {clip!r:.60} of a result cannot name a file; write another into its JSON")


def run_items(run: Path, clips: Sequence[str] | None = None, root: Path | None = None) -> Iterator[ExportItem]:
    """The finished clips of a result folder in the order of their ids; each is read when its turn comes.

    Args:
        clips: only these.
        root: the folder that relative sources start from, as those of a label job do; None: the one that run.json
            names, else the current one.

    Raises:
        InputError: no result folder, or a clip that is not there.
    """
    names, origins = finished(run), read_origins(run, root)
    for clip in clips or ():
        if clip not in names:
            raise InputError(f"{run} has no finished clip {clip!r}; {did_you_mean(clip, names)}")
    for name in names if clips is None else dict.fromkeys(clips):
        result, overlay = read_result(run, name), clip_folder(run, name) / "overlay.mp4"
        beside = overlay if overlay.is_file() else None
        sound = beside or origins.sound(name)
        yield ExportItem(result, partial(open_source, result, origins.root, sound), beside, origins.avsbench(result))


def finished(run: Path) -> list[str]:
    """The ids of a result folder's finished clips, sorted; InputError if it has none."""
    places = sorted((run / "clips").glob("*/result.json"))
    names = [path.parent.name for path in places if not path.parent.name.startswith(".")]
    if not names or not all(is_done(run, name) for name in names[:1]):
        raise InputError(f"{run} holds no results; give the --out folder of 'openavs segment', 'evaluate' or 'label'")
    return names


def open_source(result: ClipResult, root: Path | None = None, sound: Path | None = None) -> Clip:
    """The clip a result was made from, sampled at the same times; with the sound of the file `sound` if it has any.

    Raises:
        InputError: the source is not there any more, or never was a file.
    """
    from openavs.media import open_clip, probe

    if result.source is None:
        raise InputError(f"{result.clip} was made in memory, so its pictures cannot be read again")
    path = (root or Path()) / result.source
    if not path.exists():
        raise InputError(f"the source {path} of {result.clip} is not there; say with --root where the videos lie")
    heard = sound if sound is not None and probe(sound).audio_codec is not None else None
    return open_clip(path, fps=sampled_fps(result), audio=heard, id=result.clip)


def sampled_fps(result: ClipResult) -> float:
    """Sampled frames per second: what the recipe says, else what the times say."""
    section = result.recipe.get("sample")
    stated = section.get("fps") if isinstance(section, dict) else None
    if isinstance(stated, int | float) and stated > 0:
        return float(stated)
    times = [frame.time for frame in result.frames]
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 1.0


def filtered(items: Iterable[ExportItem], categories: Categories) -> Iterator[ExportItem]:
    """The items with only the segments that have a category; the others are counted in `categories`."""
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
    """The items with what the `filter` section of their recipe takes as labels; a clip that fails as a whole is out."""
    from pydantic import ValidationError

    from openavs.config.recipe import LabelFilterConfig
    from openavs.results.filters import apply_label_filters

    for item in items:
        section = item.result.recipe.get("label_filter", {})
        try:
            wanted = LabelFilterConfig.model_validate(section)
        except ValidationError as problem:
            raise InputError(
                f"the recipe of {item.result.clip} has a 'label_filter' that is none; label it again"
            ) from problem
        answer = apply_label_filters(item.result, wanted)
        if answer.reason is None:
            yield replace(item, result=answer.result, whole=item.whole and not answer.rejected)


class Categories:
    """Category ids from 1, as COCO tools expect them (0 is the background in masks).

    Without `names` every label (else phrase) is a category, in the order of first appearance. With them the ids are
    their positions; a segment's label or phrase is mapped to them as the pipeline maps phrases to a vocabulary (exact
    name, alias, lexicon), and one that is none of them has no id and is counted. A leading `background` is left out.
    """

    def __init__(self, names: Sequence[str] = (), aliases: Mapping[str, str] | None = None) -> None:
        given = list(names[1:] if names and names[0] == "background" else names)
        self.closed = bool(given)
        self._ids: dict[str, int] = {name: place for place, name in enumerate(given, start=1)}
        self._labeller = ClassMapper(given, aliases) if given else None
        self._left_out: Counter[str] = Counter()
        self._written: tuple[str, ...] = ()
        self._found: set[int] = set()

    @classmethod
    def of_card(cls, card: BenchmarkConfig) -> Categories:
        """A benchmark's classes: segments are matched by the card's phrases, names are the published ones."""
        made = cls(card.vocabulary or (), card.aliases)
        made._written = tuple(card.classes[1:])
        return made

    @classmethod
    def of_vocabulary(cls, names: Sequence[str]) -> Categories:
        """The categories of a recipe's vocabulary; a benchmark's own vocabulary has the benchmark's class names."""
        from openavs.config import resources
        from openavs.evaluation.benchmark import load_benchmark

        given = list(names[1:] if names and names[0] == "background" else names)
        cards = map(load_benchmark, resources.names("eval")) if given else iter(())
        card = next((card for card in cards if card.vocabulary == given), None)
        return cls(given) if card is None else cls.of_card(card)

    @classmethod
    def of_clip(cls, segmentation: ClipResult) -> Categories:
        """Those of a whole clip, so that a frame's ids do not depend on which frame is asked for first."""
        known = cls()
        for frame in segmentation.frames:
            for segment in frame.segments:
                known.id(segment)
        return known

    def id(self, segment: Segment) -> int | None:
        """The category's id; None for a segment of no category of the closed list."""
        name = segment.label or segment.phrase
        if self._labeller is None:
            return self._ids.setdefault(name, len(self._ids) + 1)
        label = name if name in self._ids else self._labeller(name)[0]
        if label is None:
            return None
        self._found.add(self._ids[label])
        return self._ids[label]

    def leave_out(self, segment: Segment) -> None:
        """Counts a segment that no category holds."""
        self._left_out[segment.label or segment.phrase] += 1

    @property
    def names(self) -> tuple[str, ...]:
        """The categories so far, in the order of their ids."""
        return self._written or tuple(self._ids)

    def not_found(self) -> list[str]:
        """A sentence on the categories of a closed list that no segment has, if there are any."""
        found = [name for place, name in enumerate(self.names, start=1) if place in self._found]
        missing = [name for name in self.names if name not in found]
        there = ", ".join(sorted({*found, *self._left_out})) or "no segments at all"
        return [f"no segment is of {', '.join(missing)}; the results hold {there}"] if missing else []

    def notes(self) -> list[str]:
        """A sentence on what was left out, if anything was."""
        if not self._left_out:
            return []
        named = ", ".join(f"{name} ({count})" for name, count in self._left_out.most_common(5))
        return [f"{pluralize(self._left_out.total(), 'segment')} of other categories left out: {named}"]


QUALITY = 95  # of the JPEG files


def picture_name(clip: str, index: int) -> str:
    """The path of a frame below the folder of images."""
    return f"{clip}/{index:05d}.jpg"


def result_frames(result: ClipResult, clip: Clip) -> Iterator[Frame]:
    """The sampled frames of a result, decoded one by one from the clip it was made from.

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
            f"{pluralize(len(missing), 'frame')} of {clip.source} cannot be read any more, such as {min(missing)}"
        )


def write_pictures(folder: Path, item: ExportItem, rename: Callable[[str], str] = str) -> None:
    """Writes the frames of an item as JPEG files below `folder`; `rename` may change their `picture_name`."""
    for frame in result_frames(item.result, item.open()):
        path = folder / rename(picture_name(item.result.clip, frame.index))
        path.parent.mkdir(parents=True, exist_ok=True)
        Pictures.fromarray(frame.image).save(path, quality=QUALITY)
