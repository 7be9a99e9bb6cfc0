"""The files for GitHub, citation tools and Docker: well-formed, and the same steps everywhere."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

YAML = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / ".github").rglob("*.yml"))
PINNED = re.compile(r"[\w-]+/[\w./-]+@(v\d+|release/v\d+)")


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def make_steps(workflow: Any) -> set[str]:
    """Return the make targets of a workflow: `make lint`, or `make ${{ matrix.step }}` for each entry of the matrix."""
    found = set()
    for job in workflow["jobs"].values():
        for target in (match[1] for step in job["steps"] if (match := re.match(r"make (\S+)", step.get("run", "")))):
            found |= {target}
        if any("matrix.step" in step.get("run", "") for step in job["steps"]):
            found = (found - {"${{"}) | set(job["strategy"]["matrix"]["step"])
    return found


@pytest.mark.parametrize("path", [*YAML, "CITATION.cff"])
def test_it_is_yaml(path: str) -> None:
    assert isinstance(read(path), dict)


def test_the_workflow_runs_what_continuous_integration_runs() -> None:
    """The audit, which needs a network, is an additional job."""
    (line,) = re.findall(r"^for step in (.+); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert make_steps(read(".github/workflows/ci.yml")) == {*line.split(), "audit"}


def test_every_step_is_a_target_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for name in ("ci", "release"):
        assert make_steps(read(f".github/workflows/{name}.yml")) <= targets


@pytest.mark.parametrize("name", ["ci", "release"])
def test_actions_are_pinned_with_few_permissions(name: str) -> None:
    workflow = read(f".github/workflows/{name}.yml")
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["group"]
    for job, what in workflow["jobs"].items():
        assert what["timeout-minutes"] <= 60
        assert what.get("permissions", {}) == ({"id-token": "write"} if job == "publish" else {})
    for step in steps(workflow):
        assert "uses" not in step or PINNED.fullmatch(step["uses"])
        assert "${{ github." not in step.get("run", "")  # nothing from outside becomes part of a script
        if "checkout" in step.get("uses", ""):
            assert step["with"]["persist-credentials"] is False


def test_it_tests_the_pythons_from_the_oldest_on() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert project["requires-python"] == f">={tested[0]}" and len(tested) == 3


def test_the_citation_is_valid_cff() -> None:
    """The file and each reference have the keys that CFF 1.2.0 requires, with valid names."""
    cited = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(cited) and cited["cff-version"] == "1.2.0"
    assert cited["type"] == "software" and cited["license"] == "Apache-2.0"
    for work in (cited["preferred-citation"], *cited["references"]):
        assert {"type", "title", "authors"} <= set(work) and work["type"] == "article"
        assert set(work) <= {"type", "title", "authors", "journal", "year", "identifiers", "url", "notes"}
        assert all(set(author) in ({"family-names", "given-names"}, {"name"}) for author in work["authors"])
    assert cited["preferred-citation"]["url"] == "https://arxiv.org/abs/2505.01448"


def test_the_image_copies_existing_files_and_runs_as_a_user() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert "NOT BUILT" in lines[0] and any(line.startswith("HEALTHCHECK") for line in lines)
    assert lines.index("USER openavs") < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"]
    assert all((ROOT / path).exists() for path in kept)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packed = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {*packed["packages"], *packed["force-include"], project["project"]["readme"]}
    assert {path.split("/")[0] for path in needed} <= set(kept)
    (extras,) = re.findall(r"\[([a-z,]+)\]\" &&", "\n".join(lines))
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
