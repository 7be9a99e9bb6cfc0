"""The HTML of the page: everything from outside is escaped, and everything that is seen is also said."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openavs.results.result import Result
from openavs.structures.types import Caption, Prompt, Rejection
from openavs.web import fragments
from openavs.web.models import ModelCache
from openavs.web.running import InferenceProgress, run
from openavs.web.sessions import SessionStore
from openavs.web.wishes import SegmentRequest
from tests.web.conftest import SETTINGS

HOSTILE = "<img src=x onerror=alert(1)>\"'"


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def attributes(page: str) -> set[str]:
    return {name for _, attrs in Elements(page).found for name, _ in attrs}


@pytest.fixture(scope="module")
def hostile(models: ModelCache, scene: Path) -> Result:
    """A real result in which every word that comes from models, users and files is hostile."""
    found = list(run(SegmentRequest(scene), models, SETTINGS))[-1].result
    assert found is not None
    frames = tuple(
        replace(
            frame,
            captions=tuple(replace(caption, text=HOSTILE) for caption in frame.captions),
            prompts=(Prompt(HOSTILE, HOSTILE, HOSTILE),),
            segments=tuple(replace(s, phrase=HOSTILE, label=HOSTILE, label_how=HOSTILE) for s in frame.segments),
            rejected=(Rejection(HOSTILE, HOSTILE, 0.1),),
        )
        for frame in found.frames
    )
    recipe = {**found.recipe, "name": HOSTILE, "vocabulary": [HOSTILE]}
    words = {"clip": HOSTILE, "source": HOSTILE, "warnings": (HOSTILE,), "models": {HOSTILE: {"license": HOSTILE}}}
    return Result.of(replace(found, frames=frames, recipe=recipe, **words), found.video)  # type: ignore[arg-type]


def test_nothing_from_outside_becomes_markup(hostile: Result, tmp_path: Path) -> None:
    session = SessionStore(tmp_path, 60).get("one")
    session.result = hostile
    (session.folder / "masks.zip").write_bytes(b"x" * 2000)
    standing = InferenceProgress(
        {"load": (1, 1)}, captions=(Caption(HOSTILE, 0.5, 0, 1),), result=hostile, reused=("captioner",)
    )
    pages = {
        "progress": fragments.progress(standing, painted=True),
        "player": fragments.player(session, hostile, "overlay.mp4"),
        "downloads": fragments.downloads(session),
        "details": fragments.details(hostile),
        "alert": fragments.alert(HOSTILE),
        "head": fragments.head(HOSTILE),
    }
    for name, page in pages.items():
        assert "&lt;img src=x onerror" in page, name
        assert not attributes(page) & {"onerror", "onload"}, name
        assert "x" not in {dict(attrs).get("src") for _, attrs in Elements(page).found}, name


def test_what_is_seen_is_also_said(models: ModelCache, scene: Path, tmp_path: Path) -> None:
    found = list(run(SegmentRequest(scene), models, SETTINGS))[-1]
    assert found.result is not None
    details = fragments.details(found.result)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", details))
    assert all(
        "aria-label" in tag or "aria-labelledby" in tag for tag in re.findall(r'<svg[^>]*role="img"[^>]*>', details)
    )
    assert "Frame at 0.5 s" in details
    player = fragments.player(SessionStore(tmp_path, 60).get("one"), found.result, "overlay.mp4")
    assert 'aria-label="scene with ' in player
    assert '<track kind="captions"' in player
    assert 'poster="data:image/jpeg;base64,' in player


def test_the_progress_says_in_words_where_it_is() -> None:
    page = fragments.progress(InferenceProgress({"load": (1, 1), "caption": (2, 6)}))
    assert page.count("(done)") == 1
    assert "2 of 6 windows of sound" in page
    assert page.count('aria-current="step"') == 1
    assert page.count("(to come)") == 3
    assert "Reused" not in page


def test_what_was_reused_is_said() -> None:
    page = fragments.progress(InferenceProgress(reused=("captioner", "translator"), seconds=1.23), painted=True)
    assert "Reused from an earlier run: what was heard, asked for." in page


def test_the_models_and_their_licenses_are_shown(models: ModelCache) -> None:
    with models.using("tiny"):
        page = fragments.about(models.offers, models.loaded)
    assert "tiny Grounding DINO" in page
    assert "Apache-2.0" in page
    assert "loaded" in page
    assert "only openavs' own synthetic world" in fragments.recipe_note(models.offers["tiny"]).replace("&#39;", "'")


def test_the_style_sheet_stays_within_its_pieces() -> None:
    style = fragments.style()
    assert "url(" not in style
    assert "@import" not in style
    assert style.startswith(".oa{")
