"""Exit codes, system errors and output of all commands."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import openavs.cli
from openavs.cli.output import print_result
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def refusing(number: int) -> Callable[..., None]:
    def refuse(*given: object) -> None:
        raise OSError(number, "as the system says", "openavs.yaml")

    return refuse


def test_a_refused_file_access_is_one_sentence(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.config.resources.names", refusing(errno.EACCES))
    done = openavs("show", "tiny")
    assert done.code == 2
    assert done.err.startswith("openavs: openavs.yaml cannot be read or written (as the system says); free disk space")


def test_a_bug_shows_its_traceback(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.config.resources.names", refusing(errno.EBADF))
    with pytest.raises(OSError, match="as the system says"):
        openavs("show", "tiny")


def test_a_closed_pipe_is_not_an_error() -> None:
    command = [sys.executable, "-m", "openavs", "show", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()  # as `| head -0`
        said = running.stderr.read()
    assert said == b""


def test_a_result_is_json_or_text_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[int] = []
    print_result({"a": 1}, lambda: shown.append(1), as_json=True, quiet=True)
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'
    print_result({"a": 1}, lambda: shown.append(2), as_json=False, quiet=True)
    print_result({"a": 1}, lambda: shown.append(3), as_json=False, quiet=False)
    assert (shown, capsys.readouterr().out) == ([3], "")


def test_all_output_is_escaped() -> None:
    sources = [path for path in Path(openavs.cli.__file__).parent.glob("*.py") if path.name != "output.py"]
    assert len(sources) > 10
    raw = re.compile(r"(?<![\w.])print\(|sys\.std(out|err)\.write|partial\(print")
    assert [path.name for path in sources if raw.search(path.read_text("utf-8"))] == []


def test_help_lists_common_options_first_and_ends_with_examples(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = openavs("segment", "--help").out
    common, advanced = text.partition("Advanced options")[::2]
    assert "--pipeline" in common and "--threshold" in common and "--dtype" in advanced
    assert not re.search(r"<(bool|str|int|path|float|list)", text)
    assert "openavs segment videos/ --pipeline tiny" in advanced
    assert "local|ray" in openavs("label", "--help").out
    assert "\n   openavs serve --pipeline tiny" in openavs("serve", "--help").out, "the only example is indented, too"


def test_a_shell_completes_commands_and_recipes() -> None:
    def completed(words: str, position: int) -> list[str]:
        ask = {"COMP_WORDS": words, "COMP_CWORD": str(position), "_OPENAVS_COMPLETE": "complete_bash"}
        command = [sys.executable, "-m", "openavs"]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **ask}, timeout=60)
        return done.stdout.split()

    assert completed("openavs seg", 1) == ["segment"]
    assert "openavs-cpu" in completed("openavs segment --pipeline op", 3)
