"""Opens the clip of a sample, or returns its fault as a short reason to count by and a sentence."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from openavs.errors import InputError
from openavs.jobs.job import Job
from openavs.jobs.sample import ByteRange, Sample
from openavs.media.audio import replacement_sound
from openavs.media.clip import open_clip, open_images, planned_times, probe
from openavs.media.probe import check_file, reading
from openavs.structures.types import Clip
from openavs.utils.fs import is_missing, remove_file
from openavs.utils.objects import ObjectStore, is_object_name

BLOCK = 1 << 20
PROBE_SECONDS = 10.0
"""Seconds for which `count_frames` opens files."""


class ClipError(InputError):
    """A clip cannot be processed; `reason` is a short word to count by."""

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


@dataclass(frozen=True)
class ClipLoader:
    """Opens the clips of a shard.

    Attributes:
        root: The folder that relative paths start from.
        scratch: The folder for copies of what is inside tars.
        fps: Frames to sample per second.
    """

    root: Path
    scratch: Path
    fps: float

    def open(self, sample: Sample) -> Clip:
        """Open a clip; its frames are decoded later.

        Raises:
            ClipError: `bad_row`, `missing`, `unreadable` or `no_sound`.
        """
        if sample.problem is not None:
            raise ClipError("bad_row", sample.problem)
        try:
            clip = self._open(sample)
        except InputError as error:
            raise self.failure("unreadable", error, sample) from error
        if sample.sound is not None:
            clip = replace(clip, audio=replacement_sound(sample.sound, len(clip.times) / clip.fps))
        if clip.audio is None:
            raise ClipError("no_sound", f"{sample.source} has no sound track; give its sound with --audio FILE")
        warnings = tuple(self.portable(warning, sample) for warning in clip.warnings)
        return replace(
            clip, source=sample.source, warnings=warnings, labels=sample.classes, expression=sample.expression
        )

    def failure(self, reason: str, error: InputError, sample: Sample) -> ClipError:
        """Return the failure of a clip; its reason is `missing` if one of the clip's files does not exist."""
        files = [sample.path, *(file for file in (sample.audio, sample.video) if file), *sample.frames]
        if any(is_missing(os.path.join(self.root, file)) for file in files):
            reason = "missing"
        return ClipError(reason, self.portable(str(error), sample))

    def close(self, sample: Sample) -> None:
        """Remove the copies that were made for a clip."""
        for part in (sample.video_slice, sample.audio_slice):
            if part is not None:
                self._copy_path(sample, part).unlink(missing_ok=True)

    def portable(self, sentence: str, sample: Sample) -> str:
        """Return a sentence without the folders of this machine."""
        for part in (sample.video_slice, sample.audio_slice):
            if part is not None:
                sentence = sentence.replace(str(self._copy_path(sample, part)), f"{sample.path}::{part.name}")
        return sentence.replace(f"{self.root}/", "")

    def _open(self, sample: Sample) -> Clip:
        audio = None if sample.audio is None else self._file(sample.audio)
        if sample.frames:
            frames = [self._file(frame) for frame in sample.frames]
            if audio is None:
                raise InputError(f"the clip '{sample.id}' comes as images without a sound file")
            video = None if sample.video is None else self._file(sample.video)
            return open_images(frames, id=sample.id, audio=audio, video=video)
        if sample.audio_slice is not None:
            audio = self._extract(sample, sample.audio_slice)
        video = self._file(sample.path) if sample.video_slice is None else self._extract(sample, sample.video_slice)
        return open_clip(video, fps=self.fps, audio=audio, id=sample.id, times=sample.times)

    def _file(self, path: str) -> Path:
        if "\0" in path:
            raise InputError(f"{path!r} is not the name of a file (it holds a NUL character)")
        return self.root / path

    def _extract(self, sample: Sample, part: ByteRange) -> Path:
        """Copy a member of a tar to a generated name; the member's own name is never used as a path."""
        tar, path = self._file(sample.path), self._copy_path(sample, part)
        path.parent.mkdir(parents=True, exist_ok=True)
        with reading(tar):
            check_file(tar)
            opened = tar.open("rb")
        with opened as archive, path.open("wb") as copy:
            for block in _blocks(archive, part, sample):
                copy.write(block)
        return path

    def _copy_path(self, sample: Sample, part: ByteRange) -> Path:
        return self.scratch / f"{sample.id}{part.suffix}"


