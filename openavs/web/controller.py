"""Actions of the page and the API on a session: run a clip, select objects of its result."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from openavs.errors import InputError, OpenAVSError
from openavs.results.result import Result
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
from openavs.web.inference import InferenceProgress, ModelCache, SegmentRequest, open_request, run_request
from openavs.web.session import Session, SessionStore


@dataclass(frozen=True)
class PageContent:
    """The result side of the page as HTML, and the objects that can be hidden."""

    progress: str = ""
    player: str = ""
    instances: tuple[Instance, ...] = ()
    downloads: str = ""
    details: str = ""


class Controller:
    """Actions of the page and the API; a session is identified by the key of Gradio's client."""

    def __init__(self, models: ModelCache, sessions: SessionStore, config: ServerConfig) -> None:
        self._models, self._sessions, self._config = models, sessions, config

    def run(self, key: str | None, request: SegmentRequest) -> Iterator[PageContent]:
        """Segment a clip for the page; the report comes before the overlay video. Errors become alerts."""
        state = InferenceProgress()
        try:
            with self._begin(key, request) as (session, states):
                for state in states:
                    yield PageContent(components.progress(state))
                if state.result is None:
                    yield PageContent(components.fragment("stopped"))
                    return
                result = state.result
                details = components.details(result)
                yield PageContent(components.progress(state), details=details)
                overlay = self._write(session, result)
                yield PageContent(
                    components.progress(state, is_written=True),
                    components.player(session, result, overlay.name),
                    tuple(list_instances(result)),
                    components.downloads(session, result),
                    details,
                )
        except OpenAVSError as error:
            yield PageContent(components.alert(str(error)))
        except Exception:
            yield PageContent(components.alert("internal error; the log of the server has the details"))
            raise

    def segment(self, key: str | None, request: SegmentRequest) -> tuple[dict[str, Any], list[Path]]:
        """Segment a clip for the API: plain data, and the files overlay, masks, result and COCO.

        Raises:
            InputError, ModelError: see `run_request`; also if the session ended before the result.
        """
        with self._begin(key, request) as (session, states):
            state = next((state for state in states if state.result is not None), None)
            if state is None or state.result is None:
                raise InputError("the session ended before there was a result")
            overlay = self._write(session, state.result)
            data = to_payload(state.result) | {"cached": list(state.cached), "seconds": round(state.seconds, 3)}
            return data, [overlay, *(session.folder / name for name in ("masks.zip", "result.json", "coco.json"))]

    def select(self, key: str | None, names: Collection[str]) -> str:
        """The player of the overlay video with the named objects; InputError if the session has no result."""
        with self._sessions.active(key) as session:
            if session.result is None:
                raise InputError("the result has been removed; run the clip again")
            overlay = write_overlay_video(session.folder, session.result, names, session.reopen)
            return components.player(session, session.result, overlay.name, filter_instances(session.result, names))

    @contextmanager
    def _begin(self, key: str | None, request: SegmentRequest) -> Iterator[tuple[Session, Iterator[InferenceProgress]]]:
        """Begin a run on links to the uploads, which may be removed during the run."""
        with self._sessions.active(key) as session:
            session.begin(path for path in (request.source, request.audio) if path is not None)
            audio = request.audio and session.link_input(request.audio)
            own = replace(request, source=session.link_input(request.source), audio=audio)
            fps = self._models.option(request.recipe).recipe.sample.fps
            session.reopen = lambda: open_request(own, fps, self._config)
            yield session, run_request(own, self._models, self._config, session.stop.is_set)

    def _write(self, session: Session, result: Result) -> Path:
        """Write the files of a result; the session keeps the result without its audio, up to 45 MB a minute."""
        overlay = write_overlay_video(session.folder, result)
        write_files(session.folder, result)
        session.result = Result.of(result, replace(result.video, audio=None))
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
