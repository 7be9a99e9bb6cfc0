"""Prompts, recipes and cards are found from anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.config import resources
from openavs.errors import InputError


def test_a_name_finds_the_shipped_file_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").write_text("a decoy")
    monkeypatch.chdir(tmp_path)
    found = resources.find("pipelines", "tiny")
    assert found.name == "tiny.yaml"
    assert found.is_absolute()
    assert tmp_path not in found.parents


def test_a_path_wins_over_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "tiny.yaml"
    mine.write_text("mine")
    assert resources.find("pipelines", mine) == mine.resolve()
    monkeypatch.chdir(tmp_path)
    assert resources.find("pipelines", "tiny.yaml") == mine.resolve()
    assert resources.find("pipelines", "./tiny.yaml") == mine.resolve()


def test_a_path_that_is_not_there_never_falls_back_to_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"'\./tiny\.yaml' does not exist"):
        resources.find("pipelines", "./tiny.yaml")
    assert resources.find("pipelines", "tiny.yaml").name == "tiny.yaml"


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no recipe 'tinny'; did you mean 'tiny'\?"):
        resources.find("pipelines", "tinny")
    with pytest.raises(InputError, match=r"no prompt 'defualt'; did you mean 'default'\?"):
        resources.find("prompts", "defualt")


def test_names_lists_stems() -> None:
    assert {"tiny", "openavs", "openavs-cpu", "box-prompt"} <= set(resources.names("pipelines"))
    assert "default" in resources.names("prompts")


def test_a_wheel_has_them_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As installed: no pyproject.toml beside the package, the files under openavs/_data."""
    package = tmp_path / "site-packages" / "openavs"
    (package / "_data" / "prompts").mkdir(parents=True)
    (package / "_data" / "prompts" / "one.txt").write_text("1")
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.names("prompts") == ["one"]
    assert resources.find("prompts", "one") == package / "_data" / "prompts" / "one.txt"


def test_somebody_elses_project_is_not_taken_for_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "theirs.txt").write_text("")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "theirs"\n')
    (tmp_path / "openavs").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "openavs")
    assert resources.names("prompts") == []


def test_an_installation_without_its_data_says_so() -> None:
    assert resources.shipped("eval", "published.csv").is_file()
    with pytest.raises(InputError, match=r"^eval/gone\.csv is missing from this installation of openavs; install it"):
        resources.shipped("eval", "gone.csv")
    with pytest.raises(InputError, match="no kind of resource 'recipes'; "):
        resources.names("recipes")  # type: ignore[arg-type]
