"""Data that names code does not run it: model folders, results, jobs, caches, cards, checkpoints and manifests."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openavs.errors import InputError, ModelError
from openavs.results.serialization import read_result
from openavs.synthetic.datasets import write_layout
from openavs.training.base import load_student
from openavs.training.models.backbones import Vggish, VggishConfig, save_vggish
from tests.conftest import ROOT, Outcome
from tests.robustness.security.hostile import Bomb

Run = Callable[..., Outcome]


@pytest.fixture
def evil(tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python file in the working directory; running it leaves the canary. It has a class for every stage."""
    monkeypatch.chdir(tmp_path)
    names = ("Evil", "read")
    text = f"open({str(canary)!r}, 'w')\n" + "".join(f"class {name}: ...\n" for name in names)
    path = tmp_path / "evil.py"
    path.write_text(text)
    return path


def student_folder(where: Path, student: str) -> Path:
    where.mkdir()
    config = {"model_type": "openavs-student", "format": 1, "student": student, "config": {}, "facts": {}}
    (where / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, where / "model.safetensors")
    return where


def edit(path: Path, change: Callable[[Any], None]) -> None:
    """Changes a JSON file in place."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def recipe_with_code(evil: Path) -> Callable[[Any], None]:
    """Puts the file into every stage of the recipe that a result or a job holds."""

    def change(data: Any) -> None:
        for stage in ("captioner", "translator", "detector", "segmenter", "verifier", "tracker"):
            data["recipe"][stage] = {"use": f"{evil}:Evil"}
        data["recipe"]["name"] = f"{evil}:Evil"

    return change


def test_the_file_leaves_a_trace_when_a_user_names_it(openavs: Run, video: Path, evil: Path, canary: Path) -> None:
    done = openavs("segment", video, "--pipeline", "tiny", f"verifier={{use: {evil}:Gone}}", "--out", "out", "-q")
    assert done.code == 2 and "there is no class 'Gone'" in done.err
    assert canary.exists()


@pytest.mark.parametrize("form", ["{path}:Evil", "./evil.py:Evil", "evil.py"])
def test_student_folder_that_names_a_file(
    openavs: Run, video: Path, tmp_path: Path, evil: Path, canary: Path, form: str
) -> None:
    name = form.format(path=evil)
    folder = student_folder(tmp_path / "student", name)
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    pipeline = ("--pipeline", f"student:{folder}")
    for command in (
        ("segment", video, *pipeline, "--out", tmp_path / "o1", "--offline"),
        ("label", tmp_path / "videos", *pipeline, "--out", tmp_path / "o2", "--offline", "--workers", "1"),
        ("check", *pipeline),
    ):
        done = openavs(*command)
        assert done.code == 2 and not canary.exists(), command
        assert done.err.count("\n") == 1, done.err
        assert f"names the Python file {name!r:.80} as its code" in done.err
    with pytest.raises(ModelError, match="a model folder may only name an installed student"):
        load_student(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["evil:Evil", "evil", "os:system", "openavs.training.models.tpavi:Tpavi"])
def test_student_folder_that_names_a_module(
    openavs: Run, tmp_path: Path, evil: Path, canary: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = student_folder(tmp_path / "student", name)
    with pytest.raises(InputError, match="there is no student"):
        load_student(str(folder))
    done = openavs("check", "--pipeline", f"student:{folder}")
    assert done.code == 2 and "there is no student" in done.err
    assert not canary.exists()


def test_student_that_another_training_starts_from(openavs: Run, tmp_path: Path, evil: Path, canary: Path) -> None:
    write_layout("s4", tmp_path / "s4", {"train": 2}, seed=900)
    save_vggish(Vggish(VggishConfig(width=4, hidden=32)), tmp_path / "vggish")
    folder = student_folder(tmp_path / "student", f"{evil}:Evil")
    words = ("train", "tpavi", "--root", tmp_path / "s4", "--benchmark", "s4", "--out", tmp_path / "o", "-q")
    done = openavs(*words, f"init={{student: {folder}}}", f"audio={tmp_path / 'vggish'}", "--max-steps", "1")
    assert done.code == 2 and "names the Python file" in done.err and not canary.exists()


def test_model_config_that_names_a_kernel(
    openavs: Run, video: Path, tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers would fetch such a kernel from the hub and run it, if the package `kernels` is installed."""
    monkeypatch.setattr("transformers.modeling_utils.lazy_import_flash_attention", lambda *_, **__: canary.touch())
    for key in ("attn_implementation", "_attn_implementation"):
        folder = shutil.copytree(ROOT / "openavs" / "assets" / "tiny" / "clap", tmp_path / key)
        edit(folder / "config.json", lambda config, key=key: config["audio_config"].update({key: "some/kernel"}))  # type: ignore[misc]
        words = ("--pipeline", "tiny", f"captioner.model={folder}", "--out", tmp_path / "out", "-q", "--overwrite")
        done = openavs("segment", video, *words)
        assert done.code == 2 and "names the kernel 'some/kernel'" in done.err and not canary.exists()


