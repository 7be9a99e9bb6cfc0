"""The language check of `make lint` finds banned words and passes plain text."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = spec_from_file_location("check_language", ROOT / ".ci" / "check_language.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(check: ModuleType, path: Path, text: str) -> list[str]:
    """The banned words found in a file with this text, in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    found = sorted({finding for text in check.texts_of(path) for finding in check.findings(text)})
    return [word for _, word, _ in found]


BANNED = [
    ("What is left after filtering.", "What"),
    ("Reads a file. Where it is missing, returns None.", "Where"),
    ("Whoever calls this must close it.", "Whoever"),
    ("It was told to stop.", "told"),
    ("Frames that hear nothing.", "hear"),
    ("The model is asked twice.", "asked"),
    ("Start it or mend it.", "mend"),
    ("Models are let go at the end.", "let go"),
    ("The run goes on with the next clip.", "goes on with"),
    ("Nobody reads it.", "Nobody"),
    ("A student of one's own.", "of one's"),
    ("Stops after so many steps.", "so many"),
    ("As ever, the file is closed.", "As ever"),
    ("A value that is no number.", "is no number"),
    ("The file lies in the folder.", "lies"),
    ("The folder is used if it is there.", "is there"),
    ("Models take turns.", "take turns"),
    ("The worker died.", "died"),
    ("The folder is written anew.", "anew"),
    ("The licence of a model.", "licence"),
    ("It optimises the labelled centre.", "optimises"),
]

PLAIN = [
    "Returns the boxes of each image, which may be empty.",
    "Scores lie in [0, 1]; a threshold lies between two of them.",
    "How many clips failed? How-to pages: see below.",
    "There is no default, it is no longer needed, and the mask is no larger than the frame.",
    "Is there a GPU? There is one, and it must be used as long as memory allows.",
    "Silence where there is none. Skip back and forth, in turn. The score is None.",
    "The exercise is precise; otherwise noise would raise the compromise.",
    "The key `license` and `what was heard` are code. See [the page](what-was-told.md).",
    "A task, a mask and a flask; the basket holds hearts and a teller machine.",
    "Use so many as fit. Tokens of the color, the center and the behavior are labeled.",
]


@pytest.mark.parametrize(("text", "word"), BANNED)
def test_a_banned_word_is_found_in_docstrings_and_markdown(
    check: ModuleType, text: str, word: str, tmp_path: Path
) -> None:
    assert word in words(check, tmp_path / "a.md", f"# Title\n\n{text}\n")
    assert word in words(check, tmp_path / "a.py", f'"""{text}"""\n')


@pytest.mark.parametrize("text", PLAIN)
def test_plain_text_passes(check: ModuleType, text: str, tmp_path: Path) -> None:
    assert words(check, tmp_path / "a.md", text) == []
    assert words(check, tmp_path / "a.py", f'"""{text}"""\n') == []


def test_messages_and_comments_are_read_and_short_data_is_not(check: ModuleType, tmp_path: Path) -> None:
    source = 'raise ValueError(f"{1} was asked for")  # nobody reads it\nKEYS = ("heard", "grey")\n'
    assert words(check, tmp_path / "a.py", source) == ["asked", "nobody"]


def test_strings_of_tests_are_data_and_names_of_tests_are_read(check: ModuleType, tmp_path: Path) -> None:
    source = 'def test_nobody_is_told():\n    say("what you heard was a grey dog")\n'
    assert words(check, tmp_path / "tests" / "a.py", source) == ["nobody", "told"]


def test_code_in_markdown_is_not_read(check: ModuleType, tmp_path: Path) -> None:
    assert words(check, tmp_path / "a.md", "```\nopenavs tell --asked\n```\nUse `heard`.\n") == []


def test_a_sentence_may_span_lines_and_the_line_is_named(check: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("One line.\n\nThe run goes\non with the rest.\n\n| a | Which one |\n")
    found = sorted({f for text in check.texts_of(tmp_path / "a.md") for f in check.findings(text)})
    assert [(line, word) for line, word, _ in found] == [(3, "goes on with"), (6, "Which")]


def test_yaml_html_and_makefiles_are_read(check: ModuleType, tmp_path: Path) -> None:
    assert words(check, tmp_path / "a.yaml", "# Where it is.\nasked: 1 # in colour\nsummary: nobody\n") == [
        "Where",
        "colour",
        "nobody",
    ]
    assert words(check, tmp_path / "a.html", "<p class='grey'>{{ heard }} What was <b>heard</b></p>\n") == [
        "What",
        "heard",
    ]
    assert words(check, tmp_path / "Makefile", 'all: # nobody\n\t@echo "mends it"\n\tgrey\n') == ["nobody", "mends"]


def test_an_escaped_line_is_skipped(check: ModuleType, tmp_path: Path) -> None:
    assert words(check, tmp_path / "a.py", 'A = "you have heard it"  # language: ok\n# nobody  # language: ok\n') == []


def test_exit_codes(check: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "good.md").write_text("Plain text.\n")
    assert check.main([str(tmp_path)]) == 0
    (tmp_path / "bad.md").write_text("Nobody knows.\n")
    assert check.main([str(tmp_path)]) == 1
    assert "bad.md:1: 'Nobody'" in capsys.readouterr().out
    assert check.main([str(tmp_path / "gone")]) == 2
