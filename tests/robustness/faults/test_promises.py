"""The tests that docs/reliability.md names exist."""

from __future__ import annotations

import re

from tests.conftest import ROOT


def test_every_guarantee_names_existing_tests() -> None:
    rows = [line for line in (ROOT / "docs/reliability.md").read_text().splitlines() if line.startswith("| ")]
    guarantees = [row for row in rows if not row.startswith(("| guarantee", "| what"))]
    named = [name for row in guarantees for name in re.findall(r"`(tests/[^`]*)`", row)]
    assert len(named) > 30
    for name in named:
        path, _, test = name.partition("::")
        assert (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(), name
