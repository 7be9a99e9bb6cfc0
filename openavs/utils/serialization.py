"""Strict parsing of JSON and YAML with one kind of error each.

JSON: finite numbers only. YAML: safe types only, no duplicate keys, no aliases, keys that are text, a size limit.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import yaml

from openavs.errors import InputError

MAX_BYTES = 1 << 18  # a recipe is a page; anything larger is the wrong file, and would take the parser seconds
MAX_DEPTH = 20  # of nested sections; the parser's time grows with the square of the depth


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: invalid JSON, nesting that is too deep, or a number that is not finite (not valid JSON).
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.20} is not a valid JSON number")
    return number


class _StrictLoader(yaml.SafeLoader):
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise InputError(f"line {self.line + 1}: aliases (*name) are not allowed; write the value out")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise InputError(f"line {self.line + 1}: sections are nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise InputError(
                    f"line {line}: the key {key_node.value!r:.80} is read as {key!r:.80}; write it in quotes"
                )
            if key in seen:
                raise InputError(f"line {line}: the key {key!r:.80} occurs twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


# Raised by PyYAML for a scalar that looks like a value but is invalid: the 99th of a month, a number of 5,000 digits.
_INVALID_SCALAR = (ValueError, LookupError, TypeError, AttributeError, OverflowError)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        InputError: unreadable, too large, not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 10} KiB, the limit for recipes and benchmarks")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    try:
        data = parse_yaml(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} has no keys and values")
    return data


def parse_yaml(text: str) -> Any:
    """Parse a YAML text; InputError names the line of a fault."""
    if len(text) > MAX_BYTES:
        raise InputError(f"this is longer than {MAX_BYTES >> 10} KiB, the limit for recipes, benchmarks and lock files")
    try:
        return yaml.load(text, Loader=_StrictLoader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}: " if mark else ""
        quote = " (a text that holds ': ' needs quotes)" if "mapping values" in str(error.problem) else ""
        raise InputError(f"{where}this is not YAML: {error.problem or error.context}{quote}") from error
    except yaml.YAMLError as error:
        raise InputError(f"this is not YAML: {' '.join(str(error).split())}") from error
    except _INVALID_SCALAR as error:
        raise InputError(f"this is not YAML: {error!s:.200}; write the value in quotes") from error
