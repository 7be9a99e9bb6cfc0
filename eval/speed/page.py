"""How long a visitor of `openavs serve` waits: seconds from a click on the example to what can be seen, in Chromium.

    python eval/speed/page.py --json

Starts a server with the recipe `tiny` on a free port and drives a headless Chromium (`CHROMIUM` or that on the path)
through playwright; `make test-web` installs both packages. All seconds are wall-clock ones: `start` that of the server
until it can be opened, `page` until the button is there, the others from the click on.

- `heard`: what was heard stands on the page; `found`: what sounds, when and why; `video`: the painted video with its
  sound can be played and the files taken along.
- `again_found`, `again_video`: the click of the next visit, with everything remembered that the models said.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(folder)
    print(json.dumps(found, indent=2) if options.json else "\n".join(f"{k}: {v:.2f} s" for k, v in found.items()))
    return 0


def measure(folder: str) -> dict[str, float]:
    """One server, one visit, two clicks."""
    command = [sys.executable, "-m", "openavs", "serve", "--port", "0", "--pipeline", "tiny"]
    started = time.monotonic()
    env = {**os.environ, "TMPDIR": folder}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            address = re.search(r"http://\S+", said)
            if address is None:
                raise RuntimeError(f"the server did not start: {said or 'see above'}")
            return {"start": time.monotonic() - started, **visit(address[0])}
        finally:
            server.terminate()


def visit(address: str) -> dict[str, float]:
    """Opens the page and presses the example's button twice."""
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        started = time.monotonic()
        page.goto(address)
        button = page.get_by_role("button", name="Try the example")
        button.wait_for(timeout=60_000)
        seconds = {"page": time.monotonic() - started}
        page.wait_for_timeout(3000)  # the server renders the example meanwhile, as it does before most visits
        seconds |= click(page, button)
        page.reload()
        button.wait_for(timeout=60_000)
        seconds |= {f"again_{name}": spent for name, spent in click(page, button).items() if name != "heard"}
        browser.close()
    return seconds


def click(page: Any, button: Any) -> dict[str, float]:
    """Seconds from one click on until each part of the answer is there."""
    started, seconds = time.monotonic(), {}
    button.click()
    for name, place in (("heard", ".oa-heard"), ("found", "#oa-details h2"), ("video", "#oa-player video")):
        page.locator(place).first.wait_for(timeout=60_000)
        seconds[name] = time.monotonic() - started
    return seconds


if __name__ == "__main__":
    sys.exit(main())