def test_recipe_in_a_result_folder(openavs: Run, video: Path, tmp_path: Path, evil: Path, canary: Path) -> None:
    out = tmp_path / "out"
    assert openavs("segment", video, "--pipeline", "tiny", "--out", out, "-q").code == 0
    change = recipe_with_code(evil)
    for name in ("run.json", "work/manifest.json"):
        edit(out / name, change)
    edit(out / "clips" / "dog" / "result.json", change)
    (out / "recipe.yaml").write_text(f"captioner: {{use: {evil}:Evil}}\n")
    result = read_result(out, "dog")
    assert result.recipe["captioner"] == {"use": f"{evil}:Evil"}
    for format in ("coco", "youtube-vis", "yolo-seg", "avsbench-object", "timeline", "overlay", "cutout-png"):
        assert openavs("export", format, out, "--out", tmp_path / format, "--filtered").code == 0
    again = openavs("segment", video, "--pipeline", "tiny", "--out", out, "-q")
    assert again.code == 2 and "recipe" in again.err
    assert not canary.exists()


def test_recipe_in_a_label_job(openavs: Run, video: Path, tmp_path: Path, evil: Path, canary: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    out = tmp_path / "out"
    words = ("label", tmp_path / "videos", "--pipeline", "tiny", "--out", out, "--workers", "1", "-q")
    assert openavs(*words).code == 0
    change = recipe_with_code(evil)
    for name in ("work/manifest.json", "run.json"):
        edit(out / name, change)
    for path in (out / "clips").rglob("result.json"):
        edit(path, change)
    shutil.rmtree(out / "work" / "shards")
    (out / "models.json").write_bytes(pickle.dumps(Bomb(canary)))
    again = openavs(*words)
    assert again.code == 2 and "holds results of another job, which differs in" in again.err
    assert openavs("export", "coco", out, "--out", tmp_path / "coco", "--root", tmp_path / "videos").code == 0
    assert not canary.exists()


def test_pickles_in_a_label_job(openavs: Run, video: Path, tmp_path: Path, canary: Path) -> None:
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    out = tmp_path / "out"
    words = ("label", tmp_path / "videos", "--pipeline", "tiny", "--out", out, "--workers", "1", "-q")
    assert openavs(*words).code == 0
    for path in [path for path in out.rglob("*") if path.is_file()]:
        kept = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb(canary)))
        openavs(*words, "--retry-failed")
        path.unlink(missing_ok=True)
        path.write_bytes(kept)
    assert not canary.exists()


def test_entries_of_the_stage_cache(
    openavs: Run, video: Path, tmp_path: Path, evil: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "videos").mkdir()
    shutil.copy(video, tmp_path / "videos")
    words = ("label", tmp_path / "videos", "--pipeline", "tiny", "--workers", "1", "--cache", "-q")
    assert openavs(*words, "--out", tmp_path / "first").code == 0
    entries = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert entries
    code = {"answer": {"use": f"{evil}:Evil", "__reduce__": [f"{evil}:Evil"]}, "revisions": {}}
    for number, path in enumerate(entries):
        path.write_bytes(pickle.dumps(Bomb(canary)) if number % 2 else json.dumps(code).encode())
    assert openavs(*words, "--out", tmp_path / "second").code == 0
    assert not canary.exists()


YAML_BOMB = "!!python/object/apply:os.system ['touch CANARY']"


