"""What all commands share: how errors of the system end, and what a closed pipe does."""

from __future__ import annotations

import errno
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


def test_what_the_disk_refuses_is_a_sentence(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.config.resources.names", refusing(errno.EACCES))
    done = openavs("show", "tiny")
    assert done.code == 2
    assert done.err.startswith("openavs: openavs.yaml cannot be read or written (as the system says); make room")


def test_a_fault_of_the_program_shows_where_it_comes_from(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.config.resources.names", refusing(errno.EBADF))
    with pytest.raises(OSError, match="as the system says"):
        openavs("show", "tiny")


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = [sys.executable, "-m", "openavs", "show", "tiny"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()  # as `| head -0`
        said = running.stderr.read()
    assert said == b""


def test_an_answer_is_json_or_words_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[int] = []
    print_result({"a": 1}, lambda: shown.append(1), as_json=True, quiet=True)
    assert capsys.readouterr().out == '{\n  "a": 1\n}\n'
    print_result({"a": 1}, lambda: shown.append(2), as_json=False, quiet=True)
    print_result({"a": 1}, lambda: shown.append(3), as_json=False, quiet=False)
    assert (shown, capsys.readouterr().out) == ([3], "")


def test_all_that_is_printed_goes_through_the_functions_that_escape_control_characters() -> None:
    sources = [path for path in Path(openavs.cli.__file__).parent.glob("*.py") if path.name != "output.py"]
    assert len(sources) > 10
    raw = re.compile(r"(?<![\w.])print\(|sys\.std(out|err)\.write|partial\(print")
    assert [path.name for path in sources if raw.search(path.read_text("utf-8"))] == []
