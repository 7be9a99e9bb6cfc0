"""Actions of the page and the API on a session: run a clip, show and correct its results."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openavs.corrections.apply import correct_result
from openavs.corrections.mask_motion import CorrectionTools
from openavs.errors import InputError, OpenAVSError
from openavs.media.remux import write_player_video
from openavs.results.result import Result
from openavs.stages.trackers.iou import link_tracks
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult, Correction, FrameResult
from openavs.utils.fs import atomic_write
from openavs.visualization.colors import palette_of
from openavs.visualization.player import MotionRecorder
from openavs.visualization.report import model_rows
from openavs.web import SegmentRequest, ServerConfig, components, parse_threshold, parse_vocabulary
from openavs.web.artifacts import (
    BEFORE,
    OVERLAY,
    RESULT,
    instance_name,
    read_result_file,
    strip_local_paths,
    write_captions,
    write_files,
    write_overlay_video,
)
from openavs.web.inference import InferenceProgress, ModelCache, RunStopped, command_text, open_request, run_request
from openavs.web.session import Run, Session, SessionStore

PAGE_ACTIONS = ("add point", "remove point", "keep", "reject", "rename", "span")
PAGE = "page.json"  # the content of the page for a result, to show it again


@dataclass(frozen=True)
class PageContent:
    """Progress and result as HTML, and the phrases that can be edited; a part that is None stays as it is.

    Attributes:
        player: the video with its masks.
        data: the part of the player with the masks, for the player of the same clip that the page has.
        correct: the bar of corrections.
        prompts: phrases that were searched for.
        choices: phrases that can be searched for: these, and those of the translator.
        threshold: least score of a box.
        command: the command line that gives the same result.
    """

    progress: str | None = None
    player: str | None = None
    data: str | None = None
    correct: str | None = None
    downloads: str | None = None
    details: str | None = None
    history: str | None = None
    prompts: tuple[str, ...] | None = None
    choices: tuple[str, ...] = ()
    threshold: float | None = None
    command: str | None = None


class Controller:
    """Actions of the page and the API; a session is identified by the key of Gradio's client."""

    def __init__(self, models: ModelCache, sessions: SessionStore, config: ServerConfig) -> None:
        self._models, self._sessions, self._config = models, sessions, config

    def run(
        self, key: str | None, request: SegmentRequest, prompts: Sequence[str] | None = None
    ) -> Iterator[PageContent]:
        """Segment a clip for the page; the masks come before the files. Errors become alerts.

        Args:
            key: of the session.
            request: of the visitor.
            prompts: phrases to search for, if the shown result is of the same clip, recipe and vocabulary.
        """
        state = InferenceProgress()
        try:
            request = self._with_prompts(key, request, prompts)
            with self._begin(key, request) as (session, run, states):
                for state in states:
                    yield PageContent(components.progress(state))
                if state.result is None:
                    yield PageContent(components.fragment("stopped"))
                    return
                result = state.result
                video = session.video(run)
                if not video.exists():  # an earlier run of the clip may have written it
                    video.parent.mkdir(exist_ok=True)
                    write_player_video(video, result.video)
                write_captions(run.folder, result)
                content = self._content(run, result)
                player, data = components.player(session, run, result)
                is_same = session.playing == run.request.clip
                session.playing = run.request.clip
                first = replace(content, data=data) if is_same else replace(content, player=player)
                yield replace(first, progress=components.progress(state))
                moving = self._write(session, run, result)
                player, data = components.player(session, run, result, moving)
                content = replace(content, downloads=components.downloads(session, run, result))
                content = replace(content, correct=components.correct(run, result))
                _write_page(run, replace(content, player=player))
                content = replace(content, data=data, history=components.history(session))
                yield replace(content, progress=components.progress(state, is_written=True))
        except OpenAVSError as error:
            yield PageContent(components.alert(str(error)))
        except Exception:
            yield PageContent(components.alert("internal error; the log of the server has the details"))
            raise

    def rerun(self, key: str | None, threshold: object, only_lower: bool = False) -> Iterator[PageContent]:
        """Run the request of the shown result with another threshold; nothing without a result.

        With `only_lower`, nothing for a threshold that only hides masks, which the player does itself.
        """
        shown, least = self._sessions.get(key).shown, parse_threshold(threshold)
        if shown is None or least is None:
            return
        before = self._threshold(shown)
        if least < before or (least != before and not only_lower):
            yield from self.run(key, replace(shown.request, threshold=least))

    def segment(self, key: str | None, request: SegmentRequest) -> tuple[dict[str, Any], list[Path]]:
        """Segment a clip for the API: plain data, and the files overlay, masks, result and COCO.

        Raises:
            InputError, ModelError: see `run_request`; also if the session ended before the result.
        """
        with self._begin(key, request) as (session, run, states):
            state = next((state for state in states if state.result is not None), None)
            if state is None or state.result is None:
                raise InputError("the session ended before there was a result")
            self._write(session, run, state.result)
            data = to_payload(state.result) | {"cached": list(state.cached), "seconds": round(state.seconds, 3)}
            return data, [run.folder / name for name in ("overlay.mp4", "masks.zip", "result.json", "coco.json")]

    def show(self, key: str | None, number: object) -> PageContent:
        """An earlier result of the session; InputError if it has been removed."""
        with self._sessions.active(key) as session:
            run = session.show(number)
            session.playing = run.request.clip
            return replace(
                _read_page(run), progress=components.fragment("shown", run=run), history=components.history(session)
            )

    def correct(self, key: str | None, change: Mapping[str, Any]) -> Iterator[PageContent]:
        """Apply a correction of the page in all frames, or undo the last one: first the masks, then the rest.

        The overlay video is written by `finish_corrections`.

        Args:
            key: of the session.
            change: `action` (`undo`, or that of a `Correction`), `run`, and what else the action needs: `frame`,
                `track`, `phrase` and `value` of a `Correction`, and the shown name of the `object` under a click.

        Raises:
            InputError: the result has been removed, or the correction is about something that does not exist.
        """
        started = time.monotonic()
        with self._sessions.active(key) as session:
            run = session.find(change.get("run"))
            with self._models.pipeline(run.request.recipe, run.request.overrides()) as (pipeline, _):
                clip = open_request(run.request, pipeline.fps, self._config)
                path, undo = run.folder / RESULT, run.folder / BEFORE
                before, track = read_result_file(path), None
                is_undone = change.get("action") == "undo"
                if is_undone and not undo.exists():
                    raise InputError("there is no correction to undo; only the last one is kept")
                if is_undone:
                    after = read_result_file(undo)
                else:
                    tools = CorrectionTools(lambda: clip, pipeline.segmenter, pipeline.tracker)
                    after = correct_result(before, [_correction(before, change)], tools)
                    is_chosen = change.get("track") is not None or change.get("object") is None
                    if is_chosen and after.corrections[-1].action != "reject":
                        track = after.corrections[-1].track  # the next correction is about the same object
            result = Result.of(after, clip)
            with run.lock:
                run.edits += 1
                run.is_corrected = bool(result.corrections)
                undo.unlink() if is_undone else shutil.copyfile(path, undo)
                (run.folder / OVERLAY).unlink(missing_ok=True)
                write_files(run.folder, result)
                run.poster = components.poster(result)
            player, data = components.player(session, run, result)
            bar = components.correct(run, result, track)
            done = components.fragment(
                "corrected",
                is_undone=is_undone,
                name="" if is_undone else after.corrections[-1].phrase,
                frames=_changed_frames(before, after),
                seconds=time.monotonic() - started,
            )
            is_shown = session.shown is run
            yield PageContent(done, data=data, correct=bar) if is_shown else PageContent(done)
            content = replace(self._content(run, result), downloads=components.downloads(session, run, result))
            content = replace(content, correct=bar, history=components.history(session))
            _write_page(run, replace(content, player=player))
            if is_shown:
                yield replace(content, progress=done)

    def finish_corrections(self, key: str | None) -> PageContent | None:
        """Write the overlay video of a corrected result; None if there is none to write, or another correction came."""
        with self._sessions.active(key) as session:
            run = next((run for run in session.runs if run.edits and not (run.folder / OVERLAY).exists()), None)
            if run is None:
                return None
            edits = run.edits
            recorder = _StoppableRecorder(lambda: run.edits != edits or run not in session.runs)
            fps = self._models.option(run.request.recipe).recipe.sample.fps
            with tempfile.TemporaryDirectory(dir=session.folder) as made:
                try:
                    with run.lock:
                        clip = open_request(run.request, fps, self._config)
                        result = Result.of(read_result_file(run.folder / RESULT), clip)
                    path = write_overlay_video(Path(made), result, recorder)
                    with run.lock:
                        if recorder.is_stopped():
                            return None
                        path.replace(run.folder / OVERLAY)
                        player, data = components.player(session, run, result, recorder)
                        files = components.downloads(session, run, result)
                        _write_page(run, replace(_read_page(run), player=player, downloads=files))
                except RunStopped:
                    return None
                except FileNotFoundError:  # a later run has replaced this one
                    if not recorder.is_stopped():
                        raise
                    return None
            return PageContent(data=data, downloads=files) if session.shown is run else None

    def resume(self, key: str | None, token: str) -> tuple[PageContent | None, str, SegmentRequest | None]:
        """The content of a page that was loaded, the token of its session, and its last request if it was reloaded."""
        resumed = self._sessions.resume(token, key)
        with self._sessions.active(key) as session:
            if resumed is None or not session.runs:
                return None, session.folder.name, None
            last, shown = session.runs[-1], session.shown
            session.playing = ()
            content = PageContent("") if shown is None else self.show(key, shown.number)
            words = components.fragment("reloaded", stopped=last is not shown, clip=last.request.source.name)
            return replace(content, progress=words), session.folder.name, last.request

    @contextmanager
    def _begin(
        self, key: str | None, request: SegmentRequest
    ) -> Iterator[tuple[Session, Run, Iterator[InferenceProgress]]]:
        """Begin a run on links to the uploads, which may be removed during the run."""
        with self._sessions.active(key) as session:
            self._models.option(request.recipe)
            run = session.begin(request)
            yield session, run, run_request(run.request, self._models, self._config, run.stop.is_set)

    def _with_prompts(self, key: str | None, request: SegmentRequest, prompts: Sequence[str] | None) -> SegmentRequest:
        """The request with the visitor's phrases, if they are about the result that is shown."""
        run = self._sessions.get(key).shown
        if prompts is None or run is None or run.proposed is None:
            return request
        last = run.request
        if (last.clip, last.recipe, last.vocabulary) != (request.clip, request.recipe, request.vocabulary):
            return request
        return request.with_prompts(parse_vocabulary(",".join(prompts).lower()), run.proposed)

    def _threshold(self, run: Run) -> float:
        own = run.request.threshold
        return self._models.option(run.request.recipe).threshold if own is None else own

    def _content(self, run: Run, result: Result) -> PageContent:
        """The content of the page for a result, without player, files and history."""
        prompts = tuple(dict.fromkeys(prompt.phrase for frame in result.frames for prompt in frame.prompts))
        return PageContent(
            "",
            correct="",  # until there are files to correct
            details=components.details(result),
            prompts=prompts,
            choices=tuple(dict.fromkeys((*_proposed(run, result), *prompts))),
            threshold=self._threshold(run),
            command=command_text(run.request, self._models.option(run.request.recipe)),
        )

    def _write(self, session: Session, run: Run, result: Result) -> MotionRecorder:
        """Write the files of a result; returns the masks between the sampled frames."""
        moving = MotionRecorder()
        write_overlay_video(run.folder, result, moving)
        write_files(run.folder, result)
        run.poster = components.poster(result)
        session.finish(run, _proposed(run, result))
        return moving


