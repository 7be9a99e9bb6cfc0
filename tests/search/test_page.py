"""The page of results: pictures around the things, links to the reports, escaped texts."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.exports.base import open_source
from openavs.jobs.save import save_result
from openavs.results.serialization import write_result
from openavs.search.page import crop_window, write_search_page
from openavs.search.query import SoundIndex
from openavs.search.sound_index import update_index
from tests.exports.conftest import LEFT, RIGHT, write_source
from tests.robustness.security.hostile import ALL, MARK, Page
from tests.search.conftest import ROOM, YARD, Sound, result_of


def page_of(folder: Path, query: str = "dog") -> str:
    update_index(folder / "sounds.db", [folder / "run"])
    with SoundIndex(folder / "sounds.db") as index:
        path = write_search_page(folder / "page", index.find(query), query, index)
    return path.read_text("utf-8")


def pictures(page: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


def test_pictures_are_cut_around_the_thing_and_link_to_its_frame(tmp_path: Path) -> None:
    source = tmp_path / "yard.mp4"
    write_source(source, 6)
    result = result_of("yard", *YARD, source=str(source))
    save_result(tmp_path / "run", result, partial(open_source, result), files=["report.html"])
    page = page_of(tmp_path)
    assert 'href="../run/clips/yard/report.html#f3"' in page
    (picture,) = pictures(page)
    assert picture.shape == (27, 36, 3)  # 4:3 around the box of 16 x 16, with margins
    assert (
        np.abs(picture[2, 2].astype(int) - LEFT).max() < 30
    )  # the thing is in the left half; the mask is in its middle
    assert np.abs(picture[14, 20].astype(int) - LEFT).max() > 30
    (whole,) = pictures(page_of(tmp_path, "door"))
    assert whole.shape == (48, 64, 3) and np.abs(whole[-2, -2].astype(int) - RIGHT).max() < 30


def test_the_overlay_stands_in_for_a_video_that_is_gone(tmp_path: Path) -> None:
    source = tmp_path / "yard.mp4"
    write_source(source, 6)
    result = result_of("yard", *YARD, source=str(source))
    save_result(tmp_path / "run", result, partial(open_source, result), files=["overlay.mp4"])
    source.unlink()
    assert len(pictures(page_of(tmp_path))) == 1
    (tmp_path / "run" / "clips" / "yard" / "overlay.mp4").unlink()
    page = page_of(tmp_path)
    assert pictures(page) == [] and "The video cannot be read." in page and "href=" not in page


def test_texts_are_escaped(tmp_path: Path) -> None:
    write_result(tmp_path / "run", result_of("clip", Sound(ALL, ALL, 0, 1, label=ALL)))
    page = Page(page_of(tmp_path, MARK + " <b>"))
    assert page.harm == [] and page.text.count(MARK) >= 1


def test_a_page_without_hits_and_one_of_another_program(tmp_path: Path) -> None:
    write_result(tmp_path / "run", result_of("room", *ROOM))
    assert "Nothing in the index matches." in page_of(tmp_path, "whale")
    (tmp_path / "page" / "index.html").write_text("mine")
    with pytest.raises(InputError, match="was not written by 'openavs find'"):
        page_of(tmp_path)


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ((300.0, 100.0, 340.0, 140.0), (236, 57, 404, 183)),  # small things keep some surroundings
        ((0.0, 0.0, 40.0, 40.0), (0, 0, 168, 126)),
        ((600.0, 320.0, 640.0, 360.0), (472, 234, 640, 360)),
        ((0.0, 0.0, 640.0, 360.0), (0, 0, 640, 360)),
        ((100.0, 0.0, 200.0, 360.0), (0, 0, 640, 360)),
    ],
)
def test_the_window_is_inside_the_frame(box: tuple[float, float, float, float], window: tuple[int, ...]) -> None:
    assert crop_window(box, (360, 640)) == window