def test_model_card_and_lock_file_with_yaml_objects(openavs: Run, video: Path, tmp_path: Path, canary: Path) -> None:
    bomb = YAML_BOMB.replace("CANARY", str(canary))
    folder = shutil.copytree(ROOT / "openavs" / "assets" / "tiny" / "sam", tmp_path / "sam")
    (folder / "README.md").write_text(f"---\nlicense: {bomb}\n---\n")
    words = ("segment", video, "--pipeline", "tiny", f"segmenter.model={folder}", "--out", tmp_path / "out", "-q")
    assert openavs(*words).code == 0
    (tmp_path / "openavs.lock").write_text(f"hf:a/b: {bomb}\n")
    (tmp_path / "own.yaml").write_text(f"name: {bomb}\n")
    assert openavs(*words, "--overwrite", "--lock", tmp_path / "openavs.lock").code == 2
    assert openavs("segment", video, "--pipeline", tmp_path / "own.yaml", "--out", tmp_path / "out").code == 2
    assert openavs("evaluate", tmp_path / "own.yaml", "--root", tmp_path, "--out", tmp_path / "out").code == 2
    assert not canary.exists()


def test_benchmark_folder_with_cards_pickles_and_recipes(
    openavs: Run, tmp_path: Path, evil: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A data set may hold a card of the benchmark's own name, which is not the one that is read."""
    root = tmp_path / "s4"
    write_layout("s4", root, {"test": 1}, seed=900)
    card = (ROOT / "eval" / "s4.yaml").read_text().splitlines()
    hostile = "\n".join(f"reader: {evil}:read" if line.startswith("reader:") else line for line in card)
    for name in ("s4.yaml", "card.yaml", "tiny.yaml", "s4"):
        (root / name).write_text(hostile)
    for path in [root / "evil.pkl", *(path.with_suffix(".pkl") for path in root.rglob("*.wav"))]:
        path.write_bytes(pickle.dumps(Bomb(canary)))
    shutil.copy(evil, root)
    monkeypatch.chdir(root)
    done = openavs("evaluate", "s4", "--root", ".", "--pipeline", "tiny", "--out", tmp_path / "out", "-q")
    assert done.code == 0, done.err
    report = tmp_path / "out" / "report.json"
    edit(report, lambda data: data.update(benchmark=str(root / "card.yaml"), reader=f"{evil}:read"))
    edit(report, recipe_with_code(evil))
    openavs("evaluate", "--compare", report, report)
    openavs("score", "s4", "--root", root, "--predictions", tmp_path / "out", "--allow-missing")
    assert not canary.exists()


def test_checkpoints_of_a_training(openavs: Run, tmp_path: Path, evil: Path, canary: Path) -> None:
    write_layout("s4", tmp_path / "s4", {"train": 2}, seed=900)
    save_vggish(Vggish(VggishConfig(width=4, hidden=32)), tmp_path / "vggish")
    out = tmp_path / "out"
    words = ("train", "tpavi", "--root", tmp_path / "s4", "--benchmark", "s4", "--out", out, "-q")
    words = (*words, "init={}", f"audio={tmp_path / 'vggish'}", "save_every=1")
    assert openavs(*words, "--max-steps", "1").code == 0
    tables = [*(out / "features").rglob("*.npy")]
    assert tables
    for path in tables:
        np.save(path, np.array([Bomb(canary)], dtype=object), allow_pickle=True)
    edit(out / "train.json", lambda data: data["recipe"].update(student=f"{evil}:Evil"))
    refused = openavs(*words, "--max-steps", "2", "--resume")
    assert refused.code == 2 and "differs in student" in refused.err
    edit(out / "train.json", lambda data: data["recipe"].update(student="tpavi"))
    for name in ("model.safetensors", "training/optimizer.safetensors", "training/state.json"):
        path = out / "last" / name
        kept = path.read_bytes()
        path.write_bytes(pickle.dumps(Bomb(canary)))
        assert openavs(*words, "--max-steps", "2", "--resume").code == 2, path
        path.write_bytes(kept)
    assert openavs(*words, "--max-steps", "2", "--resume").code == 0
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_manifests(openavs: Run, video: Path, tmp_path: Path, evil: Path, canary: Path, kind: str) -> None:
    rows = {
        "jsonl": json.dumps({"id": "a", "path": str(video), "recipe": f"{evil}:Evil", "use": f"{evil}:Evil"}),
        "csv": f"id,path,use\na,{video},{evil}:Evil\nb,{evil}:Evil,{evil}:Evil",
    }
    (tmp_path / f"clips.{kind}").write_text(rows[kind] + "\n")
    openavs("label", tmp_path / f"clips.{kind}", "--pipeline", "tiny", "--out", tmp_path / "o", "--workers", "1", "-q")
    assert not canary.exists()
