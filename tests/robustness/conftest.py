"""Suites of robustness: injected faults, fuzzing, security. `make test` runs a sample, `make test-robustness` all."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
NOT_SAMPLED = {
    *("test_clock", "test_disk", "test_models", "test_signals", "test_state_files"),
    *("test_data_names_no_code", "test_no_network"),
}
"""Modules without a sample: their tests run whole commands."""


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder `robustness` but the sample: the first case of each test function."""
    seen: set[str] = set()
    for item in items:
        if HERE in item.path.parents:
            function = item.nodeid.partition("[")[0]
            if function in seen or item.path.stem in NOT_SAMPLED:
                item.add_marker(pytest.mark.robustness)
            seen.add(function)
