"""The server as a whole: what it keeps of visits that are over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from openavs.web.server import REMEMBERED, make_app, make_parts
from tests.web.conftest import SETTINGS

pytest.importorskip("gradio", reason="Gradio is not installed; make test-web installs it")


def test_thousands_of_visits_leave_no_more_than_some_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would grow by 75 kB a visit, and a page is left running for months."""
    from openavs.web import page

    built: list[Any] = []
    build = page.build

    def noted(*args: Any) -> Any:
        built.append(build(*args))
        return built[-1]

    monkeypatch.setattr(page, "build", noted)
    make_app(make_parts(SETTINGS, tmp_path))
    (blocks,) = built
    for visit in range(REMEMBERED + 50):
        blocks.state_holder[f"visit {visit}"]
    kept = blocks.state_holder.session_data
    assert len(kept) <= REMEMBERED + 1
    assert f"visit {REMEMBERED + 49}" in kept and "visit 0" not in kept
