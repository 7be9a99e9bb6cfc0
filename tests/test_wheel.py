"""The wheel carries what the package looks for, and nothing of the repository beside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def test_its_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"openavs/py.typed", "openavs/cli/app.py", "openavs/_data/pipelines/tiny.yaml"} <= names
    assert "openavs/_data/prompts/default.txt" in names
    assert any(name.startswith("openavs/_data/eval/") for name in names)
    shipped = [file for folder in ("assets", "data") for file in (ROOT / "openavs" / folder).rglob("*")]
    for file in shipped:
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in names
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"openavs"}


def test_it_works_away_from_the_checkout(wheel: Path, tmp_path: Path) -> None:
    """Unpacked into a folder of its own, as site-packages would be."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import openavs, openavs.recipes as r, openavs.resources as s; from pathlib import Path;"
        f"assert Path(openavs.__file__).is_relative_to({str(site)!r}), openavs.__file__;"
        "print(s.names('prompts'), r.load_recipe('tiny').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert "default" in done.stdout
    assert done.stdout.rstrip().endswith("tiny")
