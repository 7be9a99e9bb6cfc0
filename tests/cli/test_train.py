"""Arguments and messages of `openavs train`; tests/training has the training itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.cli.train import _sentence
from openavs.training.trainer import TrainingResult
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def test_without_accelerate_one_sentence_names_the_extra(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    done = openavs("train", "tpavi", "--root", tmp_path, "--benchmark", "s4", "--out", tmp_path / "out")
    assert done.code == 2
    assert done.err == 'openavs: training needs the package accelerate: pip install "openavs[train]"\n'


def test_one_student_is_trained_at_a_time(openavs: Run, tmp_path: Path) -> None:
    done = openavs("train", "tpavi", "ov-avss", "--root", tmp_path, "--benchmark", "s4", "--out", tmp_path / "out")
    assert (done.code, done.err) == (2, "openavs: name one student, such as tpavi or ov-avss\n")


def test_the_result_of_a_training_is_one_line() -> None:
    assert (
        _sentence(TrainingResult(Path("mine"), 1, "miou", None, None))
        == "1 step; evaluate it with --pipeline student:mine"
    )
    best = TrainingResult(Path("mine"), 2000, "miou", 0.5, 1500)
    assert _sentence(best).startswith("2,000 steps, best miou 50.00 at step 1500; ")
