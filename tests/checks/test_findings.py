"""What is said of machines, codecs, GPUs and packages that are not this one."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from openavs.checks import Finding, codecs, compute, machine
from openavs.checks.compute import gpu_finding, threads
from openavs.checks.packages import extra_finding
from openavs.checks.recipes import check_recipe
from openavs.config.recipe import load_recipe
from openavs.utils.optional_deps import EXTRAS


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages that Python looks into first."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {text}" for text in requires)]
    (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]), encoding="utf-8")


def test_what_is_unasked_for_is_no_problem() -> None:
    assert Finding("recipe", "problem", "It lacks a key.").unasked().state == "absent"
    assert Finding("recipe", "warning", "It is slow.").unasked().state == "warning"


def test_the_installed_packages_fit() -> None:
    found = machine.packages()
    assert found.state == "ok" and "transformers" in found.facts


def test_a_package_that_does_not_fit_is_named_with_what_is_wanted(site: Path) -> None:
    install(site, "transformers", "4.57.6")
    found = machine.packages()
    assert found.state == "problem"
    assert "transformers 4.57.6 for openavs's <6,>=5.16" in found.says
    assert found.fix.startswith("pip install ") and '"transformers<6,>=5.16"' in found.fix


def test_requirements_of_other_systems_and_extras_do_not_count(site: Path) -> None:
    install(site, "thing", "1", "nowhere>=1; sys_platform == 'plan9'", "nothing; extra == 'more'", "numpy>=1")
    assert list(machine.misfits("thing")) == []
    install(site, "other", "1", "absent-package>=2")
    assert list(machine.misfits("other")) == [("absent-package>=2", "absent-package is not installed")]


def test_what_is_not_installed_requires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(machine.misfits("absent-thing")) == [("absent-thing", "absent-thing is not installed")]
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "packaging.requirements", None)
        assert list(machine.misfits("openavs")) == [("packaging", "packaging is not installed")]

    def absent(package: str) -> list[str]:
        if package == "openavs":
            raise metadata.PackageNotFoundError(package)
        return real(package) or []

    real = metadata.requires
    monkeypatch.setattr(metadata, "requires", absent)
    assert list(machine.misfits("openavs")) == []  # it runs from its sources
    assert extra_finding(EXTRAS["train"]).state == "ok"


def test_an_extra_in_every_state(site: Path) -> None:
    gdino, vllm, clap = EXTRAS["groundingdino"], EXTRAS["vllm"], EXTRAS["laion-clap"]
    assert extra_finding(vllm).state == "absent" and 'pip install "openavs[vllm]"' in extra_finding(vllm).fix
    install(site, "groundingdino-py", "0.1.0")
    old = extra_finding(gdino)
    assert old.state == "warning" and "0.1.0 is installed, and openavs needs ==0.4.0" in old.says
    install(site, "vllm", "0.30.0", "transformers<5.18,>=5.10.4", "torch")
    odd = extra_finding(vllm)
    assert odd.state == "warning" and "transformers" in odd.says and "for vllm's <5.18,>=5.10.4" in odd.says
    install(site, "laion-clap", "1.1.7", "numpy<2")
    assert extra_finding(clap).state == "ok"  # the tests were run with it beside numpy 2


def test_an_extra_of_another_version_than_the_tests_ran_with(site: Path) -> None:
    ray = EXTRAS["ray"]
    install(site, "ray", "2.99.0")
    other = replace(ray, tried=("2.50.0",))
    assert extra_finding(other).says.endswith("ray 2.99.0 is installed; the tests of this release ran with 2.50.0.")
    assert extra_finding(other).fix == "if it fails: pip install ray==2.50.0"
    unknown = replace(ray, name="newer", tried=())  # than the metadata of this installation
    assert (extra_finding(unknown).state, extra_finding(unknown).fix) == ("ok", "")


def test_codecs_that_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, writes = dict.fromkeys(codecs.READ, True), dict.fromkeys(codecs.WRITE, True)
    assert codecs.check_codecs("18", "8.1", reads, writes).state == "ok"
    assert codecs.check_codecs("18", "8.1", {**reads, "av1": False}, writes).state == "warning"
    lame = codecs.check_codecs("18", "8.1", reads, {**writes, "libx264": False})
    assert lame.state == "problem" and "libx264 (to write overlay videos)" in lame.says and "--only-binary" in lame.fix


def test_pyav_says_what_it_can() -> None:
    assert codecs.has_codec("h264", "r") and not codecs.has_codec("h265x", "r")
    found = codecs.codecs()
    assert found.state == "ok" and found.facts["decode"]["av1"] and found.facts["encode"]["libx264"]


@pytest.mark.parametrize(
    ("capability", "built_for", "state"),
    [
        ((9, 0), ["sm_80", "sm_90"], "ok"),
        ((8, 9), ["sm_80", "sm_90"], "ok"),  # code of 8.0 runs on 8.9
        ((6, 1), ["sm_80", "sm_90"], "warning"),
        ((12, 0), ["sm_80", "sm_90a"], "warning"),
        ((12, 0), ["sm_80", "compute_90"], "ok"),  # compiled anew for what came later
        ((9, 4), ["gfx942"], "ok"),  # another maker's
    ],
)
def test_a_gpu_that_torch_has_no_code_for(capability: tuple[int, int], built_for: list[str], state: str) -> None:
    found = gpu_finding(0, "Card", capability, built_for, {"gib": 80.0, "gib_free": 79.0})
    assert found.state == state
    assert (found.fix == "") == (state == "ok")


def test_more_threads_than_processors() -> None:
    assert threads(2, 2.0).state == "ok"
    many = threads(64, 4.0)
    assert many.state == "warning" and many.fix == "export OMP_NUM_THREADS=4"


def test_gpus_that_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute, "_NVIDIA", tmp_path / "nvidiactl")
    assert compute.unseen(False, "13.0") == []  # there is no driver
    (tmp_path / "nvidiactl").touch()
    (plain,), (old,) = compute.unseen(False, None), compute.unseen(False, "13.0")
    assert plain.state == old.state == "warning"
    assert "built without CUDA" in plain.says and "install a CUDA build" in plain.fix
    assert "too old for CUDA 13.0" in old.says and "nvidia-smi" in old.fix
    assert compute.unseen(True, "13.0") == []


def test_how_much_memory_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_gib(gib: float | None) -> Finding:
        monkeypatch.setattr(machine, "memory_gib", lambda: gib)
        return machine.memory()

    assert [with_gib(gib).state for gib in (1.0, 4.0, 64.0, None)] == ["problem", "warning", "ok", "warning"]
    assert with_gib(4.0).says == "There are 4.0 GiB of memory; the recipes for real videos want 8 GiB or more."
    assert with_gib(None).says == "This system does not say how much memory it has."


def test_what_a_recipe_lacks_is_said_before_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    (tmp_path / "mine.py").touch()
    stages = [f"{stage}: {{use: './mine.py:Own'}}" for stage in ("captioner", "detector", "segmenter")]
    (tmp_path / "own.yaml").write_text("\n".join(["translator: {use: none}", *stages]), encoding="utf-8")
    own = check_recipe(load_recipe(tmp_path / "own.yaml"), tmp_path).finding
    assert (own.state, own.says) == ("ok", "own: it needs no weights.")
    wrong = check_recipe(load_recipe("tiny", ["device=cuda:63", "captioner.use=clapp"]), tmp_path).finding
    assert wrong.state == "problem"
    assert "cuda" in wrong.says and "'clapp'" in wrong.says
    large = load_recipe("openavs-cpu")
    assert check_recipe(large, tmp_path).finding.state == "absent"
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1e9))
    full = check_recipe(large, tmp_path).finding
    assert full.state == "problem"
    assert "GB does not fit into the 1.0 GB that are free in" in full.says
    assert "HF_HOME" in full.fix


def test_a_recipe_that_is_too_large_for_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """14 GB together, 11 GB in turns: in the total memory, since what is free now says little of a later run."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    recipe = load_recipe("openavs", ["device=cpu"])

    def judged(gigabytes: float) -> Finding:
        monkeypatch.setattr("openavs.models.memory.total_memory", lambda: int(gigabytes * 1e9))
        return check_recipe(recipe, tmp_path).finding

    assert judged(64).state == "absent" and "in turns" not in judged(64).says
    assert "GB together and this machine has 13.0 GB, so they are loaded in turns." in judged(13).says
    small = judged(8)
    assert small.state == "problem" and "GB even if they are loaded in turns, and this machine has 8.0 GB" in small.says
    assert "such as openavs-cpu" in small.fix


def test_limits_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.models.memory.CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert machine.memory_gib() == 1.0 and machine.cores() == 0.5
    assert machine.memory().state == "problem"
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert (machine.memory_gib() or 0) > 1 and machine.cores() >= 1


def test_a_disk_that_is_full_or_closed(tmp_path: Path) -> None:
    assert machine.disk("out", tmp_path / "not" / "yet", "results", 0.0, "x").state == "ok"
    full = machine.disk("out", tmp_path, "results", 1e9, "free some")
    assert (full.state, full.fix) == ("warning", "free some")
    (tmp_path / "file").write_bytes(b"")
    assert machine.disk("out", tmp_path / "file", "results", 0.0, "give another").state == "warning"
