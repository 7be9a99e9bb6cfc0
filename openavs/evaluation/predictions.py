"""A folder of predicted masks beside a split: what is there of a clip, what is missing, what belongs to no clip."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset

LABELS_FOLDER = "labels_semantic"  # may be left out of a prediction's path


def labels_folder(folder: Path) -> Path:
    """The masks' folder: `predictions` of an evaluation's output, `labels` of a label job's, else the folder itself."""
    return next((folder / name for name in ("predictions", "labels") if (folder / name).is_dir()), folder)


def find_predictions(clip: BenchmarkClip, folder: Path) -> list[Path] | None:
    """The predicted mask of each annotated frame; None where nothing of the clip is there.

    Raises:
        InputError: no such folder, or the clip's own is there but not the mask of every annotated frame.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of predictions")
    wanted = [folder / clip.predictions[i] for i in clip.annotated]
    for paths in (wanted, [without_labels_folder(path) for path in wanted]):
        if not _holds_files(paths[0].parent):
            continue
        for path in paths:
            if not path.is_file():
                raise InputError(f"the prediction {path} is missing, though other files of the clip are there")
        return paths
    return None


def read_stack(
    paths: Sequence[Path], read: Callable[[Path], npt.NDArray[np.generic]], what: str
) -> npt.NDArray[np.generic]:
    """The masks of a clip's frames as `[T, H, W]`; `what` names them in the sentence for differing sizes."""
    masks = [read(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        check_size(path, mask.shape, masks[0].shape, f"the first {what} of the clip has")
    return np.stack(masks)


def check_size(path: Path, size: tuple[int, ...], expected: tuple[int, ...], whose: str) -> None:
    """Refuses a mask of another size (height, width); `whose` says what has the expected one."""
    if size != expected:
        found, wanted = (f"{shape[1]} x {shape[0]}" for shape in (size, expected))
        raise InputError(f"{path} has {found} pixels where {whose} {wanted}")


def check_predicted_size(
    clip: BenchmarkClip, path: Path, size: tuple[int, int], expected: Callable[[], tuple[int, int]], whose: str
) -> None:
    """Refuse a predicted mask of another size than `expected()` unless the clip's masks are to be resized."""
    if clip.resize:
        return
    try:
        check_size(path, size, expected(), whose)
    except InputError as problem:
        raise InputError(f"{problem}; write masks of that size, or resize them (nearest pixel) with --resize") from None


def extra_predictions(dataset: Dataset, folder: Path) -> list[str]:
    """Folders (and PNG files beside them) below `folder` where predictions of the split's clips lie, of no such clip,
    and PNG files in a clip's own folder that are of none of its frames.

    Paths relative to `folder`, sorted. They are not scored: a misspelt clip shows up here and as a missing one.
    """
    known = {clip_folder(clip) for clip in dataset.clips}
    depth = max((len(path.parts) for path in known), default=1)
    found = {path.as_posix() for path in _unknown(folder, Path(), depth, known)}
    return sorted(found.union(*(_strays(clip, folder) for clip in dataset.clips)))


def _strays(clip: BenchmarkClip, folder: Path) -> set[str]:
    """PNG files in a clip's folder of predictions that are of none of its frames."""
    expected = {Path(path).name for path in clip.predictions}
    home = clip_folder(clip)
    places = [place for place in (home, home / LABELS_FOLDER) if (folder / place).is_dir()]
    entries = [(place / name).as_posix() for place in places for name in os.listdir(folder / place)]
    return {path for path in entries if path.lower().endswith(".png") and Path(path).name not in expected}


def _unknown(folder: Path, below: Path, depth: int, known: set[Path]) -> list[Path]:
    found: list[Path] = []
    for entry in (folder / below).iterdir() if (folder / below).is_dir() else ():
        path = below / entry.name
        if entry.is_dir() and depth > 1:
            found += _unknown(folder, path, depth - 1, known)
        elif path not in known and (entry.is_dir() or entry.suffix.lower() == ".png"):
            found.append(path)
    return found


def clip_folder(clip: BenchmarkClip) -> Path:
    """Return the folder of a clip's predictions, without the folder of labels."""
    return without_labels_folder(Path(clip.predictions[0])).parent


def without_labels_folder(path: Path) -> Path:
    """Where a predicted mask may lie too: in the clip's folder itself."""
    return path.parent.parent / path.name if path.parent.name == LABELS_FOLDER else path


def is_there(path: Path) -> bool:
    """Whether a predicted mask is at its place, or in the clip's folder without the folder of labels."""
    return os.path.isfile(path) or os.path.isfile(without_labels_folder(path))


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(entry.is_file() for entry in folder.iterdir())
