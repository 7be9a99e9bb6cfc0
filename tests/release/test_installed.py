"""The installed wheel, used from another directory: the first commands of a new user."""

from __future__ import annotations

import json

from openavs import __version__
from tests.conftest import ROOT
from tests.release.conftest import Installation


def test_the_version(installation: Installation) -> None:
    done = installation.run("openavs", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"openavs {__version__}\n", "")


def test_nothing_comes_from_the_checkout(installation: Installation) -> None:
    code = "import openavs; from openavs.config import resources as r; print(openavs.__file__, *r.folders('pipelines'))"
    done = installation.run("python", "-c", code)
    assert done.returncode == 0, done.stderr
    assert str(installation.folder) in done.stdout
    assert str(ROOT / "pipelines") not in done.stdout and str(ROOT / "openavs" / "__init__.py") not in done.stdout


def test_what_it_requires_goes_together(installation: Installation) -> None:
    done = installation.run("python", "-m", "pip", "check")
    assert done.returncode == 0, done.stdout


def test_check_says_that_it_is_ready(installation: Installation) -> None:
    done = installation.run("openavs", "check", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["ready"], found["recipe"]) == (0, True, "tiny")
    extras = {item["extra"]: item["state"] for item in found["extras"]}
    assert set(extras.values()) == {"absent"}  # only the core is installed


def test_the_demo_runs(installation: Installation) -> None:
    done = installation.run("openavs", "demo", "--out", "out")
    assert done.returncode == 0, done.stderr
    (folder,) = (installation.cwd / "out").glob("**/clips/*")
    assert {"result.json", "masks", "overlay.mp4", "report.html"} <= {path.name for path in folder.iterdir()}


def test_lists_and_prompts_are_found(installation: Installation) -> None:
    listed = json.loads(installation.run("openavs", "list", "--json").stdout)
    assert "tiny" in {recipe["name"] for recipe in listed["recipes"]}
    assert "s4" in {card["name"] for card in listed["benchmarks"]} and listed["studies"]
    assert installation.run("openavs", "show", "default").stdout.startswith("name: default")


def test_an_absent_extra_is_one_sentence(installation: Installation) -> None:
    """The command of a missing extra names the extra, without a traceback."""
    assert installation.run("openavs", "synth", "clip", "--out", "video.mp4", "--seconds", "2").returncode == 0
    words = ("segment", "video.mp4", "--pipeline", "tiny", "translator={use: openai, model: gpt-4o}", "--out", "out")
    done = installation.run("openavs", *words)
    [said] = [line for line in done.stderr.splitlines() if 'pip install "openavs[openai]"' in line]
    assert done.returncode == 2 and said.startswith("openavs: the recipe tiny cannot run: its translator openai")
    assert "Traceback" not in done.stderr
