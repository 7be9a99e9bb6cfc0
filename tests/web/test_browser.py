"""The page in a real browser, offline: upload, run, toggle, download; keyboard, screen reader, widths, contrast."""

from __future__ import annotations

import io
import json
import re
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


class Page:
    """One page in a browser, its requests and its error messages."""

    def __init__(self, tab: Any, server: Server) -> None:
        self.tab, self.server = tab, server
        self.requests: list[str] = []
        self.errors: list[str] = []
        tab.on("request", lambda request: self.requests.append(request.url))
        tab.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("dialog", lambda dialog: (self.errors.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def open(self) -> Page:
        self.tab.goto(self.server.address)
        expect(self.button(RUN)).to_be_visible(timeout=LONG)
        return self

    def button(self, name: str) -> Any:
        return self.tab.get_by_role("button", name=name, exact=True)

    def give(self, path: Path, tab: str = "Video", place: str = "#oa-video") -> None:
        self.tab.get_by_role("tab", name=tab, exact=True).click()
        self.tab.locator(f"{place} input[type=file]").set_input_files(str(path))

    def run(self, name: str = RUN) -> None:
        """Press a button and wait for the player and the files."""
        self.button(name).click()
        self.wait_for_result()

    def wait_for_result(self) -> None:
        expect(self.tab.locator("#oa-player canvas")).to_be_visible(timeout=LONG)
        expect(self.tab.locator("#oa-progress")).to_contain_text("Finished in", timeout=LONG)

    def text(self, place: str) -> str:
        return str(self.tab.locator(place).inner_text())

    def is_too_wide(self) -> bool:
        return bool(self.tab.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


@pytest.fixture
def page(chromium: Any, server: Server) -> Iterator[Page]:
    """An open page on a desktop; at the end, all requests went to the server and there were no errors."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page = Page(context.new_page(), server).open()
    yield page
    context.close()
    outside = [u for u in page.requests if not u.startswith((f"{server.address}/", "data:", "blob:"))]
    assert outside == []
    assert page.errors == []


def test_the_example_takes_one_click(page: Page) -> None:
    page.run(EXAMPLE)
    assert "Captions: dog barking" in page.text("#oa-progress")
    details = page.text("#oa-details")
    for heading in ("Sounding objects", "Timeline", "Frame by frame", "Frames", "Models and recipe"):
        assert heading in details
    assert "tiny was trained on synthetic clips only" in page.text("body")
    plays = "v => new Promise(r => { v.onplaying = () => r(v.videoWidth); v.muted = true; v.play(); })"
    assert page.tab.locator("#oa-player video").evaluate(plays) == 384
    decoded = "async v => { await new Promise(r => setTimeout(r, 400)); return v.webkitAudioDecodedByteCount }"
    assert page.tab.locator("#oa-player video").evaluate(decoded) > 0


def test_upload_run_and_download(page: Page, scene: Path) -> None:
    page.give(scene)
    page.run()
    captions = page.tab.locator("#oa-player .captions")
    for shown in ("showing", "hidden"):
        captions.click()
        assert page.tab.evaluate("document.querySelector('#oa-player video').textTracks[0].mode") == shown
        assert captions.get_attribute("aria-pressed") == str(shown == "showing").lower()
    got = {}
    for link in page.tab.locator("#oa-downloads a").all():
        with page.tab.expect_download() as download:
            link.click()
        got[download.value.suggested_filename] = Path(download.value.path()).read_bytes()
    assert set(got) == {"scene-masks.zip", "scene-result.json", "scene-coco.json", "scene-overlay.mp4"}
    assert "masks/00000.png" in zipfile.ZipFile(io.BytesIO(got["scene-masks.zip"])).namelist()
    assert json.loads(got["scene-coco.json"])["annotations"]


def test_timeline_images_and_rows_seek_the_video(page: Page, scene: Path) -> None:
    page.give(scene)
    page.run()
    tab = page.tab
    player, head = tab.locator("#oa-player video"), tab.locator("#oa-details .playhead")
    expect(head).to_be_attached(timeout=LONG)
    wave = tab.locator("#oa-details .wave")
    wave.click(position={"x": wave.bounding_box()["width"] / 2, "y": 20})
    end = float(tab.locator("#oa-details .time").get_attribute("data-end"))
    assert player.evaluate("v => v.currentTime") == pytest.approx(end / 2, abs=0.05)
    assert head.evaluate("e => parseFloat(e.style.left)") == pytest.approx(50, abs=1)
    tab.locator("#oa-details figure a[data-time]").nth(3).click()
    expect(player).to_have_js_property("currentTime", 3.5)
    expect(tab.locator("#oa-details .now")).to_have_attribute("data-start", "3.000")
    tab.locator("#oa-details th a[data-time]").nth(1).focus()
    tab.keyboard.press("Enter")
    expect(player).to_have_js_property("currentTime", 1.5)
    assert tab.url.rstrip("/") == page.server.address


def test_another_threshold_keeps_the_player_and_reuses_captions_boxes_and_images(page: Page, scene: Path) -> None:
    page.give(scene)
    page.run()
    tab, player = page.tab, page.tab.locator("#oa-player video")
    toggles, threshold = tab.locator("#oa-player .toggle"), tab.locator("#oa-player .threshold")
    begin = float(tab.locator("#oa-player [data-begin]").get_attribute("data-begin"))
    expect(player).to_have_js_property("currentTime", begin)  # the frame with the most objects
    toggles.first.click()
    player.evaluate("v => { v.currentTime = 2.25; v.volume = 0.5; }")
    source = player.get_attribute("src")
    assert threshold.evaluate("e => [Number(e.value), e.previousElementSibling.children.length]")[0] == 0.16
    threshold.focus()
    tab.keyboard.press("Home")  # below the threshold of the recipe
    expect(tab.locator("#oa-command :is(input, textarea)")).to_have_value(re.compile("box_threshold=0"), timeout=LONG)
    expect(tab.locator("#oa-progress")).to_contain_text(
        "Reused from an earlier run: captions, prompts, boxes.", timeout=LONG
    )
    assert player.evaluate("v => [v.currentTime, v.volume]") == [2.25, 0.5]
    assert player.get_attribute("src") == source
    assert toggles.first.get_attribute("aria-pressed") == "false"
    number = page.tab.get_by_role("spinbutton", name="Threshold")
    assert float(number.input_value()) < 0.16
    number.fill("0.95")
    number.press("Tab")
    expect(tab.locator("#oa-details")).to_contain_text("No sounding object was found", timeout=LONG)
    expect(toggles).to_have_count(0)


def test_prompts_are_edited_earlier_results_shown_and_a_reload_keeps_both(page: Page, scene: Path) -> None:
    page.give(scene)
    page.run()
    tab, command = page.tab, page.tab.locator("#oa-command :is(input, textarea)")
    expect(command).to_have_value("openavs segment ./scene.mp4 --pipeline tiny")
    words = tab.locator("#oa-prompts input")
    words.fill("Car")
    words.press("Enter")
    page.button(RUN).click()
    expect(command).to_have_value("openavs segment ./scene.mp4 --pipeline tiny 'prompts.add=[\"car\"]'", timeout=LONG)
    expect(tab.locator("#oa-progress")).to_contain_text("Reused from an earlier run: captions, prompts.", timeout=LONG)
    assert "car by the recipe" in page.text("#oa-details")
    earlier = tab.locator("#oa-history button")
    expect(earlier).to_have_count(2)
    earlier.nth(1).click()
    expect(command).to_have_value("openavs segment ./scene.mp4 --pipeline tiny", timeout=LONG)
    expect(earlier.nth(1)).to_have_attribute("aria-current", "true")
    expect(tab.locator("#oa-prompts")).not_to_contain_text("car")
    tab.reload()
    expect(tab.locator("#oa-progress")).to_contain_text("The page was reloaded.", timeout=LONG)
    expect(tab.locator("#oa-player canvas")).to_be_visible(timeout=LONG)
    expect(earlier).to_have_count(2)
    expect(tab.locator("#oa-video video")).to_be_visible(timeout=LONG)
    page.run()  # of the clip that was uploaded before


def test_a_reload_in_the_middle_of_a_run_keeps_the_clip(page: Page, server: Server, scene: Path) -> None:
    page.give(scene)
    expect(page.tab.locator("#oa-video video")).to_be_visible(timeout=LONG)
    with server.models.pipeline("tiny"):  # the run waits for the models
        page.button(RUN).click()
        expect(page.tab.locator("#oa-progress")).to_contain_text("Load the clip", timeout=LONG)
        page.tab.reload()
        expect(page.tab.locator("#oa-progress")).to_contain_text("stopped the run of scene.mp4", timeout=LONG)
    page.errors.clear()  # of the connection that the reload ended
    expect(page.tab.locator("#oa-video video")).to_be_visible(timeout=LONG)
    page.run()


def test_a_second_visitor_waits_and_gets_the_example_too(page: Page, chromium: Any, server: Server) -> None:
    other = Page(chromium.new_page(), server).open()
    with server.models.pipeline("tiny"):
        page.button(EXAMPLE).click()
        expect(page.tab.locator("#oa-progress")).to_contain_text("Load the clip", timeout=LONG)
        other.button(EXAMPLE).click()
        expect(other.tab.locator("#oa-progress")).to_contain_text("Waiting: another clip", timeout=LONG)
    for visitor in (page, other):
        visitor.wait_for_result()
    videos = {visitor.tab.locator("#oa-player video").get_attribute("src") for visitor in (page, other)}
    assert len(videos) == 2
    assert other.errors == []
    other.tab.close()


def test_an_image_and_its_audio(page: Page, tone: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    image = tmp_path / "room.png"
    Image.fromarray(np.full((96, 128, 3), 128, dtype=np.uint8)).save(image)
    page.tab.get_by_role("tab", name="Image and audio").click()
    page.button(RUN).click()
    expect(page.tab.get_by_role("alert")).to_contain_text("give an image and its audio first")
    page.give(image, "Image and audio", "#oa-image")
    page.give(tone, "Image and audio", "#oa-audio")
    expect(page.tab.locator("#oa-image img")).to_be_visible(timeout=LONG)
    page.run()
    assert "of 2 frames" in page.text("#oa-details") or "0.5 s" in page.text("#oa-details")


def test_errors_are_sentences(chromium: Any, server: Server, long_clip: Path, tmp_path: Path) -> None:
    page = Page(chromium.new_page(), server).open()
    page.button(RUN).click()
    expect(page.tab.get_by_role("alert")).to_contain_text("Error: give a video first, or try the example.")
    big = tmp_path / "big.mp4"
    big.write_bytes(bytes(2 << 20))
    page.give(big)
    expect(page.tab.get_by_text("exceed the maximum allowed size of 1")).to_be_visible(timeout=LONG)
    page.tab.goto("about:blank")
    for path, sentence in (
        (long_clip, "long.mp4 is 10 s long and the limit is 8 s; cut it"),
        (tmp_path / "broken.mp4", "broken.mp4 cannot be read as video or audio"),
    ):
        if not path.exists():
            path.write_bytes(b"no video " * 50)
        page.tab.close()
        page = Page(chromium.new_page(), server).open()
        page.give(path)
        wait_for(lambda path=path: list((server.folder / "uploads").rglob(path.name)))
        expect(page.tab.locator("#oa-video video")).to_be_attached(timeout=LONG)
        page.button(RUN).click()
        expect(page.tab.get_by_role("alert").filter(has_text="Error")).to_contain_text(sentence, timeout=LONG)
    page.tab.close()


def test_hostile_words_do_not_become_markup(page: Page, scene: Path) -> None:
    page.give(scene)
    page.tab.get_by_label("Only these objects (optional)").fill(f"{HOSTILE}, dog")
    page.run()
    assert HOSTILE in page.text("#oa-details")
    assert page.tab.locator("img[src=x]").count() == 0


def test_a_session_by_keyboard_alone(page: Page) -> None:
    """Example, play, seek, toggle, solo, opacity, threshold, prompts, download; no click and no focus by script."""
    tab = page.tab
    video = tab.locator("#oa-player video")
    press_tab_until(page, EXAMPLE)
    tab.keyboard.press("Enter")
    page.wait_for_result()
    press_tab_until(page, "Picture with masks")
    tab.keyboard.press("Space")
    expect(video).to_have_js_property("paused", False)
    tab.keyboard.press("Space")
    expect(video).to_have_js_property("paused", True)
    before = video.evaluate("v => v.currentTime")
    tab.keyboard.press("ArrowLeft")
    assert video.evaluate("v => v.currentTime") == pytest.approx(before - 1, abs=0.1)
    press_tab_until(page, "drum")
    toggle = tab.locator("#oa-player .toggle", has_text="drum")
    tab.keyboard.press("Enter")
    assert toggle.get_attribute("aria-pressed") == "false"
    tab.keyboard.press("s")  # solo shows it again
    assert toggle.get_attribute("aria-pressed") == "true"
    press_tab_until(page, "Masks (PNG, zip)")
    with tab.expect_download() as download:
        tab.keyboard.press("Enter")
    assert download.value.suggested_filename == "example-masks.zip"
    press_tab_until(page, "Models and licenses")
    tab.keyboard.press("Enter")
    expect(tab.get_by_text("tiny Grounding DINO")).to_be_visible()
    press_tab_until(page, "Search for")
    tab.keyboard.type("car")
    tab.keyboard.press("Enter")
    for _ in range(30):
        tab.keyboard.press("Shift+Tab")
        if tab.evaluate("document.activeElement.innerText") == RUN:
            break
    tab.keyboard.press("Enter")
    expect(tab.locator("#oa-command :is(input, textarea)")).to_have_value(re.compile("prompts.add"), timeout=LONG)


def press_tab_until(page: Page, text: str) -> None:
    """Move the focus until the focused element has this text."""
    for _ in range(80):
        page.tab.keyboard.press("Tab")
        focused = "(e => e === document.body ? '' : `${e.innerText} ${e.ariaLabel}`)(document.activeElement)"
        if text in page.tab.evaluate(focused):
            return
    raise AssertionError(f"{text!r} is not reached by Tab")


def test_all_controls_have_names_and_errors_are_announced(page: Page) -> None:
    page.run(EXAMPLE)
    tab = page.tab
    nameless = """[...document.querySelectorAll('button, a[href], input, textarea, select, video, [role=slider]')]
      .filter(e => e.checkVisibility() && !(e.innerText || '').trim() && !e.getAttribute('aria-label')
        && !e.getAttribute('aria-labelledby') && !e.getAttribute('title') && !(e.labels && e.labels.length)
        && !e.placeholder).map(e => e.outerHTML.slice(0, 120))"""
    assert tab.evaluate(nameless) == []
    named = "[...document.querySelectorAll('#oa-details img:first-child')].every(i => i.alt.startsWith('Frame at'))"
    assert tab.evaluate(named)  # a second one is the masks on it
    assert tab.evaluate("[...document.querySelectorAll('#oa-details svg[role=img]')].length") >= 3
    assert tab.locator("#oa-progress").get_attribute("aria-live") == "polite"
    assert tab.locator("html").get_attribute("lang") == "en"
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1366, 768)])
def test_the_first_screen_has_the_buttons_with_their_errors_and_progress(
    chromium: Any, server: Server, width: int, height: int
) -> None:
    page = Page(chromium.new_page(viewport={"width": width, "height": height}), server).open()
    for name in (RUN, EXAMPLE):
        expect(page.button(name)).to_be_in_viewport(ratio=1)
    page.button(RUN).click()
    expect(page.tab.get_by_role("alert")).to_be_in_viewport(ratio=1)
    page.run(EXAMPLE)
    if width > 1000:
        assert page.tab.evaluate("scrollY") == 0
        expect(page.tab.locator("#oa-progress")).to_be_in_viewport(ratio=0.9)
    expect(page.tab.locator("#oa-player .stage")).to_be_in_viewport(ratio=1)
    page.tab.locator("#oa-details figure").last.scroll_into_view_if_needed()
    if width > 1000:  # the form stays in view beside a long result
        expect(page.button(RUN)).to_be_in_viewport(ratio=1)
        page.tab.get_by_role("slider", name="range slider for Threshold").focus()
        expect(page.tab.get_by_role("slider", name="range slider for Threshold")).to_be_in_viewport()
    page.tab.close()


def test_the_focus_of_the_threshold_is_visible(page: Page) -> None:
    slider = page.tab.locator("#oa-form input[type=range]")
    slider.focus()
    page.tab.keyboard.press("ArrowRight")
    assert slider.evaluate("e => getComputedStyle(e).outline").endswith("solid 3px")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_layout_and_contrast_in_each_width_and_theme(
    chromium: Any, server: Server, width: int, scheme: str, tmp_path: Path
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = Page(context.new_page(), server).open()
    assert not page.is_too_wide()
    page.run(EXAMPLE)
    assert not page.is_too_wide()
    for place in (".oa-details h2", ".oa-details .quiet", ".oa-files a", ".oa-note", ".oa-head p"):
        assert contrast(page.tab, place) >= 4.5, place  # WCAG AA
    context.close()


def contrast(tab: Any, place: str) -> float:
    """Contrast ratio of a text and its background (WCAG 2)."""
    return float(
        tab.evaluate(
            """place => {
      const element = document.querySelector(place);
      const numbers = text => text.match(/[\\d.]+/g).map(Number);
      let behind = element;
      while (behind && (numbers(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
      const light = color => {
        const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const [r, g, b] = numbers(color).map(v => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const text = light(getComputedStyle(element).color);
      const back = light(behind ? getComputedStyle(behind).backgroundColor : 'rgb(255,255,255)');
      return (Math.max(text, back) + .05) / (Math.min(text, back) + .05);
    }""",
            place,
        )
    )


def test_the_api_panel_fetches_nothing_from_other_hosts(page: Page) -> None:
    page.tab.get_by_role("button", name="Use via API").click()
    expect(page.tab.get_by_text("/segment").first).to_be_visible(timeout=LONG)
    page.errors.clear()  # it requests monitoring and an MCP server, which are disabled


def test_closing_the_page_removes_its_files(chromium: Any, server: Server, scene: Path) -> None:
    before = set(server.sessions())
    page = Page(chromium.new_page(), server).open()
    page.give(scene)
    page.run()
    (own,) = set(server.sessions()) - before
    page.tab.close()
    wait_for(lambda: not own.exists())


def test_masks_are_corrected_by_clicks_and_by_keyboard(page: Page, scene: Path) -> None:
    page.give(scene)
    page.run()
    tab, stage, video = page.tab, page.tab.locator("#oa-player .stage"), page.tab.locator("#oa-player video")
    toggles, begin = tab.locator("#oa-player .toggle"), float(tab.locator("[data-begin]").get_attribute("data-begin"))
    before = toggles.all_inner_texts()
    code = "e => JSON.parse(e.textContent).views[0].frames.flatMap(f => f.segments).length"
    assert tab.locator("#oa-data script").count() == 1 and tab.locator("#oa-data script").evaluate(code) > 0
    press_tab_until(page, "Correct")
    tab.keyboard.press("Enter")
    expect(page.button("Not this")).to_be_visible()
    video.evaluate("(v, t) => { v.currentTime = t; }", begin + 0.3)
    expect(video).to_have_js_property("seeking", False)
    place = point_of_a_mask(page)
    stage.click(position=place)  # between the frames that have masks: goes to one
    expect(video).to_have_js_property("currentTime", begin)
    expect(tab.locator("#oa-progress")).to_contain_text("Finished in")
    tab.get_by_label("clicks take away").check()
    stage.click(position=place)
    expect(tab.locator("#oa-progress")).to_contain_text("Corrected ", timeout=LONG)
    expect(video).to_have_js_property("paused", True)
    expect(page.button("Not this")).to_be_visible()  # the new bar is open, too
    expect(tab.get_by_label("clicks take away")).to_be_checked()
    link = tab.locator("#oa-downloads a", has_text="Result (JSON)")
    with tab.expect_download() as download:
        link.click()
    [record] = json.loads(Path(download.value.path()).read_bytes())["corrections"]
    assert (record["action"], record["author"], record["tool"]) == ("remove point", "person", "page")
    expect(tab.locator("#oa-downloads")).to_contain_text("Overlay video", timeout=LONG)
    assert toggles.all_inner_texts() == before

    press_tab_until(page, "under the click")
    tab.keyboard.press("ArrowDown")  # the first object
    for _ in ("Not this", "clicks take away", "Word"):
        tab.keyboard.press("Tab")
    tab.keyboard.type("Puppy")
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    expect(toggles.filter(has_text="puppy")).to_have_count(1, timeout=LONG)
    assert tab.evaluate("document.activeElement.name") == "rename"  # of the new bar
    page.button("Not this").press("Enter")
    expect(toggles.filter(has_text="puppy")).to_have_count(0, timeout=LONG)
    page.button("This one, too").press("Enter")
    expect(toggles.filter(has_text="puppy")).to_have_count(1, timeout=LONG)
    page.button("Undo the last correction").press("Enter")
    expect(tab.locator("#oa-progress")).to_contain_text("undone", timeout=LONG)
    expect(toggles).to_have_count(len(before) - 1)
    page.button("Rename").press("Enter")
    expect(tab.get_by_role("alert")).to_contain_text("choose the object first", timeout=LONG)


def point_of_a_mask(page: Page) -> dict[str, float]:
    """A place on the picture that is inside of a mask of the frame with the most objects, from the files."""
    newest = max(page.server.folder.glob("sessions/*/*/result.json"), key=lambda path: path.stat().st_mtime)
    result = json.loads(newest.read_bytes())
    frame = max(result["frames"], key=lambda one: len(one["segments"]))
    x0, y0, x1, y1 = frame["segments"][0]["box"]
    box, (height, width) = page.tab.locator("#oa-player .stage").bounding_box(), result["size"]
    return {"x": (x0 + x1) / 2 * box["width"] / width, "y": (y0 + y1) / 2 * box["height"] / height}
