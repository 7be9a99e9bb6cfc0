"""`openavs correct` and `openavs review`: a person's changes of results, and the queue of what to look at."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openavs.cli import options as opt
from openavs.cli.output import configure_logging, echo, log_line, print_json
from openavs.errors import InputError
from openavs.utils.text import pluralize, split_list

if TYPE_CHECKING:
    from openavs.corrections.mask_motion import CorrectionTools
    from openavs.exports.base import ClipSources
    from openavs.structures.types import Clip, ClipResult, Correction

AuthorOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="Name in the records. Default: the user of this computer.")
]
_OF_MASKS = ("add point", "remove point", "mask", "keep", "span")


def correct(
    clip_dir: Annotated[Path, typer.Argument(metavar="CLIP_DIR", help="A clip's folder: OUT/clips/ID.")],
    corrections: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CORRECTION...",
            help="JSON objects, files of JSON lines, or - for stdin. None: print the tracks.",
            show_default=False,
        ),
    ] = None,
    author: AuthorOption = None,
    root: Annotated[Path | None, typer.Option(help="Folder of the videos, if they were moved.")] = None,
    models: Annotated[
        bool, typer.Option("--models/--no-models", help="Load the recipe's segmenter and tracker.")
    ] = True,
    render: Annotated[
        bool | None,
        typer.Option(
            "--render/--no-render",
            help="Write overlay.mp4 and report.html again, also without a correction. Default: after corrections.",
        ),
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Correct the masks, words and times of a clip; changes are carried to its other frames and locked."""
    from openavs.corrections.apply import correct_clip
    from openavs.results.serialization import read_result
    from openavs.stages.trackers.iou import link_tracks

    configure_logging(quiet=quiet, verbose=verbose)
    given, clip_dir = clip_dir, clip_dir.absolute()
    if clip_dir.parent.name != "clips":
        raise InputError(f"{given} is not a clip's folder; give OUT/clips/ID of a result folder")
    out, clip = clip_dir.parent.parent, clip_dir.name
    result = read_result(out, clip)
    records = [record for text in corrections or () for record in _read(text, author or getpass.getuser())]
    if records:
        tools = _tools(result, out, root, models) if any(r.action in _OF_MASKS for r in records) else None
        before, result = result, correct_clip(clip_dir, records, tools)
        changed = sum(a.segments != b.segments for a, b in zip(before.frames, result.frames, strict=True))
        follow_corrections(out, [clip], root, render=render is not False, quiet=quiet)
    elif render:
        render_again(clip_dir, cache(partial(_sources, out, root)))
    tracks = _tracks(link_tracks(result))
    if as_json:
        done = [asdict(record) for record in result.corrections]
        print_json({"clip": clip, "tracks": tracks, "corrections": done})
        return
    if quiet:
        return
    if records:
        echo(f"{clip}: {pluralize(len(records), 'correction')}, {pluralize(changed, 'frame')} changed")
    for track in tracks:
        person = f", {track['person']} of a person" if track["person"] else ""
        echo(f"track {track['track']}: {track['phrase']}, {pluralize(track['frames'], 'frame')}{person}")


def follow_corrections(out: Path, clips: Sequence[str], root: Path | None, *, render: bool, quiet: bool) -> None:
    """Write the index and the page of a folder after corrections of some clips.

    With `render` their overlays and reports are written, too. A clip whose source cannot be opened keeps its files,
    with one message.
    """
    from openavs.jobs.index import write_index
    from openavs.jobs.manifest import read_manifest
    from openavs.jobs.run_page import NAME as PAGE, write_run_page
    from openavs.results.serialization import clip_folder

    manifest = read_manifest(out)
    if manifest is not None:
        write_index(out, manifest, parquet=(out / "index.parquet").is_file())
    sources = cache(partial(_sources, out, root))  # of a large folder only where a clip has files to write
    for clip in clips if render else ():
        folder = clip_folder(out, clip)
        try:
            render_again(folder, sources)
        except InputError as error:
            log_line(
                f"openavs: overlay.mp4 and report.html of {clip} show it before the correction ({error}); "
                f"'openavs correct {folder} --render' makes them once it can be read",
                quiet=quiet,
            )
    if (out / PAGE).is_file():
        write_run_page(out, clips)


