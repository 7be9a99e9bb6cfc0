"""SECURITY.md names tests and pages that exist."""

from __future__ import annotations

import re

from tests.conftest import ROOT

PAGE = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def test_every_test_it_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    assert len(named) >= 5 and all((ROOT / path).is_file() for path in named)


def test_every_file_it_names_exists() -> None:
    for path in [*re.findall(r"\]\(([^)#]+)\)", PAGE), *re.findall(r"`(\.github/[\w/.]+|\w+\.txt|Dockerfile)`", PAGE)]:
        assert (ROOT / path).exists(), path


def test_every_command_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", PAGE)) <= targets
