"""The site builds without warnings and fetches nothing from other sites."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.reading import DOCS


class Fetched(HTMLParser):
    """Collects the addresses that a browser loads automatically with a page, without links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of = dict(attrs)
        if tag == "link" and of.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(of.get("href") or "")
        if tag in ("script", "img", "iframe", "source", "video", "audio"):
            self.addresses.append(of.get("src") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if importlib.util.find_spec("material") is None:
        pytest.skip("MkDocs Material is not installed: make docs brings it")
    to = tmp_path_factory.mktemp("site")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "OPENAVS_REPOSITORY": "https://example.org/openavs"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for address in Fetched(page.read_text("utf-8")).addresses:
            assert not re.match(r"(https?:)?//", address), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text("utf-8")), style.name


@pytest.mark.slow
def test_code_outside_of_the_site_is_linked_in_the_repository(site: Path) -> None:
    text = (site / "extending.html").read_text("utf-8")
    assert 'href="https://example.org/openavs/blob/main/examples/edge"' in text
    assert 'href="../' not in (site / "benchmarks.html").read_text("utf-8")


@pytest.mark.slow
def test_scripts_are_not_part_of_it_and_the_notebook_is(site: Path) -> None:
    assert not list(site.rglob("*.py")) and not list(site.rglob("*.yaml"))
    assert (site / "notebooks" / "first-steps.ipynb").is_file()
    assert (site / "search" / "search_index.json").stat().st_size > 50_000


@pytest.mark.parametrize(
    ("link", "becomes"),
    [
        ("[a](../eval/s4.yaml)", "[a](https://x.org/y/blob/main/eval/s4.yaml)"),
        ("[a](../eval/s4.yaml#top)", "[a](https://x.org/y/blob/main/eval/s4.yaml#top)"),
        ("[`a`](../pipelines) and [b](jobs.md)", "[`a`](https://x.org/y/blob/main/pipelines) and [b](jobs.md)"),
        ("![a picture](../docs/demo.png)", "![a picture](../docs/demo.png)"),
    ],
)
def test_links_that_leave_the_docs(link: str, becomes: str) -> None:
    spec = importlib.util.spec_from_file_location("site_links", DOCS / "scripts" / "site_links.py")
    assert spec and spec.loader
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    assert hook.relinked(link, "page.md", "https://x.org/y/") == becomes
    assert hook.relinked("[a](../jobs.md)", "commands/label.md", None) == "[a](../jobs.md)"
    assert hook.relinked("see [a](../eval)", "page.md", None) == "see a"