def render_again(folder: Path, sources: Callable[[], ClipSources]) -> None:
    """Write the overlay and the report of a clip again, with the sound that it had.

    Raises:
        InputError: the source cannot be opened, or is another video.
    """
    from openavs.corrections.store import render_clip
    from openavs.exports.base import open_source

    def opened(result: ClipResult) -> Clip:
        clip = open_source(result, sources().root, sources().sound(result.clip))
        if clip.audio is not None or not (folder / "video.mp4").is_file():
            return clip
        return open_source(result, sources().root, folder / "video.mp4")  # the sound was given to Python

    render_clip(folder, opened)


def _sources(out: Path, root: Path | None) -> ClipSources:
    from openavs.exports.base import read_sources

    return read_sources(out, root)


def _tracks(result: ClipResult) -> list[dict[str, Any]]:
    """Return number, phrase and frames of each track."""
    found: dict[int | None, dict[str, Any]] = {}
    for frame in result.frames:
        for s in frame.segments:
            own = found.setdefault(s.track, {"track": s.track, "phrase": s.phrase, "frames": 0, "person": 0})
            own["frames"] += 1
            own["person"] += s.author == "person"
    return [found[track] for track in sorted(found, key=lambda track: track or 0)]


def _read(text: str, author: str) -> Iterator[Correction]:
    """Yield the corrections of an argument.

    Raises:
        InputError: a line is not a correction.
    """
    from openavs.structures.types import Correction
    from openavs.utils.serialization import parse_json

    if text.lstrip().startswith("{"):
        lines, where = [text], "the correction"
    else:
        try:
            lines = (sys.stdin.read() if text == "-" else Path(text).read_text("utf-8")).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{text} cannot be read as corrections ({error}); give JSON lines") from error
        where = text
    known = [own.name for own in fields(Correction)]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            data = parse_json(line.encode())
        except ValueError as error:
            raise InputError(f"line {number} of {where} is not JSON: {error}") from error
        if not isinstance(data, dict) or "action" not in data or set(data) - set(known):
            raise InputError(f"line {number} of {where} is not a correction; its keys are {', '.join(known)}")
        yield Correction(**{"author": author, "tool": "cli", **data})


def _tools(result: ClipResult, out: Path, root: Path | None, models: bool) -> CorrectionTools:
    from openavs.config.recipe import recipe_from_dict
    from openavs.corrections.mask_motion import CorrectionTools
    from openavs.exports.base import open_source, read_sources
    from openavs.registry import Registry

    sources = read_sources(out, root)
    made: dict[str, Any] = {}
    if models and result.recipe.get("segmenter"):
        recipe = recipe_from_dict(result.recipe)
        shared = {"device": recipe.device, "dtype": recipe.dtype, "offline": recipe.offline}
        for stage, section in recipe.stages().items():
            if stage == "segmenter" or (stage == "tracker" and section.use != "iou"):
                made[stage] = Registry(stage).build(section.use, section.options, shared, recipe.base)
    return CorrectionTools(
        lambda: open_source(result, sources.root, sources.sound(result.clip)),
        made.get("segmenter"),
        made.get("tracker"),
    )


def review(
    run: Annotated[Path, typer.Argument(metavar="RESULTS", help="Output folder of segment, evaluate or label.")],
    accept: Annotated[
        str | None, typer.Option(metavar="A,B", help="Write a receipt for these clips: they were reviewed.")
    ] = None,
    author: AuthorOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Clips to print.")] = 20,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Print the least certain clips that no person has reviewed, with the reasons."""
    from openavs.corrections.review import accept as write_receipt, finished_clips, review_queue

    configure_logging(quiet=quiet, verbose=verbose)
    clips = finished_clips(run)
    chosen = split_list(accept or "")
    for clip in chosen:
        if clip not in clips:
            raise InputError(f"{run} has no finished clip {clip!r}; nothing was accepted")
    for clip in chosen:
        write_receipt(run, clip, author or getpass.getuser())
    queue = review_queue(run)
    reviewed = len(clips) - len(queue)
    if as_json:
        print_json({"clips": len(clips), "reviewed": reviewed, "queue": [asdict(item) for item in queue[:limit]]})
        return
    if quiet:
        return
    echo(f"{reviewed} of {pluralize(len(clips), 'clip')} reviewed")
    for item in queue[:limit]:
        echo(f"{item.uncertainty:.2f}  {item.clip}: {'; '.join(item.reasons[:3]) or 'no doubt'}")
