"""The sampled frames as picture files beside annotations that name them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image as Pictures

from openavs.errors import InputError
from openavs.exports.items import ExportItem
from openavs.structures.types import Clip, ClipResult, Frame
from openavs.utils.text import pluralize

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
