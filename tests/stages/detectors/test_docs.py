"""The examples of the page on detectors: a custom detector, and the conversion of checkpoints."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openavs.config.resources import names
from openavs.registry import Registry
from openavs.stages.detectors.base import Detector
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGE = (ROOT / "docs" / "detectors.md").read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example's file, and a scene."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(example.split("class ")[1].splitlines()) <= 30
    (tmp_path / "odd_colors.py").write_text(example, encoding="utf-8")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(tmp_path / "scene.mp4", scene, fps=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_example_is_a_detector(desk: Path) -> None:
    detector = Registry("detector").build("./odd_colors.py:OddColors", {"contrast": 80})
    assert isinstance(detector, Detector)
    image = np.full((60, 80, 3), 100, np.uint8)
    plain = image.copy()
    image[10:20, 30:50] = 255
    (found, other), nothing, unasked = detector.detect([image, plain, image], [["dog", "cat"], ["dog"], []])
    assert (found.box, found.phrase, other.phrase) == ((30.0, 10.0, 50.0, 20.0), "dog", "cat")
    assert nothing == unasked == []


def test_its_command_runs(desk: Path, openavs: Callable[..., Any]) -> None:
    commands = [line for line in PAGE.splitlines() if line.startswith("openavs segment scene.mp4")]
    assert len(commands) == 1
    done = openavs(*shlex.split(commands[0])[1:])
    assert done.code == 0, done.err
    result = json.loads((desk / "out" / "clips" / "scene" / "result.json").read_text())
    assert any(frame["segments"] for frame in result["frames"])


def test_backends_and_recipes_it_names_exist() -> None:
    for name in re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE):
        assert name in Registry("detector").names()
    for name in re.findall(r"--pipeline (\S+)", PAGE):
        assert name in names("pipelines")


def test_the_conversion_is_a_command_that_says_what_is_wrong(tmp_path: Path) -> None:
    def convert(file: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "openavs.models.convert", str(tmp_path / file), str(tmp_path / "out")]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    torch.save({"model": {"module.backbone.0.patch_embed.proj.weight": torch.zeros(128, 3, 4, 4)}}, tmp_path / "b.pth")
    assert convert("b.pth").returncode == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "groundingdino", "backbone": "swin_B_384_22k"}
    absent = convert("absent.pth")
    assert absent.returncode == 2 and "absent.pth cannot be read (No such file or directory)" in absent.stderr
    assert len(absent.stderr.splitlines()) == 1
