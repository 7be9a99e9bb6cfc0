"""`openavs cache` as a user meets it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.caching.store import StageCache
from tests.conftest import Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Three entries of a captioner and one of a translator, used in this order."""
    cache = StageCache(tmp_path / "stages")
    for i, stage in enumerate(["captioner", "captioner", "captioner", "translator"]):
        cache.put(stage, hashlib.sha256(bytes([i])).hexdigest(), bytes(6000))
        for entry in cache.entries():
            if entry.used > 5000:
                os.utime(Path(cache.place) / entry.path, (1000 + i, 1000 + i))
    return Path(cache.place)


def test_it_shows_entries_and_sizes_by_stage(openavs: Cli, full: Path) -> None:
    shown = openavs("cache", "--folder", full)
    assert shown.code == 0
    assert shown.out.splitlines() == [
        f"{full}: 4 entries, 32.8 kB of 5 GB",
        "  captioner   3 entries, 24.6 kB",
        "  translator  1 entry, 8.19 kB",
    ]


def test_quiet_is_silent(openavs: Cli, full: Path) -> None:
    done = openavs("cache", "--folder", full, "--prune", "20kB", "--quiet")
    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(list(StageCache(full).entries())) == 2


def test_json_is_one_object(openavs: Cli, full: Path) -> None:
    assert openavs("cache", "--folder", full, "--json").json() == {
        "folder": str(full),
        "entries": 4,
        "bytes": 4 * 8192,
        "limit": 5_000_000_000,
        "stages": {
            "captioner": {"entries": 3, "bytes": 3 * 8192},
            "translator": {"entries": 1, "bytes": 8192},
        },
    }


def test_pruning_to_a_size_removes_the_oldest(openavs: Cli, full: Path) -> None:
    pruned = openavs("cache", "--folder", full, "--prune", "20kB", "--json").json()
    assert pruned["removed"] == {"entries": 2, "bytes": 2 * 8192}
    assert {stage: own["entries"] for stage, own in pruned["stages"].items()} == {"captioner": 1, "translator": 1}


def test_pruning_all_empties_it(openavs: Cli, full: Path) -> None:
    pruned = openavs("cache", "--folder", full, "--prune", "all")
    assert pruned.out.splitlines() == ["removed 4 entries, 32.8 kB", f"{full}: 0 entries, 0 B of 5 GB"]
    assert list(StageCache(full).entries()) == []


def test_the_limit_is_kept(openavs: Cli, full: Path) -> None:
    assert openavs("cache", "--folder", full, "--limit", "20GB").code == 0
    assert openavs("cache", "--folder", full, "--json").json()["limit"] == 20_000_000_000


def test_the_default_is_the_users_cache(openavs: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "mine"))
    assert openavs("cache", "--json").json()["folder"] == str(tmp_path / "mine" / "stages")
    assert not (tmp_path / "mine").exists()  # looking makes nothing


@pytest.mark.parametrize("arguments", [("--prune", "much"), ("--limit", "5GiB"), ("--limit", "5")])
def test_an_invalid_size_is_one_sentence(openavs: Cli, full: Path, arguments: tuple[str, ...]) -> None:
    refused = openavs("cache", "--folder", full, *arguments)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert len(list(StageCache(full).entries())) == 4


@pytest.mark.slow
def test_another_threshold_needs_no_captioner_and_no_translator(
    openavs: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line: no call of the audio model and none of the LLM."""
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    assert openavs("synth", "s4", "--out", tmp_path / "s4", "--clips", "3", "--quiet").code == 0

    def cached(out: str, *words: str) -> dict[str, int]:
        done = openavs(
            *("label", tmp_path / "s4", *words, "--pipeline", "tiny", "--out", tmp_path / out),
            *("--workers", "1", "--json", "--quiet"),
        )
        assert done.code == 0, done.err
        return done.json()["cached"]

    assert cached("first") == {"captioner misses": 3, "translator misses": 3}
    assert cached("threshold", "filtering.box_threshold=0.4") == {"captioner hits": 3, "translator hits": 3}
    assert cached("prompt", "translator.prompt=default") == {"captioner hits": 3, "translator misses": 3}
