"""From a line of the plan to a `Clip`, and what can be wrong with it, in words to count by."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from openavs.jobs.items import Item, Slice, locate
from openavs.media import open_clip, open_pictures
from openavs.types import Clip, InputError

log = logging.getLogger(__name__)
BLOCK = 1 << 20


class ClipError(InputError):
    """A clip cannot be labelled; `reason` is a short word to count by."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class Media:
    """Where a shard's clips are opened: paths start from `root`, and what lies in a tar is copied into `scratch`."""

    root: Path
    scratch: Path
    fps: float

    def open(self, item: Item) -> Clip:
        """Opens a clip; its frames are decoded later.

        Raises:
            ClipError: `missing`, `unreadable` or `no_sound`.
        """
        try:
            clip = self._open(item)
        except InputError as problem:
            reason = "unreadable" if self._is_there(item) else "missing"
            raise ClipError(reason, self.tell(str(problem), item)) from problem
        if clip.audio is None:
            raise ClipError("no_sound", f"{item.source} has no sound track")
        warnings = tuple(self.tell(warning, item) for warning in clip.warnings)
        return replace(clip, source=item.source, warnings=warnings, labels=item.classes)

    def close(self, item: Item) -> None:
        """Removes what was copied for a clip."""
        for part in (item.video_slice, item.audio_slice):
            if part is not None:
                self._copy_of(item, part).unlink(missing_ok=True)

    def tell(self, sentence: str, item: Item) -> str:
        """A sentence without the folders of this machine."""
        for part in (item.video_slice, item.audio_slice):
            if part is not None:
                sentence = sentence.replace(str(self._copy_of(item, part)), f"{item.path}::{part.name}")
        return sentence.replace(f"{self.root}/", "")

    def _open(self, item: Item) -> Clip:
        audio = None if item.audio is None else self._file(item.audio)
        if item.frames:
            frames = [self._file(frame) for frame in item.frames]
            if audio is None:
                raise InputError(f"the clip '{item.id}' comes as pictures without a sound file")
            return open_pictures(frames, id=item.id, audio=audio)
        if item.audio_slice is not None:
            audio = self._cut(item, item.audio_slice)
        video = self._file(item.path) if item.video_slice is None else self._cut(item, item.video_slice)
        return open_clip(video, fps=self.fps, audio=audio, id=item.id)

    def _file(self, path: str) -> Path:
        if "\0" in path:
            raise InputError(f"{path!r} is not the name of a file (it holds a NUL character)")
        return locate(self.root, path)

    def _is_there(self, item: Item) -> bool:
        return "\0" not in item.path and locate(self.root, item.path).exists()

    def _cut(self, item: Item, part: Slice) -> Path:
        """Copies a member of a tar to a name of our own; the member's name is never used as one."""
        path = self._copy_of(item, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        left = part.size
        try:
            with self._file(item.path).open("rb") as archive, path.open("wb") as copy:
                archive.seek(part.offset)
                while left:
                    block = archive.read(min(left, BLOCK))
                    if not block:
                        raise InputError(f"{item.source} is cut short: the tar ends within it")
                    copy.write(block)
                    left -= len(block)
        except FileNotFoundError as problem:
            raise InputError(f"there is no file {item.path}") from problem
        return path

    def _copy_of(self, item: Item, part: Slice) -> Path:
        return self.scratch / f"{item.id}{part.suffix}"
