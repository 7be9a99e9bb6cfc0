"""`openavs check`: whether this machine can run a recipe, as text and as JSON."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from openavs import __version__
from openavs.config import resources
from openavs.config.recipe import load_recipe
from tests.conftest import ROOT, Outcome

Run = Callable[..., Outcome]


@pytest.fixture
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty hub cache without a login, and no environment variable that forbids downloads."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    for variable in ("HF_HUB_OFFLINE", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


def test_all_groups_of_results(openavs: Run, nothing_cached: None) -> None:
    done = openavs("check", "--json")
    found = done.json()
    assert (done.code, found["ready"], found["recipe"]) == (0, True, "tiny")
    assert {"python", "packages", "torch", "device", "threads", "memory", "codecs", "cache", "out", "offline"} <= {
        item["topic"] for item in found["machine"]
    }
    recipes = {item["recipe"]: item for item in found["recipes"]}
    assert set(recipes) == set(resources.names("pipelines"))
    assert {model["state"] for model in recipes["openavs"]["models"]} == {"missing"}
    assert (recipes["openavs"]["state"], recipes["openavs"]["ready"], recipes["openavs"]["offline"]) == (
        *("absent", True, False),
    )
    assert recipes["openavs"]["download_gb"] == pytest.approx(10.5)
    assert "hf download facebook/sam2.1-hiera-large" in recipes["openavs"]["fix"]
    assert recipes["sam3"]["message"].startswith(
        "sam3: hf:facebook/sam3@main is gated and this machine is not logged in"
    )
    assert "not under a permissive license" in recipes["sam3"]["message"]
    assert "OPENAI_API_KEY" in recipes["paper"]["message"] and recipes["paper"]["state"] == "absent"
    (offline,) = [item for item in found["machine"] if item["topic"] == "offline"]
    assert offline["recipes"] == ["tiny"]


def test_overrides_apply_to_checks_and_trial_runs(openavs: Run) -> None:
    lost = openavs("check", "--pipeline", "tiny", "segmenter.model=/lost", "--json")
    (tiny,) = lost.json()["recipes"]
    assert (lost.code, tiny["state"]) == (1, "problem") and "/lost" in tiny["message"]
    tried = openavs("check", "--pipeline", "tiny", "--download", "filtering.box_threshold=1", "--json").json()
    (detector,) = [item for item in tried["stages"] if item["stage"] == "detector"]
    assert "0 boxes above the threshold" in detector["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("tiny", "paper"), "check takes one recipe, not tiny and paper"),
        (("tiny", "--pipeline", "paper"), "check takes one recipe, not paper and tiny"),
        (("tinny",), "there is no recipe 'tinny'; did you mean 'tiny'?"),
        (("filtering.box_threshold=1",), "filtering.box_threshold=1 changes a recipe; name it with --pipeline"),
        (
            ("--pipeline", "tiny", "filtering.box_threshold"),
            "filtering.box_threshold is a recipe key without a value",
        ),
    ],
)
def test_invalid_arguments_are_refused(openavs: Run, words: tuple[str, ...], message: str) -> None:
    refused = openavs("check", *words)
    assert refused.code == 2 and message in refused.err


def test_embedded_models_are_recognized(openavs: Run) -> None:
    (tiny,) = openavs("check", "tiny", "--json").json()["recipes"]
    assert {model["model"] for model in tiny["models"]} == set(load_recipe("tiny").models().values())
    assert all(model["state"] == "embedded" and model["pinned"] for model in tiny["models"])
    assert all(model["license"] == "Apache-2.0" and 0 < model["size_gb"] < 0.1 for model in tiny["models"])
    assert (tiny["state"], tiny["offline"], tiny["download_gb"]) == ("ok", True, 0.0)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("-p", "tiny", "--offline"), 0, "tiny: its 4 models are embedded in openavs."),
        (
            ("-p", "openavs-cpu"),
            0,
            "openavs-cpu: 3 of 3 models are not on this disk; the first run downloads about 1.7 GB.",
        ),
        (
            ("-p", "openavs-cpu", "--offline"),
            1,
            "3 of 3 models are not on this disk, and offline mode forbids downloads",
        ),
        (("-p", "sam3"), 1, "request access at https://huggingface.co/facebook/sam3, which its owner may take days"),
        (("-p", "paper"), 1, "OPENAI_API_KEY, which should hold the key for https://api.openai.com/v1, is not set"),
    ],
)
def test_one_recipe_is_checked(
    openavs: Run, nothing_cached: None, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    done = openavs("check", *arguments)
    assert (done.code, done.err) == (code, "")
    assert sentence in done.out
    last = done.out.rstrip().splitlines()[-1]
    assert last.startswith("Ready for" if code == 0 else "Not ready for")
    assert "Models\n" in done.out


def test_an_api_key_is_required_and_never_printed(
    openavs: Run, nothing_cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-0123456789")
    done = openavs("check", "-p", "paper", "--json")
    assert "is not set" not in done.out and "canary" not in done.out + done.err


def test_an_unknown_recipe_is_wrong_usage(openavs: Run) -> None:
    done = openavs("check", "--pipeline", "tinny")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'tiny'?" in done.err


def test_all_obstacles_of_a_recipe_are_listed_together(openavs: Run, tmp_path: Path) -> None:
    """A broken folder, a missing extra and a missing plug-in; no plug-in is executed."""
    text = resources.find("pipelines", "tiny").read_text(encoding="utf-8")
    text = text.replace("use: clap\n  model: openavs:tiny/clap", "use: laion-clap\n  model: ./ears")
    text = text.replace("use: grounding-dino\n  model: openavs:tiny/grounding-dino", "use: ./gone.py:Finder")
    text = text.replace("use: sam\n  model: openavs:tiny/sam", "use: ./mine.py:Cutter")
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "mine.py").write_text("raise SystemExit('this file was run')", encoding="utf-8")
    (tmp_path / "ears").mkdir()
    (tmp_path / "ears" / "pytorch_model.bin").write_bytes(b"x")
    done = openavs("check", "--pipeline", tmp_path / "own.yaml", "--json")
    (own,) = done.json()["recipes"]
    assert done.code == 1 and own["state"] == "problem"
    assert "has pickle weights only (pytorch_model.bin)" in own["message"]
    assert "needs the extra laion-clap, which is not installed" in own["message"]
    assert "gone.py does not exist" in own["message"]
    assert 'pip install "openavs[laion-clap]"' in own["fix"]
    assert {model["state"] for model in own["models"]} == {"partial", "embedded"}


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_parts_of_timm_name_the_extra_and_a_license_that_is_not_permissive(openavs: Run, nothing_cached: None) -> None:
    light = 'segmenter={use: sam3-lite-text, model: "hf:yonigozlan/sam3-litetext-s0@main"}'
    timm = 'tracker={use: edgetam-video, model: "hf:yonigozlan/EdgeTAM-hf@main"}'
    done = openavs("check", "--pipeline", "tiny", "--json", "detector=null", light, timm)
    (own,) = done.json()["recipes"]
    assert done.code == 1 and own["fix"] == 'pip install "openavs[timm]"'
    assert "its tracker edgetam-video needs the extra timm, which is not installed" in own["message"]
    assert "yonigozlan/sam3-litetext-s0@main is not under a permissive license (SAM License)" in own["message"]
    assert own["download_gb"] == 2.3


def test_an_incompatible_torchvision_is_found(openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build for another torch is installed and raises an error when it is imported."""
    from transformers.utils import is_torchvision_available

    assert not is_torchvision_available()  # transformers caches this for later tests
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.28.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    done = openavs("check", "--json")
    (found,) = [item for item in done.json()["machine"] if item["topic"] == "torchvision"]
    assert done.code == 1 and found["state"] == "problem"
    assert "0.28.0 does not fit the installed torch" in found["message"] and "pip uninstall torchvision" in found["fix"]


