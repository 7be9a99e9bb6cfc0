"""The examples of the page on segmenters: a custom segmenter, YAML sections and backend names."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.registry import Registry, check_backends
from openavs.stages.segmenters.base import Segmenter
from openavs.structures.masks import rle_to_mask
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGE = (ROOT / "docs" / "segmenters.md").read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example's file, and a scene."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(example.split("class ")[1].splitlines()) <= 30
    (tmp_path / "edge_color.py").write_text(example, encoding="utf-8")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(tmp_path / "scene.mp4", scene, fps=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_is_a_segmenter(desk: Path) -> None:
    segmenter = Registry("segmenter").build("./edge_color.py:EdgeColor", {"contrast": 50})
    assert isinstance(segmenter, Segmenter)
    image = np.full((60, 80, 3), 100, np.uint8)
    image[10:20, 30:50] = 255
    (inside, outside), none = segmenter.segment([image, image], [[(25.0, 5.0, 60.0, 30.0), (-9.0, -9.0, 0.0, 0.0)], []])
    assert np.array_equal(rle_to_mask(inside.rle), image[..., 0] == 255)
    assert outside.rle.area == 0 and none == []


def test_its_command_runs(desk: Path, openavs: Callable[..., Any]) -> None:
    (command,) = [line for line in PAGE.splitlines() if line.startswith("openavs segment scene.mp4")]
    done = openavs(*shlex.split(command)[1:])
    assert done.code == 0, done.err
    result = json.loads((desk / "out" / "clips" / "scene" / "result.json").read_text())
    assert any(frame["segments"] for frame in result["frames"])


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_its_sections_make_valid_recipes(block: str) -> None:
    data = {**load_recipe("openavs").to_dict(), **yaml.safe_load(block)}
    check_backends(recipe_from_dict(data))


def test_its_commands_with_a_recipe_are_valid() -> None:
    (command,) = [line for line in PAGE.splitlines() if line.startswith("openavs segment video.mp4")]
    words = shlex.split(command)
    recipe = load_recipe(words[words.index("--pipeline") + 1], [word for word in words if "=" in word])
    assert recipe.tracker is not None and recipe.sample.fps == 8
    check_backends(recipe)


@pytest.mark.parametrize("name", ["openavs", "sam3"])
def test_what_recipes_say_of_tracking_is_valid(name: str) -> None:
    lines = (ROOT / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("#") and "segmenter=null" in line]
    words = shlex.split(line[line.index("segmenter=null") :])
    recipe = load_recipe(name, [word for word in words if "=" in word])
    assert recipe.segmenter is None and recipe.tracker is not None and recipe.sample.fps == 8
    check_backends(recipe)


def test_its_table_names_every_backend() -> None:
    for stage in ("segmenter", "tracker"):
        for name in Registry(stage).names():
            assert re.search(rf"^\| {stage} \| `{name}` \|", PAGE, re.MULTILINE), name
