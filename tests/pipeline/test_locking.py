"""Lock files: models stay at the commits at which they were first used, however their branches move on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import ModelError, OpenAVSError
from openavs.media.encode import write_video
from openavs.pipeline.lockfile import ModelLockfile, add_to_lock, load_lock, pin_recipe
from openavs.structures.types import Waveform
from tests.conftest import ROOT
from tests.model_hub import Hub, client_settings, serving
from tests.plugin_recipe import write_recipe
from tests.tiny_models import make_sam

OLD, NEW = "0" * 39 + "a", "0" * 39 + "b"


def loaded(**revisions: str | None) -> dict[str, dict[str, Any]]:
    """The model entries of a pipeline, by the last part of their references."""
    return {f"hf:org/{name}@main": {"revision": r, "license": None, "path": "/p"} for name, r in revisions.items()}


# -------------------------------------------------------------------------------------------------------- the recipe


def test_only_the_models_that_the_lock_knows_are_pinned() -> None:
    recipe = load_recipe("openavs-cpu")
    sam = recipe.models()["segmenter"]
    locked = pin_recipe(recipe, ModelLockfile({sam: OLD, "hf:org/other": NEW}))
    assert locked.models() == {**recipe.models(), "segmenter": f"{sam.partition('@')[0]}@{OLD}"}
    assert locked.to_dict() | {"segmenter": None} == recipe.to_dict() | {"segmenter": None}
    assert locked.base == recipe.base  # relative paths are still looked for beside the recipe
    assert pin_recipe(recipe, ModelLockfile()).to_dict() == recipe.to_dict()


def test_embedded_and_local_models_are_not_pinned() -> None:
    recipe = load_recipe("tiny", ["segmenter.model=./sam"])
    assert pin_recipe(recipe, ModelLockfile({"./sam": OLD, "openavs:tiny/clap": OLD})).to_dict() == recipe.to_dict()


# ---------------------------------------------------------------------------------------------------------- the file


def test_a_lock_file_is_made_and_added_to_and_its_pins_stay(tmp_path: Path) -> None:
    path = tmp_path / "openavs.lock"
    add_to_lock(path, loaded(sam=OLD))
    add_to_lock(path, loaded(sam=NEW, clap=NEW))
    assert ModelLockfile.load(path).pins == {"hf:org/sam@main": OLD, "hf:org/clap@main": NEW}
    assert [p.name for p in tmp_path.iterdir()] == ["openavs.lock"]


def test_only_models_of_the_hub_without_a_commit_in_their_name_are_added(tmp_path: Path) -> None:
    models = loaded(local=None)
    for ref in ("./sam", "openavs:tiny/sam", f"hf:org/sam@{OLD}"):
        models[ref] = {"revision": OLD, "license": None, "path": "/p"}
    assert add_to_lock(tmp_path / "a.lock", models).pins == {}
    assert ModelLockfile.load(tmp_path / "a.lock").pins == {}
    assert (tmp_path / "a.lock").exists()


def test_what_has_no_revision_to_pin_is_passed_over(tmp_path: Path) -> None:
    """A model behind a server, and the parts of a student."""
    models = {"gpt-oss": {"revision": None, "server": "http://localhost:8000/v1"}, "runs/tpavi": {"facts": {}}}
    assert add_to_lock(tmp_path / "a.lock", models).pins == {}


def test_a_lock_file_that_lacks_nothing_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    path.write_text(f"# mine\nhf:org/sam@main: {OLD}\n")
    add_to_lock(path, loaded(sam=NEW))
    assert path.read_text().startswith("# mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "is a folder"), ("absent/a.lock", "make it first"), ("bad.lock", "fix or delete it")],
)
def test_a_lock_file_that_cannot_be_is_refused_in_one_sentence(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "bad.lock").write_text("hf:org/sam: main")
    with pytest.raises(OpenAVSError, match=said) as caught:
        load_lock(tmp_path / name)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------------- the whole of it


def make_video(path: Path) -> Path:
    tone = np.sin(np.arange(16000) / 10).astype(np.float32)
    write_video(path, [np.full((48, 64, 3), 90, np.uint8)] * 5, 5, Waveform(tone, 16000))
    return path


@pytest.mark.long
def test_a_locked_run_keeps_its_models_when_the_branch_has_moved(tmp_path: Path) -> None:
    sam = make_sam(tmp_path / "sam")
    Hub.files = {"org/sam": {path.name: path.read_bytes() for path in sam.iterdir()}}
    Hub.asked, Hub.commits = [], (OLD,)
    write_recipe(tmp_path, segmenter={"use": "sam", "model": "hf:org/sam@main"})
    one, two = make_video(tmp_path / "one.mp4"), make_video(tmp_path / "two.mp4")
    lock, out = tmp_path / "openavs.lock", tmp_path / "out"

    def segment(*videos: Path) -> None:
        command = [sys.executable, "-m", "openavs", "segment", *map(str, videos), "--pipeline", "recipe.yaml"]
        with serving() as address:
            done = subprocess.run(
                [*command, "--out", str(out), "--lock", str(lock)],
                env=client_settings(address, tmp_path / "cache") | {"PYTHONPATH": str(ROOT)},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=600,
            )
        assert done.returncode == 0, done.stderr

    segment(one)
    assert ModelLockfile.load(lock).pins == {"hf:org/sam@main": OLD}
    first = (out / "clips" / "one" / "result.json").read_bytes()
    Hub.commits = (OLD, NEW)
    segment(one, two)
    assert (out / "clips" / "one" / "result.json").read_bytes() == first  # the same recipe: it went on, it did not redo
    second = json.loads((out / "clips" / "two" / "result.json").read_text())
    assert [facts["revision"] for facts in second["models"].values()] == [OLD]
    assert second["recipe"] == json.loads(first)["recipe"]
    assert second["recipe"]["segmenter"]["model"] == "hf:org/sam@main"
    assert ModelLockfile.load(lock).pins == {"hf:org/sam@main": OLD}


def test_a_lock_pins_references_and_survives_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "openavs.lock"
    assert ModelLockfile.load(path).pinned("hf:a/b") == "hf:a/b"  # no file pins nothing
    ModelLockfile({"hf:a/b": NEW, "hf:a/b@main": NEW}).save(path)
    lock = ModelLockfile.load(path)
    assert lock.pinned("hf:a/b") == lock.pinned("hf:a/b@main") == f"hf:a/b@{NEW}"
    assert lock.pinned("hf:a/b@v2") == "hf:a/b@v2"
    assert lock.pinned("./folder") == "./folder"


@pytest.mark.parametrize("text", ["- a list", "hf:a/b: main", "{", "word"])
def test_a_malformed_lock_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "openavs.lock"
    path.write_text(text)
    with pytest.raises(ModelError, match="the lock file"):
        ModelLockfile.load(path)
