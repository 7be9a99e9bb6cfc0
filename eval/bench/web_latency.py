"""Measures how long a visitor of `openavs serve` waits: seconds from a click on the example, in Chromium.

    python eval/bench/web_latency.py --json

Starts a server with the recipe `tiny` on a free port and drives a headless Chromium (`CHROMIUM` or that on the path)
through playwright; `make test-web` installs both packages. All seconds are by the wall clock: `start` until the server
is ready, `page` until the button is visible, the others from the click.

- `captions`: the captions are on the page; `segments`: the segments with their times; `video`: the overlay video can be
  played and the files can be downloaded.
- `again_segments`, `again_video`: the same for a second visit, with the outputs of all stages cached.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import Any

from harness import argument_parser, print_figures, serve_tiny, working_folder

TIMEOUT_MS = 60_000
PARTS = {"captions": ".oa-captions", "segments": "#oa-details h2", "video": "#oa-player video"}


def main() -> None:
    """Measure one server, one visit, two clicks."""
    options = argument_parser(__doc__).parse_args()
    started = time.monotonic()
    with working_folder() as folder, serve_tiny(folder) as (_, address):
        seconds = {"start": time.monotonic() - started, **visit(address)}
    print_figures({name: round(value, 3) for name, value in seconds.items()}, options.json)


def visit(address: str) -> dict[str, float]:
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
        seconds |= click(page, button)
        page.reload()
        button.wait_for(timeout=TIMEOUT_MS)
        again = click(page, button)
        browser.close()
    return seconds | {f"again_{name}": again[name] for name in ("segments", "video")}


def click(page: Any, button: Any) -> dict[str, float]:
    """Return the seconds from a click until each part of the output is visible."""
    started, seconds = time.monotonic(), {}
    button.click()
    for name, selector in PARTS.items():
        page.locator(selector).first.wait_for(timeout=TIMEOUT_MS)
        seconds[name] = time.monotonic() - started
    return seconds


if __name__ == "__main__":
    main()
