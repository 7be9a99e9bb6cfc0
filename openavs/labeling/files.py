"""Sources that are files by name: a folder and its subfolders, a glob, a list of paths, one video."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from openavs.errors import InputError
from openavs.jobs.sample import Sample, relative
from openavs.labeling.base import (
    AUDIO_SUFFIXES,
    VIDEO_SUFFIXES,
    Candidate,
    Source,
    make_source,
)
from openavs.media.images import is_image
from openavs.utils.text import pluralize


def read_folder(folder: Path) -> Source:
    """Read all videos below a folder, and the folders of images with one sound file beside or in them.

    Hidden files and folders are skipped, and links to folders are not followed.
    """
    root = Path(os.path.abspath(folder))
    found: list[Candidate] = []
    ignored = 0
    for place, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        videos = [name for name in names if PurePath(name).suffix.lower() in VIDEO_SUFFIXES]
        found += (_video(Path(place, name), root) for name in videos)
        images = None if videos or Path(place) == root else _image_folder(Path(place), names, root)
        if images is not None:
            found.append(images)
        else:
            ignored += sum(PurePath(name).suffix.lower() not in VIDEO_SUFFIXES | AUDIO_SUFFIXES for name in names)
    skipped = pluralize(ignored, "file that is not a video", "files that are not videos")
    return make_source("folder", root, found, [f"skipped: {skipped}"] if ignored else [])


def videos_below(folder: Path) -> list[Path]:
    """Return the videos below a folder, sorted by path; the folder itself, as one of images, if there are none."""
    samples = read_folder(folder).samples
    return sorted(folder / sample.path for sample in samples if sample.audio is None) or [folder]


def matches(pattern: str) -> tuple[Path, list[Path]]:
    """Return the folder that all matches of a glob are below, and the files, sorted (`**` matches any folders)."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    fixed = next((p for p in Path(pattern).parents if not glob.has_magic(str(p))), Path(os.sep))
    return fixed, sorted(Path(path) for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path))


def read_files(kind: str, root: Path, files: Iterable[Path]) -> Source:
    """Read some files, each a video, whatever their endings."""
    return make_source(kind, root, (_video(path, root) for path in files))


def read_list(path: Path) -> Source:
    """Read a text file with one path per line; relative paths start from its folder."""
    root = Path(os.path.abspath(path)).parent
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise InputError(f"the list {path} cannot be read ({error.strerror})") from error
    lines = [line.strip() for line in text.splitlines()]
    return make_source("list", root, (_video(Path(line), root) for line in lines if line))


def read_one(path: Path) -> Source:
    """Read a single video."""
    root = Path(os.path.abspath(path)).parent
    return make_source("file", root, [_video(Path(path.name), root)])


def _video(path: Path, root: Path) -> Candidate:
    return Candidate(path.stem, Sample("", relative(path, root)))


def _image_folder(folder: Path, names: list[str], root: Path) -> Candidate | None:
    """Return a folder of images as one clip, if one sound file is in it or, with its name, beside it."""
    if not any(is_image(PurePath(name)) for name in names):  # type: ignore[arg-type]
        return None
    inside = [folder / name for name in names if PurePath(name).suffix.lower() in AUDIO_SUFFIXES]
    beside = list(_beside(folder))
    sounds = inside or beside
    if len(sounds) != 1:
        return None
    return Candidate(folder.name, Sample("", relative(folder, root), audio=relative(sounds[0], root)))


def _beside(folder: Path) -> Iterator[Path]:
    for suffix in sorted(AUDIO_SUFFIXES):
        sound = folder.with_name(folder.name + suffix)
        if os.path.isfile(sound):
            yield sound


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename} cannot be read ({error.strerror}); change its permissions")
