"""The README: its commands, its Python, its table of recipes, its file tree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.config import resources
from openavs.config.recipe import load_recipe
from openavs.media.audio import write_wav
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
Run = Callable[..., Any]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with the inputs of the README's examples."""
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(tmp_path / "video.mp4", scene, fps=8)
    (tmp_path / "pictures").mkdir()
    Image.fromarray(scene.picture(0.5)[0]).save(tmp_path / "pictures" / "1.png")
    write_wav(tmp_path / "sound.wav", scene.soundtrack())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for of, text in found if of == language]


def commands(name: str) -> list[list[str]]:
    """Return the words of every command of that name in a block, without `openavs`."""
    lines = [line for block in blocks("") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"openavs {name} ")]


def test_the_segment_commands_run_with_the_embedded_models(openavs: Run, desk: Path) -> None:
    segment = commands("segment")
    assert len(segment) == 2
    for words in segment:
        if "--pipeline" in words:  # replaces recipes with weights by the embedded models
            words[words.index("--pipeline") + 1] = "tiny"
        else:
            words += ["--pipeline", "tiny"]
        assert openavs(*words).code == 0
    for name in ("result.json", "masks", "overlay.mp4", "report.html"):
        assert (desk / "out" / "clips" / "video" / name).exists()
    (export,) = commands("export")
    assert openavs(*export).code == 0
    assert (desk / "out.json").is_file()


def test_the_python_example_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    exec(compile(example, "README.md", "exec"), {})
    assert "captions ['dog barking'], segments [('dog'" in capsys.readouterr().out
    assert (desk / "saved" / "clips" / "video" / "result.json").is_file()


def test_the_label_command_runs(openavs: Run, desk: Path) -> None:
    (desk / "videos").mkdir()
    (desk / "video.mp4").rename(desk / "videos" / "video.mp4")
    (label,) = commands("label")
    assert openavs(*label).code == 0
    assert (desk / "labels" / "index.jsonl").is_file()


@pytest.mark.long
def test_the_benchmark_and_student_commands_run_on_fewer_clips(openavs: Run, desk: Path) -> None:
    (synth,) = commands("synth")
    for option, fewer in (("--clips", "2"), ("--train", "2"), ("--val", "1")):
        synth[synth.index(option) + 1] = fewer
    (evaluate,), (score,), (train,) = commands("evaluate"), commands("score"), commands("self-train")
    for words in (synth, evaluate, score, [*train, "--max-steps", "2"]):
        assert openavs(*words).code == 0, words
    assert (desk / "run" / "report.html").is_file()


def test_every_command_it_names_exists(openavs: Run) -> None:
    for name in set(re.findall(r"`openavs ([a-z-]+)[ `]", README)):
        assert openavs(name, "--help").code == 0, name


def test_the_table_names_every_recipe_and_its_license() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| ([^|]+) \|$", README, re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(resources.names("pipelines"))
    for name, license in rows:
        stated = load_recipe(name).license or ""
        assert license.split(",")[0].split(";")[0].strip() in stated, name


def test_the_choice_by_machine_names_recipes_that_fit() -> None:
    (choice,) = re.findall(r"Recipes by machine:\n\n((?:- .*\n)+)", README)
    lines = choice.splitlines()
    assert len(lines) == 5
    recipes = resources.names("pipelines")
    assert all(set(re.findall(r"`([a-z0-9-]+)`", line)) & set(recipes) for line in lines)
    at_most = {"openavs-fast": 2e9, "openavs-cpu": 16e9 / 2}
    for name, size in at_most.items():
        assert estimate_memory(load_recipe(name, ["device=cpu", "offline=true"]))[1] < size, name


def test_every_path_it_names_exists() -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    assert np.asarray(Image.open(ROOT / "docs" / "demo.png").convert("RGB")).std() > 10  # not a blank image


def test_the_file_tree_names_every_package_and_nothing_else() -> None:
    (tree,) = [block for block in blocks("") if block.startswith("openavs/api.py")]
    named = re.findall(r"^(\S+?,?) ", tree, re.MULTILINE) + re.findall(r"(?<=, )(\w+/)", tree)
    paths = {name.strip(",").rstrip("/") for name in named}
    assert all((ROOT / path).exists() for path in paths), paths
    packages = {f"openavs/{path.parent.name}" for path in (ROOT / "openavs").glob("*/__init__.py")}
    assert packages <= paths, packages - paths
