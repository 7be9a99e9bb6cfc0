"""HTML of the page: texts are escaped, and everything visible has a text alternative."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from openavs.results.result import Result
from openavs.structures.types import Caption, Prompt, Rejection
from openavs.web import SegmentRequest, components
from openavs.web.inference import InferenceProgress, ModelCache, run_request
from openavs.web.session import SessionStore
from tests.web.conftest import CONFIG

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
    """A real result in which all texts from models, users and files are hostile."""
    found = list(run_request(SegmentRequest(scene), models, CONFIG))[-1].result
    assert found is not None
    frames = tuple(
        replace(
            frame,
            captions=tuple(replace(caption, text=HOSTILE) for caption in frame.captions),
            prompts=(Prompt(HOSTILE, HOSTILE, HOSTILE),),
            segments=tuple(replace(s, phrase=HOSTILE, label=HOSTILE, label_how=HOSTILE) for s in frame.segments),
            rejected=(Rejection(HOSTILE, HOSTILE, 0.1, (0.0, 0.0, 9.0, 9.0)),),
        )
        for frame in found.frames
    )
    recipe = {**found.recipe, "name": HOSTILE, "vocabulary": [HOSTILE]}
    words = {"clip": HOSTILE, "source": HOSTILE, "warnings": (HOSTILE,), "models": {HOSTILE: {"license": HOSTILE}}}
    return Result.of(replace(found, frames=frames, recipe=recipe, **words), found.video)  # type: ignore[arg-type]


def test_hostile_texts_do_not_become_markup(hostile: Result, tmp_path: Path) -> None:
    (tmp_path / f"{HOSTILE}.mp4").touch()
    session = SessionStore(tmp_path / "sessions", 60).get("one")
    for words in ((), (HOSTILE,)):
        run = session.begin(SegmentRequest(tmp_path / f"{HOSTILE}.mp4", add=words))
        session.finish(run, (HOSTILE,))
        run.poster = HOSTILE
    run.folder.mkdir(exist_ok=True)
    (run.folder / "masks.zip").write_bytes(b"x" * 2000)
    state = InferenceProgress(
        {"load": (1, 1)}, captions=(Caption(HOSTILE, 0.5, 0, 1),), result=hostile, cached=("captioner",)
    )
    pages = {
        "progress": components.progress(state, is_written=True),
        "player": components.player(session, run, hostile)[0],
        "downloads": components.downloads(session, run, hostile),
        "details": components.details(hostile),
        "history": components.history(session),
        "alert": components.alert(HOSTILE),
        "correct": components.correct(run, hostile),
        "head": components.fragment("head", limits=HOSTILE),
    }
    for name, page in pages.items():
        assert "&lt;img src=x onerror" in page, name
        assert not attributes(page) & {"onerror", "onload"}, name
        assert "x" not in {dict(attrs).get("src") for _, attrs in Elements(page).found}, name


def test_images_and_charts_have_text_alternatives(models: ModelCache, scene: Path, tmp_path: Path) -> None:
    found = list(run_request(SegmentRequest(scene), models, CONFIG))[-1]
    assert found.result is not None
    details = components.details(found.result)
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<a [^>]*><img[^>]*>", details))
    assert all(
        "aria-label" in tag or "aria-labelledby" in tag for tag in re.findall(r'<svg[^>]*role="img"[^>]*>', details)
    )
    assert "Frame at 0.5 s" in details
    session = SessionStore(tmp_path, 60).get("one")
    player, data = components.player(session, session.begin(SegmentRequest(scene)), found.result)
    assert 'aria-label="Player of scene"' in player
    assert '<track kind="captions"' in player
    assert data[data.index("<script") : data.index("</script>")] in player and '"codes":' in data


def test_progress_is_shown_as_text() -> None:
    page = components.progress(InferenceProgress({"load": (1, 1), "caption": (2, 6)}))
    assert page.count("(done)") == 1
    assert "2 of 6 audio windows" in page
    assert page.count('aria-current="step"') == 1
    assert page.count("(to come)") == 3
    assert "Reused" not in page


def test_cached_stages_are_listed() -> None:
    page = components.progress(InferenceProgress(cached=("captioner", "translator"), seconds=1.23), is_written=True)
    assert "Reused from an earlier run: captions, prompts." in page


def test_models_and_their_licenses_are_shown(models: ModelCache) -> None:
    with models.pipeline("tiny"):
        page = components.fragment("about", options=models.options.values(), loaded=models.loaded)
    assert "tiny Grounding DINO" in page
    assert "Apache-2.0" in page
    assert "loaded" in page
    assert "synthetic clips only" in components.fragment("recipe", option=models.options["tiny"])


def test_the_stylesheet_is_limited_to_the_fragments() -> None:
    style = components.stylesheet()
    assert "url(" not in style
    assert "@import" not in style
    assert style.startswith(".oa{")
