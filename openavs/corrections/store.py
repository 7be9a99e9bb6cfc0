"""Changes of finished results: merges them with what others changed meanwhile, and writes them.

A segment of a person is locked: of several writers of one frame and track the last person's segment stays, and no
model's replaces it. `result.json` is written first, in one rename; the masks, the labels of a label job and the job's
record follow from it. A run that resumes leaves a corrected clip as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.jobs.checkpoint import amend, read_completion
from openavs.jobs.index import finished_row
from openavs.jobs.job import RENDERED, Job, Sink, import_name, render_masks
from openavs.jobs.locks import FIRST_SHARD, NAME as LOCK_NAME, claimed, locked_file
from openavs.jobs.manifest import LINES, Manifest, read_manifest
from openavs.jobs.sample import Sample, line_to_sample
from openavs.results.serialization import clip_folder, read_result, result_files, result_from_json, result_to_json
from openavs.structures.masks import rle_iou
from openavs.structures.types import Clip, ClipResult, Correction, FrameResult, Rejection, Segment
from openavs.utils.fs import atomic_write, stamp, stamp_file
from openavs.utils.serialization import parse_json

SAME_IOU = 0.5
"""Segments without a track are the same object from this IoU of their masks on."""

_THREADS = threading.Lock()  # byte-range locks do not exclude threads of one process
_SINKS = {"label": "openavs.evaluation.job_io:LabelSink", "evaluate": "openavs.evaluation.job_io:PredictionSink"}


def replace_segments(
    clip_dir: str | Path, segments: Mapping[int, Sequence[Segment]], corrections: Sequence[Correction]
) -> ClipResult:
    """Change the segments of some frames of a finished clip, append records, and write the clip's files.

    Args:
        clip_dir: `OUT/clips/<id>`.
        segments: all segments of each frame that changes, by the frame's index.
        corrections: the records of the changes.

    Returns:
        The result as it is on disk now, see `merge_segments`.

    Raises:
        InputError: no such clip or frame, a mask of another size, or a run is still writing this part of the folder.
    """
    return change_clip(clip_dir, lambda result: merge_segments(result, segments, corrections))


def change_clip(clip_dir: str | Path, change: Callable[[ClipResult], ClipResult]) -> ClipResult:
    """Replace the result of a finished clip by `change` of it, under the clip's lock; see `replace_segments`."""
    folder = Path(clip_dir).absolute()
    out, clip = folder.parent.parent, folder.name
    if folder != clip_folder(out, clip):
        raise InputError(f"{clip_dir} is not the folder of a clip; give OUT/clips/<id> of a result folder OUT")
    read_result(out, clip)  # before the lock makes a file there
    with _THREADS, locked_file(folder / LOCK_NAME), _record(out, clip) as record:
        changed = change(read_result(out, clip))
        _write(out, changed, record)
    return changed


def render_clip(clip_dir: str | Path, open_clip: Callable[[ClipResult], Clip]) -> list[str]:
    """Write `overlay.mp4` and `report.html` of a finished clip again from its result, those that its folder has.

    The job's record gets their new stamps. `video.mp4`, which shows no masks, stays as it is.

    Args:
        clip_dir: `OUT/clips/<id>`.
        open_clip: opens the clip of a result.

    Returns:
        The names of the files that were written.

    Raises:
        InputError: the clip cannot be opened, or is another video than the result's.
    """
    folder = Path(clip_dir).absolute()
    out, clip = folder.parent.parent, folder.name
    names = [name for name in RENDERED if (folder / name).is_file()]
    if not names:
        return []
    with _THREADS, locked_file(folder / LOCK_NAME), _record(out, clip) as record:
        result = read_result(out, clip)
        opened = open_clip(result)
        if opened.size != result.size:
            raise InputError(f"{opened.source} has another size than the result of {clip}, so it is another video")
        render_masks(folder, opened, result, names)
        if record is not None:
            completion = record.completion
            row = next(row for row in completion["rows"] if row["id"] == clip)
            stamps = {f"clips/{clip}/{name}": stamp_file(folder / name) for name in names}
            amend(out, completion, row, dict(sorted({**completion["files"][clip], **stamps}.items())))
    return names


