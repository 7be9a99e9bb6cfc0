"""Writes docs/commands/ from the help of the commands: `python docs/scripts/command_pages.py`.

Everything but the examples (openavs/assets/command_examples.yaml) comes from the help texts. The pages are committed,
so that they can be read without a build; a test compares them with the output of this script.
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

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS.parent / "openavs" / "assets" / "command_examples.yaml"
INDEX = """# Commands

The commands of `openavs --help`. `python docs/scripts/command_pages.py` writes these pages from their help texts.

| command | does |
| --- | --- |
{rows}

**Exit codes**: 0: all done; 1: some items failed, each is named with its reason; 2: wrong usage or input, nothing was
done. An error that you can fix is one sentence with the fix. Results go to stdout, progress and messages to stderr.
`KEY=VALUE` after a command with a recipe changes one entry of the recipe, as in `filtering.box_threshold=0.3`.

**Completion**: `openavs --install-completion` adds the completion of commands, options and recipe names to the shell
that runs it (bash, zsh, fish, PowerShell), for new terminals; `openavs --show-completion` prints it instead.
"""
KINDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def pages() -> dict[str, str]:
    """Return the text of every page by file name."""
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    examples = yaml.safe_load(EXAMPLES.read_text("utf-8"))
    rows = [f"| [`{name}`]({file_of(name)}) | {first_sentence(commands[name])} |" for name in COMMANDS]
    written = {file_of(name): page(name, commands[name], examples.get(name, {})) for name in COMMANDS}
    return {"index.md": INDEX.format(rows="\n".join(rows)), **written}


def file_of(command: str) -> str:
    """Return the file name of a command's page; `index.md` is the list of the pages."""
    return "index-results.md" if command == "index" else f"{command}.md"


def page(name: str, command: Any, extra: dict[str, Any]) -> str:
    """Return the page of one command; `extra` has its `examples` (title -> command) and `more` text."""
    hints = typing.get_type_hints(command.callback)
    parts = [f"# openavs {name}", prose(command.help), usage(name, command, hints)]
    arguments = [p for p in command.params if not is_option(p)]
    if arguments:
        rows = [f"| {code(p.metavar or p.name.upper())} | {choices(hints[p.name])}{cell(p)} |" for p in arguments]
        parts.append("| argument | description |\n| --- | --- |\n" + "\n".join(rows))
    rows = [f"| {flags(p, hints[p.name])} | {cell(p)} |" for p in command.params if is_option(p)]
    parts.append("| option | description |\n| --- | --- |\n" + "\n".join(rows))
    if extra.get("examples"):
        parts.append("## Examples")
        parts += [f"{text}:\n\n```\n{line.strip()}\n```" for text, line in extra["examples"].items()]
    if extra.get("more"):
        parts.append(extra["more"].strip())
    return "\n\n".join(parts) + "\n"


def usage(name: str, command: Any, hints: dict[str, Any]) -> str:
    """Return the usage line with the required options."""
    words = [f"openavs {name}"]
    for p in command.params:
        if not is_option(p):
            words.append((p.metavar or p.name.upper()) if p.required else f"[{p.metavar or p.name.upper()}]")
        elif p.required:
            words.append(f"{p.opts[0]} {p.metavar or kind_of(hints[p.name])}")
    return f"```text\n{' '.join([*words, '[OPTIONS]'])}\n```"


def is_option(parameter: Any) -> bool:
    """Return True for options, False for positional arguments."""
    return bool(parameter.opts[0].startswith("-"))


def flags(parameter: Any, hint: Any) -> str:
    """Return `--pipeline TEXT`, `-p`; for a flag that is on by default, the option that turns it off."""
    value = parameter.metavar or kind_of(hint)
    shown = parameter.secondary_opts if parameter.default is True else parameter.opts
    return ", ".join([code(f"{shown[0]} {value}".strip()), *map(code, shown[1:])])


def kind_of(hint: Any) -> str:
    """Return the placeholder of an option's value; empty for a flag."""
    hint = without_none(hint)
    if hint is bool:
        return ""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return " or ".join(str(member.value) for member in hint)
    return KINDS.get(hint, "TEXT")


def choices(hint: Any) -> str:
    """Return the values of an enum argument as text; empty for other types."""
    hint = without_none(hint)
    if not (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return ""
    return ", ".join(code(str(member.value)) for member in hint) + ". "


def without_none(hint: Any) -> Any:
    """Return `int` for `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint


def cell(parameter: Any) -> str:
    """Return the help of a parameter with its default."""
    text = prose(parameter.help or "").replace("\n\n", "<br>")
    if parameter.required and is_option(parameter):
        text += " Required."
    default = parameter.default
    if default is None or default is False or callable(default) or (isinstance(default, list | tuple) and not default):
        return text.strip()
    if default is True:
        return f"Do not {text[0].lower()}{text[1:]}".strip()
    shown = default.value if isinstance(default, enum.Enum) else default
    return f"{text} Default: {code(str(shown))}.".strip()


def first_sentence(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return prose(command.help).split("\n\n")[0].replace("\n", " ")


def prose(text: str) -> str:
    """Convert a help text to Markdown: `[bold]x[/]` becomes code, Markdown characters are escaped."""
    text = re.sub(r"\[bold\](.+?)\[/(?:bold)?\]", r"`\1`", "\n".join(line.strip() for line in text.strip().split("\n")))
    return re.sub(r"(?<![`\w/])(--[a-z][a-z-]*)", r"`\1`", text).replace("|", "\\|").replace("*", "\\*")


def code(text: str) -> str:
    """Format text as code in a table cell."""
    return f"`{text}`".replace("|", " or ")


def main() -> None:
    folder = DOCS / "commands"
    folder.mkdir(exist_ok=True)
    written = pages()
    for old in {path.name for path in folder.glob("*.md")} - set(written):
        (folder / old).unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
