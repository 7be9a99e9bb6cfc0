"""Corrections from other tools: reads an edited export, checks all of it, and writes what a person changed.

A reader is a function `(path) -> Iterator[ImportedFrame]` beside the writer of its format; `registry.py` names it.
"""

from __future__ import annotations

import getpass
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np

from openavs.corrections.store import merge_segments, rejected_tracks, replace_segments
from openavs.errors import InputError
from openavs.exports.base import finished
from openavs.exports.polygons import mask_to_polygon
from openavs.exports.reading import ImportedFrame, ImportedMask, polygons_to_rle
from openavs.exports.registry import FORMATS
from openavs.results.serialization import clip_folder, read_result
from openavs.structures.masks import rle_iou, rle_to_mask
from openavs.structures.types import ClipResult, Correction, CorrectionAction, FrameResult, Segment
from openavs.utils.text import did_you_mean, pluralize, utc_now

SAME_IOU = 0.5
"""A mask without a number belongs to the object that it overlaps by this IoU."""

OnConflict = Literal["stop", "keep", "replace"]
"""An object that another person corrected differently: refuse the import, keep theirs, or replace it."""


@dataclass
class ImportSummary:
    """Counts of an import: frames that were read, frames that differ with the ids of their clips, records by action."""

    read: int = 0
    clips: list[str] = field(default_factory=list)
    frames: int = 0
    actions: Counter[str] = field(default_factory=Counter)


_Match = list[tuple[int | None, bool]]
"""For each mask of a frame the position of the segment that it was, and whether its pixels are unchanged."""


@dataclass
class _Change:
    """Changes of one clip."""

    result: ClipResult
    segments: dict[int, list[Segment]] = field(default_factory=dict)
    records: list[Correction] = field(default_factory=list)


def import_masks(
    name: str, path: Path, run: Path, author: str | None = None, on_conflict: OnConflict = "stop"
) -> ImportSummary:
    """Bring the masks of an edited export back into the results; everything is checked before the first write.

    Unchanged masks keep their segments. A new or changed mask becomes a segment of a person, a removed one a `reject`.

    Args:
        name: the format.
        path: the tool's file, a zip of it or a folder with it.
        run: the result folder that was exported.
        author: the person; None: the one that the file names, else the login name.
        on_conflict: for objects that another person corrected differently.

    Raises:
        InputError: the file is invalid, or of other clips, frames or sizes; or a conflict.
    """
    readable = {key: form.reader for key, form in FORMATS.items() if form.reader}
    if name not in readable:
        raise InputError(f"corrections cannot be imported from {name!r}; {did_you_mean(name, readable)}")
    if not path.exists():
        raise InputError(f"{path} does not exist; give the file that {name} exported")
    module, _, function = str(readable[name]).partition(":")
    reader: Callable[[Path], Iterator[ImportedFrame]] = getattr(import_module(module), function)
    summary, by_clip = ImportSummary(), _by_clip(reader(path), finished(run), path, run)
    changes: list[_Change] = []
    for clip, frames in by_clip.items():
        summary.read += len(frames)
        change = _compare(read_result(run, clip), frames, name, author, on_conflict)
        if change.records:
            merge_segments(change.result, change.segments, change.records)  # what it refuses is refused before writing
            changes.append(change)
    for change in changes:
        try:
            replace_segments(clip_folder(run, change.result.clip), change.segments, change.records)
        except InputError as error:
            done = f"; {pluralize(len(summary.clips), 'clip')} before it are imported" if summary.clips else ""
            raise InputError(f"{error}{done}") from error
        summary.clips.append(change.result.clip)
        summary.frames += len(change.segments)
        summary.actions.update(record.action for record in change.records)
    return summary


def _by_clip(
    frames: Iterable[ImportedFrame], known: Sequence[str], path: Path, run: Path
) -> dict[str, dict[int, ImportedFrame]]:
    """Return the frames by clip and index; InputError for clips of other results and for frames that occur twice."""
    names, found = frozenset(known), dict[str, dict[int, ImportedFrame]]()
    for frame in frames:
        clip = next((own for own in frame.clips if own in names), None)
        if clip is None:
            named = " or ".join(f"{own!r:.60}" for own in dict.fromkeys(frame.clips)) or "no clip"
            raise InputError(
                f"{path} has frames of {named}, and {run} has {', '.join(known[:3])}"
                f"{' ...' if len(known) > 3 else ''}; import into the results that were exported (nothing was changed)"
            )
        if frame.index in found.setdefault(clip, {}):
            raise InputError(f"{path} has frame {frame.index} of {clip} twice; remove one")
        found[clip][frame.index] = frame
    if not found:
        raise InputError(f"{path} has no frames; give the file that the tool exported")
    return found


