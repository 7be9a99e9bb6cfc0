from __future__ import annotations

import pytest

from openavs.registry import BackendCache


@pytest.fixture(scope="session")
def held() -> BackendCache:
    """The embedded models, loaded once for all recipes that share them."""
    return {}
