"""What a visit asks for and gets to see: runs a clip, repaints it with fewer things, and answers programs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openavs.errors import InputError, OpenAVSError
from openavs.results.result import Result
from openavs.structures.types import ClipResult
from openavs.visualization.report import model_rows
from openavs.web import fragments
from openavs.web.models import ModelCache
from openavs.web.products import (
    Instance,
    filter_instances,
    list_instances,
    name_of,
    strip_local_paths,
    write_files,
    write_painted,
)
from openavs.web.running import InferenceProgress, run
from openavs.web.sessions import Session, SessionStore
from openavs.web.settings import ServerConfig
from openavs.web.wishes import SegmentRequest, open_request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PageContent:
    """What stands on the page, as HTML; `things` can be switched off one by one."""

    progress: str = ""
    player: str = ""
    things: tuple[Instance, ...] = ()
    downloads: str = ""
    details: str = ""


@dataclass(frozen=True)
class ProgramResponse:
    """What a program gets: plain data, and the files."""

    data: dict[str, Any]
    overlay: Path
    masks: Path
    result: Path
    coco: Path


class Controller:
    """Everything that the page does. A visit is told from others by the key that its browser made up."""

    def __init__(self, models: ModelCache, sessions: SessionStore, settings: ServerConfig) -> None:
        self._models, self._sessions, self._settings = models, sessions, settings

    def run(self, key: str | None, wish: SegmentRequest) -> Iterator[PageContent]:
        """Segments a clip; the words come before the painted video, which takes longer. Errors are shown, too."""
        standing = InferenceProgress()
        try:
            with self._working(key, wish) as session:
                for standing in self._run(session, wish):
                    yield PageContent(fragments.progress(standing))
                if standing.result is None:
                    yield PageContent(fragments.stopped())
                    return
                result = standing.result
                details, found = fragments.details(result), tuple(list_instances(result))
                yield PageContent(fragments.progress(standing), details=details)
                painted = self._write(session, result)
                yield PageContent(
                    fragments.progress(standing, painted=True),
                    fragments.player(session, result, painted.name),
                    found,
                    fragments.downloads(session),
                    details,
                )
        except OpenAVSError as problem:
            yield PageContent(fragments.alert(str(problem)))
        except Exception:
            yield PageContent(fragments.alert("the server met a fault of its own, which its log describes"))
            raise

    def repaint(self, key: str | None, shown: Collection[str]) -> str:
        """The video with only these things painted on it; InputError if the visit has no result any more."""
        session = self._sessions.get(key)
        self._sessions.working(session, +1)
        try:
            if session.result is None:
                raise InputError("the result is gone, run the clip again")
            painted = write_painted(session.folder, session.result, shown, session.reopen)
            return fragments.player(session, session.result, painted.name, filter_instances(session.result, shown))
        finally:
            self._sessions.working(session, -1)

    def answer(self, key: str | None, wish: SegmentRequest) -> ProgramResponse:
        """Segments a clip for a program; raises what `running.run` raises."""
        with self._working(key, wish) as session:
            states = list(self._run(session, wish))
            if not states or states[-1].result is None:
                raise InputError("the visit ended before there was a result")
            standing, result = states[-1], states[-1].result
            painted = self._write(session, result)
            data = to_payload(result) | {"reused": list(standing.reused), "seconds": round(standing.seconds, 3)}
            files = (session.folder / name for name in ("masks.zip", "result.json", "coco.json"))
            return ProgramResponse(data, painted, *files)

    def stop(self, key: str | None) -> None:
        """Has the models stop at their next step."""
        self._sessions.get(key).stopping.set()

    def end(self, key: str | None) -> None:
        """The visit is over: its files go."""
        self._sessions.end(key)

    @contextmanager
    def _working(self, key: str | None, wish: SegmentRequest) -> Iterator[Session]:
        session = self._sessions.get(key)
        self._sessions.working(session, +1)
        try:
            session.begin(path for path in (wish.source, wish.sound) if path is not None)
            yield session
        finally:
            self._sessions.working(session, -1)

    def _write(self, session: Session, result: Result) -> Path:
        """Writes the files of a result and returns the painted video; the visit keeps the result without its sound."""
        painted = write_painted(session.folder, result)
        write_files(session.folder, result)
        session.result = Result.of(result, replace(result.video, audio=None))
        return painted

    def _run(self, session: Session, wish: SegmentRequest) -> Iterator[InferenceProgress]:
        """With the files in the visit's own folder: an upload may be removed while a clip is worked on."""
        own = replace(wish, source=session.keep(wish.source), sound=wish.sound and session.keep(wish.sound))
        fps = self._models.offer(wish.recipe).recipe.sample.fps
        session.reopen = lambda: open_request(own, fps, self._settings)
        return run(own, self._models, self._settings, session.stopping.is_set)


def to_payload(result: Result) -> dict[str, Any]:
    """A result as plain data without its masks, which are in the files."""
    plain: ClipResult = strip_local_paths(result)
    return {
        "clip": plain.clip,
        "size": list(plain.size),
        "recipe": plain.recipe.get("name"),
        "models": model_rows(plain.models),
        "warnings": list(plain.warnings),
        "frames": [
            {
                "time": frame.time,
                "silent": frame.silent,
                "captions": [{"text": caption.text, "score": caption.score} for caption in frame.captions],
                "prompts": [prompt.phrase for prompt in frame.prompts],
                "found": [
                    {"name": name_of(s), "phrase": s.phrase, "label": s.label, "score": s.score, "box": list(s.box)}
                    for s in frame.segments
                ],
                "rejected": [{"phrase": d.phrase, "reason": d.reason, "score": d.score} for d in frame.rejected],
            }
            for frame in plain.frames
        ],
    }