def merge_segments(
    result: ClipResult, segments: Mapping[int, Sequence[Segment]], corrections: Sequence[Correction]
) -> ClipResult:
    """Return a result with other segments in some frames and more records.

    A person's segment stays unless another segment of a person has its track (without a track: covers it), or a
    `reject` of `corrections` names it; a model's segment is left out where a person's has its track or where a person
    rejected its track before. Segments that disappear become rejections `person`.

    Raises:
        InputError: a frame that does not exist, or a mask of another size.
    """
    _check(result, segments, corrections)
    frames = tuple(
        _merge(frame, segments[frame.index], result.corrections, corrections) if frame.index in segments else frame
        for frame in result.frames
    )
    changed = replace(result, frames=frames, corrections=(*result.corrections, *corrections))
    result_from_json(result_to_json(changed))  # what cannot be read again is refused
    return changed


def _check(result: ClipResult, frames: Iterable[int], corrections: Sequence[Correction]) -> None:
    known = {frame.index for frame in result.frames}
    for index in (*frames, *(c.frame for c in corrections if c.frame is not None)):
        if index not in known:
            there = f"its frames are {min(known)} to {max(known)}" if known else "it has none"
            raise InputError(f"{result.clip} has no frame {index}: {there}; nothing was changed")
    for span in (c.value for c in corrections if c.action == "span"):
        if not isinstance(span, list | tuple) or len(span) != 2 or not all(isinstance(t, int | float) for t in span):
            raise InputError(f"a span is [start, end] in seconds, not {span!r:.60}; nothing was changed")


def _merge(
    frame: FrameResult, given: Sequence[Segment], before: Sequence[Correction], now: Sequence[Correction]
) -> FrameResult:
    locked = [s for s in frame.segments if s.author == "person"]
    gone = rejected_tracks(before, frame)
    kept = [
        s
        for s in given
        if s.author == "person"
        or s in frame.segments
        or not (any(_same(s, own) for own in locked) or (s.track is not None and s.track in gone))
    ]
    stay = (own for own in locked if own not in kept and not any(_same(own, s) for s in kept))
    kept += [own for own in stay if not any(_rejects(c, own, frame) for c in now)]
    dropped = [s for s in frame.segments if not any(_same(s, own) or s.box == own.box for own in kept)]
    found = {(s.phrase, s.box) for s in kept}
    return replace(
        frame,
        segments=tuple(kept),
        rejected=(
            *(r for r in frame.rejected if r.box is None or (r.phrase, r.box) not in found),
            *(Rejection(s.phrase, "person", s.score, s.box) for s in dropped),
        ),
    )


def _same(one: Segment, other: Segment) -> bool:
    """Return whether two segments of a frame are one object: by their tracks, or without them by their masks."""
    if one.track is not None and other.track is not None:
        return one.track == other.track
    if one.mask.size != other.mask.size:
        return False  # refused later
    return float(rle_iou([one.mask], [other.mask])[0, 0]) >= SAME_IOU


def _rejects(correction: Correction, segment: Segment, frame: FrameResult) -> bool:
    """Return whether a record takes a segment out of a frame."""
    if correction.track is not None:
        named = correction.track == segment.track
    else:
        named = segment.phrase == correction.phrase if correction.phrase else segment.track is None
    return named and is_removed(correction, frame)


def is_removed(correction: Correction, frame: FrameResult) -> bool:
    """Return whether a record takes its object out of a frame: `reject`, or a `span` that leaves out its time."""
    if correction.action == "span":
        start, end = correction.value
        return not start <= frame.time <= end
    return correction.action == "reject" and correction.frame in (None, frame.index)