# ------------------------------------------------------------------------------------------------- what was changed


def _compare(
    result: ClipResult,
    frames: Mapping[int, ImportedFrame],
    tool: str,
    author: str | None,
    on_conflict: OnConflict,
) -> _Change:
    """Return the differences of imported frames from a result."""
    own = {frame.index: frame for frame in result.frames}
    frames = {i: replace(one, masks=tuple(m for m in one.masks if m.mask.area)) for i, one in frames.items()}
    for index, imported in frames.items():
        if index not in own:
            raise InputError(
                f"{result.clip} has no frame {index}: its frames are {min(own, default=0)} to {max(own, default=0)} "
                "(nothing was changed)"
            )
        for size in (imported.size, *(mask.mask.size for mask in imported.masks)):
            if size is not None and size != result.size:
                raise InputError(
                    f"frame {index} of {result.clip} has {size[1]} x {size[0]} pixels in the file and "
                    f"{result.size[1]} x {result.size[0]} in the results (nothing was changed)"
                )
    matches = {index: _match(own[index].segments, imported.masks) for index, imported in frames.items()}
    tracks = _Tracks(result, frames, matches)
    change = _Change(result)
    for index, imported in sorted(frames.items()):
        person, at = author or imported.author or _login(), imported.at or utc_now()
        record = partial(Correction, author=person, tool=tool, at=at)
        frame = _Frame(result, own[index], imported, person, record, on_conflict)
        segments = frame.compare(matches[index], tracks)
        if frame.records:
            change.segments[index] = segments
            change.records += frame.records
    return change


def _match(segments: Sequence[Segment], masks: Sequence[ImportedMask]) -> _Match:
    """Return for each mask the position of the segment that it was, and whether its pixels are unchanged."""
    ious = rle_iou([mask.mask for mask in masks], [segment.mask for segment in segments])
    pairs = []
    for i, j in np.argwhere(ious >= SAME_IOU).tolist():
        same, named = _is_same(masks[i], segments[j]), masks[i].name in _names(segments[j])
        pairs.append((not same, not named, -ious[i, j], i, j))
    found: dict[int, tuple[int | None, bool]] = {}
    taken = set()
    for changed, _, _, i, j in sorted(pairs):
        if i not in found and j not in taken:
            found[i] = (j, not changed)
            taken.add(j)
    return [found.get(i, (None, False)) for i in range(len(masks))]


def _names(segment: Segment) -> tuple[str, ...]:
    return (segment.phrase,) if segment.label is None else (segment.label, segment.phrase)


def _is_same(imported: ImportedMask, segment: Segment) -> bool:
    if not imported.polygon:
        return imported.mask == segment.mask
    polygon = mask_to_polygon(rle_to_mask(segment.mask))
    return polygon is not None and polygons_to_rle([polygon.ravel().tolist()], segment.mask.size, "") == imported.mask


class _Tracks:
    """Assigns tracks of a clip to the objects of a file.

    The numbers of a file are its own. An object is the track that most of its masks overlap, unless another object of
    the same frame is.
    """

    def __init__(self, result: ClipResult, frames: Mapping[int, ImportedFrame], matches: Mapping[int, _Match]) -> None:
        used = [s.track for frame in result.frames for s in frame.segments if s.track is not None]
        used += [c.track for c in result.corrections if c.track is not None]
        self._tracked, self._next = bool(used), max(used, default=0) + 1
        segments = {frame.index: frame.segments for frame in result.frames}
        votes: Counter[tuple[Hashable, int]] = Counter()
        seen: dict[Hashable, set[int]] = {}
        for index, imported in frames.items():
            for mask, (place, same) in zip(imported.masks, matches[index], strict=True):
                seen.setdefault(mask.number, set()).add(index)
                track = None if place is None else segments[index][place].track
                if track is not None and mask.number is not None:
                    votes[mask.number, track] += 1 + same
        self._tracks: dict[Hashable, int] = {}
        for (number, track), _ in votes.most_common():
            rivals = (seen[other] for other, own in self._tracks.items() if own == track)
            if number not in self._tracks and all(seen[number].isdisjoint(other) for other in rivals):
                self._tracks[number] = track

    def __call__(self, imported: ImportedMask, matched: Segment | None) -> int | None:
        """Return the track of a mask that is new or changed; None in a clip without tracks."""
        if not self._tracked:
            return None
        if imported.number is None:
            return self.new() if matched is None or matched.track is None else matched.track
        if imported.number not in self._tracks:
            self._tracks[imported.number] = self.new()
        return self._tracks[imported.number]

    def new(self) -> int:
        """Return a number that no object of the clip has."""
        self._next += 1
        return self._next - 1


