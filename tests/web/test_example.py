"""The example's clip: rendered once, and never into a folder that is gone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.media import probe
from openavs.web.example import ExampleClip


def test_it_is_rendered_once_and_who_asks_early_waits(tmp_path: Path) -> None:
    example = ExampleClip(tmp_path / "example")
    example.start()
    path = example.clip()
    assert probe(path).duration == pytest.approx(6, abs=0.2)
    written = path.stat().st_mtime_ns
    assert example.clip().stat().st_mtime_ns == written


def test_the_end_waits_for_what_is_being_rendered(tmp_path: Path) -> None:
    """A server that is ended at once removes its folder, and a thread that still wrote there would fail."""
    example = ExampleClip(tmp_path / "example")
    example.start()
    example.end()
    left = sorted(path.name for path in tmp_path.rglob("*.mp4"))
    assert left in ([], ["example.mp4"])  # never a part of it
    assert not any(thread.name == "openavs-example" and thread.is_alive() for thread in threading.enumerate())
    with pytest.raises(InputError, match="the page is closed"):
        example.clip()