def _proposed(run: Run, result: Result) -> tuple[str, ...]:
    """The phrases of the translator in a result, with those that the visitor removed."""
    found = (prompt.phrase for frame in result.frames for prompt in frame.prompts if prompt.origin != "recipe")
    return tuple(dict.fromkeys((*found, *run.request.remove)))


class _StoppableRecorder(MotionRecorder):
    """Ends the overlay video of a result that has changed."""

    def __init__(self, is_stopped: Callable[[], bool]) -> None:
        super().__init__()
        self.is_stopped = is_stopped

    def __call__(self, time: float, frame: FrameResult | None) -> None:
        """Add the result at a time; raises RunStopped."""
        if self.is_stopped():
            raise RunStopped
        super().__call__(time, frame)


def _write_page(run: Run, content: PageContent) -> None:
    atomic_write(run.folder / PAGE, json.dumps(asdict(content)).encode())


def _read_page(run: Run) -> PageContent:
    return PageContent(**json.loads((run.folder / PAGE).read_bytes()))


def _correction(result: ClipResult, change: Mapping[str, Any]) -> Correction:
    """Return the correction that the page sent, with the track under its click; InputError if it is about nothing."""
    action, frame, track, value = (change.get(name) for name in ("action", "frame", "track", "value"))
    if action not in PAGE_ACTIONS or any(n is not None and type(n) is not int for n in (frame, track)):
        raise InputError("this is not a correction of the page; reload it")
    phrase = str(change.get("phrase") or "")
    if action in ("add point", "remove point"):
        if track is None and change.get("object") is not None:
            track = _track_under(result, frame, change["object"], value)
        phrase = ", ".join(parse_vocabulary(phrase.lower()))
        if track is None and not phrase:
            raise InputError("no object is under the click; choose one, or 'a new one' and give its word")
    elif action != "keep" and track is None:
        raise InputError("choose the object first")
    if action == "rename":
        value = ", ".join(parse_vocabulary(str(value or "")))
    return Correction(action, frame, track, phrase, value, tool="page")