def test_missing_and_old_packages_are_named_with_the_fix(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no traceback."""
    (tmp_path / "transformers-4.57.6.dist-info").mkdir()
    (tmp_path / "transformers-4.57.6.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 4.57.6\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("torch", "av", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    done = openavs("check", "--json")
    found = done.json()
    problems = {item["topic"]: item for item in found["machine"] if item["state"] == "problem"}
    assert done.code == 1 and set(problems) == {"packages", "torch", "codecs"} and found["recipes"] == []
    assert "transformers 4.57.6 for openavs's" in problems["packages"]["message"]
    assert all("pip install" in item["fix"] for item in problems.values())
    assert openavs("check").out.rstrip().endswith("Not ready for tiny: fix each PROBLEM above.")


def test_the_text_ends_with_the_verdict(openavs: Run) -> None:
    assert openavs("check").out.rstrip().splitlines()[-1] == "Ready for tiny."


def test_the_documented_json_is_the_actual_one(openavs: Run, nothing_cached: None) -> None:
    """Every field of docs/check.md exists, with a value of the same kind, and no other."""
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    documented, found = json.loads(example), openavs("check", "--json").json()
    assert list(documented) == list(found)
    assert found["openavs"] == __version__
    for group in ("machine", "extras", "recipes"):
        shape = set(documented[group][0]) if group != "machine" else {"topic", "state", "message", "fix"}
        for item in found[group]:
            assert shape <= set(item), item
            assert item["state"] in page and item["message"].endswith(".")
    (model,) = documented["recipes"][0]["models"]
    assert all(set(model) == set(entry) for recipe in found["recipes"] for entry in recipe["models"])
    topics = {item["topic"] for item in found["machine"]}
    assert all(f"`{topic}`" in page for topic in topics)


@pytest.mark.skipif("coverage" in sys.modules, reason="it would take what the tracer takes")
def test_it_takes_less_than_three_seconds() -> None:
    """CPU time, because wall time includes other processes; most of it is the import of torch.

    The best of three, because other processes on the same core increase it, too.
    """
    assert min(cpu_seconds(sys.executable, "-m", "openavs", "check") for _ in range(3)) < 3


def cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_text_begins_with_the_recipe_for_this_machine(
    openavs: Run, nothing_cached: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openavs.pipeline.memory_estimate.has_gpu", lambda: False)
    monkeypatch.setattr("openavs.pipeline.memory_estimate.total_memory", lambda: int(16e9))
    first = openavs("check").out.splitlines()[0]
    assert (
        first == "The default recipe of this machine is openavs-cpu (no GPU, 16.0 GB of memory): openavs segment VIDEO"
    )
    one = openavs("check", "--pipeline", "tiny").out
    assert one.startswith("Machine\n") and "is not installed" not in one
