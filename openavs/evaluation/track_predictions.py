"""Prediction files of tracks (`results.json` of AVIS): reading, writing, and the tracks of our own results.

A file is a list of `{"video_id", "score", "category_id", "segmentations"}`; the last is a list of one run-length code
or null per frame. The published code writes an empty mask where a track has none, and so does `write_tracks`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.base import InstanceTrack, TrackLayout
from openavs.structures.masks import RLE, check_rle, mask_to_rle, merge_masks
from openavs.structures.types import ClipResult, Segment
from openavs.utils.fs import atomic_replace
from openavs.utils.text import pluralize

RESULTS = "results.json"
_WINDOW = 1 << 20  # characters that are read at a time


class TrackPredictions:
    """The predicted tracks of a file, or of a folder's `results.json` or only JSON file.

    The file is checked as a whole, and its tracks are read clip by clip; it is never in memory as a whole.

    Args:
        path: the file or folder.
        layout: the clips and classes that the entries name by number.

    Raises:
        InputError: no such file, not JSON, or an entry that does not match the layout.
    """

    def __init__(self, path: Path, layout: TrackLayout) -> None:
        self.path, self._layout = find_results(path), layout
        self._classes = {number: place for place, number in enumerate(layout.categories) if place}
        names = {video.number: name for name, video in layout.videos.items()}
        self._places: dict[str, list[tuple[int, int]]] = {}  # offset and length in the file
        for count, (place, entry) in enumerate(_read_list(self.path)):
            try:
                name = names[entry["video_id"]]
                self._check(entry, name)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{self.path}, track {count}: {self._explain(entry, error)}") from error
            self._places.setdefault(name, []).append(place)

    def tracks(self, clip: str) -> list[InstanceTrack]:
        """Return the tracks of a clip in the order of the file.

        Raises:
            InputError: a mask that is not a run-length code.
        """
        tracks = []
        for entry in _read_places(self.path, self._places.get(clip, ())):
            masks = tuple(self._mask(code, clip, t) for t, code in enumerate(entry["segmentations"]))
            tracks.append(InstanceTrack(self._classes[entry["category_id"]], masks, float(entry["score"])))
        return tracks

    def _mask(self, code: Mapping[str, Any] | None, clip: str, t: int) -> RLE | None:
        if code is None:
            return None
        rle = RLE(self._layout.videos[clip].size, code["counts"])
        check_rle(rle, f"{self.path}: frame {t} of the clip {clip!r}")
        return rle

    def _check(self, entry: Mapping[str, Any], name: str) -> None:
        video, masks = self._layout.videos[name], entry["segmentations"]
        if entry["category_id"] not in self._classes:
            raise ValueError(
                f"the category {entry['category_id']} is not one of {min(self._classes)} to {max(self._classes)}"
            )
        if not math.isfinite(entry["score"]):
            raise ValueError("its score is not a number")
        if len(masks) != video.frames:
            frames = pluralize(video.frames, "frame")
            raise ValueError(f"{name!r} has {frames} and the track {len(masks)} masks; write one or null per frame")
        for t, code in enumerate(masks):
            if code is not None and not isinstance(code["counts"], str):
                raise ValueError(f"the mask of frame {t} is not a compressed run-length code")
            if code is not None and tuple(code["size"]) != video.size:
                size = " x ".join(map(str, reversed(code["size"])))
                raise ValueError(f"the mask of frame {t} has {size} pixels, {name!r} {video.size[1]} x {video.size[0]}")

    def _explain(self, entry: Any, error: Exception) -> str:
        if isinstance(error, ValueError):
            return str(error)
        number = entry.get("video_id", error) if isinstance(entry, dict) else error
        if isinstance(error, KeyError) and number is not error and error.args == (number,):
            return f"the split has no video {number!r:.40}"
        return "video_id, score, category_id and segmentations (run-length codes or null) were expected"


def find_results(path: Path) -> Path:
    """Return a prediction file: the path itself, or the folder's `results.json` or only JSON file.

    Raises:
        InputError: there is no such file.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise InputError(f"there is no prediction file {path}; check --predictions")
    found = [path / RESULTS] if (path / RESULTS).is_file() else sorted(path.glob("*.json"))
    if len(found) != 1:
        raise InputError(f"{path} holds {len(found) or 'no'} JSON files; give the file of predictions ({RESULTS})")
    return found[0]


