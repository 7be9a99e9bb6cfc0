"""What the page does with a visit: runs that are stopped, results that are gone."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from openavs.types import InputError
from openavs.web.models import Models
from openavs.web.sessions import Sessions
from openavs.web.visits import Visits
from openavs.web.wishes import Wish
from tests.web.conftest import SETTINGS, wait_for


@pytest.fixture
def sessions(tmp_path: Path) -> Sessions:
    return Sessions(tmp_path / "visits", keep=600.0)


@pytest.fixture
def upload(scene: Path, tmp_path: Path) -> Path:
    """A file of the visitor's own: it goes with the visit."""
    return Path(shutil.copy(scene, tmp_path / "upload.mp4"))


@pytest.fixture
def visits(models: Models, sessions: Sessions) -> Visits:
    return Visits(models, sessions, SETTINGS)


def test_a_run_that_is_stopped_says_so_and_has_no_result(visits: Visits, models: Models, upload: Path) -> None:
    shown = visits.run("one", Wish(upload))
    with models.using("tiny"):  # the run waits for the models meanwhile
        next(shown)
        visits.stop("one")
    assert "topped" in list(shown)[-1].progress
    with pytest.raises(InputError, match=r"^the result is gone, run the clip again$"):
        visits.repaint("one", ["dog"])


def test_a_program_whose_visit_ends_gets_a_sentence(
    visits: Visits, models: Models, sessions: Sessions, upload: Path
) -> None:
    with ThreadPoolExecutor(1) as aside:
        with models.using("tiny"):
            answer = aside.submit(visits.answer, "one", Wish(upload))
            session = sessions.get("one")
            wait_for(lambda: any(upload.name in files for _, _, files in os.walk(session.folder)))
            visits.end("one")
        with pytest.raises(InputError, match=r"^the visit ended before there was a result$"):
            answer.result(timeout=60)
    assert not session.folder.exists()


def test_what_is_wrong_with_a_clip_is_shown_as_a_sentence(visits: Visits, long_clip: Path) -> None:
    alert = list(visits.run("one", Wish(long_clip)))[-1].progress
    assert "8" in alert
    assert "long" in alert
