"""The page in a real browser, offline: upload, run, see, toggle, take along; by keyboard, by ear, in every width."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.web.conftest import Server, wait_for

sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; see make test-web")
expect = sync_api.expect
pytestmark = pytest.mark.slow

LONG = 60_000  # ms; a busy machine may take its time
RUN, EXAMPLE = "Find what sounds", "Try the example"
HOSTILE = "<img src=x onerror=alert(1)>"


class Visit:
    """One page in a browser, and all that it asked for and complained of."""

    def __init__(self, page: Any, server: Server) -> None:
        self.page, self.server = page, server
        self.requests: list[str] = []
        self.complaints: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("console", lambda said: said.type == "error" and self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def open(self) -> Visit:
        self.page.goto(self.server.address)
        expect(self.button(RUN)).to_be_visible(timeout=LONG)
        return self

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def give(self, path: Path, tab: str = "Video", place: str = "#oa-video") -> None:
        self.page.get_by_role("tab", name=tab, exact=True).click()
        self.page.locator(f"{place} input[type=file]").set_input_files(str(path))

    def run(self, name: str = RUN) -> None:
        """Presses a button and waits for the painted video."""
        self.button(name).click()
        self.seen()

    def seen(self) -> None:
        expect(self.page.locator("#oa-player video")).to_be_visible(timeout=LONG)
        expect(self.page.locator("#oa-progress")).to_contain_text("Heard and found in", timeout=LONG)

    def text(self, place: str) -> str:
        return str(self.page.locator(place).inner_text())

    def is_too_wide(self) -> bool:
        return bool(self.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.fixture
def visit(chromium: Any, server: Server) -> Iterator[Visit]:
    """A page that is open, on a desk; whatever it fetched came from the server, and it complained of nothing."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    visit = Visit(context.new_page(), server).open()
    yield visit
    context.close()
    outside = [u for u in visit.requests if not u.startswith((f"{server.address}/", "data:", "blob:"))]
    assert outside == []
    assert visit.complaints == []


def test_the_example_takes_one_click(visit: Visit) -> None:
    visit.run(EXAMPLE)
    assert "Heard: dog barking" in visit.text("#oa-progress")
    details = visit.text("#oa-details")
    for heading in ("What sounds", "When", "Why", "Frames", "How it was made"):
        assert heading in details
    assert "tiny knows only openavs' own synthetic world" in visit.text("body")
    plays = "v => new Promise(r => { v.onplaying = () => r(v.videoWidth); v.muted = true; v.play(); })"
    assert visit.page.locator("#oa-player video").evaluate(plays) == 384
    heard = "async v => { await new Promise(r => setTimeout(r, 400)); return v.webkitAudioDecodedByteCount }"
    assert visit.page.locator("#oa-player video").evaluate(heard) > 0


