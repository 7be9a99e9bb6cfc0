"""`openavs index` and `openavs find`: words, JSON, exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.search.sound_index import update_index
from tests.search.conftest import home, index  # noqa: F401 - fixtures

Run = Callable[..., Any]


def test_runs_become_an_index(openavs: Run, home: Path, tmp_path: Path) -> None:  # noqa: F811
    done = openavs("index", home, "--out", tmp_path / "x.db")
    assert (done.code, done.out) == (
        0,
        f"{tmp_path / 'x.db'}: 2 clips (2 new, 0 changed, 0 removed), 7 spans\n",
    )
    facts = openavs("index", "--out", tmp_path / "x.db", "--json").json()
    assert (facts["clips"], facts["new"], facts["broken"], facts["missing"]) == (2, 0, {}, {})


def test_a_damaged_result_is_named_and_counts_as_a_failure(openavs: Run, home: Path, tmp_path: Path) -> None:  # noqa: F811
    (home / "clips" / "yard" / "result.json").write_text("{")
    done = openavs("index", home, "--out", tmp_path / "x.db")
    assert done.code == 1 and "1 clip (1 new" in done.out
    assert len(done.err.splitlines()) == 1 and "yard/result.json cannot be indexed (damaged" in done.err


def test_spans_are_listed_best_first(openavs: Run, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(index.parent)
    assert openavs("find", "dog", "--index", index, "--limit", "2").out.splitlines() == [
        "home/clips/room  0:00.0-0:02.0  Bark 0.90",
        "home/clips/yard  0:01.0-0:04.0  dog barking 0.80  seen",
        "2 of 3 spans; --limit shows more",
    ]


def test_json_has_the_contract_for_scripts(openavs: Run, index: Path) -> None:  # noqa: F811
    words = ("--and", "door", "--not", "music", "--seen", "--json")
    (hit,) = openavs("find", "dog", "--index", index, *words).json()
    assert {name: hit[name] for name in ("clip", "start", "end", "phrase", "score")} == {
        **{"clip": "yard", "start": 1.0, "end": 4.0, "phrase": "dog", "score": 0.73}
    }
    assert hit["run"] == str(index.parent / "home") and hit["seen"] and hit["box"] == [8.0, 4.0, 24.0, 20.0]
    assert hit["report"] is None


def test_nothing_found_is_not_a_failure(openavs: Run, index: Path) -> None:  # noqa: F811
    done = openavs("find", "sirenn", "--index", index, "--json")
    assert (done.code, done.json()) == (0, []) and "did you mean 'Siren'?" in done.err
    done = openavs("find", "dog", "--index", index, "--and", "whale")
    assert done.code == 0 and "nothing matches 'dog'; 3 spans without the conditions" in done.err


def test_a_page_is_written(openavs: Run, index: Path, tmp_path: Path) -> None:  # noqa: F811
    done = openavs("find", "dog", "--not", "music", "--index", index, "--out", tmp_path / "page")
    assert done.code == 0 and "the page is" in done.err
    assert "<h1>dog not music</h1>" in (tmp_path / "page" / "index.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("find", "dog", "--index", "none.db"), "none.db does not exist; make it with: openavs index RESULTS"),
        (("find", "dog", "--index", "."), "is a folder; give the file"),
        (("find", "?", "--index", "sounds.db"), "has no words; write what sounds"),
        (("find", "dog", "--index", "sounds.db", "--run", "hom"), "has no run 'hom'; did you mean 'home'?"),
        (("find", "dog", "--index", "sounds.db", "--similar", "0.5"), "has no text embeddings; add them with"),
        (("index", "--out", "other.db"), "give the result folders that it is to index"),
        (("index", "elsewhere", "--out", "sounds.db"), "elsewhere has no results"),
        (("index", "home", "--out", "sounds.db", "--encoder", "oracle"), "has no text embeddings; give a recipe"),
    ],
)
def test_wrong_use_is_one_sentence(
    openavs: Run,
    index: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(index.parent)
    before = index.read_bytes()
    done = openavs(*words)
    assert done.code == 2 and sentence in done.err and len(done.err.splitlines()) == 1
    assert index.read_bytes() == before


def test_an_index_is_updated_by_its_own_runs(openavs: Run, index: Path) -> None:  # noqa: F811
    assert openavs("index", "--out", index, "--quiet").out == ""
    assert update_index(index).clips == 3
