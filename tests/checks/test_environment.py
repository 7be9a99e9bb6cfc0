"""Checks of other environments: packages, codecs, GPUs, memory, disks."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from openavs.checks import CheckResult, environment
from openavs.checks.environment import check_extra, check_threads, gpu_result
from openavs.checks.recipe_check import check_recipe
from openavs.config.recipe import load_recipe
from openavs.utils.optional_deps import EXTRAS


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages at the front of `sys.path`."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
    (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]), encoding="utf-8")


def test_an_optional_problem_counts_as_absent() -> None:
    assert CheckResult("recipe", "problem", "It lacks a key.").as_optional().state == "absent"
    assert CheckResult("recipe", "warning", "It is slow.").as_optional().state == "warning"


def test_the_installed_packages_fit() -> None:
    found = environment.check_packages()
    assert found.state == "ok" and "transformers" in found.facts


def test_a_wrong_package_version_is_named_with_the_required_one(site: Path) -> None:
    install(site, "transformers", "4.57.6")
    found = environment.check_packages()
    assert found.state == "problem"
    assert "transformers 4.57.6 for openavs's <6,>=5.16" in found.message
    assert found.fix.startswith("pip install ") and '"transformers<6,>=5.16"' in found.fix


def test_requirements_of_other_systems_and_extras_do_not_count(site: Path) -> None:
    install(site, "thing", "1", "nowhere>=1; sys_platform == 'plan9'", "nothing; extra == 'more'", "numpy>=1")
    assert list(environment.unmet_requirements("thing")) == []
    install(site, "other", "1", "absent-package>=2")
    assert list(environment.unmet_requirements("other")) == [("absent-package>=2", "absent-package is not installed")]


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(environment.unmet_requirements("absent-thing")) == [("absent-thing", "absent-thing is not installed")]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "packaging.requirements", None)
        assert list(environment.unmet_requirements("openavs")) == [("packaging", "packaging is not installed")]

    def absent(package: str) -> list[str]:
        if package == "openavs":
            raise metadata.PackageNotFoundError(package)
        return real(package) or []

    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", absent)
    assert list(environment.unmet_requirements("openavs")) == []  # it runs from its sources
    assert check_extra(EXTRAS["train"]).state == "ok"


def test_states_of_an_extra(site: Path) -> None:
    gdino, vllm, clap = EXTRAS["groundingdino"], EXTRAS["vllm"], EXTRAS["laion-clap"]
    assert check_extra(vllm).state == "absent" and 'pip install "openavs[vllm]"' in check_extra(vllm).fix
    install(site, "groundingdino-py", "0.1.0")
    old = check_extra(gdino)
    assert old.state == "warning" and "0.1.0 is installed, but openavs needs ==0.4.0" in old.message
    install(site, "vllm", "0.30.0", "transformers<5.18,>=5.10.4", "torch")
    odd = check_extra(vllm)
    assert odd.state == "warning" and "transformers" in odd.message and "for vllm's <5.18,>=5.10.4" in odd.message
    install(site, "laion-clap", "1.1.7", "numpy<2")
    assert check_extra(clap).state == "ok"  # the tests were run with it beside numpy 2


def test_an_untested_version_of_an_extra(site: Path) -> None:
    ray = EXTRAS["ray"]
    install(site, "ray", "2.99.0")
    other = replace(ray, tried=("2.50.0",))
    assert check_extra(other).message.endswith("ray 2.99.0 is installed; this release was tested with 2.50.0.")
    assert check_extra(other).fix == "if it fails: pip install ray==2.50.0"
    unknown = replace(ray, name="newer", tried=())  # than the metadata of this installation
    assert (check_extra(unknown).state, check_extra(unknown).fix) == ("ok", "")


def test_missing_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = dict.fromkeys(environment.DECODERS, True), dict.fromkeys(environment.ENCODERS, True)
    assert environment.codec_result("18", "8.1", reads, writes).state == "ok"
    assert environment.codec_result("18", "8.1", {**reads, "av1": False}, writes).state == "warning"
    incomplete = environment.codec_result("18", "8.1", reads, {**writes, "libx264": False})
    assert incomplete.state == "problem" and "--only-binary" in incomplete.fix
    assert "libx264 (to write overlay videos)" in incomplete.message


def test_codecs_of_the_installed_pyav() -> None:
    assert environment.has_codec("h264", "r") and not environment.has_codec("h265x", "r")
    found = environment.check_codecs()
    assert found.state == "ok" and found.facts["decode"]["av1"] and found.facts["encode"]["libx264"]


@pytest.mark.parametrize(
    ("capability", "built_for", "state"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok"),
        ((8, 9), ["sm_80", "sm_90"], "ok"),  # code of 8.0 runs on 8.9
        ((6, 1), ["sm_80", "sm_90"], "warning"),
        ((12, 0), ["sm_80", "sm_90a"], "warning"),
        ((12, 0), ["sm_80", "compute_90"], "ok"),  # PTX is compiled for later GPUs
        ((9, 4), ["gfx942"], "ok"),  # ROCm
    ],
)
def test_gpu_support_of_the_torch_build(capability: tuple[int, int], built_for: list[str], state: str) -> None:
    found = gpu_result(0, "Card", capability, built_for, {"gib": 80.0, "gib_free": 79.0})
    assert found.state == state
    assert (found.fix == "") == (state == "ok")


def test_more_threads_than_processors() -> None:
    assert check_threads(2, 2.0).state == "ok"
    many = check_threads(64, 4.0)
    assert many.state == "warning" and many.fix == "export OMP_NUM_THREADS=4"


def test_gpus_that_torch_does_not_detect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_NVIDIA", tmp_path / "nvidiactl")
    assert environment.undetected_gpus("13.0") == []  # there is no driver
    (tmp_path / "nvidiactl").touch()
    (plain,), (old,) = environment.undetected_gpus(None), environment.undetected_gpus("13.0")
    assert plain.state == old.state == "warning"
    assert "built without CUDA" in plain.message and "install a CUDA build" in plain.fix
    assert "too old for CUDA 13.0" in old.message and "nvidia-smi" in old.fix


def test_required_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_gib(gib: float | None) -> CheckResult:
        monkeypatch.setattr(environment, "memory_gib", lambda: gib)
        return environment.check_memory()

    assert [with_gib(gib).state for gib in (1.0, 4.0, 64.0, None)] == ["problem", "warning", "ok", "warning"]
    assert with_gib(4.0).message == "This machine has 4.0 GiB of memory; recipes for real videos need 8 GiB or more."
    assert with_gib(None).message == "The amount of memory of this system is unknown."


def test_missing_parts_of_a_recipe_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "mine.py").touch()
    stages = [f"{stage}: {{use: './mine.py:Own'}}" for stage in ("captioner", "detector", "segmenter")]
    (tmp_path / "own.yaml").write_text("\n".join(["translator: {use: none}", *stages]), encoding="utf-8")
    own = check_recipe(load_recipe(tmp_path / "own.yaml"), tmp_path).result
    assert (own.state, own.message) == ("ok", "own: no model weights are needed.")
    wrong = check_recipe(load_recipe("tiny", ["device=cuda:63", "captioner.use=clapp"]), tmp_path).result
    assert wrong.state == "problem"
    assert "cuda" in wrong.message and "'clapp'" in wrong.message
    large = load_recipe("openavs-cpu")
    assert check_recipe(large, tmp_path).result.state == "absent"
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1e9))
    full = check_recipe(large, tmp_path).result
    assert full.state == "problem"
    assert "GB does not fit into the 1.0 GB that are free in" in full.message
    assert "HF_HOME" in full.fix


def test_a_recipe_that_is_too_large_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 GB together, 11 GB with offloading, compared with the total memory and not with what is free."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    recipe = load_recipe("openavs", ["device=cpu"])

    def checked(gigabytes: float) -> CheckResult:
        monkeypatch.setattr("openavs.pipeline.memory_estimate.total_memory", lambda: int(gigabytes * 1e9))
        return check_recipe(recipe, tmp_path).result

    assert checked(64).state == "absent" and "offloaded" not in checked(64).message
    assert "GB together and this machine has 13.0 GB, so they are offloaded between stages." in checked(13).message
    small = checked(8)
    assert small.state == "problem" and "GB even with offloading, and this machine has 8.0 GB" in small.message
    assert "such as openavs-cpu" in small.fix


def test_limits_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.models.device.CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert environment.memory_gib() == 1.0 and environment.available_cores() == 0.5
    assert environment.check_memory().state == "problem"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert (environment.memory_gib() or 0) > 1 and environment.available_cores() >= 1


def test_full_and_read_only_disks(tmp_path: Path) -> None:
    assert environment.check_disk("out", tmp_path / "not" / "yet", "results", 0.0, "x").state == "ok"
    full = environment.check_disk("out", tmp_path, "results", 1e9, "free some")
    assert (full.state, full.fix) == ("warning", "free some")
    (tmp_path / "file").write_bytes(b"")
    assert environment.check_disk("out", tmp_path / "file", "results", 0.0, "give another").state == "warning"
