"""AVIS (AVISeg): instances and identities of what sounds, 26 classes, clips of about 61 frames, one a second.

The true tracks are a YouTube-VIS file, in which a mask is null while its instance is silent. Clips are in the order of
their names, in which the published code counts them. Derived files (`FEATAudios/`, `num_ins_CSVs/`) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, InstanceTrack, Masks, TrackLayout, TrackVideo
from openavs.evaluation.datasets.mask_io import MAX_PIXELS, Size, coco_to_rle
from openavs.evaluation.datasets.tables import find_home, is_plain_name
from openavs.evaluation.track_predictions import RESULTS, TrackPredictions, find_results
from openavs.structures.masks import RLE, rle_to_mask
from openavs.utils.serialization import parse_json

BACKGROUND = "background"


@dataclass(frozen=True)
class AvisVideo:
    """One clip of the annotation file: its number there, the size of its frames, and its annotations as they are."""

    number: int
    name: str
    size: Size
    files: tuple[str, ...]
    annotations: tuple[Mapping[str, Any], ...]


def read_avis(root: Path, split: str = "test") -> Dataset:
    """Read a split; `root` or its `datasets/` has `<split>.json`, `<split>/JPEGImages/` and `<split>/WAVAudios/`.

    Raises:
        InputError: missing files, or annotations or names that do not match the layout.
    """
    home = find_home(root, f"{split}.json", ("datasets",))
    path = home / f"{split}.json"
    try:
        data = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} as JSON: {error}") from error
    try:
        reader = _AvisReader(path, data)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise InputError(
            f"{path} is not in the layout of YouTube-VIS (videos, annotations, categories): "
            f"{type(error).__name__} {error!s:.100}"
        ) from error
    if not reader.videos:
        raise InputError(f"{path} lists no videos")
    return Dataset(
        *("avis", "instances", home, split, reader.clips(home / split, split), reader.truth, reader.prediction),
        (BACKGROUND, *reader.categories.values()),
        read_tracks=reader.tracks,
        track_layout=reader.layout,
    )


class _AvisReader:
    """Reads the tracks of a split; masks are decoded with their clip."""

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self._path = path
        self.categories = {int(entry["id"]): str(entry["name"]) for entry in data["categories"]}
        annotations: dict[int, list[Mapping[str, Any]]] = {entry["id"]: [] for entry in data["videos"]}
        for entry in data["annotations"]:
            if entry["category_id"] not in self.categories:
                raise InputError(f"{path}: the annotation {entry['id']} has no category of the file")
            annotations[entry["video_id"]].append(entry)
        videos = [self._video(entry, tuple(annotations[entry["id"]])) for entry in data["videos"]]
        self.videos = {video.name: video for video in sorted(videos, key=lambda video: video.name)}
        if len(self.videos) < len(videos) or len(annotations) < len(videos):
            raise InputError(f"{path} lists a video twice")
        entries = {video.name: TrackVideo(video.number, video.size, len(video.files)) for video in self.videos.values()}
        self.layout = TrackLayout(entries, (0, *self.categories))
        self._predictions: tuple[tuple[Path, int], TrackPredictions] | None = None  # the last file, and its time

    def _video(self, entry: Mapping[str, Any], annotations: tuple[Mapping[str, Any], ...]) -> AvisVideo:
        files = tuple(map(str, entry["file_names"]))
        name = files[0].partition("/")[0]
        for file in files:
            if not (file.startswith(f"{name}/") and all(map(is_plain_name, file.split("/", 1)))):
                raise InputError(f"{self._path}: the frame {file!r:.80} is not named <video>/<frame>.jpg")
        size = (int(entry["height"]), int(entry["width"]))
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise InputError(f"{self._path} gives the clip {name!r} {size[1]} x {size[0]} pixels")
        for own in annotations:
            if len(own["segmentations"]) != len(files):
                raise InputError(
                    f"{self._path}: the clip {name!r} has {len(files)} frames and the annotation {own['id']} "
                    f"{len(own['segmentations'])} masks"
                )
        return AvisVideo(int(entry["id"]), name, size, files, annotations)

    def clips(self, folder: Path, split: str) -> tuple[BenchmarkClip, ...]:
        """Return the clips of the split, whose files are below `folder`."""
        return tuple(self._clip(video, folder, split) for video in self.videos.values())

    def _clip(self, video: AvisVideo, folder: Path, split: str) -> BenchmarkClip:
        sounding = dict.fromkeys(self.categories[own["category_id"]] for own in video.annotations)
        return BenchmarkClip(
            id=video.name,
            split=split,
            frames=tuple(folder / "JPEGImages" / file for file in video.files),
            audio=folder / "WAVAudios" / f"{video.name}.wav",
            truth=(self._path,) * len(video.files),
            predictions=(RESULTS,) * len(video.files),
            classes=tuple(sounding),
        )

    def tracks(self, clip: BenchmarkClip) -> list[InstanceTrack]:
        """Return the true tracks of a clip in the order of the file."""
        video, places = self.videos[clip.id], {number: i for i, number in enumerate(self.categories, start=1)}
        tracks = []
        for own in video.annotations:
            areas = [area for area in own.get("areas") or () if area]
            masks = tuple(self._mask(video, own, t) for t in range(len(video.files)))
            if "areas" not in own:
                areas = [mask.area for mask in masks if mask is not None and mask.area]
            tracks.append(
                InstanceTrack(
                    places[own["category_id"]],
                    masks,
                    id=int(own["id"]),
                    mean_area=float(np.mean(areas)) if areas else 0.0,
                    crowd=bool(own.get("iscrowd", 0)),
                )
            )
        return tracks

    def _mask(self, video: AvisVideo, own: Mapping[str, Any], t: int) -> RLE | None:
        code = own["segmentations"][t]
        try:
            return coco_to_rle(code, video.size) if code else None
        except (ValueError, TypeError, KeyError, InputError) as error:
            raise InputError(
                f"{self._path}: the mask of the annotation {own['id']} at frame {t} of {video.name!r} is neither run "
                f"lengths nor polygons of a {video.size[1]} x {video.size[0]} frame ({error})"
            ) from error

    def truth(self, clip: BenchmarkClip) -> Masks:
        """Return the class of every pixel, uint8 `[T, H, W]`; later tracks cover earlier ones."""
        return _label_maps(self.tracks(clip), self.videos[clip.id])

    def prediction(self, clip: BenchmarkClip, folder: Path) -> Masks | None:
        """Return the predicted class of every pixel, uint8 `[T, H, W]`; better tracks cover worse ones."""
        path = find_results(folder)
        key = (path, path.stat().st_mtime_ns)
        if self._predictions is None or self._predictions[0] != key:
            self._predictions = key, TrackPredictions(path, self.layout)
        tracks = sorted(self._predictions[1].tracks(clip.id), key=lambda track: track.score)
        return _label_maps(tracks, self.videos[clip.id])


def _label_maps(tracks: list[InstanceTrack], video: AvisVideo) -> Masks:
    maps = np.zeros((len(video.files), *video.size), dtype=np.uint8)
    for track in tracks:
        for labels, mask in zip(maps, track.masks, strict=True):
            if mask is not None:
                labels[rle_to_mask(mask)] = track.category
    return maps
