"""Prompts from an audio tagger: with a tagger of known output, and with the real one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openavs.media.audio import write_wav
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.examples.test_edge import tiny_tagger


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("audio_tagging")


def test_named_and_other_prompts_are_counted_by_second(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tagger that answers "Dog" names the dog in all of three seconds and in none of a helicopter's two."""
    torch.save(tiny_tagger("Dog"), tmp_path / script.TAGGER)
    for name, seconds in (("esc10_Dog_bark_1", 3), ("esc10_Helicopter_1", 2), ("esc10_Rain_1", 4)):
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, seconds * 16000).astype(np.float32)
        write_wav(tmp_path / f"{name}.ogg", Waveform(noise, 16000))  # readers go by content
    dog = Role("dog", (True, True))
    write_clip(tmp_path / "dog_barking.mp4", plan_scene([dog], scene_rng("test", 3), 2, (64, 96)), fps=8)
    folder = str(tmp_path)
    arguments = ["audio_tagging.py", "--audio", folder, "--clips", folder, "--models", folder, "--json"]
    monkeypatch.setattr("sys.argv", arguments)
    script.main()
    figures = json.loads(capsys.readouterr().out)
    assert figures == {
        "audio": {"seconds": 5, "named": 3, "other": 0.4},
        "clips": {"frames": 2, "named": 2, "boxes_lost": 0, "grounded": 2},
    }


@pytest.mark.weights
def test_default_rules_name_most_real_sounds(script: Any) -> None:
    folders = {name: os.environ.get(f"OPENAVS_{name}") for name in ("REAL_AUDIO", "EDGE_CLIPS", "EDGE_MODELS")}
    if not all(folders.values()):
        pytest.skip("set OPENAVS_REAL_AUDIO (ESC-10), OPENAVS_EDGE_CLIPS and OPENAVS_EDGE_MODELS to their folders")
    model = f"captioner.model={Path(folders['EDGE_MODELS'] or '') / script.TAGGER}"
    recipe = script.load_recipe(script.EDGE, [model])
    audio = script.audio_figures(recipe, Path(folders["REAL_AUDIO"] or ""))
    clips = script.clip_figures(recipe, Path(folders["EDGE_CLIPS"] or ""))
    assert audio["named"] / audio["seconds"] >= 105 / 158 and audio["other"] <= 1.2
    assert clips["named"] / clips["frames"] >= 12 / 15 and clips["boxes_lost"] == 0