def test_upload_run_hide_and_take_along(visit: Visit, scene: Path) -> None:
    visit.give(scene)
    visit.run()
    toggles = visit.page.locator("#oa-things input[type=checkbox]")
    expect(toggles.first).to_be_visible(timeout=LONG)
    whole = visit.page.locator("#oa-player video").get_attribute("src")
    toggles.first.uncheck()
    expect(visit.page.locator("#oa-player video")).not_to_have_attribute("src", str(whole), timeout=LONG)
    toggles.first.check()
    expect(visit.page.locator("#oa-player video")).to_have_attribute("src", str(whole), timeout=LONG)
    got = {}
    for link in visit.page.locator("#oa-downloads a").all():
        with visit.page.expect_download() as download:
            link.click()
        got[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    assert set(got) == {"scene-masks.zip", "scene-result.json", "scene-coco.json", "scene-overlay.mp4"}
    assert "masks/00000.png" in zipfile.ZipFile(io.BytesIO(got["scene-masks.zip"])).namelist()
    assert json.loads(got["scene-coco.json"])["annotations"]


def test_hiding_a_thing_keeps_the_place_in_the_video(visit: Visit, scene: Path) -> None:
    visit.give(scene)
    visit.run()
    toggle = visit.page.locator("#oa-things input[type=checkbox]").first
    player = visit.page.locator("#oa-player video")

    def changed() -> None:
        whole = str(player.get_attribute("src"))
        toggle.click()
        expect(player).not_to_have_attribute("src", whole, timeout=LONG)

    wait_for(lambda: player.evaluate("v => v.readyState") == 4)
    player.evaluate("v => { v.muted = true; v.volume = 0.5; v.currentTime = 2.5; }")
    changed()
    expect(player).to_have_js_property("currentTime", 2.5, timeout=LONG)
    assert player.evaluate("v => [v.paused, v.muted, v.volume]") == [True, True, 0.5]
    player.evaluate("v => { v.currentTime = 1; v.playbackRate = 0.1; v.play(); }")
    changed()
    expect(player).to_have_js_property("paused", False, timeout=LONG)
    goes_on = "v => new Promise(r => { v.ontimeupdate = () => v.currentTime > 1 && r(v.currentTime) })"
    assert player.evaluate(goes_on) < 4
    player.evaluate("v => v.pause()")
    visit.run()  # another run begins at its start
    expect(player).to_have_js_property("currentTime", 0)


def test_another_threshold_reuses_what_was_heard(visit: Visit, scene: Path) -> None:
    visit.give(scene)
    visit.run()
    number = visit.page.get_by_role("spinbutton", name="Threshold")
    number.fill("0.95")
    number.press("Tab")
    visit.button(RUN).click()
    expect(visit.page.locator("#oa-details")).to_contain_text("below threshold", timeout=LONG)
    expect(visit.page.locator("#oa-progress")).to_contain_text(
        "Reused from an earlier run: what was heard, asked for, boxed.", timeout=LONG
    )
    assert "Nothing that sounds was found" in visit.text("#oa-details")


def test_a_picture_and_its_sound(visit: Visit, tone: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image as Pictures

    picture = tmp_path / "room.png"
    Pictures.fromarray(np.full((96, 128, 3), 128, dtype=np.uint8)).save(picture)
    visit.page.get_by_role("tab", name="Picture and sound").click()
    visit.button(RUN).click()
    expect(visit.page.get_by_role("alert")).to_contain_text("give a picture and the sound that belongs to it first")
    visit.give(picture, "Picture and sound", "#oa-picture")
    visit.give(tone, "Picture and sound", "#oa-sound")
    expect(visit.page.locator("#oa-picture img")).to_be_visible(timeout=LONG)
    visit.run()
    assert "of 2 frames" in visit.text("#oa-details") or "0.5 s" in visit.text("#oa-details")


def test_refusals_are_sentences(chromium: Any, server: Server, long_clip: Path, tmp_path: Path) -> None:
    page = chromium.new_page()
    visit = Visit(page, server).open()
    visit.button(RUN).click()
    expect(page.get_by_role("alert")).to_contain_text("That did not work: give a video first, or try the example.")
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(2 << 20))
    visit.give(big)
    expect(page.get_by_text("exceed the maximum allowed size of 1")).to_be_visible(timeout=LONG)
    page.goto("about:blank")
    for path, sentence in (
        (long_clip, "long.mp4 lasts 10 s and this page takes at most 8 s; cut it"),
        (tmp_path / "broken.mp4", "broken.mp4 cannot be read as video or sound"),
    ):
        if not path.exists():
            path.write_bytes(b"no video " * 50)
        visit.open()
        visit.give(path)
        wait_for(lambda path=path: list((server.folder / "uploads").rglob(path.name)))
        expect(page.locator("#oa-video video")).to_be_attached(timeout=LONG)
        visit.button(RUN).click()
        expect(page.get_by_role("alert").filter(has_text="That did not work")).to_contain_text(sentence, timeout=LONG)
    page.close()


def test_hostile_words_stay_words(visit: Visit, scene: Path) -> None:
    visit.give(scene)
    visit.page.get_by_label("Only these things (optional)").fill(f"{HOSTILE}, dog")
    visit.run()
    assert HOSTILE in visit.text("#oa-details")
    assert visit.page.locator("img[src=x]").count() == 0


def test_by_keyboard_alone(visit: Visit) -> None:
    press_tab_until(visit, EXAMPLE)
    visit.page.keyboard.press("Enter")
    visit.seen()
    visit.page.locator("#oa-player video").focus()
    whole = visit.page.locator("#oa-player video").get_attribute("src")
    visit.page.keyboard.press("Tab")
    for _ in range(12):  # the video's own controls come first
        if visit.page.evaluate("document.activeElement.type") == "checkbox":
            break
        visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("Space")
    expect(visit.page.locator("#oa-player video")).not_to_have_attribute("src", str(whole), timeout=LONG)
    press_tab_until(visit, "Masks (PNG, zip)")
    with visit.page.expect_download() as download:
        visit.page.keyboard.press("Enter")
    assert download.value.suggested_filename == "example-masks.zip"
    press_tab_until(visit, "Models and licenses")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_text("tiny Grounding DINO")).to_be_visible()


