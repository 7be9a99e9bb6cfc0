"""Sources that are files by name: a folder with all below it, a glob, a list of paths, one video."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from openavs.errors import InputError
from openavs.jobs.sample import Sample
from openavs.labeling.readers.open import SOUNDS, VIDEOS, Candidate, Source, build_manifest, relative
from openavs.media.images import is_image
from openavs.utils.text import pluralize


def read_folder(folder: Path) -> Source:
    """All videos below a folder, and the folders of pictures that have a sound file beside or in them.

    Hidden files and folders are left out, and links to folders are not followed.
    """
    root = Path(os.path.abspath(folder))
    found: list[Candidate] = []
    ignored = 0
    for place, folders, files in os.walk(root, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if not name.startswith(".")]
        videos = [name for name in names if PurePath(name).suffix.lower() in VIDEOS]
        found += (_video(Path(place, name), root) for name in videos)
        pictures = None if videos or Path(place) == root else _pictures(Path(place), names, root)
        if pictures is not None:
            found.append(pictures)
        else:
            ignored += sum(PurePath(name).suffix.lower() not in VIDEOS | SOUNDS for name in names)
    left_out = pluralize(ignored, "file that is no video", "files that are no videos")
    return build_manifest("folder", root, found, [f"left out: {left_out}"] if ignored else [])


def matches(pattern: str) -> tuple[Path, list[Path]]:
    """The files that a glob matches (`**` stands for any folders), sorted, and the folder that all lie below."""
    pattern = os.path.abspath(os.path.expanduser(pattern))
    fixed = next((p for p in Path(pattern).parents if not glob.has_magic(str(p))), Path(os.sep))
    return fixed, sorted(Path(path) for path in glob.iglob(pattern, recursive=True) if os.path.isfile(path))


def read_files(kind: str, root: Path, files: Iterable[Path]) -> Source:
    """Some files, each a video, whatever their endings."""
    return build_manifest(kind, root, (_video(path, root) for path in files))


def read_list(path: Path) -> Source:
    """A text file with one path a line; those that are not absolute start from its own folder."""
    root = Path(os.path.abspath(path)).parent
    try:
        text = path.read_text("utf-8-sig", errors="surrogateescape")
    except OSError as problem:
        raise InputError(f"the list {path} cannot be read ({problem.strerror})") from problem
    lines = [line.strip() for line in text.splitlines()]
    return build_manifest("list", root, (_video(Path(line), root) for line in lines if line))


def read_one(path: Path) -> Source:
    """A single video."""
    root = Path(os.path.abspath(path)).parent
    return build_manifest("file", root, [_video(Path(path.name), root)])


def _video(path: Path, root: Path) -> Candidate:
    return Candidate(path.stem, Sample("", relative(path, root)))


def _pictures(folder: Path, names: list[str], root: Path) -> Candidate | None:
    """A folder of pictures as one clip, if there is exactly one sound file in it or one of its name beside it."""
    if not any(is_image(PurePath(name)) for name in names):  # type: ignore[arg-type]
        return None
    inside = [folder / name for name in names if PurePath(name).suffix.lower() in SOUNDS]
    beside = list(_beside(folder))
    sounds = inside or beside
    if len(sounds) != 1:
        return None
    return Candidate(folder.name, Sample("", relative(folder, root), audio=relative(sounds[0], root)))


def _beside(folder: Path) -> Iterator[Path]:
    for suffix in sorted(SOUNDS):
        sound = folder.with_name(folder.name + suffix)
        if os.path.isfile(sound):
            yield sound


def _refuse(problem: OSError) -> None:
    raise InputError(f"the folder {problem.filename} cannot be read ({problem.strerror}); change its permissions")
