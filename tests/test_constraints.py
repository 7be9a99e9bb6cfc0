"""The pinned versions are within the ranges of pyproject.toml."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def pins(name: str) -> dict[str, str]:
    """Return names and versions of a constraints file."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in requirements}


def project() -> Any:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("file", "extras"),
    [("constraints.txt", ("dev", "jobs", "ray", "web", "train")), ("constraints-vllm.txt", ("vllm",))],
)
def test_pins_are_within_the_ranges_and_complete(file: str, extras: tuple[str, ...]) -> None:
    pinned, stated = pins(file), project()
    required = [*stated["dependencies"], *(r for extra in extras for r in stated["optional-dependencies"][extra])]
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        if name == "openavs":  # one extra that holds another
            continue
        assert name in pinned, f"{file} pins no {name}"
        assert requirement.specifier.contains(pinned[name]), f"{file}: {name} {pinned[name]} is not {requirement}"
