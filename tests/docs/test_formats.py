"""docs/formats.md: its tables name exactly the fields of the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.cli import main
from openavs.structures.types import (
    CandidateDecision,
    Caption,
    ClipResult,
    Correction,
    Event,
    FrameResult,
    Prompt,
    Reasoning,
    Rejection,
    Segment,
    Verdict,
)
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.docs.reading import blocks, commands, text_of

PAGE = text_of("formats.md")
Read = Callable[[], Any]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run the commands of the page in a folder."""
    folder = tmp_path_factory.mktemp("formats")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    (folder / "videos").mkdir()
    for path in (folder / "video.mp4", folder / "videos" / "video.mp4"):
        write_clip(path, scene, fps=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OPENAVS_CACHE", str(folder / "cache"))
        for words in [words for block in blocks(PAGE) for words in commands(block)]:
            assert main([*words, "--quiet"]) == 0, words
        yield folder


def documented(heading: str) -> list[str]:
    """Return the keys in the first table below a heading."""
    section = re.split(r"^#{2,3} ", PAGE.split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def read(path: Path) -> Any:
    text = path.read_text("utf-8")
    return json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)


@pytest.mark.slow  # four commands, one of which starts a worker; part of `make docs`
@pytest.mark.parametrize(
    ("heading", "file"),
    [
        ("result.json", "out/clips/video/result.json"),
        ("run.json", "out/run.json"),
        ("run.json", "run/run.json"),
        ("A row of the index", "out/index.jsonl"),
        ("A row of the index", "run/index.jsonl"),
        ("A row of the index", "labels/index.jsonl"),
        ("manifest.json", "labels/work/manifest.json"),
        ("A completion file", "labels/work/shards/000000.json"),
        ("run.json", "labels/run.json"),
        ("manifest.json", "out/work/manifest.json"),
        ("report.json", "run/report.json"),
        ("result.json", "labels/clips/video/result.json"),
    ],
)
def test_a_file_has_the_documented_keys(heading: str, file: str, desk: Path) -> None:
    assert sorted(documented(heading)) == sorted(read(desk / file))


@pytest.mark.parametrize(
    ("heading", "kind"),
    [
        ("A frame", FrameResult),
        ("A caption", Caption),
        ("A prompt", Prompt),
        ("The reasoning", Reasoning),
        ("A candidate", CandidateDecision),
        ("A segment", Segment),
        ("A rejection", Rejection),
        ("A verdict", Verdict),
        ("An event", Event),
        ("A correction", Correction),
    ],
)
def test_parts_of_a_result_have_the_documented_keys_in_order(heading: str, kind: type) -> None:
    assert documented(heading) == [field.name for field in fields(kind)]
    assert documented("result.json") == ["format", *(field.name for field in fields(ClipResult))]


@pytest.mark.slow
def test_a_row_of_a_completion_file_is_an_index_row_without_seconds(desk: Path) -> None:
    (row,) = read(desk / "labels" / "work" / "shards" / "000000.json")["rows"]
    assert sorted([*row, "seconds"]) == sorted(documented("A row of the index"))


@pytest.mark.slow
def test_every_file_of_the_tree_exists(desk: Path) -> None:
    (tree,) = [block.text for block in blocks(PAGE) if block.language == "text"]
    paths = [line.split()[0].replace("<id>", "video") for line in tree.splitlines()]
    assert len(paths) == 12 and all((desk / path).is_file() for path in paths)


@pytest.mark.slow
def test_masks_are_the_segments_numbers(desk: Path) -> None:
    names: dict[str, Any] = {}
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    exec(compile(code, "formats.md", "exec"), names)
    result = read(desk / "out" / "clips" / "video" / "result.json")
    assert set(np.unique(names["numbers"])) == {0, *range(1, len(result["frames"][0]["segments"]) + 1)}
    assert list(names["numbers"].shape) == result["size"]
    label = Image.open(desk / "labels" / "labels" / "clips" / "video" / "labels_semantic" / "0.png")
    assert label.mode == "L" and set(np.unique(np.asarray(label))) == {0, 255}


@pytest.mark.slow
def test_a_clip_of_a_job_does_not_depend_on_its_machine(desk: Path) -> None:
    result = read(desk / "labels" / "clips" / "video" / "result.json")
    assert result["timings"] == {}
    assert all(sorted(facts) == ["license", "revision"] for facts in result["models"].values())
    assert set(result["models"]) == set(read(desk / "labels" / "work" / "models.json"))
