"""`make audit`: exit code and message for pip-audit's output; no answer is not a pass."""

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
        ([GOOD], 0, "No known vulnerability in the 1 pinned packages."),
        ([GOOD, BAD, UNKNOWN], 1, "old 1.0: PYSEC-1, fixed in 1.1"),
        ([GOOD, UNKNOWN], 3, "has no answer for thing"),
        ([UNKNOWN], 3, "has no answer for any package; check the network"),
        ([], 3, "has no answer for any package"),
    ],
)
def test_exit_code_and_message(audit: ModuleType, packages: list[dict[str, Any]], code: int, says: str) -> None:
    exit_code, message = audit.summarize(packages)
    assert exit_code == code and says in message


def test_every_audited_file_exists(audit: ModuleType) -> None:
    assert all((ROOT / path).is_file() for path in audit.CONSTRAINTS)
