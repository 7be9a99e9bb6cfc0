"""docs/architecture.md: every package is in the table of folders, and every path it names exists."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.docs.reading import text_of

PACKAGE = ROOT / "openavs"


def table(heading: str) -> str:
    """The text of a section."""
    return text_of("architecture.md").split(f"## {heading}\n")[1].split("\n## ")[0]


def test_every_package_is_in_the_table_of_folders() -> None:
    first_cells = " ".join(re.findall(r"^\| ([^|]+) \|", table("Folders"), re.MULTILINE))
    named = set(re.findall(r"`([\w.]+)/?`", first_cells))
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages <= named, packages - named
    assert all((PACKAGE / name).exists() for name in named), named


def test_every_registration_file_exists() -> None:
    for path in re.findall(r"\| `([\w/]+\.py)` \|$", table("Adding a part"), re.MULTILINE):
        assert (PACKAGE / path).is_file(), path
