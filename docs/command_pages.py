"""Writes docs/commands/ from what the commands themselves say: `python docs/command_pages.py`.

Everything but the examples (docs/command_examples.yaml) comes from the command line's own help, and the pages are
committed, so that they can be read without building anything; a test holds them to what this script writes.
"""

from __future__ import annotations

import enum
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from openavs.cli.app import COMMANDS, app

DOCS = Path(__file__).parent
INDEX = """# Commands

What `openavs --help` lists. `python docs/command_pages.py` writes these pages from the commands' own help.

| command | does |
| --- | --- |
{rows}

**Exit codes**: 0 all done; 1 some items failed, each is named with its reason; 2 wrong usage or input, nothing was
done. An error that you can mend is one sentence with the fix. Results go to stdout, progress and messages to
stderr. `KEY=VALUE` behind a command that takes a recipe changes one entry of it, as in `filtering.box_threshold=0.3`.
"""
KINDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def pages() -> dict[str, str]:
    """File name -> text of every page."""
    known: Any = get_command(app)
    told = yaml.safe_load((DOCS / "command_examples.yaml").read_text("utf-8"))
    made = {f"{name}.md": page(name, known.commands[name], told.get(name, {})) for name in COMMANDS}
    return {"index.md": index(known), **made}


def index(known: Any) -> str:
    """The page that lists all commands."""
    rows = [f"| [`{name}`]({name}.md) | {first_sentence(known.commands[name])} |" for name in COMMANDS]
    return INDEX.format(rows="\n".join(rows))


def page(name: str, command: Any, told: dict[str, Any]) -> str:
    """The page of one command."""
    hints = typing.get_type_hints(command.callback)
    parts = [f"# openavs {name}", prose(command.help), usage(name, command, hints)]
    arguments = [p for p in command.params if not is_option(p)]
    if arguments:
        rows = [f"| {code(p.metavar or p.name.upper())} | {choices(hints[p.name])}{cell(p)} |" for p in arguments]
        parts.append("| argument | what |\n| --- | --- |\n" + "\n".join(rows))
    rows = [f"| {flags(p, hints[p.name])} | {cell(p)} |" for p in command.params if is_option(p)]
    parts.append("| option | what |\n| --- | --- |\n" + "\n".join(rows))
    if told.get("examples"):
        parts.append("## Examples")
        parts += [f"{text}:\n\n```\n{line.strip()}\n```" for text, line in told["examples"].items()]
    if told.get("more"):
        parts.append(told["more"].strip())
    return "\n\n".join(parts) + "\n"


def usage(name: str, command: Any, hints: dict[str, Any]) -> str:
    """The line of usage, with what is required in it."""
    words = [f"openavs {name}"]
    for p in command.params:
        if not is_option(p):
            words.append((p.metavar or p.name.upper()) if p.required else f"[{p.metavar or p.name.upper()}]")
        elif p.required:
            words.append(f"{p.opts[0]} {p.metavar or kind_of(hints[p.name])}")
    return f"```text\n{' '.join([*words, '[OPTIONS]'])}\n```"


def is_option(parameter: Any) -> bool:
    """Whether it begins with dashes."""
    return bool(parameter.opts[0].startswith("-"))


def flags(parameter: Any, hint: Any) -> str:
    """`--pipeline TEXT`, `-p`; a switch that is on is shown as what turns it off."""
    value = parameter.metavar or kind_of(hint)
    shown = parameter.secondary_opts if parameter.default is True else parameter.opts
    return ", ".join([code(f"{shown[0]} {value}".strip()), *map(code, shown[1:])])


def kind_of(hint: Any) -> str:
    """What an option's value is called; nothing for a switch."""
    hint = without_none(hint)
    if hint is bool:
        return ""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(str(member.value) for member in hint)
    return KINDS.get(hint, "TEXT")


def choices(hint: Any) -> str:
    """The values that an argument may have, where they are few."""
    hint = without_none(hint)
    if not (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return ""
    return ", ".join(code(str(member.value)) for member in hint) + ". "


def without_none(hint: Any) -> Any:
    """`int` for `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def cell(parameter: Any) -> str:
    """What a parameter is for, and its default."""
    text = prose(parameter.help or "")
    if parameter.required and is_option(parameter):
        text += " Required."
    default = parameter.default
    if default is None or default is False or callable(default) or (isinstance(default, list | tuple) and not default):
        return text.strip()
    if default is True:
        return f"Do without: {text[0].lower()}{text[1:]}".strip()
    shown = default.value if isinstance(default, enum.Enum) else default
    return f"{text} Default: {code(str(shown))}.".strip()


def first_sentence(command: Any) -> str:
    """A command in one line."""
    return prose(command.help).split("\n\n")[0].replace("\n", " ")


def prose(text: str) -> str:
    """A help text as Markdown: `[bold]x[/]` becomes code, and what Markdown would take for markup is kept."""
    text = re.sub(r"\[bold\](.+?)\[/(?:bold)?\]", r"`\1`", "\n".join(line.strip() for line in text.strip().split("\n")))
    return re.sub(r"(?<![`\w/])(--[a-z][a-z-]*)", r"`\1`", text).replace("|", "\\|").replace("*", "\\*")


def code(text: str) -> str:
    """Code in a cell of a table."""
    return f"`{text}`".replace("|", " or ")


def main() -> None:
    folder = DOCS / "commands"
    folder.mkdir(exist_ok=True)
    made = pages()
    for old in {path.name for path in folder.glob("*.md")} - set(made):
        (folder / old).unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
