"""From a line of the plan to a `Clip`, and what can be wrong with it, in words to count by."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from openavs.errors import InputError
from openavs.labeling.sample import ByteRange, Sample, locate
from openavs.media import open_clip, open_images
from openavs.media.probe import check_file, reading
from openavs.structures.types import Clip
from openavs.utils.fs import is_missing

log = logging.getLogger(__name__)
BLOCK = 1 << 20


class ClipError(InputError):
    """A clip cannot be labelled; `reason` is a short word to count by."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class ClipLoader:
    """Where a shard's clips are opened: paths start from `root`, and what lies in a tar is copied into `scratch`."""

    root: Path
    scratch: Path
    fps: float

    def open(self, item: Sample) -> Clip:
        """Opens a clip; its frames are decoded later.

        Raises:
            ClipError: `bad_row`, `missing`, `unreadable` or `no_sound`.
        """
        if item.problem is not None:
            raise ClipError("bad_row", item.problem)
        try:
            clip = self._open(item)
        except InputError as problem:
            raise self.failure("unreadable", problem, item) from problem
        if clip.audio is None:
            raise ClipError("no_sound", f"{item.source} has no sound track")
        warnings = tuple(self.tell(warning, item) for warning in clip.warnings)
        return replace(clip, source=item.source, warnings=warnings, labels=item.classes)

    def failure(self, reason: str, problem: InputError, item: Sample) -> ClipError:
        """The failure of a clip; its reason is `missing` if one of the clip's files is not there."""
        files = [item.path, *([item.audio] if item.audio else []), *item.frames]
        if any(is_missing(os.path.join(self.root, file)) for file in files):
            reason = "missing"
        return ClipError(reason, self.tell(str(problem), item))

    def close(self, item: Sample) -> None:
        """Removes what was copied for a clip."""
        for part in (item.video_slice, item.audio_slice):
            if part is not None:
                self._copy_of(item, part).unlink(missing_ok=True)

    def tell(self, sentence: str, item: Sample) -> str:
        """A sentence without the folders of this machine."""
        for part in (item.video_slice, item.audio_slice):
            if part is not None:
                sentence = sentence.replace(str(self._copy_of(item, part)), f"{item.path}::{part.name}")
        return sentence.replace(f"{self.root}/", "")

    def _open(self, item: Sample) -> Clip:
        audio = None if item.audio is None else self._file(item.audio)
        if item.frames:
            frames = [self._file(frame) for frame in item.frames]
            if audio is None:
                raise InputError(f"the clip '{item.id}' comes as pictures without a sound file")
            return open_images(frames, id=item.id, audio=audio)
        if item.audio_slice is not None:
            audio = self._cut(item, item.audio_slice)
        video = self._file(item.path) if item.video_slice is None else self._cut(item, item.video_slice)
        return open_clip(video, fps=self.fps, audio=audio, id=item.id)

    def _file(self, path: str) -> Path:
        if "\0" in path:
            raise InputError(f"{path!r} is not the name of a file (it holds a NUL character)")
        return locate(self.root, path)

    def _cut(self, item: Sample, part: ByteRange) -> Path:
        """Copies a member of a tar to a name of our own; the member's name is never used as one."""
        tar, path = self._file(item.path), self._copy_of(item, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        with reading(tar):
            check_file(tar)
            opened = tar.open("rb")
        with opened as archive, path.open("wb") as copy:
            for block in _blocks(archive, part, item):
                copy.write(block)
        return path

    def _copy_of(self, item: Sample, part: ByteRange) -> Path:
        return self.scratch / f"{item.id}{part.suffix}"


def _blocks(archive: IO[bytes], part: ByteRange, item: Sample) -> Iterator[bytes]:
    """The content of a member, a block at a time; InputError if it cannot be read to its end."""
    left = part.size
    with reading(Path(item.path)):
        archive.seek(part.offset)
    while left:
        with reading(Path(item.path)):
            block = archive.read(min(left, BLOCK))
        if not block:
            raise InputError(f"{item.source} is cut short: the tar ends within it")
        yield block
        left -= len(block)
