"""Reads the documentation: its pages, their fenced blocks, the commands in them, their links and headings."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT

DOCS = ROOT / "docs"
PAGES = {
    **{path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))},
    **{
        name: ROOT / name
        for name in ("README.md", "CONTRIBUTING.md", "GLOSSARY.md", "eval/bench/README.md", "examples/edge/README.md")
    },
}
"""All pages for users: name -> file; names of pages in docs/ are relative to it."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the paragraph before it."""

    language: str
    text: str
    before: str

    @property
    def file(self) -> str | None:
        """The file name that the paragraph before it states, as in "`folders.py`:"."""
        named = re.findall(r"`([\w-]+\.(?:py|yaml))`", self.before)
        return named[-1] if named and self.language in ("python", "yaml") else None


def text_of(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, in order."""
    for found in _FENCE.finditer(text):
        before = text[: found.start()].rstrip().rsplit("\n\n", 1)[-1]
        yield Block(found[1], found[2], before)


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", text)


def commands(block: Block) -> list[list[str]]:
    """Return the `openavs ...` lines of a block as words, without `openavs`; a backslash continues a line."""
    if block.language not in ("", "bash", "sh", "console"):
        return []
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match(r"openavs [a-z]", line)]


def inline_commands(text: str) -> list[list[str]]:
    """Return commands in running text (`openavs synth s4 --out data`) and in indented blocks."""
    lines = re.findall(r"(?<!`)`(openavs [a-z-]+ [^`\n]*--[^`\n]+)`", prose(text))
    lines += re.findall(r"^    (openavs [a-z-]+ .+)$", prose(text), re.MULTILINE)
    return [shlex.split(line, comments=True)[1:] for line in lines]


def slugs(text: str) -> set[str]:
    """Return the anchors of a page's headings, as in GitHub and MkDocs."""
    found = re.findall(r"^#{1,6} (.+)$", prose(text), re.MULTILINE)
    plain = (re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading) for heading in found)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def links(text: str) -> list[tuple[str, str]]:
    """Return target and anchor of every link and image of a page inside the repository."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(text))
    return [(target.partition("#")[0], target.partition("#")[2]) for target in found if "://" not in target]


def pictures(text: str) -> list[tuple[str, str]]:
    """Return alternative text and file of every image."""
    return re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", prose(text))


def folder_of(page: str) -> Path:
    return PAGES[page].parent