class _Frame:
    """Compares one frame of a file with the result's, and makes the records."""

    def __init__(
        self,
        result: ClipResult,
        frame: FrameResult,
        imported: ImportedFrame,
        author: str,
        record: Callable[..., Correction],
        on_conflict: OnConflict,
    ) -> None:
        self._result, self._frame, self._imported = result, frame, imported
        self._author, self._record, self._on_conflict = author, record, on_conflict
        self.records: list[Correction] = []

    def compare(self, match: _Match, tracks: _Tracks) -> list[Segment]:
        """Return the frame's segments after the import."""
        own = self._frame.segments
        left = set(range(len(own))) - {place for place, _ in match}
        taken = {own[place].track for place, _ in match if place is not None}
        after: list[Segment] = []
        for imported, (place, same) in zip(self._imported.masks, match, strict=True):
            matched = None if place is None else own[place]
            track = None if same else tracks(imported, matched)
            if track is not None and track in taken and (matched is None or matched.track != track):
                # a copy of another mask of the frame, whose number was copied with it
                track = tracks.new() if matched is None or matched.track is None else matched.track
            taken.add(track)
            if place is None and track is not None:  # drawn elsewhere: the segment with the object's number
                place = next((other for other in left if own[other].track == track), None)
                left -= {place}
            before = None if place is None else own[place]
            made = before if before is not None and same else self._drawn(imported, before, track)
            if before is not None and imported.name not in _names(before) and self._exported(before):
                made = self._named(made, imported.name)
            if made is before:
                after.append(made)
            elif self._allowed(before, made):
                after.append(made)
                self._add(before, made)
            elif before is not None:
                after.append(before)
        for segment in (own[place] for place in sorted(left)):
            if self._exported(segment) and self._allowed(segment, None):
                self._append("reject", segment)
            else:
                after.append(segment)
        return after

    def _exported(self, segment: Segment) -> bool:
        names = self._imported.names
        return segment.mask.area > 0 and (names is None or not names.isdisjoint(_names(segment)))

    def _drawn(self, imported: ImportedMask, before: Segment | None, track: int | None) -> Segment:
        """Return the segment of a new or changed mask."""
        box = imported.mask.box
        if before is not None:
            drawn = replace(before, mask=imported.mask, box=box, mask_score=None, score=1.0, verdicts=(), track=track)
            return replace(drawn, author="person")
        closed = any(s.label is not None for frame in self._result.frames for s in frame.segments)
        label = imported.name if closed else None
        return Segment(imported.mask, box, imported.name, 1.0, label=label, track=track, author="person")

    def _named(self, segment: Segment, name: str) -> Segment:
        label = None if segment.label is None else name
        return replace(segment, phrase=name, label=label, label_how=None, verdicts=(), author="person")

    def _add(self, before: Segment | None, made: Segment) -> None:
        if before is not None and made.phrase != before.phrase:
            self._append("rename", before, made.phrase)
        if before is None or (made.mask, made.track) != (before.mask, before.track):
            self._append("mask", made, {"size": [*made.mask.size], "counts": made.mask.counts})

    def _append(self, action: CorrectionAction, segment: Segment, value: Any = None) -> None:
        self.records.append(self._record(action, self._frame.index, segment.track, segment.phrase, value))

    def _allowed(self, before: Segment | None, made: Segment | None) -> bool:
        """Return whether this person may change an object, which another person may have corrected or rejected."""
        segment = before or made
        assert segment is not None
        if before is None and segment.track not in rejected_tracks(self._result.corrections, self._frame):
            return True
        if before is not None and before.author == "model":
            return True
        last = next((c for c in reversed(self._result.corrections) if self._is_about(c, segment)), None)
        if last is None or last.author == self._author or self._on_conflict == "replace":
            return True
        if self._on_conflict == "keep":
            return False
        raise InputError(
            f"{last.author} corrected {segment.phrase} in frame {self._frame.index} of {self._result.clip} at "
            f"{last.at}, and {self._author} did otherwise; import with --on-conflict keep or replace (nothing was "
            "changed)"
        )

    def _is_about(self, correction: Correction, segment: Segment) -> bool:
        if correction.frame not in (None, self._frame.index):
            return False
        if segment.track is not None:
            return correction.track == segment.track
        return correction.track is None and correction.phrase in ("", segment.phrase)


def _login() -> str:
    """Return the user's login name, or `person` where the system has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return "person"
