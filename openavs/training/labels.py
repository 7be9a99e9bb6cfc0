"""Sources of training masks: the ground truth, or pseudo-labels in the layout of predictions.

A frame has a mask or is unlabeled. Frames without a file, and clips without any, are never background.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from openavs.corrections.review import person_clips
from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.mask_io import read_index, read_probability
from openavs.evaluation.job_io import folder_names
from openavs.evaluation.predictions import labels_folder
from openavs.utils.serialization import parse_json

ClipLabels = Mapping[int, npt.NDArray[np.uint8]]
"""Class indices `[H, W]` (binary: 0 and 1) by frame."""

CONFIDENCE, LEFT_OUT = "confidence.json", "left_out.json"
Which = Literal["annotated", "all"]


@dataclass(frozen=True)
class GroundTruthLabels:
    """The benchmark's masks."""

    dataset: Dataset

    def has(self, clip: BenchmarkClip) -> bool:
        """Return whether the clip has any mask."""
        return bool(clip.annotated)

    def frames(self, clip: BenchmarkClip) -> tuple[int, ...]:
        """Return the frames with a mask."""
        return clip.annotated

    def read(self, clip: BenchmarkClip, frames: Iterable[int]) -> ClipLabels:
        """Read the masks of those of the frames that have one."""
        wanted = set(frames)
        masks = (self.dataset.read_native or self.dataset.read_truth)(clip)
        return {i: mask.astype(np.uint8) for i, mask in zip(clip.annotated, masks, strict=True) if i in wanted}

    def weight(self, clip: BenchmarkClip, frame: int) -> float:
        """Return 1: the ground truth is certain."""
        return 1.0


class PseudoLabels:
    """The masks in a folder of predictions, or in the output folder of `evaluate --split train` or `label`.

    `which` selects the frames: those with a mask in the benchmark, because the paper exchanges labels one by one, or
    `all` of the folder. A gray value above one half is foreground. `weighted` reads each frame's weight from the
    folder's confidence.json, `{clip id: [one number in [0, 1] per frame]}`; otherwise all weights are 1. Clips in the
    folder's left_out.json (an array of ids) are skipped.

    Clips that a person corrected or reviewed in the folder count as truth: their frames have weight 1, and all others
    a `person_weight`-th of theirs.

    Attributes:
        person: those clips by id, with the digests of their results.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: Path,
        which: Which = "annotated",
        weighted: bool = False,
        person_weight: float = 1.0,
    ) -> None:
        if not folder.is_dir():
            raise InputError(f"the folder of labels {folder} does not exist; check --labels")
        self.dataset, self.which = dataset, which
        self.folder = labels_folder(folder)
        self._confidence = folder / CONFIDENCE
        self._weights = _read_confidence(self._confidence) if weighted else None
        names = folder_names(dataset.clips)
        found = person_clips(folder, names.values())
        self.person = {clip: found[name] for clip, name in names.items() if name in found}
        self._others = 1.0 / person_weight if self.person else 1.0
        left_out = frozenset(_read_left_out(folder / LEFT_OUT))
        self._frames = {clip.id: () if clip.id in left_out else self._present(clip) for clip in dataset.clips}
        if not any(self._frames.values()):
            example = dataset.clips[0].predictions[0]
            raise InputError(
                f"{self.folder} holds no label of {dataset.benchmark} {dataset.split}; one of them would be {example}"
            )

    def has(self, clip: BenchmarkClip) -> bool:
        """Return whether the clip has any mask."""
        return bool(self._frames[clip.id])

    def frames(self, clip: BenchmarkClip) -> tuple[int, ...]:
        """Return the frames with a mask."""
        return self._frames[clip.id]

    def read(self, clip: BenchmarkClip, frames: Iterable[int]) -> ClipLabels:
        """Read the masks of those of the frames that have one."""
        read = _foreground if self.dataset.task == "binary" else read_index
        held = set(self._frames[clip.id])
        return {i: read(self.folder / clip.predictions[i]) for i in frames if i in held}

    def weight(self, clip: BenchmarkClip, frame: int) -> float:
        """Return the weight of a frame's mask."""
        if clip.id in self.person:
            return 1.0
        if self._weights is None:
            return self._others
        own = self._weights.get(clip.id)
        if own is None or frame >= len(own):
            raise InputError(f"{self._confidence} has no confidence for frame {frame} of {clip.id}")
        return own[frame] * self._others

    def _present(self, clip: BenchmarkClip) -> tuple[int, ...]:
        candidates = clip.annotated if self.which == "annotated" else range(len(clip.frames))
        return tuple(i for i in candidates if (self.folder / clip.predictions[i]).is_file())


def _foreground(path: Path) -> npt.NDArray[np.uint8]:
    return (read_probability(path) > 127).astype(np.uint8)


def _read_left_out(path: Path) -> list[str]:
    if not path.is_file():
        return []
    try:
        ids = parse_json(path.read_bytes())
    except ValueError:
        ids = None
    if not isinstance(ids, list):
        raise InputError(f"{path} is not a list of clip ids; fix or delete it")
    return [str(id) for id in ids]


def _read_confidence(path: Path) -> dict[str, list[float]]:
    try:
        data = parse_json(path.read_bytes())
        read = {str(clip): [float(value) for value in values] for clip, values in data.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"cannot read the confidences {path} ({error}); make them with 'self-train' or train unweighted"
        ) from error
    if not all(0.0 <= value <= 1.0 for values in read.values() for value in values):
        raise InputError(f"{path} holds a confidence outside of 0 to 1; fix it or train unweighted")
    return read
