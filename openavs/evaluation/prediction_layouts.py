"""Where a folder holds predicted masks: in the benchmark's layout, or as the published scripts write them.

These leave out leading folders (the split of S4 and MS3, the subset of AVSBench-semantic), name the masks of AVSS
`<uid>_<k>.png`, and number the masks of S4 and MS3 from 0. Folders and names are recognized. Another numbering is
refused until it is asked for, because a wrong guess scores every frame against its neighbor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips
from openavs.evaluation.predictions import clip_folder, is_there


@dataclass(frozen=True)
class PredictionLayout:
    """How masks are named: leading folders that are left out, `<id>_<k>.png` or `<k>.png`, and the first frame's k."""

    dropped: int
    with_id: bool
    first: int

    def path(self, clip: BenchmarkClip, frame: int) -> str:
        """Return the path of a frame's mask; `frame` may lie outside of the clip."""
        name = f"{clip.id}_{self.first + frame}.png" if self.with_id else f"{self.first + frame}.png"
        return Path(*Path(clip.predictions[0]).parent.parts[self.dropped :], name).as_posix()

    def applied(self, clip: BenchmarkClip) -> BenchmarkClip:
        """Return the clip with this layout's paths as its predictions."""
        return replace(clip, predictions=tuple(self.path(clip, frame) for frame in range(len(clip.predictions))))


def located(dataset: Dataset, folder: Path, *, numbering: int | None = None, resize: bool = False) -> Dataset:
    """Return the data set with its predictions' paths as they are in `folder`.

    Args:
        numbering: the number of the first frame in file names; None is the benchmark's.
        resize: accept masks of another size than the benchmark's, which are resized to the nearest pixel.

    Raises:
        InputError: masks that seem to be numbered from another number while `numbering` is None.
    """
    clips = dataset.clips
    own = _own_layout(clips[0]) if len(clips) else None
    if own is not None:
        found = next((layout for clip in clips for layout in _present(clip, own, folder)), own)
        if numbering is None:
            _check_numbering(dataset, found, folder)
        else:
            found = replace(found, first=numbering)
        clips = clips if found == own else _changed(clips, found.applied)
    elif numbering is not None:
        raise InputError(f"the masks of {dataset.benchmark} are not named by numbers; leave --numbering out")
    if resize:
        clips = _changed(clips, lambda clip: replace(clip, resize=True))
    return replace(dataset, clips=clips)


def _own_layout(clip: BenchmarkClip) -> PredictionLayout | None:
    """The benchmark's own layout; None if its masks are not named `<k>.png` or `<id>_<k>.png`, counting from 0 or 1."""
    layouts = (PredictionLayout(0, with_id, first) for with_id in (False, True) for first in (0, 1))
    return next((layout for layout in layouts if layout.applied(clip) == clip), None)


def _present(clip: BenchmarkClip, own: PredictionLayout, folder: Path) -> Iterator[PredictionLayout]:
    """The layouts in which any mask of the clip is there, the benchmark's own first; whatever its number."""
    frames = range(-1, len(clip.predictions) + 1)
    for dropped in range(len(clip_folder(clip).parts)):
        for with_id in (own.with_id, not own.with_id):
            layout = PredictionLayout(dropped, with_id, own.first)
            if any(is_there(folder / layout.path(clip, frame)) for frame in frames):
                yield layout


def _check_numbering(dataset: Dataset, layout: PredictionLayout, folder: Path) -> None:
    """Refuse masks with one more frame before the first, or after the last, and one missing at the other end."""
    for clip in dataset.clips:
        end = len(clip.predictions)
        for outside, inside, start in ((-1, end - 1, layout.first - 1), (end, 0, layout.first + 1)):
            extra, absent = (layout.path(clip, frame) for frame in (outside, inside))
            if is_there(folder / extra) and not is_there(folder / absent):
                raise InputError(
                    f"{folder} holds {extra} and not {absent}: are its masks numbered from {start}? "
                    f"{dataset.benchmark} counts from {layout.first}; say --numbering {start}, or --numbering "
                    f"{layout.first} if they are numbered from {layout.first}"
                )


def _changed(clips: Sequence[BenchmarkClip], change: Callable[[BenchmarkClip], BenchmarkClip]) -> LazyClips:
    """The clips changed one by one when they are asked for."""
    return LazyClips(range(len(clips)), lambda index: change(clips[index]))
