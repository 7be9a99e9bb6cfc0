"""The page on captioners, run: its custom captioner, its recipe sections and its limits."""

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

from openavs.config.recipe import load_recipe
from openavs.config.resources import names
from openavs.registry import Registry
from openavs.stages.captioners.audio_lm import PAPER_QUESTIONS
from openavs.stages.captioners.base import Captioner
from openavs.structures.types import AudioWindow, Waveform
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PAGE = (ROOT / "docs" / "captioners.md").read_text(encoding="utf-8")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the example's file, and a scene."""
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(example.strip().splitlines()) <= 30
    (tmp_path / "pitch.py").write_text(example, encoding="utf-8")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(tmp_path / "scene.mp4", scene, fps=8)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_custom_captioner(desk: Path) -> None:
    captioner = Registry("captioner").build("./pitch.py:PitchCaptioner", {"border": 500})
    assert isinstance(captioner, Captioner)
    time = np.arange(8000) / 8000
    low, high = (Waveform(np.sin(2 * np.pi * hertz * time).astype(np.float32), 8000) for hertz in (100, 2000))
    empty = Waveform(np.zeros(0, np.float32), 8000)
    (rumble,), (chirp,), nothing = captioner.caption([AudioWindow(sound, 1.0, 2.0) for sound in (low, high, empty)])
    assert (rumble.text, chirp.text, nothing) == ("engine idling", "bird chirping", [])
    assert rumble.score == pytest.approx(1.0) and (chirp.start, chirp.end) == (1.0, 2.0)


def test_its_command_runs(desk: Path, openavs: Callable[..., Any]) -> None:
    (command,) = [line for line in PAGE.splitlines() if line.startswith("openavs segment scene.mp4")]
    done = openavs(*shlex.split(command)[1:])
    assert done.code == 0, done.err
    result = json.loads((desk / "out" / "clips" / "scene" / "result.json").read_text())
    heard = [caption["text"] for frame in result["frames"] for caption in frame["captions"]]
    assert heard and set(heard) <= {"engine idling", "bird chirping"}


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
def test_the_recipe_sections_are_accepted(block: str) -> None:
    section = yaml.safe_load(block)["captioner"]
    Registry("captioner").check(section.pop("use"), section)


def test_the_documented_questions_are_the_default() -> None:
    assert f"[{', '.join(PAPER_QUESTIONS)}]" in PAGE
    assert tuple(load_recipe("paper").captioner.options["questions"]) == PAPER_QUESTIONS


def test_documented_backends_and_recipes_exist() -> None:
    built_in = {entry.name for entry in Registry("captioner").entries() if entry.origin == "openavs"}
    assert built_in <= set(re.findall(r"^\| `([a-z0-9-]+)` \|", PAGE, re.MULTILINE))
    for name in re.findall(r"--pipeline (\S+)", PAGE):
        assert name in names("pipelines")
