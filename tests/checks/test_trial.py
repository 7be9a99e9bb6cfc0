"""`openavs check --download`: downloads of models and trial runs of all stages."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from openavs.checks import trial
from openavs.checks.plan import fetch_models
from openavs.checks.recipe_check import check_vocabulary
from openavs.cli.check import _download_and_try
from openavs.config.recipe import StudentConfig, load_recipe
from openavs.errors import InputError
from openavs.media.encode import write_video
from openavs.models.device import resolve_device
from openavs.pipeline.offload import OffloadManager, lazy_stages
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import ROOT, Outcome
from tests.model_hub import Hub, client_settings, serving
from tests.plugin_recipe import STAGES, write_recipe
from tests.stages.verifiers.plugins import LOOK, MOTION, write_verifiers

Run = Callable[..., Outcome]
TINY = ROOT / "openavs" / "assets" / "tiny"


def recipe_file(folder: Path, **stages: dict[str, Any]) -> Path:
    """The tiny recipe with some options of its stages changed."""
    plain = load_recipe("tiny").to_dict()
    for stage, changes in stages.items():
        plain[stage] = changes if "use" in changes else {**plain[stage], **changes}
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(plain), encoding="utf-8")
    return path


def stages_of(done: Outcome) -> dict[str, Any]:
    found = {item["stage"]: item for item in done.json()["stages"]}
    for item in found.values():  # one sentence
        assert item["message"].endswith(".") and "\n" not in item["message"], item
    return found


def test_tiny_works_stage_by_stage(openavs: Run) -> None:
    done = openavs("check", "--download", "--pipeline", "tiny", "--json")
    found = stages_of(done)
    assert (done.code, done.json()["ready"]) == (0, True)
    assert list(found) == ["captioner", "translator", "detector", "segmenter", "verifier"]
    assert {item["state"] for item in [*found.values(), *done.json()["downloads"]]} == {"ok"}
    assert "1 of 1 audible frame with captions (dog barking)" in found["captioner"]["message"]
    assert "1 prompt (dog)" in found["translator"]["message"]
    assert "1 box above the threshold" in found["detector"]["message"]
    assert "1 mask, the largest covers" in found["segmenter"]["message"]
    verifier = found.pop("verifier")
    assert "1 of 1 segment kept" in verifier["message"] and verifier["estimated_gb"] is None
    for item in found.values():
        assert item["load_seconds"] > 0 and item["run_seconds"] > 0 and item["peak_gb"] > 0.05
        assert 0.5 <= item["estimated_gb"] < 1
        assert not item["placeholder"]


def test_one_stage_is_in_memory_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[OffloadManager] = []

    def watched(recipe: Any) -> Any:
        turns, held = lazy_stages(recipe)
        kept.append(turns)
        return turns, held

    monkeypatch.setattr(trial, "lazy_stages", watched)
    assert len(list(trial.try_stages(load_recipe("tiny"), trial.bundled_clip()))) == 5
    assert kept[0].most == 1 and set(kept[0].loads.values()) == {1}


def test_later_stages_still_run_after_an_incomplete_checkpoint(openavs: Run, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(TINY / "grounding-dino", half)
    tensors = load_file(half / "model.safetensors")
    save_file(dict(list(tensors.items())[::2]), half / "model.safetensors", metadata={"format": "pt"})
    done = openavs("check", "--download", "-p", recipe_file(tmp_path, detector={"model": str(half)}), "--json")
    found = stages_of(done)
    assert (done.code, done.json()["ready"]) == (1, False)
    assert {stage: item["state"] for stage, item in found.items()} == {
        "captioner": "ok",
        "translator": "ok",
        "detector": "problem",
        "segmenter": "ok",
        "verifier": "ok",
    }
    assert found["detector"]["message"].startswith("detector grounding-dino: the model")
    assert "is not a whole" in found["detector"]["message"]
    assert found["segmenter"]["placeholder"]


def test_a_truncated_file_is_found_by_its_header(openavs: Run, tmp_path: Path) -> None:
    short = tmp_path / "short"
    shutil.copytree(TINY / "sam", short)
    whole = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    (found,) = (
        finding
        for finding in fetch_models(load_recipe(recipe_file(tmp_path, segmenter={"model": str(short)})))
        if finding.state == "problem"
    )
    assert found.facts["stages"] == ["segmenter"]
    assert f"the weights {short / 'model.safetensors'}" in found.message and "are damaged" in found.message


@pytest.mark.parametrize(
    ("labels", "state", "share"),
    [
        (["dog barking", "zorblat", "Rain"], "warning", "1 of 3 labels of the vocabulary are not in the lexicon"),
        (["zorblat", "qwmt"], "problem", "2 of 2 labels of the vocabulary are not in the lexicon"),
    ],
)
def test_labels_missing_from_the_lexicon_are_counted(
    openavs: Run, tmp_path: Path, labels: list[str], state: str, share: str
) -> None:
    (tmp_path / "labels.txt").write_text("\n".join(labels), encoding="utf-8")
    path = recipe_file(tmp_path, captioner={"vocabulary": "./labels.txt"}, translator={"use": "lexicon"})
    done = openavs("check", "--download", "-p", path, "--json")
    captioner = stages_of(done)["captioner"]
    assert (done.code, captioner["state"]) == (int(state == "problem"), state)
    assert share in captioner["message"] and "(such as 'zorblat')" in captioner["message"]


def test_thresholds_outside_their_range_are_refused(openavs: Run, tmp_path: Path) -> None:
    done = openavs("check", "--download", "-p", recipe_file(tmp_path, captioner={"threshold": 7.0}), "--json")
    found = stages_of(done)
    assert done.code == 1 and found["detector"]["state"] == "ok"
    assert found["captioner"]["message"].startswith("captioner clap: clap: threshold")
    assert found["captioner"]["message"].endswith("[0, 1], not 7.0.")
    kept = recipe_file(tmp_path, filtering={"box_threshold": 2.0})
    refused = openavs("check", "--download", "-p", kept)
    assert refused.code == 2 and len(refused.err.strip().splitlines()) == 1 and "filtering.box_threshold" in refused.err


def test_an_error_of_a_plug_in_is_a_problem_of_its_stage(openavs: Run, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    broken = STAGES.replace("        found = []\n", '        raise RuntimeError("no kernel\\nfor this")\n')
    (tmp_path / "stages.py").write_text(broken.replace("return [[self._filled", "return None and [[self._filled"))
    done = openavs("check", "--download", "-p", path, "--json")
    found = stages_of(done)
    assert done.code == 1
    assert found["detector"]["message"] == "detector ./stages.py:Eye: RuntimeError: no kernel."
    assert "the segmenter returned nothing (None)" in found["segmenter"]["message"]
    assert [found[stage]["state"] for stage in ("captioner", "translator")] == ["ok", "ok"]


def test_at_most_ten_frames_of_a_video_are_used(openavs: Run, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    scene = plan_scene([Role("dog", (True,) * 12)], scene_rng("test", 50), 12, (64, 80))
    write_clip(tmp_path / "video.mp4", scene, fps=4)
    done = openavs("check", "--download", "-p", path, "--try", tmp_path / "video.mp4")
    assert done.code == 0, done.out
    assert "10 of 10 audible frames with captions (dog)" in done.out
    assert "10 masks, the largest covers 25% of the image" in done.out
    assert done.out.rstrip().endswith("Every stage works.")


def test_unusable_options_and_videos_are_refused(openavs: Run, tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    assert "add --download" in openavs("check", "-p", path, "--try", tmp_path / "video.mp4").err
    write_video(tmp_path / "mute.mp4", [np.zeros((64, 80, 3), dtype=np.uint8)] * 8, 4)
    mute = openavs("check", "-p", path, "--download", "--try", tmp_path / "mute.mp4")
    assert mute.code == 2 and "has no audio track; give a video with sound" in mute.err


def test_a_recipe_that_does_not_fit_is_refused_before_downloads(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: 1000)
    monkeypatch.setattr("openavs.checks.plan.resolve", lambda *given: pytest.fail("downloads"))
    done = openavs("check", "--download", "-p", "tiny")
    assert done.code == 2 and "the recipe tiny needs" in done.err and "free" in done.err


def test_nothing_is_downloaded_offline(openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    done = openavs("check", "--download", "--offline", "-p", "openavs-cpu", "--json")
    assert done.code == 1 and not {"downloads", "stages"} & done.json().keys()
    assert "offline mode forbids downloads" in done.json()["recipes"][0]["message"]


def test_students_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    student = load_recipe("tiny").model_copy(update={"student": StudentConfig(model="./student")})
    monkeypatch.setattr("openavs.config.recipe.load_recipe", lambda *given: student)
    with pytest.raises(InputError, match="student:x is a student; omit the option"):
        list(_download_and_try("student:x", (), None, offline=False))


def test_trackers_and_verifiers_run_on_the_segmenters_masks(tmp_path: Path) -> None:
    recipe = load_recipe("tiny", ["verifier={use: clip, model: 'openavs:tiny/clip'}", "tracker={use: iou}"])
    found = {finding.facts["stage"]: finding for finding in trial.try_stages(recipe, trial.bundled_clip())}
    assert found["verifier"].state == found["tracker"].state == "ok", found
    assert "1 segment kept" in found["verifier"].message
    assert "1 track through 1 frame" in found["tracker"].message


def test_verifiers_of_whole_clips_run_after_the_tracker(tmp_path: Path) -> None:
    path = write_verifiers(tmp_path, MOTION | {"keep": 0}, LOOK, tracker={"use": "iou"})
    found = {finding.facts["stage"]: finding for finding in trial.try_stages(load_recipe(path), trial.bundled_clip())}
    assert list(found)[3:] == ["segmenter", "verifier.2", "tracker", "verifier.1"]
    assert all(finding.state == "ok" for finding in found.values()), found
    assert "1 segment kept" in found["verifier.2"].message
    assert found["verifier.1"].message.startswith("verifier.1 ./stages.py:Motion: loaded in")
    assert "0 of 1 segment kept" in found["verifier.1"].message
    assert found["verifier.1"].facts["estimated_gb"] is None


def test_a_verifier_of_whole_clips_needs_no_tracker(tmp_path: Path) -> None:
    recipe = load_recipe(write_verifiers(tmp_path, MOTION))
    *_, found = trial.try_stages(recipe, trial.bundled_clip(), failed={"segmenter": "of a test"})
    assert "1 of 1 segment kept" in found.message and found.facts["placeholder"]


def test_peak_memory_since_its_construction() -> None:
    place = resolve_device("cpu", "float32")
    peak = trial.PeakMemory(place)
    before = peak.gb()
    block = np.ones(100_000_000, dtype=np.uint8)
    assert peak.gb() >= before + 0.09
    del block
    if sys.platform == "linux":
        assert trial.PeakMemory(place).gb() <= before + 0.05


@pytest.fixture
def hub() -> Iterator[str]:
    clap = {path.name: path.read_bytes() for path in (TINY / "clap").iterdir()}
    Hub.files = {"org/clap": clap, "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}
    Hub.asked, Hub.commits, Hub.pulls = [], ("a" * 40,), {}
    with serving() as address:
        yield address


def test_a_model_without_safetensors_fails_its_stage(hub: str, tmp_path: Path) -> None:
    path = recipe_file(tmp_path, captioner={"model": "hf:org/clap@main"}, segmenter={"model": "hf:org/pickled@main"})
    command = [sys.executable, "-m", "openavs", "check", "--download", "-p", str(path), "--json"]
    settings = client_settings(hub, tmp_path / "hf")
    done = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    stages = {item["stage"]: item for item in answer["stages"]}
    assert {item["model"]: item["state"] for item in answer["recipes"][0]["models"]}["hf:org/clap@main"] == "missing"
    downloads = {item["model"]: item for item in answer["downloads"]}
    assert downloads["hf:org/clap@main"]["parameters_m"] > 0.5
    assert stages["captioner"]["state"] == "ok" and "dog barking" in stages["captioner"]["message"]
    reason = "the model 'hf:org/pickled@main' has no safetensors weights at this revision; "
    assert stages["segmenter"]["message"].startswith(f"segmenter sam: not loaded, since {reason}")
    assert not any("pytorch_model.bin" in line for line in Hub.asked if "resolve" in line)


def test_a_vocabulary_file_named_like_audioset_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "audioset_mine.txt").write_text("dog barking\nzorblat\n")
    recipe = load_recipe("tiny", ["captioner.vocabulary=audioset_mine.txt", "translator.use=lexicon"])
    assert "1 of 2 labels of the vocabulary are not in the lexicon" in check_vocabulary(recipe)
