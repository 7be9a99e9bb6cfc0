"""Actions of the page and the API on a session: run a clip, select objects of its result."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openavs.errors import InputError, OpenAVSError
from openavs.results.result import Result
from openavs.utils.fs import atomic_write
from openavs.visualization.report import model_rows
from openavs.web import ServerConfig, components
from openavs.web.artifacts import (
    Instance,
    filter_instances,
    instance_name,
    list_instances,
    strip_local_paths,
    write_files,
    write_overlay_video,
)
from openavs.web.inference import (
    InferenceProgress,
    ModelCache,
    SegmentRequest,
    command_text,
    open_request,
    parse_vocabulary,
    run_request,
)
from openavs.web.session import Run, Session, SessionStore

PAGE = "page.json"  # the details of a result, to show them again


@dataclass(frozen=True)
class PageContent:
    """The result side of the page as HTML, the objects that can be hidden, and the phrases that can be edited.

    Attributes:
        prompts: phrases that were searched for.
        proposed: phrases of the translator, which include those that the visitor removed.
        threshold: least score of a box.
        command: the command line that gives the same result.
    """

    progress: str = ""
    player: str = ""
    instances: tuple[Instance, ...] = ()
    downloads: str = ""
    details: str = ""
    history: str = ""
    prompts: tuple[str, ...] = ()
    proposed: tuple[str, ...] = ()
    threshold: float | None = None
    command: str = ""


class Controller:
    """Actions of the page and the API; a session is identified by the key of Gradio's client."""

    def __init__(self, models: ModelCache, sessions: SessionStore, config: ServerConfig) -> None:
        self._models, self._sessions, self._config = models, sessions, config

    def run(
        self, key: str | None, request: SegmentRequest, prompts: Sequence[str] | None = None
    ) -> Iterator[PageContent]:
        """Segment a clip for the page; the report comes before the overlay video. Errors become alerts.

        Args:
            key: of the session.
            request: of the visitor.
            prompts: phrases to search for, if the last run was of the same clip, recipe and vocabulary.
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
                details = components.details(state.result)
                yield PageContent(components.progress(state), details=details)
                self._write(session, run, state.result)
                content = self._content(session, run, details)
                atomic_write(run.folder / PAGE, json.dumps(details).encode())
                yield replace(content, progress=components.progress(state, is_written=True))
        except OpenAVSError as error:
            yield PageContent(components.alert(str(error)))
        except Exception:
            yield PageContent(components.alert("internal error; the log of the server has the details"))
            raise

    def rerun(self, key: str | None, threshold: float) -> Iterator[PageContent]:
        """Run the request of the shown result with another threshold; nothing without a result."""
        shown = self._sessions.get(key).shown
        if shown is not None and shown.result is not None and shown.request.threshold != threshold:
            yield from self.run(key, replace(shown.request, threshold=threshold))

    def segment(self, key: str | None, request: SegmentRequest) -> tuple[dict[str, Any], list[Path]]:
        """Segment a clip for the API: plain data, and the files overlay, masks, result and COCO.

        Raises:
            InputError, ModelError: see `run_request`; also if the session ended before the result.
        """
        with self._begin(key, request) as (session, run, states):
            state = next((state for state in states if state.result is not None), None)
            if state is None or state.result is None:
                raise InputError("the session ended before there was a result")
            overlay = self._write(session, run, state.result)
            data = to_payload(state.result) | {"cached": list(state.cached), "seconds": round(state.seconds, 3)}
            return data, [overlay, *(run.folder / name for name in ("masks.zip", "result.json", "coco.json"))]

    def show(self, key: str | None, number: int) -> PageContent:
        """An earlier result of the session; InputError if it has been removed."""
        with self._sessions.active(key) as session:
            run = session.show(number)
            return self._content(session, run, json.loads((run.folder / PAGE).read_bytes()))

    def resume(self, key: str | None, token: str) -> tuple[PageContent, str, SegmentRequest | None]:
        """The content of a page that was loaded, the token of its session, and its last request if it was reloaded."""
        resumed = self._sessions.resume(token, key)
        with self._sessions.active(key) as session:
            content, last = PageContent(), session.shown
            if resumed is None or last is None:
                return content, session.folder.name, None
            done = [run for run in session.runs if run.result is not None]
            if done:
                content = self.show(key, done[-1].number)
            words = components.fragment("reloaded", stopped=last.result is None, clip=last.request.source.name)
            return replace(content, progress=words), session.folder.name, last.request

    def select(self, key: str | None, names: Collection[str]) -> str:
        """The player of the overlay video with the named objects; InputError if the session has no result."""
        with self._sessions.active(key) as session:
            run = session.shown
            if run is None or run.result is None:
                raise InputError("the result has been removed; run the clip again")
            overlay = write_overlay_video(run.folder, run.result, names, run.reopen)
            return components.player(session, run, run.result, overlay.name, filter_instances(run.result, names))

    @contextmanager
    def _begin(
        self, key: str | None, request: SegmentRequest
    ) -> Iterator[tuple[Session, Run, Iterator[InferenceProgress]]]:
        """Begin a run on links to the uploads, which may be removed during the run."""
        with self._sessions.active(key) as session:
            fps = self._models.option(request.recipe).recipe.sample.fps
            run = session.begin(request)
            run.reopen = lambda: open_request(run.request, fps, self._config)
            yield session, run, run_request(run.request, self._models, self._config, run.stop.is_set)

    def _with_prompts(self, key: str | None, request: SegmentRequest, prompts: Sequence[str] | None) -> SegmentRequest:
        """The request with the visitor's phrases, if they are about the result that is shown."""
        run = self._sessions.get(key).shown
        if prompts is None or run is None or run.result is None:
            return request
        last = run.request
        if (last.clip, last.recipe, last.vocabulary) != (request.clip, request.recipe, request.vocabulary):
            return request
        return request.with_prompts(parse_vocabulary(",".join(prompts).lower()), self._proposed(run, run.result))

    def _proposed(self, run: Run, result: Result) -> tuple[str, ...]:
        """The phrases of the translator in a result, with those that were removed."""
        found = (prompt.phrase for frame in result.frames for prompt in frame.prompts if prompt.origin != "recipe")
        return tuple(dict.fromkeys((*found, *run.request.remove)))

    def _content(self, session: Session, run: Run, details: str) -> PageContent:
        """The content of the page for a run with a result."""
        result, option = run.result, self._models.option(run.request.recipe)
        if result is None:
            raise InputError("the result has been removed; run the clip again")
        searched = dict.fromkeys(prompt.phrase for frame in result.frames for prompt in frame.prompts)
        return PageContent(
            player=components.player(session, run, result, "overlay.mp4"),
            instances=tuple(list_instances(result)),
            downloads=components.downloads(session, run, result),
            details=details,
            history=components.history(session),
            prompts=tuple(searched),
            proposed=self._proposed(run, result),
            threshold=option.threshold if run.request.threshold is None else run.request.threshold,
            command=command_text(run.request, option),
        )

    def _write(self, session: Session, run: Run, result: Result) -> Path:
        """Write the files of a result; the session keeps the result without its audio, up to 45 MB a minute."""
        overlay = write_overlay_video(run.folder, result)
        write_files(run.folder, result)
        run.poster = components.poster(result, result)
        session.finish(run, Result.of(result, replace(result.video, audio=None)))
        return overlay


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