def press_tab_until(visit: Visit, text: str) -> None:
    """Moves the focus on until what has it bears this text."""
    for _ in range(60):
        visit.page.keyboard.press("Tab")
        if text in (visit.page.evaluate("document.activeElement.innerText") or ""):
            return
    raise AssertionError(f"{text!r} is not reached by Tab")


def test_everything_has_a_name_and_errors_are_announced(visit: Visit) -> None:
    visit.run(EXAMPLE)
    page = visit.page
    nameless = """[...document.querySelectorAll('button, a[href], input, textarea, select, video, [role=slider]')]
      .filter(e => e.checkVisibility() && !(e.innerText || '').trim() && !e.getAttribute('aria-label')
        && !e.getAttribute('aria-labelledby') && !e.getAttribute('title') && !(e.labels && e.labels.length)
        && !e.placeholder).map(e => e.outerHTML.slice(0, 120))"""
    assert page.evaluate(nameless) == []
    assert page.evaluate("[...document.querySelectorAll('#oa-details img')].every(i => i.alt.startsWith('Frame at'))")
    assert page.evaluate("[...document.querySelectorAll('#oa-details svg[role=img]')].length") >= 3
    assert page.locator("#oa-progress").get_attribute("aria-live") == "polite"
    assert page.locator("html").get_attribute("lang") == "en"
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_is_read_in_every_width_and_light(
    chromium: Any, server: Server, width: int, scheme: str, tmp_path: Path
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    visit = Visit(context.new_page(), server).open()
    assert not visit.is_too_wide()
    visit.run(EXAMPLE)
    assert not visit.is_too_wide()
    for place in (".oa-details h2", ".oa-details .quiet", ".oa-files a", ".oa-note", ".oa-head p"):
        assert contrast(visit.page, place) >= 4.5, place  # WCAG AA
    context.close()


def contrast(page: Any, place: str) -> float:
    """The contrast ratio of a text with what lies behind it (WCAG 2)."""
    return float(
        page.evaluate(
            """place => {
      const element = document.querySelector(place);
      const numbers = text => text.match(/[\\d.]+/g).map(Number);
      let behind = element;
      while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
      const light = colour => {
        const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = numbers(colour).map(v => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const text = light(getComputedStyle(element).color);
      const back = light(behind ? getComputedStyle(behind).backgroundColor : 'rgb(255,255,255)');
      return (Math.max(text, back) + .05) / (Math.min(text, back) + .05);
    }""",
            place,
        )
    )


def test_the_api_panel_needs_nothing_from_elsewhere(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Use via API").click()
    expect(visit.page.get_by_text("/segment").first).to_be_visible(timeout=LONG)
    visit.complaints.clear()  # it looks for monitoring and an MCP server, which this one does not have


def test_closing_the_page_removes_its_files(chromium: Any, server: Server, scene: Path) -> None:
    before = set(server.visits())
    page = chromium.new_page()
    visit = Visit(page, server).open()
    visit.give(scene)
    visit.run()
    (own,) = set(server.visits()) - before
    page.close()
    wait_for(lambda: not own.exists())
