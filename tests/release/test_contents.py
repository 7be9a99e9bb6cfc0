"""The wheel contains the files that the package reads, and no others; the sdist builds the same wheel."""

from __future__ import annotations

import hashlib
import re
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from openavs import __version__
from tests.conftest import ROOT

JUNK = re.compile(r"(^|/)(__pycache__|\.venv|build|dist|\.git|\.[a-z]+_cache|\.hypothesis|node_modules)/|\.py[co]$")


def the_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def names(dist: Path) -> set[str]:
    return set(zipfile.ZipFile(the_wheel(dist)).namelist())


def in_the_sdist(dist: Path) -> set[str]:
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def test_it_has_every_file_that_the_package_reads(dist: Path) -> None:
    packed, sources = names(dist), in_the_sdist(dist)
    for name in sources:
        if name.startswith("openavs/"):
            assert name in packed
        elif name.startswith(("prompts/", "pipelines/")) or re.fullmatch(r"eval/.*\.(yaml|csv)", name):
            assert f"openavs/_data/{name}" in packed
    for name in ("openavs/py.typed", "openavs/assets/tiny/clap/model.safetensors", "openavs/assets/tables/models.tsv"):
        assert name in packed
    assert not [name for name in packed if name.startswith("openavs/_data/eval/") and name.endswith(".py")]
    for name in ("prompts/default.txt", "pipelines/tiny.yaml", "eval/s4.yaml", "eval/published.csv"):
        assert f"openavs/_data/{name}" in packed


def test_it_has_nothing_else(dist: Path) -> None:
    tops = {name.partition("/")[0] for name in names(dist)}
    assert tops == {"openavs", f"openavs-{__version__}.dist-info"}
    assert not [name for name in names(dist) if JUNK.search(name) or "/tests/" in name]


def test_its_metadata(dist: Path) -> None:
    info = f"openavs-{__version__}.dist-info"
    wheel = zipfile.ZipFile(the_wheel(dist))
    fields = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode("utf-8"))
    assert (fields["Name"], fields["Version"], fields["License-Expression"]) == ("openavs", __version__, "Apache-2.0")
    assert fields["Description-Content-Type"] == "text/markdown" and "# openavs" in fields.get_payload()
    assert f"{info}/licenses/LICENSE" in names(dist)
    assert "openavs = openavs.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert not any("torchvision" in needed for needed in fields.get_all("Requires-Dist", []))


def test_the_sdist_makes_the_same_wheel(dist: Path) -> None:
    """Byte for byte: one was built from the sdist, the other from the checkout."""
    digests = {hashlib.sha256(the_wheel(folder).read_bytes()).hexdigest() for folder in (dist, ROOT / "build/direct")}
    assert len(digests) == 1


def test_the_sdist_is_the_project_without_junk(dist: Path) -> None:
    packed = in_the_sdist(dist)
    for name in ("pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "tests/conftest.py", "docs/check.md"):
        assert name in packed
    assert not [name for name in packed if JUNK.search(name)]
