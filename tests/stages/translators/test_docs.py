"""The examples of docs/translators.md, run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from openavs.config.recipe import load_recipe
from openavs.registry import Registry
from tests.stages.translators.captions import request

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "translators.md").read_text(encoding="utf-8")
PROGRAM = """
import json, sys
turns = json.load(sys.stdin)
assert [turn["role"] for turn in turns] == ["system", "user"]
print('{"0": ["dog"]}' if "bark" in turns[1]["content"] else 1 / 0)
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_custom_translator(tmp_path: Path) -> None:
    (code,) = blocks("python")
    assert len(code.strip().splitlines()) <= 30
    (tmp_path / "command.py").write_text(code)
    (tmp_path / "program.py").write_text(PROGRAM)
    options = {"command": f"{sys.executable} {tmp_path / 'program.py'}", "max_reprompts": 0}
    made = Registry("translator").build("./command.py:CommandTranslator", options, base=tmp_path)

    heard, failed = made.translate([request(["a bark"]), request(["cat meowing"])])
    assert (heard.frames, heard.origin) == ((("dog",),), "llm")
    assert failed.frames == (("cat",),) and "the program failed: CalledProcessError" in failed.note


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: yaml.safe_load(block)["translator"]["model"])
def test_the_recipes_options_exist(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    section: dict[str, Any] = yaml.safe_load(block)["translator"]

    Registry("translator").check(section.pop("use"), section)


def test_the_command_line_is_a_recipe() -> None:
    (override,) = re.findall(r"^  '(translator=.*)'$", PAGE, re.MULTILINE)
    section = load_recipe("openavs", [override]).translator

    Registry("translator").check(section.use, section.options)


def test_every_backend_and_prompt_is_on_the_page() -> None:
    named = {entry.name for entry in Registry("translator").entries() if entry.origin == "openavs"}
    prompts = {file.stem for file in (ROOT / "prompts").glob("*.txt")} - {"reasoner"}

    assert all(f"`{name}`" in PAGE for name in named | prompts)
