"""AVSBench-object: S4 (one sounding source per clip) and MS3 (several), five frames of 224 x 224 each.

Training clips of S4 have a mask for their first frame only. Frames and masks are numbered from 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, LazyClips, Masks, find_predictions
from openavs.evaluation.datasets.mask_io import (
    check_predicted_size,
    png_size,
    read_binary_truth,
    read_probability,
    read_stack,
    resize_mask,
)
from openavs.evaluation.datasets.tables import (
    S4_CATEGORIES,
    TableRow,
    check_present,
    existing_file,
    find_home,
    in_split,
    listing,
    read_clip_table,
)

FRAMES = 5


def read_s4(root: Path, split: str = "test") -> Dataset:
    """Read a split of S4; `root` or its `Single-source/` has `s4_meta_data.csv` and `s4_data/`.

    Raises:
        InputError: missing files, tables or names that do not match the layout, or an empty split.
    """
    home = find_home(root, "s4_meta_data.csv", ("Single-source", "avsbench_data/Single-source", "s4"))
    table = home / "s4_meta_data.csv"
    rows = in_split(table, read_clip_table(table, {"name": 0, "category": 2, "split": 3}, "name", "category"), split)
    data = _data_folder(home, "s4_data")
    check_present(split, table, [(data / "gt_masks" / split / row["category"], row["name"]) for row in rows])
    suffix = _frame_suffix(data / "visual_frames" / split / rows[0]["category"] / rows[0]["name"])
    clips = LazyClips(rows, partial(_s4_clip, data, split, suffix))
    return Dataset("s4", "binary", home, split, clips, read_truth, read_prediction)


def read_ms3(root: Path, split: str = "test") -> Dataset:
    """Read a split of MS3; `root` or its `Multi-sources/` has `ms3_meta_data.csv` and `ms3_data/`.

    Raises:
        InputError: missing files, tables or names that do not match the layout, or an empty split.
    """
    home = find_home(root, "ms3_meta_data.csv", ("Multi-sources", "avsbench_data/Multi-sources", "ms3"))
    table = home / "ms3_meta_data.csv"
    rows = in_split(table, read_clip_table(table, {"video_id": 0, "split": 1}, "video_id"), split)
    data = _data_folder(home, "ms3_data")
    check_present(split, table, [(data / "gt_masks" / split, row["video_id"]) for row in rows])
    style = _ms3_frame_style(data / "visual_frames", split, rows[0]["video_id"])
    clips = LazyClips(rows, partial(_ms3_clip, data, split, style))
    return Dataset("ms3", "binary", home, split, clips, read_truth, read_prediction)


def _s4_clip(data: Path, split: str, suffix: str, row: TableRow) -> BenchmarkClip:
    name, category = row["name"], row["category"]
    place = f"{split}/{category}/{name}"
    masks = [f"{place}/{name}_{k}.png" for k in range(1, FRAMES + 1)]
    labeled = 1 if split == "train" else FRAMES
    return BenchmarkClip(
        id=name,
        split=split,
        frames=tuple(data / "visual_frames" / place / f"{name}_{k}{suffix}" for k in range(1, FRAMES + 1)),
        audio=data / "audio_wav" / f"{place}.wav",
        truth=tuple(data / "gt_masks" / mask if k < labeled else None for k, mask in enumerate(masks)),
        predictions=tuple(masks),
        classes=(S4_CATEGORIES[category],) if category in S4_CATEGORIES else (),
        group=category,
        video=existing_file(data / "raw_videos" / f"{place}.mp4"),
    )


def _ms3_clip(data: Path, split: str, style: str, row: TableRow) -> BenchmarkClip:
    name = row["video_id"]
    masks = [f"{split}/{name}/{name}_{k}.png" for k in range(1, FRAMES + 1)]
    return BenchmarkClip(
        id=name,
        split=split,
        frames=tuple(data / "visual_frames" / style.format(split=split, name=name, k=k) for k in range(1, FRAMES + 1)),
        audio=data / "audio_wav" / split / f"{name}.wav",
        truth=tuple(data / "gt_masks" / mask for mask in masks),
        predictions=tuple(masks),
        video=existing_file(data / "raw_videos" / f"{name}.mp4"),
    )


def _data_folder(home: Path, name: str) -> Path:
    """The folder of frames, audio and masks; some copies have them beside the table."""
    return home if (home / "gt_masks").is_dir() and not (home / name).is_dir() else home / name


def _frame_suffix(folder: Path) -> str:
    """`.png` as released, or the suffix of the first clip's frames; without frames, masks can still be scored."""
    return next((suffix for suffix in (".jpg", ".jpeg") if any(n.endswith(suffix) for n in listing(folder))), ".png")


def _ms3_frame_style(frames: Path, split: str, name: str) -> str:
    """The pattern of the first clip's frames; in the release `<video>/<video>.mp4_<k>.png`, without the split."""
    for folder in ("{name}", "{split}/{name}"):
        for middle in (".mp4_", "_"):
            for suffix in (".png", ".jpg"):
                style = folder + "/{name}" + middle + "{k}" + suffix
                if (frames / style.format(split=split, name=name, k=1)).is_file():
                    return style
    return "{name}/{name}.mp4_{k}.png"


def read_truth(clip: BenchmarkClip) -> Masks:
    """Read the clip's ground truth, bool `[T, H, W]`."""
    paths = [path for path in clip.truth if path is not None]
    return read_stack(paths, read_binary_truth, "mask")


def read_prediction(clip: BenchmarkClip, folder: Path) -> Masks | None:
    """Read predicted probabilities times 255, uint8 `[T, H, W]`, in the size of the ground truth."""
    if (paths := find_predictions(clip, folder)) is None:
        return None
    truth = next(path for path in clip.truth if path is not None)
    size = png_size(truth)
    for path in paths:
        check_predicted_size(clip, path, png_size(path), lambda: size, "its ground truth has")
    return np.stack([resize_mask(read_probability(path), size) for path in paths])
