"""What the page does with a visit: runs that are stopped, results that are gone."""

from __future__ import annotations

import gc
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.media import MediaLimits, probe
from openavs.media.audio import read_audio_track
from openavs.structures.types import Waveform
from openavs.web.models import ModelCache
from openavs.web.sessions import SessionStore
from openavs.web.visits import Controller
from openavs.web.wishes import SegmentRequest
from tests.web.conftest import SETTINGS, wait_for


@pytest.fixture
def sessions(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "visits", keep=600.0)


@pytest.fixture
def upload(scene: Path, tmp_path: Path) -> Path:
    """A file of the visitor's own: it goes with the visit."""
    return Path(shutil.copy(scene, tmp_path / "upload.mp4"))


@pytest.fixture
def visits(models: ModelCache, sessions: SessionStore) -> Controller:
    return Controller(models, sessions, SETTINGS)


def test_a_run_that_is_stopped_says_so_and_has_no_result(visits: Controller, models: ModelCache, upload: Path) -> None:
    shown = visits.run("one", SegmentRequest(upload))
    with models.using("tiny"):  # the run waits for the models meanwhile
        next(shown)
        visits.stop("one")
    assert "topped" in list(shown)[-1].progress
    with pytest.raises(InputError, match=r"^the result is gone, run the clip again$"):
        visits.repaint("one", ["dog"])


def test_a_program_whose_visit_ends_gets_a_sentence(
    visits: Controller, models: ModelCache, sessions: SessionStore, upload: Path
) -> None:
    with ThreadPoolExecutor(1) as aside:
        with models.using("tiny"):
            answer = aside.submit(visits.answer, "one", SegmentRequest(upload))
            session = sessions.get("one")
            wait_for(lambda: any(upload.name in files for _, _, files in os.walk(session.folder)))
            visits.end("one")
        with pytest.raises(InputError, match=r"^the visit ended before there was a result$"):
            answer.result(timeout=60)
    assert not session.folder.exists()


def test_what_is_wrong_with_a_clip_is_shown_as_a_sentence(visits: Controller, long_clip: Path) -> None:
    alert = list(visits.run("one", SegmentRequest(long_clip)))[-1].progress
    assert "8" in alert
    assert "long" in alert


def test_a_visit_does_not_hold_its_sound_and_can_still_be_repainted(
    visits: Controller, sessions: SessionStore, upload: Path
) -> None:
    """A minute of sound takes up to 45 MB, and a visit stays for an hour."""
    gc.collect()
    before = sum(isinstance(one, Waveform) for one in gc.get_objects())
    list(visits.run("one", SegmentRequest(upload)))
    visits.answer("two", SegmentRequest(upload))
    gc.collect()
    assert sum(isinstance(one, Waveform) for one in gc.get_objects()) == before
    (whole,) = sessions.get("one").folder.glob("overlay*.mp4")
    assert "results/" in visits.repaint("one", [])
    (bare,) = set(sessions.get("one").folder.glob("overlay*.mp4")) - {whole}
    assert probe(bare).audio_codec == probe(whole).audio_codec == "aac"
    (sound, _), (own, _) = read_audio_track(bare, MediaLimits()), read_audio_track(whole, MediaLimits())
    assert sound is not None and own is not None and len(sound.samples) == len(own.samples)
    assert abs(sound.samples).max() > 0.01
    assert sum(isinstance(one, Waveform) for one in gc.get_objects()) == before + 2
