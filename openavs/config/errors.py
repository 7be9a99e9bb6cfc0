"""Validation errors of recipes and benchmarks in one sentence."""

from __future__ import annotations

import typing
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from openavs.config.options import describe_value
from openavs.utils.text import did_you_mean

ONE, LIST = "[one]", "[list]"
"""Tags of a value that may be one section or a list of sections; pydantic puts them into the path of an error."""

_EXPECTED = {
    "float_type": "a number",
    "float_parsing": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "a section of keys and values",
    "model_type": "a section of keys and values",
    "model_attributes_type": "a section of keys and values",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
}
_LIMITS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than_equal": ("at most", "le"),
}


def first_error(error: ValidationError, model: type[BaseModel], example: str) -> str:
    """Return a sentence about the first error; unknown keys precede, since a misspelled key also looks missing.

    Items of lists are counted from 1.

    Args:
        error: pydantic's errors.
        model: the model that the data was validated as.
        example: a clause that names a complete example.
    """
    errors = sorted(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    found = errors[0]
    path = [part for part in found["loc"] if part not in ("[key]", ONE, LIST)]
    key = ".".join(str(part + 1) if isinstance(part, int) else part for part in path)[:80]
    if found["type"] == "extra_forbidden":
        return f"there is no key {key!r}; {_suggestion(model, path)}"
    if found["type"] == "missing":
        return f"the key {key!r} is missing; {example}"
    if found["type"] == "value_error":  # raised by a validator of this package
        return str(found["ctx"]["error"])
    given = describe_value(found["input"])
    if found["type"] in _LIMITS:
        words, bound = _LIMITS[found["type"]]
        return f"{key!r} must be {words} {found['ctx'][bound]:g}, not {given}"
    if found["type"] == "literal_error":
        return f"{key!r} must be one of {found['ctx']['expected']}, not {given}"
    quote = "; write it in quotes" if found["type"] == "string_type" and _is_scalar(found["input"]) else ""
    return f"{key!r} must be {_EXPECTED.get(found['type'], found['msg'])}, not {given}{quote}"


def _suggestion(model: type[BaseModel], path: list[str | int]) -> str:
    """Suggest the key of that name in another section, else the nearest key."""
    wanted, own = str(path[-1]), _fields(model, path[:-1])
    elsewhere = {
        f"{section}.{key}": key
        for section, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        for key in field.annotation.model_fields
    }
    same = [repr(dotted) for dotted, key in elsewhere.items() if key == wanted]
    if same:
        return f"did you mean {' or '.join(same)}?"
    every = did_you_mean(wanted, own)
    if every.startswith("did you mean"):
        return every
    close = get_close_matches(wanted, sorted(set(elsewhere.values())), n=1, cutoff=0.6)
    return next((f"did you mean {dotted!r}?" for dotted, key in elsewhere.items() if [key] == close), every)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the class of a field that is or may be a section (`StageConfig | None`); None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_of, typing.get_args(annotation))), None)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float)


def _fields(model: type[BaseModel], path: Iterable[str | int]) -> list[str]:
    """Return the keys of a section; a table or list of sections (`splits.test`) counts as the section inside."""
    inside: Any = model
    for part in path:
        if typing.get_origin(inside) in (dict, list):
            inside = typing.get_args(inside)[-1]
            continue
        inside = inside.model_fields[str(part)].annotation
    assert isinstance(inside, type) and issubclass(inside, BaseModel)
    return list(inside.model_fields)
