"""Runs pages about large jobs at small size: fewer clips, two training steps, `tiny` for recipes with weights.

Commands that need another package, masks of other systems, a server, a cluster, an object store or an audio language
model, or that the tests of a stage run, are only parsed (`test_pages.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import copied
from tests.docs.reading import blocks, commands, text_of

Run = Callable[..., Any]
FEWER = {"--clips": "2", "--train": "4", "--val": "1", "--limit": "1", "--workers": "1"}
NEEDS = re.compile(
    r"pred_masks|output_ov_avss|laion-clap|groundingdino-py|openai|vllm|ray|consistency|masks-silence|^(AVATAR|datasets)$|^\.\.\.$|^/|^s3://|^SOURCE$|^DIR/|\./\w+\.py"
)
PAGES = {  # commands that create the inputs of the pages
    "benchmarks.md": (
        "synth s4 --out avsbench_data/Single-source --clips 2",
        "synth avss --out AVSBench-semantic --clips 1",
        "synth ref-avs --out REFAVS --clips 1",
        "evaluate s4 --root avsbench_data/Single-source --pipeline tiny --out runs/s4-tiny",
        "evaluate s4 --root avsbench_data/Single-source --pipeline tiny --out runs/s4-cpu filtering.box_threshold=0.2",
    ),
    "check.md": (),
    "jobs.md": (),
    "ov-avss.md": (),
    "segmenters.md": (),
    "students.md": ("synth ov --out data/ov --clips 2 --train 2 --val 1",),
}


def smaller(words: list[str]) -> list[str]:
    """Return the same command with less work."""
    words = [FEWER.get(before, word) if word.isdigit() else word for before, word in pairwise(["", *words])]
    if words[0] in ("segment", "label", "evaluate", "ablate") and "--compare" not in words:
        if "--pipeline" not in words:
            words += ["--pipeline", "tiny"]
        place = words.index("--pipeline") + 1
        words[place] = words[place] if words[place].startswith(("student:", "./")) else "tiny"
    if words[0] in ("train", "self-train"):
        words += ["--max-steps", "2"]
    if words[0] == "label":
        words += [] if "--workers" in words else ["--workers", "1"]
    return words


def can_run(words: list[str]) -> bool:
    """True if `tiny` on this machine suffices for the command."""
    return not any(NEEDS.search(word) for word in words)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_in_small(
    page: str, inputs: Path, openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(copied(inputs, tmp_path / "desk"))
    for line in PAGES[page]:
        assert openavs(*line.split()).code == 0, line
    Path("masks").symlink_to(Path("runs/s4-tiny/predictions").resolve())  # for pages that score predictions
    ran, seen = 0, set[str]()
    for words in [words for block in blocks(text_of(page)) for words in commands(block)]:
        command = smaller(words)
        if not can_run(words) or " ".join(command) in seen:
            continue
        seen.add(" ".join(command))
        done = openavs(*command)
        assert done.code in ((0, 1) if words[0] == "check" else (0,)), (command, done.err)
        ran += 1
    assert ran >= 1