def _read_list(path: Path) -> Iterator[tuple[tuple[int, int], Any]]:
    """Yield offset and length of the entries of a JSON list, and the entries; a part of the file is in memory."""
    try:
        with path.open(encoding="latin-1", newline="") as file:  # a character is a byte; codes of masks are ASCII
            window = _Window(file)
            if window.peek() != "[":
                raise InputError(f"{path} is not a list of tracks")
            window.skip(1)
            while window.peek() != "]":
                entry, length = window.parse()
                yield (window.offset, length), entry
                window.skip(length)
                if window.peek() == ",":
                    window.skip(1)
                elif window.peek() != "]":
                    raise ValueError(f"it breaks off at the character {window.offset}")
            window.skip(1)
            if window.peek():
                raise ValueError("text follows the list")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not a JSON file: {error}") from error


def _read_places(path: Path, places: Iterable[tuple[int, int]]) -> Iterator[Any]:
    with path.open("rb") as file:
        for offset, length in places:
            file.seek(offset)
            yield _DECODER.decode(file.read(length).decode("latin-1"))


class _Window:
    """The part of a file that is parsed; it begins at `offset`."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self.offset = file, "", 0

    def skip(self, count: int) -> None:
        self._text, self.offset = self._text[count:], self.offset + count

    def peek(self) -> str:
        """Skip white space and return the next character, or nothing at the end."""
        while True:
            self.skip(len(self._text) - len(self._text.lstrip(" \t\n\r")))
            if self._text or not self._extend(_WINDOW):
                return self._text[:1]

    def parse(self) -> tuple[Any, int]:
        """Return the value at the beginning and its length.

        Raises:
            ValueError: not JSON.
        """
        while True:
            try:
                return _DECODER.raw_decode(self._text)
            except ValueError:
                if not self._extend(max(_WINDOW, len(self._text))):
                    raise

    def _extend(self, count: int) -> bool:
        added = self._file.read(count)
        self._text += added
        return bool(added)


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


# ------------------------------------------------------------------------------------------------------------- writing


def write_tracks(path: Path, clips: Iterable[tuple[str, Sequence[InstanceTrack]]], layout: TrackLayout) -> None:
    """Write the tracks of clips, given by their ids, as one prediction file.

    Raises:
        InputError: masks of another size or number than the clip's; nothing is written.
    """
    with atomic_replace(path) as part, part.open("w", encoding="ascii") as file:
        separator = "["
        for name, tracks in clips:
            video = layout.videos[name]
            empty = mask_to_rle(np.zeros(video.size, dtype=np.bool_))
            for track in tracks:
                masks = [mask or empty for mask in track.masks]
                if len(masks) != video.frames or any(mask.size != video.size for mask in masks):
                    raise InputError(
                        f"the clip {name!r} has {pluralize(video.frames, 'frame')} of {video.size[1]} x "
                        f"{video.size[0]} pixels in its annotations and {len(masks)} of "
                        f"{masks[0].size[1]} x {masks[0].size[0]} in its result"
                    )
                entry = {
                    "video_id": video.number,
                    "score": track.score,
                    "category_id": layout.categories[track.category],
                    "segmentations": [{"size": list(mask.size), "counts": mask.counts} for mask in masks],
                }
                file.write(separator + "\n" + json.dumps(entry, separators=(",", ":"), allow_nan=False))
                separator = ","
        file.write("[]\n" if separator == "[" else "\n]\n")


def result_to_tracks(result: ClipResult, labels: Sequence[str]) -> list[InstanceTrack]:
    """Convert the segments of a result to tracks, in order of appearance.

    Segments of one track id are one track. Its class is the label with the largest sum of scores, its score the mean
    of its segments'; several segments of it in a frame are joined. A segment without a track id is a track of one
    frame. Tracks with none of the labels are left out.

    Args:
        result: the result.
        labels: the label of each class in index order, the background first.
    """
    objects: dict[tuple[str, int], list[tuple[int, Segment]]] = {}
    for t, frame in enumerate(result.frames):
        for segment in frame.segments:
            key = ("segment", len(objects)) if segment.track is None else ("track", segment.track)
            objects.setdefault(key, []).append((t, segment))
    known = {label: place for place, label in enumerate(labels) if place}
    tracks = []
    for own in objects.values():
        sums: dict[int, float] = {}
        for _, segment in own:
            if segment.label in known:
                sums[known[segment.label]] = sums.get(known[segment.label], 0.0) + segment.score
        if not sums:
            continue
        masks: list[list[RLE]] = [[] for _ in result.frames]
        for t, segment in own:
            masks[t].append(segment.mask)
        joined = tuple(merge_masks(codes) if codes else None for codes in masks)
        score = sum(segment.score for _, segment in own) / len(own)
        tracks.append(InstanceTrack(max(sums, key=lambda category: sums[category]), joined, round(score, 6)))
    return tracks
