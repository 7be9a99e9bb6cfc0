"""examples/student: a custom student is trained by its file and by its entry point."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openavs.training.base import Student, student_class
from openavs.utils.plugins import load_file_class
from tests.conftest import ROOT, Outcome
from tests.training.test_tpavi import batch_of, short

EXAMPLE = ROOT / "examples" / "student"
CLASS = f"{EXAMPLE}/unet_student.py:UNetStudent"


def make(**options: Any) -> Any:
    torch.manual_seed(0)
    return load_file_class(CLASS).build({"side": 64, "channels": 8, **options}).eval()


def test_frames_do_not_depend_on_the_padding_and_the_audio_changes_the_masks() -> None:
    student, batch = make(), batch_of((4, 2))
    together = student.predict(batch, None)
    (alone,) = student.predict(short(batch, 1), None)
    assert together[1].probability.shape == (2, 48, 80)
    assert np.abs(together[1].probability - alone.probability).max() < 1e-5
    other = student.predict(replace(batch, audio=batch.audio.flip(2)), None)
    assert np.abs(together[0].probability - other[0].probability).max() > 1e-4


@pytest.mark.parametrize("classes", [(), ("background", "dog", "bell")])
def test_loss_trains_every_layer_for_masks_and_for_classes(classes: tuple[str, ...]) -> None:
    student, batch = make(classes=list(classes)).train(), batch_of((3,), classes=max(2, len(classes)))
    student.loss(student(batch), batch)["loss"].backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Install the example as pip does: its module and the entry points of its pyproject.toml."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    facts = tmp_path / "openavs_unet_student-0.1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    points = project["entry-points"]["openavs.training"]
    lines = ["[openavs.training]", *(f"{name} = {place}" for name, place in points.items())]
    (facts / "entry_points.txt").write_text("\n".join(lines))
    for path in (tmp_path, EXAMPLE):
        monkeypatch.syspath_prepend(str(path))


@pytest.mark.usefixtures("installed")
def test_entry_point_of_the_example_is_a_student() -> None:
    found = student_class("unet")
    assert issubclass(found, Student) and found.name == "unet"
    assert found is import_module("unet_student").UNetStudent


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
def test_example_is_trained_and_self_trained(tmp_path: Path, openavs: Callable[..., Outcome]) -> None:
    assert openavs("synth", "s4", "--out", tmp_path / "s4", "--clips", 2, "--train", 4, "--val", 2, "-q").code == 0
    data = ("--root", tmp_path / "s4", "--benchmark", "s4", "--device", "cpu", "--max-steps", "2", "-q")
    done = openavs("train", CLASS, *data, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert (tmp_path / "run" / "model.safetensors").is_file()
    done = openavs("self-train", "unet", *data, "--pipeline", "tiny", "--out", tmp_path / "st")
    assert done.code == 0, done.err
    assert (tmp_path / "st" / "round-1" / "student" / "model.safetensors").is_file()
    done = openavs("self-train", CLASS, *data, "--pipeline", "tiny", "--out", tmp_path / "no")
    assert done.code == 2 and "install its class as a plug-in" in done.err
    assert not (tmp_path / "no").exists()
