"""GLOSSARY.md: one line per term, in alphabetical order."""

from __future__ import annotations

import re

from tests.conftest import ROOT

ROWS = re.findall(r"^\| (?!term|---)(.+?) \| (.+?) \|$", (ROOT / "GLOSSARY.md").read_text("utf-8"), re.MULTILINE)


def test_terms_are_unique_and_in_alphabetical_order() -> None:
    terms = [re.sub(r"[`(),]", "", term).replace("-", " ").lower() for term, _ in ROWS]
    assert len(terms) > 60
    assert terms == sorted(set(terms))


def test_every_definition_is_a_sentence() -> None:
    for term, meaning in ROWS:
        assert meaning.endswith("."), term
        assert len(meaning) <= 120, term
