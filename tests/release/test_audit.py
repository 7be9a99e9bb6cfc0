"""What `make audit` makes of pip-audit's answers: silence of the database is no clean bill."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOOD = {"name": "numpy", "version": "2.4.6", "vulns": []}
BAD = {"name": "old", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "thing", "skip_reason": "Dependency not found on PyPI and could not be audited: thing (1.0)"}


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([GOOD], 0, "No vulnerability is known of any of the 1 pinned packages."),
        ([GOOD, BAD, UNKNOWN], 1, "old 1.0: PYSEC-1, mended in 1.1"),
        ([GOOD, UNKNOWN], 3, "could not be asked about thing"),
        ([UNKNOWN], 3, "could not be asked at all; is there a network?"),
        ([], 3, "could not be asked at all"),
    ],
)
def test_the_verdict(audit: ModuleType, packages: list[dict[str, Any]], code: int, says: str) -> None:
    found, sentence = audit.verdict(packages)
    assert found == code and says in sentence


def test_every_list_that_it_asks_about_exists(audit: ModuleType) -> None:
    assert all((ROOT / pins).is_file() for pins in audit.LISTS)
