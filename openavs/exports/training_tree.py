"""AVSBench's folder tree for training other systems on labels: the published training scripts find all their files.

The masks of the training split are the labels of a label job or an evaluation, those of other splits the ground truth.
Frames, audio and ground truth are symbolic links into the benchmark; labels are copies. Training clips without labels,
such as failed and filtered ones, are not in the table of clips. File names are those of the release, independent of
the copy of it. The audio of S4 and MS3 is also written as the pickled log-mel tensors that their loaders read.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from pickle import dump
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.avsbench_semantic import MASK_FOLDERS, read_labels
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.datasets.mask_io import read_index
from openavs.evaluation.datasets.tables import MissingSplitError, read_table
from openavs.evaluation.predictions import labels_folder
from openavs.exports.avsbench import write_class_indices
from openavs.exports.base import ExportItem, read_sources, run_benchmark
from openavs.exports.registry import ExportOptions, ExportSummary
from openavs.media.audio import read_audio
from openavs.media.log_mel import BANDS, EXAMPLE, Floats, examples
from openavs.structures.masks import voc_palette
from openavs.utils.text import pluralize

SECONDS = 5  # of the clips of S4 and MS3

Place = Callable[[BenchmarkClip, Path, dict[int, Path], bool], None]
"""Writes the files of one clip below a folder, from its masks by frame and whether they are labels."""


@dataclass(frozen=True)
class TrainingTree:
    """A benchmark's table of clips, its columns of ids and splits, and the function that writes a clip."""

    table: str
    columns: Mapping[str, int]
    place: Place


def write(folder: Path, items: Iterable[ExportItem], options: ExportOptions) -> ExportSummary:
    """Write the tree with the labels in `options.run` for the split `options.split`.

    Raises:
        InputError: no folder of labels, the benchmark or its folder is unknown, files of it are missing or damaged, or
            a clip has less than a second of audio.
    """
    if options.run is None:
        raise InputError("avsbench-training needs a folder of labels, not one result; use 'openavs export RUN'")
    name = options.benchmark or run_benchmark(options.run)
    root = read_sources(options.run, options.root).root
    if name is None or name not in TREES:
        raise InputError(
            f"{name or 'the benchmark of ' + str(options.run)} has no such tree; give --benchmark s4, ms3 or avss"
            + (", or export youtube-vis for ov" if name == "ov" else "")
        )
    if root is None:
        raise InputError(f"{options.run} does not record the folder of {name}; give it with --root")
    summary, tree, left_out = ExportSummary(what="mask"), TREES[name], set[str]()
    datasets = [open_dataset(name, root, options.split), *_others(name, root, options.split)]
    for dataset in datasets:
        labels = labels_folder(options.run) if dataset.split == options.split else None
        for clip in dataset.clips:
            masks = _masks(clip, labels)
            if not set(clip.annotated) <= masks.keys():
                left_out.add(clip.id)
                continue
            tree.place(clip, folder, masks, labels is not None)
            if labels is not None:
                summary.clips += 1
                summary.frames += len(masks)
                summary.segments += len(masks)
    _copy_table(datasets[0].root / tree.table, folder / tree.table, tree.columns, options.split, left_out)
    if name == "avss":
        write_class_indices(folder)
    if left_out:
        summary.notes.append(f"{pluralize(len(left_out), 'clip')} of {options.split} without labels: not in the table")
    return summary


def log_mel_tensor(path: Path) -> torch.Tensor:
    """Return five seconds of audio in the published preprocessing: float32 `[5, 1, 96, 64]`.

    The last example of shorter audio is repeated.

    Raises:
        InputError: not an audio file, or less than one example of 0.975 s.
    """
    sound = read_audio(path)
    own: Floats = np.zeros((0, EXAMPLE, BANDS), np.float32) if sound is None else examples(sound)[:SECONDS]
    if not len(own):
        raise InputError(f"{path} has less than a second of audio, so it has no log-mel; leave the clip out")
    padded = np.concatenate([own, np.repeat(own[-1:], SECONDS - len(own), axis=0)])
    return torch.from_numpy(padded[:, None])


