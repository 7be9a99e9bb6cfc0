"""All pages: valid links, alternative texts of images, existing commands and options, well-formed lists."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import pytest
from typer.main import get_command

from openavs.cli.app import app
from openavs.cli.options import is_override
from openavs.config import resources
from openavs.config.recipe import load_recipe
from tests.conftest import ROOT
from tests.docs.reading import (
    PAGES,
    blocks,
    commands,
    folder_of,
    inline_commands,
    links,
    pictures,
    prose,
    slugs,
    text_of,
)

KNOWN: Any = get_command(app).commands  # type: ignore[attr-defined]
EXTRAS = set(
    re.findall(r"^([a-z-]+) = \[", (ROOT / "pyproject.toml").read_text().split("optional-dependencies]")[1], re.M)
)


@pytest.mark.parametrize("page", PAGES)
def test_links_and_anchors_are_valid(page: str) -> None:
    for target, anchor in links(text_of(page)):
        path = (folder_of(page) / target).resolve() if target else PAGES[page]
        assert path.exists(), target
        assert path.is_relative_to(ROOT), target
        if anchor:
            assert anchor in slugs(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_images_have_alternative_texts(page: str) -> None:
    for words, file in pictures(text_of(page)):
        assert len(words) > 20, file
        assert (folder_of(page) / file).stat().st_size < 150_000, file


@pytest.mark.parametrize("page", PAGES)
def test_lists_and_headings_begin_after_an_empty_line(page: str) -> None:
    """Without the empty line the site shows a paragraph with dashes or a table row, unlike GitHub."""
    lines = prose(text_of(page)).splitlines()
    for above, line in pairwise(lines):
        assert not (re.match(r"#{1,6} ", line) and above.strip()), line
        if re.match(r"([-*]|1\.) ", line) and above.strip():
            assert re.match(r"\s*([-*]|\d+\.) |\s{2,}", above), line


@pytest.mark.parametrize("page", PAGES)
def test_every_command_exists(page: str) -> None:
    text = text_of(page)
    for words in [words for block in blocks(text) for words in commands(block)]:
        parse(words)
    for words in inline_commands(text):  # often a part of one
        check_options(words)
    for name in re.findall(r"`openavs ([a-z][a-z-]*)[ `]", prose(text)):
        assert name in KNOWN, name
    for target in re.findall(r"^make ([a-z-]+)$", text, re.MULTILINE) + re.findall(r"`make ([a-z-]+)`", text):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for extra in re.findall(r"openavs\[([a-z-]+)\]", text):
        assert extra in EXTRAS, extra


def check_options(words: list[str]) -> None:
    """Check that the command exists and has the options."""
    command = KNOWN[words[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = {word.strip("[]").partition("=")[0] for word in words if re.match(r"\[?--?[a-z]", word)}
    assert given <= known | {"--help", "-h"}, (words, given - known)


def parse(words: list[str]) -> None:
    """Parse a command as the command line does, without running it; of an incomplete one (`...`) only its options."""
    check_options(words)
    name, rest = words[0], words[1:]
    if "..." in rest or any(re.match(r"\[|[A-Z]{3,}", word) for word in rest):
        return
    parameters = KNOWN[name].make_context(name, list(rest)).params
    recipe = str(parameters.get("pipeline") or "")
    overrides = [word for word in rest if is_override(word)]
    if recipe in resources.names("pipelines") and name in ("segment", "label", "evaluate"):
        load_recipe(recipe, overrides)  # an unknown recipe key is an error


def test_an_unknown_option_is_detected() -> None:
    with pytest.raises(AssertionError, match="--thresold"):
        parse(["segment", "video.mp4", "--thresold", "0.3"])
    with pytest.raises(Exception, match="boxes"):
        parse(["segment", "video.mp4", "--pipeline", "tiny", "filtering.boxes=3"])
    with pytest.raises(KeyError):
        parse(["segmnt", "video.mp4"])
