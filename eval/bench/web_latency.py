"""Measures how long a visitor of `openavs serve` waits: seconds from a click on the example, in Chromium.

    python eval/bench/web_latency.py --json

Starts a server with the recipe `tiny` on a free port and drives a headless Chromium (`CHROMIUM` or that on the path)
through playwright; `make test-web` installs both packages. All seconds are by the wall clock: `start` until the server
is ready, `page` until the button is visible, the others from the click.

- `captions`: the captions are on the page; `masks`: the player has drawn the first mask; `files`: the files can be
  downloaded. `cpu` is the CPU time of the server until then, in s.
- `again_masks`, `again_files`: the same for a second visit, with the outputs of all stages cached.
- `correct`: from a click on the picture of the example until its masks of all frames are changed; `correct_cpu` is the
  CPU time of the server until then, and `correct_files` the time until the overlay video is rewritten, too.
- `toggle`: median time in ms in which a click hides or shows an object, until the masks are drawn.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

from harness import argument_parser, print_figures, serve_tiny, working_folder

TIMEOUT_MS = 60_000
MASKS = "#oa-player .toggle"
IS_DRAWN = """() => {
  const canvas = document.querySelector('#oa-player canvas');
  if (!canvas?.width) return false;
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  return data.some((value, i) => i % 4 === 3 && value);
}"""
TOGGLES = """() => [...Array(21)].map(() => {
  const start = performance.now();
  document.querySelector('#oa-player .toggle').click();
  return performance.now() - start;
}).sort((one, other) => one - other)[10]"""
SEEK_BEST = "video => { video.currentTime = Number(video.closest('[data-begin]').dataset.begin); }"
ON_DATA = "() => document.addEventListener('openavs:data', () => { window.changedMasks = true; }, {once: true})"
PARTS = {"captions": ".oa-captions", "masks": MASKS, "files": "#oa-downloads a"}


def main() -> None:
    """Measure one server, one visit, two clicks."""
    options = argument_parser(__doc__).parse_args()
    started = time.monotonic()
    with working_folder() as folder, serve_tiny(folder) as (server, address):
        seconds = {"start": time.monotonic() - started, **visit(address, server.pid)}
    print_figures({name: round(value, 3) for name, value in seconds.items()}, options.json)


def visit(address: str, server: int) -> dict[str, float]:
    """Open the page and press the button of the example twice."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.monotonic()
        page.goto(address)
        button = page.get_by_role("button", name="Try the example")
        button.wait_for(timeout=TIMEOUT_MS)
        seconds = {"page": time.monotonic() - started}
        page.wait_for_timeout(3000)  # the server renders the example meanwhile, as before most visits
        before = cpu_seconds(server)
        seconds |= click(page, button)
        seconds["cpu"] = cpu_seconds(server) - before
        page = browser.new_page()
        page.goto(address)
        button = page.get_by_role("button", name="Try the example")
        button.wait_for(timeout=TIMEOUT_MS)
        again = click(page, button)
        seconds |= {f"again_{name}": again[name] for name in ("masks", "files")}
        seconds |= correct(page, server)
        seconds["toggle"] = page.evaluate(TOGGLES)
        browser.close()
    return seconds


def cpu_seconds(process: int) -> float:
    """Return the CPU time of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def click(page: Any, button: Any) -> dict[str, float]:
    """Return the seconds from a click until each part of the output is visible."""
    started, seconds = time.monotonic(), {}
    button.click()
    for name, selector in PARTS.items():
        page.locator(selector).first.wait_for(timeout=TIMEOUT_MS)
        if selector == MASKS:
            page.wait_for_function(IS_DRAWN, timeout=TIMEOUT_MS)
        seconds[name] = time.monotonic() - started
    return seconds


def correct(page: Any, server: int) -> dict[str, float]:
    """Return the seconds from a click that takes from the mask of the example's dog until the masks are changed."""
    page.get_by_text("Correct", exact=True).click()
    page.locator("#oa-player video").evaluate(SEEK_BEST)
    page.wait_for_timeout(1000)
    stage = page.locator("#oa-player .stage")
    box, before = stage.bounding_box(), cpu_seconds(server)
    page.evaluate(ON_DATA)
    place = {"x": 0.78 * box["width"], "y": 0.5 * box["height"]}
    started = time.monotonic()
    stage.click(position=place, modifiers=["Shift"])
    page.wait_for_function("window.changedMasks === true", timeout=TIMEOUT_MS)
    seconds = {"correct": time.monotonic() - started, "correct_cpu": cpu_seconds(server) - before}
    overlay = page.locator("#oa-downloads a", has_text="Overlay video")
    overlay.wait_for(state="detached", timeout=TIMEOUT_MS)
    overlay.wait_for(timeout=TIMEOUT_MS)
    return {**seconds, "correct_files": time.monotonic() - started}


if __name__ == "__main__":
    main()
