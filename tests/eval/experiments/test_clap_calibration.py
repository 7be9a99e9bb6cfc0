"""Captions at several thresholds, with the tiny CLAP on synthetic sounds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from openavs.config.recipe import load_recipe
from openavs.media.audio import write_wav
from openavs.pipeline.frames import audio_window
from openavs.registry import check_backends, instantiate
from openavs.structures.types import Waveform
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], Any]) -> Any:
    return load_script("clap_calibration")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seconds of a dog, of which one is silent, two of a bell, and a file without sound."""
    dog = plan_scene([Role("dog", (True, True, True))], scene_rng("test", 50), 3).soundtrack()
    bell = plan_scene([Role("bell", (True, True))], scene_rng("test", 51), 2).soundtrack()
    quiet = np.array(dog.samples)
    quiet[2 * dog.rate :] = 0.0
    (tmp_path / "sounds").mkdir()
    write_wav(tmp_path / "sounds" / "dog.wav", Waveform(quiet, dog.rate))
    write_wav(tmp_path / "sounds" / "bell.wav", bell)
    (tmp_path / "sounds" / "notes.txt").write_text("no sound")
    return tmp_path / "sounds"


def run(script: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr("sys.argv", ["clap_calibration.py", *words])
    code = script.main()
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if code == 0 else printed.err, printed.err


def test_shares_of_captioned_windows_equal_those_of_the_captioner(
    script: Any, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (str(folder), "--pipeline", "tiny", "--files", "--thresholds", "0.99999,0.5,0.0", "--windows", "2")
    code, found, notes = run(script, capsys, monkeypatch, *words)
    assert code == 0 and "notes.txt" in notes
    own = float(np.exp(load_file(ROOT / "openavs/assets/tiny/clap/model.safetensors")["logit_scale_a"]))
    assert found["logit_scale"] == {"checkpoint": pytest.approx(own, abs=1e-3), "used": pytest.approx(own, abs=1e-3)}
    first, second = found["windows"]
    assert (first["window"], second["window"], found["files"]) == (1.0, 2.0, 2)
    assert (first["audible"], second["audible"]) == (4, 5)  # two seconds around the silent one reach into the bark
    assert {entry["file"]: list(entry["captions"]) for entry in first["captions"]} == {
        "dog.wav": ["dog barking"],
        "bell.wav": ["bell ringing"],
    }
    sounds = script.read_sounds(folder)
    for part, length in ((first, 1.0), (second, 2.0)):
        for row in part["thresholds"]:
            recipe = load_recipe("tiny", [f"captioner.threshold={row['threshold']}"])
            captioner = instantiate(*check_backends(recipe)["captioner"])
            windows = [
                audio_window(audio, at + 0.5, 1.0, length)
                for audio in sounds.values()
                for at in range(round(audio.duration))
            ]
            heard = captioner.caption([window for window in windows if window.audio.dbfs >= -60])
            captioned = [any(not caption.weak for caption in own) for own in heard]
            assert row["captioned"] == pytest.approx(np.mean(captioned), abs=1e-3), row
    shares = [row["captioned"] for row in first["thresholds"]]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_unusable_folders_and_recipes_are_refused(
    script: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, reason = run(script, capsys, monkeypatch, str(tmp_path / "none"), "--pipeline", "tiny")
    assert code == 2 and "has no audio" in reason
    words = (str(folder), "--pipeline", "tiny", "captioner={use: oracle}")
    code, _, reason = run(script, capsys, monkeypatch, *words)
    assert code == 2 and "give a recipe with clap" in reason
