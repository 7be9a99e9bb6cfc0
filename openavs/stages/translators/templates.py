"""Prompt templates: plain text files with a short header, one section per turn and `$name` variables."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from string import Template

from openavs.config import resources
from openavs.errors import InputError

Message = dict[str, str]  # {"role": ..., "content": ...}, as chat models take them

_REQUIRED = ("name", "version", "variables", "summary")
_KEYS = (*_REQUIRED, "closed")
_SECTIONS = ("system", "user")


@dataclass(frozen=True)
class PromptTemplate:
    """One prompt file. `variables` are exactly the names its text uses.

    `closed` names the prompt to take in its place when a request brings a vocabulary; None where there is none.
    """

    name: str
    version: str
    summary: str
    variables: tuple[str, ...]
    system: str
    user: str
    closed: str | None = None

    @property
    def by_runs(self) -> bool:
        """True if the prompt asks about runs of frames with equal captions, False if about every frame."""
        return "runs" in self.variables

    def render(self, **values: str) -> list[Message]:
        """The system turn (if the prompt has one) and the user turn.

        Raises InputError when a variable is missing or is not one of the prompt's. Values are put in as they are:
        a `$` inside a value is never expanded.
        """
        missing, unknown = set(self.variables) - set(values), set(values) - set(self.variables)
        if missing:
            raise InputError(f"prompt '{self.name}' needs a value for {_names(missing)}, and none was given")
        if unknown:
            raise InputError(f"prompt '{self.name}' has no variable {_names(unknown)}; it has {_names(self.variables)}")
        turns = [("system", self.system), ("user", self.user)]
        return [{"role": role, "content": Template(text).substitute(values)} for role, text in turns if text]


def load_prompt(name_or_path: str | Path) -> PromptTemplate:
    """Loads a prompt by its name (`default`) or by the path of a file (`./mine.txt`).

    Raises InputError when there is no such prompt or the file breaks the format.
    """
    return parse_prompt(_read(name_or_path), str(name_or_path))


def parse_prompt(text: str, where: str) -> PromptTemplate:
    """Reads a prompt from the text of its file; `where` is what error messages call it."""
    head, found, body = text.replace("\r\n", "\n").partition("\n---\n")
    if not found:
        raise InputError(f"prompt '{where}' has no header: put `key: value` lines and a line `---` above the sections")
    header = _header(head, where)
    sections = _sections(body, where)
    if not sections.get("user"):
        raise InputError(f"prompt '{where}' has no [user] section with text in it")
    variables = tuple(word for word in header["variables"].replace(",", " ").split() if word)
    _check_variables(variables, sections, where)
    return PromptTemplate(
        name=header["name"],
        version=header["version"],
        summary=header["summary"],
        variables=variables,
        system=sections.get("system", ""),
        user=sections["user"],
        closed=header.get("closed") or None,
    )


def _read(name_or_path: str | Path) -> str:
    path = resources.find("prompts", name_or_path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(f"cannot read the prompt {path}: {reason}") from error


def _header(head: str, where: str) -> dict[str, str]:
    header: dict[str, str] = {}
    for line in filter(None, (line.strip() for line in head.split("\n"))):
        key, found, value = line.partition(":")
        if not found or key.strip() not in _KEYS:
            raise InputError(
                f"prompt '{where}' has the header line '{line[:80]}'; write `key: value` with {_names(_KEYS)}"
            )
        header[key.strip()] = value.strip()
    missing = [key for key in _REQUIRED if key not in header]
    if missing:
        raise InputError(f"prompt '{where}' lacks {_names(missing)} in its header")
    return header


def _sections(body: str, where: str) -> dict[str, str]:
    lines: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in body.split("\n"):
        name = line.strip()[1:-1] if line.strip() in {f"[{section}]" for section in _SECTIONS} else None
        if name is not None:
            if name in lines:
                raise InputError(f"prompt '{where}' has two [{name}] sections; keep one")
            current = lines.setdefault(name, [])
        elif current is not None:
            current.append(line)
        elif line.strip():
            raise InputError(f"prompt '{where}' has text before its first section; start with [system] or [user]")
    return {name: "\n".join(text).strip() for name, text in lines.items()}


def _check_variables(declared: tuple[str, ...], sections: dict[str, str], where: str) -> None:
    used: set[str] = set()
    for text in sections.values():
        template = Template(text)
        if not template.is_valid():
            raise InputError(f"prompt '{where}' has a `$` that starts no variable; write `$$` for a dollar sign")
        used.update(template.get_identifiers())
    if used != set(declared):
        raise InputError(
            f"prompt '{where}' declares the variables {_names(declared)} but uses {_names(used)}; make them agree"
        )


def _names(words: Iterable[str]) -> str:
    return ", ".join(f"'{word[:40]}'" for word in sorted(words)[:20]) or "none"