@dataclass(frozen=True)
class StoredClipLoader(ClipLoader):
    """Opens clips of an object store: their files are copied to `root` first, and removed when no clip needs them.

    Of a tar only the bytes of the clip are copied.
    """

    store: ObjectStore = field(kw_only=True)
    _users: dict[str, set[str]] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def open(self, sample: Sample) -> Clip:
        """Copy the files of a clip, and open it.

        Raises:
            ClipError: as raised by `ClipLoader.open`.
            StoreError: the store cannot be reached.
        """
        for name in _own_files(sample):
            with self._lock:
                self._users.setdefault(name, set()).add(sample.id)
                with suppress(FileNotFoundError, ValueError):  # it is named by `open`; ValueError: a NUL in the name
                    if not (self.root / name).exists():
                        self._copy(name)
        return super().open(sample)

    def failure(self, reason: str, error: InputError, sample: Sample) -> ClipError:
        """Return the failure of a clip; its reason is `missing` if the store lacks one of the clip's files."""
        try:
            for name in (sample.path, sample.audio):
                if name:
                    self.store.size(name)
        except FileNotFoundError:
            reason = "missing"
        return ClipError(reason, self.portable(str(error), sample))

    def close(self, sample: Sample) -> None:
        """Remove the copies that were made for a clip."""
        super().close(sample)
        with self._lock:
            for name in _own_files(sample):
                users = self._users.get(name, set())
                users.discard(sample.id)
                if not users:
                    remove_file(self.root / name, self.root)

    def _copy(self, name: str) -> None:
        part = self.root.with_name(f"{self.root.name}.part")
        self.store.download(name, part)
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        part.rename(self.root / name)

    def _extract(self, sample: Sample, part: ByteRange) -> Path:
        path = self._copy_path(sample, part)
        try:
            self.store.download(sample.path, path, part.offset, part.size)
        except FileNotFoundError as error:
            raise InputError(f"{sample.source} does not exist") from error
        except InputError as error:
            raise InputError(f"{sample.source} is cut short: the tar ends within it") from error
        return path


def _own_files(sample: Sample) -> list[str]:
    """Return the files of a clip that are copied as a whole; none with a name that leads outside."""
    names = [sample.audio, None if sample.video_slice else sample.path]
    return [name for name in names if name and is_object_name(name)]


def clip_loader(job: Job, scratch: Path, fps: float) -> ClipLoader:
    """Return the loader of a job's clips."""
    if job.source is None:
        return ClipLoader(job.root, scratch, fps)
    return StoredClipLoader(scratch / "source", scratch, fps, store=ObjectStore(job.source))


def _blocks(archive: IO[bytes], part: ByteRange, sample: Sample) -> Iterator[bytes]:
    """Yield the content of a member; InputError if it cannot be read to its end."""
    left = part.size
    with reading(Path(sample.path)):
        archive.seek(part.offset)
    while left:
        with reading(Path(sample.path)):
            block = archive.read(min(left, BLOCK))
        if not block:
            raise InputError(f"{sample.source} is cut short: the tar ends within it")
        yield block
        left -= len(block)


def count_frames(samples: Sequence[Sample], root: Path, fps: float) -> tuple[dict[str, int], list[str]]:
    """Open files briefly; return the number of sampled frames by clip, and the clips that cannot be opened.

    The reason of a failure is not returned, because `ClipLoader.open` raises it. After `PROBE_SECONDS` the other files
    are taken to be as long as the mean.
    """
    frames: dict[str, int] = {}
    broken: list[str] = []
    started = time.monotonic()
    for sample in samples:
        if time.monotonic() - started > PROBE_SECONDS:
            mean = round(sum(frames.values()) / max(len(frames), 1)) or 1
            return {**{other.id: mean for other in samples if other.id not in broken}, **frames}, broken
        try:
            info = probe(root / sample.path)
            sound = info if sample.audio is None else probe(root / sample.audio)
        except InputError:
            broken.append(sample.id)
            continue
        if sound.audio_codec is None or info.size is None:
            broken.append(sample.id)
        elif info.kind == "images":
            frames[sample.id] = info.frames or 1
        else:  # an image lasts as long as its sound
            frames[sample.id] = len(planned_times(info.duration or sound.duration, fps))
    return frames, broken
