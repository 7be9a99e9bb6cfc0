"""Runs the examples of the pages in order: Python, and commands for which the embedded models suffice.

Pages that have tests of their own (stages, Python, exports, benchmarks, students) are not run again here, but every
page with Python must be run by one of them. Other commands need weights, a network or a cluster; `test_pages.py`
parses all of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.docs.conftest import copied
from tests.docs.reading import PAGES, Block, blocks, commands, text_of

Run = Callable[..., Any]
RUN = ("quickstart.md", "concepts.md", "first-run.md", "faq.md", "tiny.md", "extending.md", "search.md")
COMMAND_PAGES = tuple(page for page in PAGES if page.startswith("commands/") and page != "commands/index.md")
ELSEWHERE = {
    "README.md": "tests/test_readme.py",
    "benchmarks.md": "tests/evaluation/test_docs.py",
    "captioners.md": "tests/stages/captioners/test_docs.py",
    "detectors.md": "tests/stages/detectors/test_docs.py",
    "exports.md": "tests/test_api.py",
    "formats.md": "tests/docs/test_formats.py",
    "python.md": "tests/test_api.py",
    "segmenters.md": "tests/stages/segmenters/test_docs.py",
    "serve.md": "tests/web/test_api.py",
    "students.md": "tests/training/test_training.py",
    "translators.md": "tests/stages/translators/test_docs.py",
}
NEEDS_A_SERVER_OR_A_CLUSTER = {"serve"}
FINDS_FAULT = {"check"}  # its exit code depends on the machine


@pytest.fixture(scope="module")
def bench(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the command pages, which use each other's results."""
    return copied(inputs, tmp_path_factory.mktemp("bench"))


def can_run(words: list[str]) -> bool:
    """True if the embedded models suffice for the command."""
    if words[0] in NEEDS_A_SERVER_OR_A_CLUSTER:
        return False
    if words[0] in ("segment", "label", "evaluate", "ablate") and "--compare" not in words:
        recipe = words[words.index("--pipeline") + 1] if "--pipeline" in words else "openavs"
        return recipe == "tiny" or recipe.startswith(("./", "student:"))
    return True


def run_page(page: str, openavs: Run) -> int:
    """Run a page in the current folder and return the number of examples."""
    names: dict[str, Any] = {}
    ran = 0
    for block in blocks(text_of(page)):
        for words in filter(can_run, commands(block)):
            done = openavs(*words)
            assert done.code in ((0, 1) if words[0] in FINDS_FAULT else (0,)), (words, done.err)
            ran += 1
        ran += keep_or_run(block, page, names)
    return ran


def keep_or_run(block: Block, page: str, names: dict[str, Any]) -> int:
    """Write a block that is a file; run other Python."""
    if block.file:
        Path(block.file).write_text(block.text, encoding="utf-8")
        return 0
    if block.language != "python":
        return 0
    exec(compile(block.text, page, "exec"), names)
    return 1


LONG = {"quickstart.md"}


@pytest.mark.parametrize("page", [pytest.param(page, marks=pytest.mark.slow if page in LONG else ()) for page in RUN])
def test_a_page_runs_from_top_to_bottom(
    page: str, inputs: Path, openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(copied(inputs, tmp_path / "desk"))
    assert run_page(page, openavs) >= 2


@pytest.mark.slow
def test_the_pages_of_the_commands_run(bench: Path, openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", str(bench / "cache"))
    monkeypatch.chdir(bench)
    makers = ("segment", "evaluate", "train", "label", "index-results")  # the others use what these write
    first = [f"commands/{name}.md" for name in makers]
    for page in (*first, *(page for page in COMMAND_PAGES if page not in first)):
        run_page(page, openavs)
    for name in ("demo", "out", "labels", "run", "student", "self", "ablation", "data-s4", "cutouts"):
        assert (bench / name).is_dir(), name


def test_the_custom_verifiers_reject_segments(
    inputs: Path, openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copied(inputs, tmp_path))
    for block in blocks(text_of("extending.md")):
        keep_or_run(block, "extending.md", {})
    words = ["segment", "video.mp4", "--pipeline", "tiny", "--json", "--out"]
    both = "verifier=[{use: ./big.py:Big}, {use: ./loud.py:Loud}]"
    runs = (["verifier={use: ./big.py:Big, share: 0.9}"], [both], [both, "verifier.2.dbfs=0"])
    found = [openavs(*words, f"out{n}", *run).json()["clips"][0]["segments"] for n, run in enumerate(runs)]
    assert found[0] == found[2] == 0 and found[1] > 0


def test_every_page_with_python_is_run_somewhere() -> None:
    for page in PAGES:
        if any(block.language == "python" and not block.file for block in blocks(text_of(page))):
            assert page in RUN or page in ELSEWHERE or page.startswith("examples/"), page
    for page, test in ELSEWHERE.items():
        assert re.search(rf"\b{page.replace('.', '[.]')}", (ROOT / test).read_text("utf-8")), (page, test)


@pytest.mark.slow
def test_the_demo_prints_the_text_of_the_quick_start(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [block.text for block in blocks(text_of("quickstart.md")) if block.language == "text"]
    (shown,) = [text for text in texts if text.startswith("captions: ")]
    done = openavs("demo", "--out", "demo")
    seconds = re.compile(r"\(\d+\.\d s\)")
    assert [seconds.sub("", line) for line in shown.splitlines()] == [
        seconds.sub("", line) for line in (done.out + done.err).splitlines()
    ]
