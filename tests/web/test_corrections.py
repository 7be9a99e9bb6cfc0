"""Corrections on the page: clicks, words and time spans change the result, its downloads and its player."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ClipResult, Segment
from openavs.web import SegmentRequest
from openavs.web.artifacts import read_result_file
from openavs.web.controller import Controller, PageContent
from openavs.web.inference import ModelCache
from openavs.web.session import Run, SessionStore
from tests.web.conftest import CONFIG


class Visitor:
    """A visitor with a result of the scene."""

    def __init__(self, key: str, controller: Controller, sessions: SessionStore) -> None:
        self.key, self.controller, self.sessions = key, controller, sessions

    @property
    def run(self) -> Run:
        run = self.sessions.get(self.key).shown
        assert run is not None
        return run

    @property
    def result(self) -> ClipResult:
        return read_result_file(self.run.folder / "result.json")

    def correct(self, action: str, **change: Any) -> PageContent:
        """Correct the result; returns the masks, and the rest."""
        change = {"action": action, "run": self.run.number, **change}
        masks, rest = self.controller.correct(self.key, change)
        return replace(rest, data=masks.data)


@pytest.fixture(scope="module")
def visitors(models: ModelCache, scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Visitor]]:
    """Two visitors with the same clip; tests undo their corrections."""
    folder = tmp_path_factory.mktemp("visitors")
    sessions = SessionStore(folder / "sessions", keep_seconds=600.0)
    controller = Controller(models, sessions, CONFIG)
    upload = Path(shutil.copy(scene, folder / "upload.mp4"))
    found = [Visitor(key, controller, sessions) for key in ("one", "two")]
    for visitor in found:
        list(controller.run(visitor.key, SegmentRequest(upload)))
    yield found


def areas(result: ClipResult, track: int | None) -> dict[int, int]:
    return {f.index: s.mask.area for f in result.frames for s in f.segments if s.track == track}


def below(segment: Segment) -> list[float]:
    """A point outside of a mask, just below it."""
    rows, columns = rle_to_mask(segment.mask).nonzero()
    return [float(columns[rows.argmax()]), float(rows.max() + 4)]


def test_a_click_changes_the_masks_of_all_frames_and_the_downloads(visitors: list[Visitor]) -> None:
    one, two = visitors
    before = one.result
    phrases = [s.phrase for f in before.frames for s in f.segments]
    phrase = max(phrases, key=phrases.count)
    frame, segment = next((f, s) for f in before.frames for s in f.segments if s.phrase == phrase)
    content = one.correct("add point", frame=frame.index, object=segment.phrase, value=below(segment))
    after = one.result
    [record] = after.corrections
    assert (record.action, record.author, record.tool) == ("add point", "person", "page")
    grown = areas(after, record.track)
    old = {f.index: s.mask.area for f in before.frames for s in f.segments if s.phrase == segment.phrase}
    assert set(grown) == set(old) and len(grown) > 1
    assert all(grown[index] > old[index] for index in grown)
    assert content.data is not None and content.player is None  # the page keeps its player
    assert content.downloads is not None and "overlay.mp4" not in content.downloads
    assert json.loads((one.run.folder / "coco.json").read_text())["annotations"]
    files = one.controller.finish_corrections("one")
    assert files is not None and files.downloads is not None and "overlay.mp4" in files.downloads
    assert one.controller.finish_corrections("one") is None
    data = (files.data or "").partition("<script")[2].partition("</oa")[0].strip()
    assert data and data in (one.controller.show("one", one.run.number).player or "")
    assert two.result.frames == before.frames  # the other visitor's result of the same clip
    one.correct("undo")
    assert one.result == before
    with pytest.raises(InputError, match=r"^there is no correction to undo; only the last one is kept$"):
        one.correct("undo")


def test_words_spans_and_rejections_are_corrections(visitors: list[Visitor]) -> None:
    one = visitors[0]
    one.correct("rename", track=0, value="  Puppy ")
    assert "puppy" in {s.phrase for f in one.result.frames for s in f.segments}
    start = min(f.time for f in one.result.frames if areas(one.result, 0).get(f.index))
    content = one.correct("span", track=0, value=[start, start + 0.1])
    assert len(areas(one.result, 0)) == 1
    assert 'value="0" selected' in (content.correct or "")
    one.correct("reject", track=0)
    assert areas(one.result, 0) == {}
    candidate = next((f, r) for f in one.result.frames for r in f.rejected if r.reason == "person")
    kept = {"frame": candidate[0].index, "phrase": candidate[1].phrase, "value": list(candidate[1].box or ())}
    one.correct("keep", **kept)
    assert [c.action for c in one.result.corrections][-4:] == ["rename", "span", "reject", "keep"]
    assert any(s.author == "person" for f in one.result.frames for s in f.segments)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"action": "reject"}, "choose the object first"),
        ({"action": "add point", "frame": 2, "value": [1, 1]}, "no object is under the click; choose one"),
        ({"action": "add point", "frame": 99, "track": 0, "value": [1, 1]}, "has no frame 99"),
        ({"action": "add point", "frame": 2, "object": "dog", "value": ["a", 1e999]}, "no object is under"),
        ({"action": "rename", "track": 0, "value": "x" * 99}, "at most 60 letters"),
        ({"action": "mask", "frame": 2, "track": 0, "value": {}}, "not a correction of the page"),
        ({"action": "reject", "track": "0"}, "not a correction of the page"),
    ],
)
def test_what_does_not_exist_is_refused_and_changes_nothing(
    visitors: list[Visitor], change: dict[str, Any], sentence: str
) -> None:
    two = visitors[1]
    before = two.result
    with pytest.raises(InputError, match=sentence):
        two.correct(**change)
    assert two.result == before


def test_a_corrected_result_is_kept_beside_another_threshold(visitors: list[Visitor]) -> None:
    two = visitors[1]
    number = two.run.number
    two.correct("rename", track=0, value="puppy")
    list(two.controller.rerun("two", 0.1))
    assert two.run.number != number
    assert ", corrected" in (two.controller.show("two", number).history or "")
    with pytest.raises(InputError, match=r"^the result has been removed; run the clip again$"):
        list(two.controller.correct("three", {"action": "reject", "run": number, "track": 0}))
