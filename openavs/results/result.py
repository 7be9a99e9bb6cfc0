"""`Result`: the return value of `openavs.load(...)(video)`, a `ClipResult` with methods to save, show and export it.

`Result` adds no field, so every function that accepts a `ClipResult` accepts it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.structures.masks import segments_to_mask
from openavs.structures.types import Clip, ClipResult, Correction, CorrectionAction, FrameResult, Segment
from openavs.utils.text import pluralize, split_list

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

    from openavs.pipeline.pipeline import Pipeline
    from openavs.visualization.notebook import NotebookView


@dataclass(frozen=True, eq=False)
class Result(ClipResult):
    """Results of one clip, with the clip.

    It equals every `ClipResult` with the same fields. `dataclasses.replace` returns a result without the clip, which
    is then opened from `source` when it is needed.
    """

    @classmethod
    def of(cls, result: ClipResult, clip: Clip | None = None) -> Result:
        """Make a `Result` from the fields of a `ClipResult`."""
        made = cls(**_values(result))
        if clip is not None:
            object.__setattr__(made, "_clip", clip)  # not a field: it is not saved
        return made

    @property
    def video(self) -> Clip:
        """The clip; InputError if its file is gone, or if it was made in memory and not kept."""
        held: Clip | None = getattr(self, "_clip", None)
        if held is not None:
            return held
        from openavs.exports.base import open_source

        return open_source(self)

    def save(self, out: str | Path, *, overlay: bool = True, report: bool = True, overwrite: bool = False) -> Path:
        """Write the result into a result folder, as `openavs segment` does, and return `out/clips/<id>`.

        Other clips of the same recipe in that folder stay. `openavs export` reads it.

        Args:
            out: the result folder.
            overlay: write `overlay.mp4`, the video with painted masks and its audio.
            report: write `report.html` and `video.mp4`, which it plays.
            overwrite: replace this clip if it exists.

        Raises:
            InputError: `out` has results of another recipe, or has this clip and `overwrite` is False.
        """
        from openavs.jobs.save import save_result
        from openavs.utils.fs import safe_id

        name = safe_id(self.clip)  # ids of clips made in memory may be any text
        named = self if name == self.clip else dataclasses.replace(self, clip=name)
        wanted = {"overlay.mp4": overlay, "report.html": report}
        files = [file for file, is_wanted in wanted.items() if is_wanted]
        return save_result(Path(out), named, lambda: self.video if files else None, files=files, overwrite=overwrite)

    def show(self, *, width: int = 640, max_seconds: float = 120.0, max_bytes: int = 16_000_000) -> NotebookView:
        """Return a notebook view: the video with painted masks and audio, the captions, and the objects found.

        The video is embedded in the page. If it is longer than `max_seconds` or larger than `max_bytes`, images of
        some frames replace it.

        Args:
            width: maximum length of the long side, in pixels.
            max_seconds: maximum duration.
            max_bytes: maximum size of the encoded video.
        """
        from openavs.visualization.notebook import show

        return show(self, self.video, width=width, max_seconds=max_seconds, max_bytes=max_bytes)

    def export(
        self,
        form: str,
        out: str | Path,
        *,
        classes: str | Sequence[str] = (),
        style: str | Sequence[str] = (),
        overwrite: bool = False,
    ) -> Path:
        """Write this result in a format of `openavs export`, such as `coco` or `cutout-webm`, and return `out`.

        `style` is for `overlay`: supervision's annotators draw it, such as `halo` or `trace,label`.
        """
        from openavs.exports.base import Categories, ExportItem
        from openavs.exports.registry import ExportOptions, export as write

        item = ExportItem(self, lambda: self.video)
        chosen = split_list(classes) or self.recipe.get("vocabulary") or ()
        write(
            form,
            [item],
            Path(out),
            ExportOptions(Categories.of_vocabulary(chosen), styles=tuple(split_list(style))),
            origin=self.clip,
            overwrite=overwrite,
        )
        return Path(out)

    def masks(self, phrase: str | None = None) -> npt.NDArray[np.bool_]:
        """Return the union of the masks of every sampled frame, bool `[T, H, W]`; of one phrase or label if given."""
        return np.stack([segments_to_mask(_of(frame, phrase), self.size) for frame in self.frames])

    def heatmap(self, phrase: str | None = None) -> npt.NDArray[np.float32]:
        """Return the share of the sampled frames in which each pixel is in a mask, float32 `[H, W]` in [0, 1]."""
        total = np.zeros(self.size, dtype=np.float32)
        for frame in self.frames:
            total += segments_to_mask(_of(frame, phrase), self.size)
        return total / np.float32(max(len(self.frames), 1))

    def rows(self) -> list[dict[str, Any]]:
        """Return one record per segment: frame, time, phrase, label, scores, box, area in pixels, and track."""
        return [
            {
                "frame": frame.index,
                "time": frame.time,
                "phrase": s.phrase,
                "label": s.label,
                "score": s.score,
                "mask_score": s.mask_score,
                **dict(zip(("x0", "y0", "x1", "y1"), s.box, strict=True)),
                "area": s.mask.area,
                "track": s.track,
            }
            for frame in self.frames
            for s in frame.segments
        ]

    def to_pandas(self) -> DataFrame:
        """Return `rows()` as a table; InputError if pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise InputError("to_pandas needs pandas: pip install pandas") from error
        return pandas.DataFrame(self.rows(), columns=list(_COLUMNS))

    def plot_timeline(self, axes: Axes | None = None) -> Axes:
        """Draw when each phrase was captioned, found and not found; return the matplotlib axes.

        Args:
            axes: to draw into; by default those of a new figure.
        """
        from openavs.visualization.plots import plot_timeline

        return plot_timeline(self, axes)

    def with_threshold(self, threshold: float, pipe: Pipeline | None = None) -> Result:
        """Return the result with another threshold of boxes; detector and captioner do not run again.

        A higher threshold rejects segments. For a lower one, the best box of each phrase that was `below threshold`
        becomes a segment, if `pipe` is given to make its mask; verifiers and tracker do not see it.

        Args:
            threshold: least score of a box, in [0, 1].
            pipe: a pipeline whose segmenter makes masks of boxes, such as the one that made the result.

        Raises:
            InputError: a threshold outside [0, 1], or a pipeline without a segmenter of boxes.
        """
        from openavs.results.filters import apply_threshold

        held = getattr(self, "_clip", None)
        changed = apply_threshold(self, threshold, pipe, lambda: self.video)
        return Result.of(changed, held)

    def correct(
        self,
        action: CorrectionAction,
        *,
        frame: int | None = None,
        track: int | None = None,
        value: Any = None,
        phrase: str = "",
        author: str = "person",
        pipe: Pipeline | None = None,
    ) -> Result:
        """Return the result after one correction, which is carried to the other frames and recorded; see `Correction`.

        `result.correct("add point", frame=3, track=0, value=(120, 80), pipe=pipe)` adds what is at a point to a mask.

        Args:
            action: what is corrected.
            frame: index of the frame; None: the whole clip.
            track: the track; None: a new object, or all of the phrase.
            value: the point, phrase, span or box of the action.
            phrase: the phrase.
            author: name of the person.
            pipe: a pipeline whose segmenter (and tracker) changes masks; without it colors and motion do.

        Raises:
            InputError: no such frame, track or candidate, or a value of another form.
        """
        from openavs.corrections.apply import correct_result
        from openavs.corrections.mask_motion import CorrectionTools

        stages = () if pipe is None else (pipe.segmenter, pipe.tracker)
        value = list(value) if isinstance(value, tuple) else value
        record = Correction(action, frame, track, phrase, value, author)
        changed = correct_result(self, [record], CorrectionTools(lambda: self.video, *stages))
        return Result.of(changed, getattr(self, "_clip", None))

    def _repr_html_(self) -> str:
        """Return images and captions as HTML, for notebooks; `show()` adds the video, which takes longer."""
        from openavs.visualization.notebook import summary

        return summary(self, getattr(self, "_clip", None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClipResult) and _values(self) == _values(other)

    def __repr__(self) -> str:
        found = sum(len(frame.segments) for frame in self.frames)
        return f"<Result of {self.clip!r}: {pluralize(found, 'segment')} in {pluralize(len(self.frames), 'frame')}>"


_COLUMNS = ("frame", "time", "phrase", "label", "score", "mask_score", "x0", "y0", "x1", "y1", "area", "track")


def read_result(out: str | Path, clip: str | None = None) -> Result:
    """Read one clip of a result folder; `clip` is optional if the folder has a single clip.

    Raises:
        InputError: no such folder or clip, a damaged file, or several clips and no `clip`.
    """
    from openavs.exports.base import finished
    from openavs.results.serialization import read_result as read

    names = [clip] if clip is not None else finished(Path(out))
    if len(names) > 1:
        shown = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        raise InputError(f"{out} has {len(names)} clips; name one: {shown}")
    return Result.of(read(out, names[0]))


def _of(frame: FrameResult, phrase: str | None) -> list[Segment]:
    return [s for s in frame.segments if phrase is None or phrase in (s.phrase, s.label)]


def _values(result: ClipResult) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(ClipResult)}