def _track_under(result: ClipResult, index: int | None, name: str, point: Any) -> int | None:
    """Return the track of an object with a shown name: of several the one under a point, the highest score first."""
    number = next((i for i, frame in enumerate(result.frames) if frame.index == index), None)
    try:
        column, row = map(int, point)
    except (TypeError, ValueError, OverflowError):
        return None
    if number is None or not (0 <= row < result.size[0] and 0 <= column < result.size[1]):
        return None
    palette = palette_of(result.frames)
    linked, own = link_tracks(result).frames[number].segments, result.frames[number].segments  # in the same order
    found = [one for one, before in zip(linked, own, strict=True) if palette.name(before) == name]
    best = max(found, key=lambda s: (bool(rle_to_mask(s.mask)[row, column]), s.score), default=None)
    return None if best is None else best.track


def _changed_frames(before: ClipResult, after: ClipResult) -> int:
    """Return the number of frames with other segments, their tracks and authors apart."""
    rows = ([[(s.phrase, s.mask) for s in frame.segments] for frame in one.frames] for one in (before, after))
    return sum(one != other for one, other in zip(*rows, strict=True))


def to_payload(result: Result) -> dict[str, Any]:
    """A result as plain data without its masks."""
    public = strip_local_paths(result)
    return {
        "clip": public.clip,
        "size": list(public.size),
        "recipe": public.recipe.get("name"),
        "models": model_rows(public.models),
        "warnings": list(public.warnings),
        "events": [
            {"phrase": event.phrase, "start": event.onset, "end": event.offset, "score": event.score}
            for event in public.events
        ],
        "frames": [
            {
                "time": frame.time,
                "silent": frame.silent,
                "captions": [{"text": caption.text, "score": caption.score} for caption in frame.captions],
                "prompts": [prompt.phrase for prompt in frame.prompts],
                "segments": [
                    {
                        "name": instance_name(s),
                        "phrase": s.phrase,
                        "label": s.label,
                        "score": s.score,
                        "box": list(s.box),
                        "verdicts": [asdict(verdict) for verdict in s.verdicts],
                    }
                    for s in frame.segments
                ],
                "rejected": [
                    {"phrase": d.phrase, "reason": d.reason, "score": d.score, "margin": d.margin}
                    for d in frame.rejected
                ],
            }
            for frame in public.frames
        ],
    }
