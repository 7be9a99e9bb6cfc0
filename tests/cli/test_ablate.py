"""`openavs ablate` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from openavs.config.resources import find
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome
from tests.tiny_audio import make_qwen2_audio

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s4") / "data"
    write_layout("s4", path, {"test": 2}, seed=7)
    return path


def test_two_thresholds_in_one_table(openavs: Run, root: Path, tmp_path: Path) -> None:
    command = ("ablate", "s4", "--study", "threshold", "--variants", "0.15,0.75", "--limit", "1")
    where = ("--root", root, "--pipeline", "tiny", "--out", tmp_path / "out")
    done = openavs(*command, *where, "--json")
    assert done.code == 0, done.err
    answer = done.json()
    assert (answer["study"], answer["benchmark"], answer["protocol"]) == ("threshold", "s4", "official")
    assert [row["name"] for row in answer["variants"]] == ["0.15", "0.75"]
    assert answer["variants"][1]["difference"]["score"]["clips"] == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("0.15", "0.75", "ablation.json", "ablation.csv", "curve.svg")
    }
    shown = openavs(*command, *where)
    assert shown.code == 0, shown.err
    assert "official, 1 clip per batch" in shown.out
    rows = {cells[0]: cells[1:] for line in shown.out.splitlines() if (cells := line.split())}
    assert rows["0.15"] == [f"{100 * answer['variants'][0]['metrics'][name]:.2f}" for name in ("miou", "f")]
    assert len(rows["0.75"]) == 5, "two figures, and the difference with its interval"


def test_other_sounds_add_the_share_of_marked_pixels_of_each_variant(openavs: Run, root: Path, tmp_path: Path) -> None:
    command = ("ablate", "s4", "--study", "threshold", "--variants", "0.15", "--limit", "1", "--negatives", "silence")
    where = ("--root", root, "--pipeline", "tiny", "--out", tmp_path / "out")
    done = openavs(*command, *where)
    assert done.code == 0, done.err
    [row] = json.loads((tmp_path / "out" / "ablation.json").read_text())["variants"]
    assert row["negatives"]["silence"]["fpr"] == 0.0, "no stage runs without a sound"
    assert "FPR, silence" in done.out
    assert "fpr_silence" in (tmp_path / "out" / "ablation.csv").read_text()


STUDY = """
title: Two thresholds of one's own
baseline: low
variants:
  - {name: low, overrides: [filtering.box_threshold=0.2]}
  - {name: high, overrides: [filtering.box_threshold=0.6]}
"""


def test_clips_that_fail_are_named_for_each_variant(openavs: Run, tmp_path: Path) -> None:
    write_layout("s4", tmp_path / "data", {"test": 1}, seed=6)
    sound = next((tmp_path / "data").glob("s4_data/audio_wav/**/*.wav"))
    sound.write_bytes(b"no sound at all")
    (tmp_path / "own.yaml").write_text(STUDY, encoding="utf-8")
    where = ("--root", tmp_path / "data", "--pipeline", "tiny", "--out", tmp_path / "out")
    done = openavs("ablate", "s4", "--study", tmp_path / "own.yaml", *where)
    assert done.code == 1
    for name in ("low", "high"):
        assert f"openavs: the variant {name}:\nopenavs: clip {sound.stem}: " in done.err
    assert "1 of 1 clip failed, so nothing was scored" in done.err
    rows = {cells[0]: cells[1:] for line in done.out.splitlines() if (cells := line.split())}
    assert rows["low"] == rows["high"] == ["–", "–", "1", "clip", "failed"]
    assert "after" not in done.out  # it mirrors no table
    counted = openavs("ablate", "s4", "--study", tmp_path / "own.yaml", *where, "--allow-missing")
    assert counted.code == 1
    assert "1 of 1 clip failed and count as empty in the figures" in counted.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("s4",), "name a study with --study"),
        (("s4", "--study", "treshold"), "did you mean 'threshold'?"),
        (("s4", "--study", "threshold", "--variants", "0.2"), "no variant '0.2'"),
        (("s4", "--study", "questions"), "variant 'sound-of-no-llm' of 'questions' does not work"),
        (("--study", "threshold"), "name one benchmark"),
    ],
)
def test_wrong_usage_is_one_sentence(
    openavs: Run, root: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = openavs("ablate", *words, "--root", root, "--pipeline", "tiny", "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("study", "variants"), [("questions", 6), ("consistency", 4)])
def test_the_papers_studies_of_the_prompts_run(
    study: str, variants: int, openavs: Run, root: Path, tmp_path: Path
) -> None:
    """The audio language model has random weights; all stages and prompts are real."""
    recipe = yaml.safe_load(find("pipelines", "tiny").read_text("utf-8"))
    recipe["captioner"] = {"use": "audio-llm", "model": str(make_qwen2_audio(tmp_path / "model")), "max_new_tokens": 8}
    (tmp_path / "talker.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    where = ("--root", root, "--pipeline", tmp_path / "talker.yaml", "--out", tmp_path / "out")
    done = openavs("ablate", "s4", "--study", study, "--limit", "1", *where, "--json")
    assert done.code == 0, done.err
    rows = done.json()["variants"]
    assert len(rows) == variants
    assert all(0 <= row["metrics"]["miou"] <= 1 for row in rows)
    asked = {}
    for row in rows:
        (result,) = (tmp_path / "out" / row["name"] / "clips").glob("*/result.json")
        frames = json.loads(result.read_text("utf-8"))["frames"]
        asked[row["name"]] = {caption["question"] for frame in frames for caption in frame["captions"]}
    three = {"Generate audio caption", "Generate metadata", "This is a sound of"}
    if study == "questions":
        assert set().union(*asked.values()) == three
        assert all(len(questions) == 1 for questions in asked.values())
    else:
        assert [len(asked[name]) for name in ("none", "frame", "prompt", "prompt-and-frame")] == [1, 1, 3, 3]