def rejected_tracks(corrections: Sequence[Correction], frame: FrameResult) -> set[int]:
    """Return the tracks that the last record about them takes out of a frame."""
    gone: set[int] = set()
    for correction in corrections:
        if correction.track is None:
            continue
        if is_removed(correction, frame):
            gone.add(correction.track)
        elif correction.action != "rename" and correction.frame in (None, frame.index):
            gone.discard(correction.track)
    return gone


# ---------------------------------------------------------------------------------------------------------- on disk


@dataclass(frozen=True)
class _JobRecord:
    """The place of a clip in its job: the manifest, its sample, and the completion of its shard."""

    manifest: Manifest
    sample: Sample
    completion: Mapping[str, Any]


@contextmanager
def _record(out: Path, clip: str) -> Iterator[_JobRecord | None]:
    """Lock the shard of a clip and yield the clip's record; None for a folder that no job wrote.

    Raises:
        InputError: the shard is not completed.
    """
    manifest = read_manifest(out)
    found = None if manifest is None else _find(out, manifest, clip)
    if manifest is None or found is None:
        yield None
        return
    number, sample = found
    unfinished = InputError(
        f"a run has not finished its part of {out} with {clip}; wait for it or run the same command again, then "
        "correct the clip"
    )
    if read_completion(out, number, manifest.key) is None:  # before the lock: the run may be in this process
        raise unfinished
    with claimed(out, FIRST_SHARD + number, wait=True):
        completion = read_completion(out, number, manifest.key)
        if completion is None:
            raise unfinished
        yield _JobRecord(manifest, sample, completion)


def _find(out: Path, manifest: Manifest, clip: str) -> tuple[int, Sample] | None:
    """Return the shard and the sample of a clip."""
    wanted = b'"id":"%s"' % clip.encode("ascii", "replace") if clip.isascii() else b""
    with (out / LINES).open("rb") as file:
        for number, (_, size, _) in enumerate(manifest.data["shards"]):
            lines = file.read(size)
            if wanted in lines:
                for sample in map(line_to_sample, lines.splitlines()):
                    if sample.id == clip:
                        return number, sample
    return None


def _write(out: Path, result: ClipResult, record: _JobRecord | None) -> None:
    """Write the files of a clip: the result first, since all others follow from it."""
    masks = {} if record is None else record.manifest.data["masks"]
    values, classes = masks.get("values", "instance"), tuple(masks.get("classes", ()))
    files = dict(result_files(result, values, classes))  # before the first is written: it may be refused
    folder = clip_folder(out, result.clip)
    for name in ("result.json", *(name for name in files if name != "result.json")):
        atomic_write(folder / name, files[name])
    if record is None:
        return
    stamps = {f"clips/{result.clip}/{name}": stamp(content) for name, content in files.items()}
    sink = _sink(out, record, classes)
    filtered = sink.filter(result)
    if filtered.reason:
        sink.remove(record.sample)
    else:
        stamps |= sink.write(record.sample, None, result, filtered)  # type: ignore[arg-type]
    before = record.completion["files"][result.clip]
    others = {path: own for path, own in before.items() if path.startswith(f"clips/{result.clip}/")}
    row = finished_row(record.sample, result, filtered)
    amend(out, record.completion, row, dict(sorted({**others, **stamps}.items())))


def _sink(out: Path, record: _JobRecord, classes: tuple[str, ...]) -> Sink:
    """Return the sink that wrote the labels or predictions of a job; `render_clip` does overlays and reports."""
    data = record.manifest.data
    try:
        root = parse_json((out / "run.json").read_bytes()).get("root")
    except (OSError, ValueError, AttributeError):  # the size of the benchmark's masks is then the clip's
        root = None
    name = _SINKS.get(data["command"]) if data["command"] == "label" or record.sample.places else None
    job = Job(out, record.manifest.key, Path(root or out), data["recipe"], classes=classes, threads=data["threads"])
    return (Sink if name is None else import_name(name))(job)
