"""The report of a clip in a browser: video, timeline, images and table seek together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openavs.api import load
from tests.web.conftest import wait_for


@pytest.fixture(scope="module")
def folder(scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved result with its overlay and report."""
    return load("tiny")(scene).save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def page(chromium: Any, folder: Path) -> Any:
    page = chromium.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text))
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto((folder / "report.html").as_uri())
    wait_for(lambda: page.evaluate("document.querySelector('video').readyState >= 2"))  # eval is forbidden
    yield page
    assert page.faults == []
    page.close()


def time_of(page: Any) -> float:
    return float(page.evaluate("document.querySelector('video').currentTime"))


def test_a_click_on_the_timeline_an_image_or_a_row_seeks(page: Any) -> None:
    end = float(page.locator(".time").get_attribute("data-end"))
    box = page.locator(".wave").bounding_box()
    page.locator(".wave").click(position={"x": box["width"] / 2, "y": 20})
    assert time_of(page) == pytest.approx(end / 2, abs=0.05)
    assert float(page.evaluate("parseFloat(document.querySelector('.playhead').style.left)")) == pytest.approx(
        50, abs=1
    )
    page.locator("figure a[data-time]").nth(1).click()
    assert time_of(page) == pytest.approx(1.5)
    wait_for(lambda: page.locator(".now").count() == 1)
    page.locator("th a[data-time]").nth(3).click()
    assert time_of(page) == pytest.approx(3.5)


def test_the_position_can_be_set_by_keyboard_and_follows_playback(page: Any) -> None:
    slider = page.locator(".seek input")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert time_of(page) == pytest.approx(0.5, abs=0.06)
    assert slider.get_attribute("aria-valuetext") == f"{time_of(page):.1f} s"
    page.evaluate("document.querySelector('video').play()")
    wait_for(lambda: float(slider.input_value()) > 0.7)


def test_a_report_without_its_video_says_so(chromium: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes((folder / "report.html").read_bytes())
    page = chromium.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector(".missing", state="visible")
    assert not page.locator("video").is_visible()
    page.close()
