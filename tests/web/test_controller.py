"""Runs of a session: stopped runs, removed results, memory."""

from __future__ import annotations

import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.results.result import Result
from openavs.structures.masks import RLE
from openavs.structures.types import ClipResult, Event, FrameResult, Rejection, Segment, Verdict, Waveform
from openavs.web import SegmentRequest
from openavs.web.controller import Controller, to_payload
from openavs.web.inference import ModelCache
from openavs.web.session import SessionStore
from tests.web.conftest import CONFIG, wait_for


@pytest.fixture
def sessions(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "sessions", keep_seconds=600.0)


@pytest.fixture
def upload(scene: Path, tmp_path: Path) -> Path:
    """A copy that may be removed with its session."""
    return Path(shutil.copy(scene, tmp_path / "upload.mp4"))


@pytest.fixture
def controller(models: ModelCache, sessions: SessionStore) -> Controller:
    return Controller(models, sessions, CONFIG)


def test_a_stopped_run_shows_a_message_and_no_result(
    controller: Controller, models: ModelCache, sessions: SessionStore, upload: Path
) -> None:
    contents = controller.run("one", SegmentRequest(upload))
    with models.pipeline("tiny"):  # the run waits for the models meanwhile
        next(contents)
        sessions.get("one").stop()
    assert "topped" in list(contents)[-1].progress
    with pytest.raises(InputError, match=r"^the result has been removed; run the clip again$"):
        controller.show("one", 1)


def test_the_api_returns_events_and_verdicts() -> None:
    verdict = Verdict("unresolved", 0.5, 0.03, None, "sync")
    dog = Segment(RLE((2, 2), "04"), (0.0, 0.0, 2.0, 2.0), "dog", 0.5, verdicts=(verdict,))
    frame = FrameResult(0, 0.5, segments=(dog,), rejected=(Rejection("dog", "silent", 0.1, None, 0.4, "sync"),))
    result = ClipResult("clip", (2, 2), (frame,), events=(Event("dog", 0.24, 1.88, 0.9, 25.0, (0.9,)),))
    data = to_payload(Result.of(result))
    assert data["events"] == [{"phrase": "dog", "start": 0.24, "end": 1.88, "score": 0.9}]
    (shown,) = data["frames"]
    assert shown["segments"][0]["verdicts"][0] == {
        "decision": "unresolved",
        "score": 0.5,
        "margin": 0.03,
        "best_match": None,
        "verifier": "sync",
    }
    assert shown["rejected"] == [{"phrase": "dog", "reason": "silent", "score": 0.1, "margin": 0.4}]


def test_an_api_call_whose_session_ends_is_an_input_error(
    controller: Controller, models: ModelCache, sessions: SessionStore, upload: Path
) -> None:
    with ThreadPoolExecutor(1) as aside:
        with models.pipeline("tiny"):
            answer = aside.submit(controller.segment, "one", SegmentRequest(upload))
            session = sessions.get("one")
            wait_for(lambda: any(upload.name in files for _, _, files in os.walk(session.folder)))
            sessions.end("one")
        with pytest.raises(InputError, match=r"^the session ended before there was a result$"):
            answer.result(timeout=60)
    assert not session.folder.exists()


def test_an_invalid_clip_is_shown_as_an_alert(controller: Controller, long_clip: Path) -> None:
    alert = list(controller.run("one", SegmentRequest(long_clip)))[-1].progress
    assert "8" in alert
    assert "long" in alert


def test_a_session_keeps_no_audio_in_memory(controller: Controller, sessions: SessionStore, upload: Path) -> None:
    """A minute of audio takes up to 45 MB, and a session stays for an hour."""
    gc.collect()
    before = sum(isinstance(one, Waveform) for one in gc.get_objects())
    list(controller.run("one", SegmentRequest(upload)))
    controller.segment("two", SegmentRequest(upload))
    gc.collect()
    assert sum(isinstance(one, Waveform) for one in gc.get_objects()) == before


def test_the_masks_come_before_the_files_and_are_shown_again(
    controller: Controller, sessions: SessionStore, upload: Path
) -> None:
    first, last = list(controller.run("one", SegmentRequest(upload)))[-2:]
    assert first.player is not None and first.downloads is None
    assert last.player is None and last.data is not None and last.downloads is not None  # the page has the player
    assert last.data[last.data.index("<script") : last.data.index("</oa")].strip() in (
        controller.show("one", 1).player or ""
    )
    [lower] = list(controller.rerun("one", 0.1))[-1:]
    assert lower.player is None and lower.threshold == 0.1 and lower.command is not None
    assert lower.command.endswith("filtering.box_threshold=0.1")
    assert list(controller.rerun("one", 0.3, only_lower=True)) == []  # the player hides the others itself
    assert [run.number for run in sessions.get("one").runs] == [2]
    session = sessions.get("one")
    assert controller.resume("two", session.folder.name)[2] is not None
    assert controller.resume("three", "unknown")[0] is None
