"""`Result`: a `Segmentation` that can save and show itself. It is what `openavs.load(...)(video)` returns.

`Segmentation` lies at the bottom of the house and knows nothing of files; what follows here imports down to it. A
`Result` adds no field, only the clip it came from, so every function that takes a `Segmentation` takes it as it is.
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
    """One clip's results, beside the clip itself.

    Equal to any `Segmentation` that says the same; `dataclasses.replace` gives a result without its clip, which is
    then opened again from `source`.
    """

    @classmethod
    def of(cls, segmentation: ClipResult, clip: Clip | None = None) -> Result:
        """The result of a clip."""
        made = cls(**_values(segmentation))
        if clip is not None:
            object.__setattr__(made, "_clip", clip)  # no field: what is written of a result is the segmentation
        return made

    @property
    def video(self) -> Clip:
        """The clip itself; `InputError` if it was made in memory and is gone, or its file is."""
        held: Clip | None = getattr(self, "_clip", None)
        if held is not None:
            return held
        from openavs.exports.base import open_source

        return open_source(self)

    def save(self, out: str | Path, *, overlay: bool = True, report: bool = True, overwrite: bool = False) -> Path:
        """Writes the clip into a result folder, as `openavs segment` does, and returns `out/clips/<id>`.

        The folder may hold other clips of the same recipe: they stay. `openavs export` reads it.

        Args:
            out: the result folder.
            overlay: write `overlay.mp4`, the video with the masks painted on and its sound.
            report: write `report.html`.
            overwrite: write the clip anew if it is there already.

        Raises:
            InputError: `out` holds the results of another recipe, or this clip's and `overwrite` is not given.
        """
        from openavs.jobs.save import save_result
        from openavs.results.serialization import safe_id

        name = safe_id(self.clip)  # a clip may have any id; its folder may not
        named = self if name == self.clip else dataclasses.replace(self, clip=name)
        wanted = {"overlay.mp4": overlay, "report.html": report}
        files = [file for file, is_wanted in wanted.items() if is_wanted]
        return save_result(Path(out), named, lambda: self.video if files else None, files=files, overwrite=overwrite)

    def show(self, *, width: int = 640, max_seconds: float = 120.0, max_bytes: int = 16_000_000) -> NotebookView:
        """The video with the masks painted on, its sound and what was heard and found, for a notebook.

        The video is part of the page, so it is bounded: at most `width` pixels on its long side; longer than
        `max_seconds`, or larger than `max_bytes`, it is left out and pictures stand for it.
        """
        from openavs.visualization.notebook import show

        return show(self, self.video, width=width, max_seconds=max_seconds, max_bytes=max_bytes)

    def export(self, form: str, out: str | Path, *, classes: str | Sequence[str] = (), overwrite: bool = False) -> Path:
        """Writes this result in one of the formats of `openavs export`, such as `coco` or `cutout-webm`."""
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
        """What a notebook shows for a result: pictures and words; `show()` has the video, which takes a moment."""
        from openavs.visualization.notebook import summary

        return summary(self, getattr(self, "_clip", None))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClipResult) and _values(self) == _values(other)

    def __repr__(self) -> str:
        found = sum(len(frame.segments) for frame in self.frames)
        return f"<Result of {self.clip!r}: {pluralize(found, 'segment')} in {pluralize(len(self.frames), 'frame')}>"


def read_result(out: str | Path, clip: str | None = None) -> Result:
    """Reads one clip of a result folder; `clip` may be left out where the folder holds one clip.

    Raises:
        InputError: no such folder or clip, a damaged file, or several clips and none is named.
    """
    from openavs.exports.base import finished
    from openavs.results.serialization import read_result as read

    names = [clip] if clip is not None else finished(Path(out))
    if len(names) > 1:
        some = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        raise InputError(f"{out} holds {len(names)} clips; name one: {some}")
    return Result.of(read(out, names[0]))


def _values(segmentation: ClipResult) -> dict[str, Any]:
    return {field.name: getattr(segmentation, field.name) for field in fields(ClipResult)}
