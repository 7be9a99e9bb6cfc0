"""`openavs evaluate` as a user runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.config.recipe import load_recipe
from openavs.pipeline.lockfile import ModelLockfile
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome

Run = Callable[..., Outcome]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("s4") / "data"
    write_layout("s4", path, {"test": 2}, seed=5)
    return path


def test_a_run_its_table_and_a_comparison(openavs: Run, root: Path, tmp_path: Path) -> None:
    command = ("evaluate", "s4", "--root", root, "--pipeline", "tiny", "--out", tmp_path / "a")
    done = openavs(*command, "--json")
    assert done.code == 0, done.err
    answer = done.json()
    assert set(answer["metrics"]) == {"miou", "f"}
    assert (answer["protocol"], answer["clips_per_batch"]) == ("official", 1)
    assert (answer["benchmark"], answer["split"], answer["clips"], answer["frames"]) == ("s4", "test", 2, 10)
    assert (answer["failed"], answer["out"]) == ([], str(tmp_path / "a"))
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert report["metrics"] == answer["metrics"]

    scored = openavs("score", "s4", "--root", root, "--predictions", tmp_path / "a" / "predictions", "--json").json()
    assert scored["metrics"] == answer["metrics"], "anybody can score the predictions again"

    shown = openavs(*command, "--protocol", "fixed")  # everything is done: the models stay on the disk
    assert shown.code == 0, shown.err
    assert "fixed" in shown.out
    assert f"{100 * answer['metrics']['miou']:.2f}" in shown.out
    assert "do not compare with published ones: the clips are synthetic (openavs synth)." in shown.out
    assert "OpenAVS (arXiv" not in shown.out, "synthetic figures do not stand beside published ones"
    assert answer["incomparable"] == report["incomparable"] == "the clips are synthetic (openavs synth)"
    assert "these models were trained on synthetic clips only" in shown.err
    page = (tmp_path / "a" / "report.html").read_text()
    assert "this run" not in page and "synthetic" in page
    assert openavs(*command, "-q").out == ""

    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.json").write_text((tmp_path / "a" / "report.json").read_text())
    side_by_side = openavs("evaluate", "--compare", tmp_path / "a", tmp_path / "b" / "report.json", "--json").json()
    assert side_by_side["clips"] == 2
    assert side_by_side["score"]["difference"] == 0.0
    assert "2 clips in both" in openavs("evaluate", "--compare", tmp_path / "a", tmp_path / "b").out

    clip = next((tmp_path / "a" / "clips").iterdir())
    assert openavs("correct", clip, '{"action": "reject", "frame": 0, "track": 0}').code == 0
    again = openavs(*command, "--json")
    assert "the predictions of 1 clip are corrected by a person" in again.err
    assert (again.json()["corrected"], again.json()["incomparable"]) == (1, "a person corrected 1 of 2 clips")
    scored = openavs("score", "s4", "--root", root, "--predictions", tmp_path / "a" / "predictions", "--json")
    assert scored.json()["corrected"] == 1 and "corrected by a person" in scored.err


def test_offloaded_models_give_the_same_report(
    openavs: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("evaluate", "s4", "--root", root, "--pipeline", "tiny", "--limit", "2", "--json", "--out")
    whole = openavs(*words, tmp_path / "whole").json()
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "openavs.pipeline.memory_estimate.free_memory", lambda place: estimate_memory(load_recipe("tiny"))[1]
    )
    done = openavs(*words, tmp_path / "turned")
    assert "so they are loaded one group at a time" in caplog.text and done.json()["metrics"] == whole["metrics"]
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: 1000)
    refused = openavs(*words, tmp_path / "refused")
    assert refused.code == 2 and "free some memory" in refused.err


def test_a_lock_file_notes_what_was_used(openavs: Run, root: Path, tmp_path: Path) -> None:
    command = ("evaluate", "s4", "--root", root, "--pipeline", "tiny", "--limit", "1", "--lock", tmp_path / "my.lock")
    assert openavs(*command, "--out", tmp_path / "out", "--json").code == 0
    assert ModelLockfile.load(tmp_path / "my.lock").pins == {}  # embedded models are part of this openavs
    missing = openavs(*command[:-1], tmp_path / "absent" / "my.lock", "--out", tmp_path / "other")
    assert (missing.code, "the folder of the lock file" in missing.err) == (2, True)


def test_a_broken_clip_is_exit_code_1(openavs: Run, tmp_path: Path) -> None:
    write_layout("s4", tmp_path / "data", {"test": 1}, seed=6)
    sound = next((tmp_path / "data").glob("s4_data/audio_wav/**/*.wav"))
    sound.write_bytes(b"no sound at all")
    command = ("evaluate", "s4", "--root", tmp_path / "data", "--pipeline", "tiny", "--out", tmp_path / "out")
    done = openavs(*command, "--json")
    assert done.code == 1
    answer = done.json()
    assert answer["metrics"] is None
    assert [clip["id"] for clip in answer["failed"]] == [sound.stem]
    assert "1 of 1 clip failed, so nothing was scored" in done.err
    assert "Traceback" not in done.err
    counted = openavs(*command, "--json", "--allow-missing")
    assert counted.code == 1
    assert counted.json()["missing"] == 1
    assert counted.json()["metrics"]["miou"] == 0.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name one benchmark"),
        (("s4",), "give the folder of s4's data with --root"),
        (("avs", "--root", "."), "did you mean 'avss'?"),
        (("s4", "--root", "."), "s4_meta_data.csv"),
        (("s4", "--root", "{root}", "--split", "tset"), "did you mean 'test'?"),
        (("s4", "--root", "{root}", "filtering.box_treshold=0.3"), "did you mean 'box_threshold'?"),
        (("s4", "--root", "{root}", "--pipeline", "tinny"), "did you mean 'tiny'?"),
        (("--compare", "{root}", "{root}"), "report.json does not exist"),
    ],
)
def test_wrong_usage_is_one_sentence(
    openavs: Run, root: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given = [word.replace("{root}", str(root)) for word in words]
    done = openavs("evaluate", *given, "--out", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_list_names_the_benchmarks_and_studies(openavs: Run) -> None:
    found = openavs("list", "--json").json()
    benchmarks = {card["name"]: card for card in found["benchmarks"]}
    assert set(benchmarks) == {"s4", "ms3", "avss", "ov", "v3", "ref-avs", "avatar", "avis", "twins"}
    assert benchmarks["s4"]["splits"]["test"]["clips"] == 740
    assert "threshold" in {study["name"] for study in found["studies"]}
    shown = openavs("list", "benchmarks").out
    assert "AVSBench-semantic" in shown
    assert "Recipes" not in shown
    assert "0.15, 0.25" in openavs("list", "studies").out


@pytest.mark.parametrize("workers", [(), ("--workers", "2")])
def test_models_are_named_before_a_run_that_cannot_load_them(
    openavs: Run, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    words = ("evaluate", "s4", "--root", root, "-p", "openavs-cpu", "--device", "cpu", "--offline", *workers)
    done = openavs(*words, "--out", tmp_path / "out")
    assert done.code == 2
    assert "3 of 3 models are not on this disk, and offline mode forbids downloads (about 1.7 GB)" in done.err
    assert done.err.count("  hf download ") == 3
