"""`Result`: the return value of `openavs.load(...)(video)`, a `ClipResult` with methods to save, show and export it.

`Result` adds no field, so every function that accepts a `ClipResult` accepts it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.errors import InputError
from openavs.structures.types import Clip, ClipResult
from openavs.utils.text import pluralize, split_list

if TYPE_CHECKING:
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
            report: write `report.html`.
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

    def export(self, form: str, out: str | Path, *, classes: str | Sequence[str] = (), overwrite: bool = False) -> Path:
        """Write this result in a format of `openavs export`, such as `coco` or `cutout-webm`, and return `out`."""
        from openavs.exports.base import Categories, ExportItem
        from openavs.exports.registry import ExportOptions, export as write

        item = ExportItem(self, lambda: self.video)
        chosen = split_list(classes) or self.recipe.get("vocabulary") or ()
        write(
            form,
            [item],
            Path(out),
            ExportOptions(Categories.of_vocabulary(chosen)),
            origin=self.clip,
            overwrite=overwrite,
        )
        return Path(out)

    def _repr_html_(self) -> str:
        """Return images and captions as HTML, for notebooks; `show()` adds the video, which takes longer."""
        from openavs.visualization.notebook import summary

        return summary(self, getattr(self, "_clip", None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClipResult) and _values(self) == _values(other)

    def __repr__(self) -> str:
        found = sum(len(frame.segments) for frame in self.frames)
        return f"<Result of {self.clip!r}: {pluralize(found, 'segment')} in {pluralize(len(self.frames), 'frame')}>"


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


def _values(result: ClipResult) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(ClipResult)}