def _others(name: str, root: Path, split: str) -> Iterator[Dataset]:
    """Yield the other splits with clips in the table."""
    for other in load_benchmark(name).splits:
        with suppress(MissingSplitError):
            if other != split:
                yield open_dataset(name, root, other)


def _masks(clip: BenchmarkClip, labels: Path | None) -> dict[int, Path]:
    """Return a clip's mask files by frame: the ground truth without `labels`, else the existing ones in that folder."""
    if labels is None:
        return {k: path for k, path in enumerate(clip.truth) if path is not None}
    paths = {k: labels / place for k, place in enumerate(clip.predictions)}
    return {k: path for k, path in paths.items() if path.is_file()}


def _place_s4(clip: BenchmarkClip, folder: Path, masks: dict[int, Path], labeled: bool) -> None:
    _place_object(clip, folder / "s4_data", list(clip.predictions), masks, labeled)


def _place_ms3(clip: BenchmarkClip, folder: Path, masks: dict[int, Path], labeled: bool) -> None:
    frames = [f"{clip.id}/{clip.id}.mp4_{k}.png" for k in range(1, len(clip.frames) + 1)]
    _place_object(clip, folder / "ms3_data", frames, masks, labeled)


def _place_object(clip: BenchmarkClip, data: Path, frames: list[str], masks: dict[int, Path], labeled: bool) -> None:
    for frame, place in zip(clip.frames, frames, strict=True):
        _link(data / "visual_frames" / place, frame)
    for k, path in masks.items():
        (_copy if labeled else _link)(data / "gt_masks" / clip.predictions[k], path)
    sound = str(PurePosixPath(clip.predictions[0]).parent)  # <split>/<category>/<name>, for MS3 <split>/<name>
    _link(data / "audio_wav" / f"{sound}.wav", clip.audio)
    with _parent(data / "audio_log_mel" / f"{sound}.pkl").open("wb") as file:
        dump(log_mel_tensor(clip.audio), file)


def _place_semantic(clip: BenchmarkClip, folder: Path, masks: dict[int, Path], labeled: bool) -> None:
    place = folder / PurePosixPath(clip.predictions[0]).parent.parent  # <subset>/<uid>
    for k, frame in enumerate(clip.frames):
        _link(place / "frames" / f"{k}.jpg", frame)
    _link(place / "audio.wav", clip.audio)
    for k, path in masks.items():
        indices, colors = (place / kind / f"{k}.png" for kind in MASK_FOLDERS)
        if labeled:
            _copy(indices, path)
            _parent(colors)
            Image.fromarray(voc_palette()[read_index(path)]).save(colors)
            continue
        for target in (indices, colors):
            source = path.parent.parent / target.parent.name / target.name
            if source.is_file():
                _link(target, source)
            elif target == colors:
                _parent(colors)
                Image.fromarray(voc_palette()[read_labels(path, None)]).save(colors)


TREES: Mapping[str, TrainingTree] = MappingProxyType(
    {
        "s4": TrainingTree("s4_meta_data.csv", {"name": 0, "split": 3}, _place_s4),
        "ms3": TrainingTree("ms3_meta_data.csv", {"video_id": 0, "split": 1}, _place_ms3),
        "avss": TrainingTree("metadata.csv", {"uid": 1, "split": 5}, _place_semantic),
    }
)


def _copy_table(source: Path, target: Path, columns: Mapping[str, int], split: str, left_out: Set[str]) -> None:
    """Copy a table of clips without the rows of left-out clips of a split."""
    id = next(iter(columns))
    removed = {row.line for row in read_table(source, columns) if row["split"] == split and row[id] in left_out}
    with source.open(encoding="utf-8-sig", newline="") as file, target.open("w", encoding="utf-8", newline="") as out:
        reader, writer = csv.reader(file), csv.writer(out, lineterminator="\n")
        for cells in reader:
            if reader.line_num not in removed:
                writer.writerow(cells)


def _link(place: Path, target: Path) -> None:
    """Create a symbolic link, or a copy where the system allows no links."""
    try:
        _parent(place).symlink_to(target.absolute())
    except OSError:
        _copy(place, target)


def _copy(place: Path, source: Path) -> None:
    shutil.copyfile(source, _parent(place))


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
