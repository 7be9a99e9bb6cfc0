"""Options as data: backend options validated against the constructor's signature, and `key=value` overrides.

Validation errors are one sentence.
"""

from __future__ import annotations

import inspect
import logging
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Union

from pydantic import BaseModel, ValidationError

from openavs.errors import InputError
from openavs.utils.serialization import parse_yaml
from openavs.utils.text import did_you_mean

logger = logging.getLogger(__name__)
_SEQUENCES = (list, tuple, Sequence)


class _Mismatch(Exception):
    """A value does not fit its annotation; the message describes the expected value."""


def bind_options(
    cls: type, options: Mapping[str, Any], shared: Mapping[str, Any] | None = None, *, stage: str, name: str
) -> dict[str, Any]:
    """Return keyword arguments for `cls(...)`: the validated options, and the shared ones that the class takes.

    A number written as text (YAML reads 3e-4 as text) becomes a number; nothing else is converted.

    Args:
        cls: the backend's class.
        options: its options from the recipe.
        shared: `device`, `dtype`, `offline`; passed on if the constructor has them.
        stage: the stage, for messages.
        name: the backend's name, for messages.

    Raises:
        InputError: an option that the class does not have, of the wrong type, or required and missing.
    """
    parameters, hints = options_of(cls)
    accepted = {key for key, p in parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in accepted and not takes_any:
            raise InputError(f"{stage} {name!r} has no option {key!r}; {did_you_mean(key, accepted)}")
    bound = {key: value for key, value in (shared or {}).items() if key in accepted}
    bound.update({key: _checked(value, hints.get(key, Any), f"{stage}.{key}") for key, value in options.items()})
    for key in sorted(accepted - bound.keys()):
        if parameters[key].default is inspect.Parameter.empty:
            raise InputError(f"{stage} {name!r} needs the option {key!r}; give it in the recipe's section {stage!r}")
    return bound


def options_of(cls: type) -> tuple[dict[str, inspect.Parameter], dict[str, Any]]:
    """Return the parameters of a constructor, and their types as far as they can be read.

    A constructor that passes `**options` on names the classes in `option_classes`: their keyword-only parameters take
    the place of `**options`, without those in `fixed_options`, which the constructor sets.
    """
    parameters, hints = dict(inspect.signature(cls).parameters), _hints(cls)
    sources = getattr(cls, "option_classes", ())
    rest = next((key for key, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    if rest is None or not sources:
        return parameters, hints
    del parameters[rest]
    for source in sources:
        passed, types_of = options_of(source)
        for key, parameter in passed.items():
            is_own = key in parameters or key in getattr(cls, "fixed_options", ())
            if parameter.kind is parameter.KEYWORD_ONLY and not is_own:
                parameters[key], hints[key] = parameter, types_of.get(key, Any)
    return parameters, hints


def describe_value(value: Any) -> str:
    """Describe a YAML value and its type, for error messages."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", type(None): "nothing"}
    kind = "a list" if isinstance(value, list) else "a section" if isinstance(value, dict) else kinds.get(type(value))
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return f"{shown} ({kind or type(value).__name__})"


def _checked(value: Any, hint: Any, key: str) -> Any:
    try:
        return convert(value, hint)
    except _Mismatch as error:
        quote = "; write it in quotes" if str(error).endswith("text") and isinstance(value, bool | int | float) else ""
        raise InputError(f"the option {key!r} must be {error}, not {describe_value(value)}{quote}") from None


def convert(value: Any, hint: Any) -> Any:
    """Convert a value to its annotation; annotations other than YAML's types accept any value."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments)
    if origin is Literal:
        if value not in arguments:
            raise _Mismatch("one of " + ", ".join(map(str, arguments)))
        return value
    if origin in _SEQUENCES or hint in _SEQUENCES:
        return _convert_list(value, arguments)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _Mismatch("a section of keys and values")
        return value
    return _convert_plain(value, hint)


def _convert_union(value: Any, choices: tuple[Any, ...]) -> Any:
    expected = []
    exact = [choice for choice in choices if choice is type(value)]  # 3 for `float | int` stays a whole number
    for choice in exact or choices:
        try:
            return convert(value, choice)
        except _Mismatch as error:
            expected.append(str(error))
    raise _Mismatch(" or ".join(expected))


def _convert_list(value: Any, arguments: tuple[Any, ...]) -> Any:
    item = arguments[0] if arguments else Any
    if not isinstance(value, list | tuple):  # a str is a Sequence too
        raise _Mismatch("a list of texts" if item is str else "a list")
    for entry in value:
        if item is str and not isinstance(entry, str):
            raise _Mismatch(f"a list of texts (write {entry!r} in quotes)")
    return [convert(entry, item) for entry in value]


def _convert_plain(value: Any, hint: Any) -> Any:
    if hint in (int, float) and isinstance(value, str):
        value = _number(value)
    if hint is type(None) and value is not None:
        raise _Mismatch("nothing")
    if hint is bool and not isinstance(value, bool):
        raise _Mismatch("true or false")
    if hint is int and (isinstance(value, bool) or not isinstance(value, int)):
        raise _Mismatch("a whole number")
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise _Mismatch("a number")
        return float(value)
    if hint is str and not isinstance(value, str):
        raise _Mismatch("text")
    if hint is Path:
        if not isinstance(value, str | Path):
            raise _Mismatch("a path")
        return Path(value)
    return value


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _hints(cls: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.getattr_static(cls, "__init__"))
    except (NameError, TypeError, AttributeError) as error:
        # Annotations for type checkers only: the options' names are checked, their types are not.
        logger.debug("cannot read the annotations of %s: %s", cls, error)
        return {}


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
    quote = (
        "; write it in quotes"
        if found["type"] == "string_type" and isinstance(found["input"], bool | int | float)
        else ""
    )
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


def unwrap_single(value: Any) -> Any:
    """Return the item of a list of one and None for an empty list; other values are returned as they are."""
    if not isinstance(value, list) or len(value) > 1:
        return value
    return value[0] if value else None


def find_section(data: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the section of a stage's key in a recipe's data: `detector`, or `verifier.2`; None if there is none."""
    stage, _, number = key.partition(".")
    section = data.get(stage)
    if number:
        items = section if isinstance(section, list) else []
        section = items[int(number) - 1] if number.isdecimal() and 1 <= int(number) <= len(items) else None
    return section if isinstance(section, dict) else None


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key=value` overrides. A stage with another `use` loses its options, except for those in the overrides."""
    if "verifier" in data:
        data["verifier"] = unwrap_single(data["verifier"])
    for override in overrides:
        key, _, use = override.partition("=")
        stage, _, option = key.strip().rpartition(".")
        section = find_section(data, stage) if option == "use" else None
        if section is not None and section.get("use") != use.strip(" '\""):
            section.clear()
    for override in overrides:
        apply_override(data, override)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one dotted key (`section.key=value`, parsed as YAML); whether it exists is validated later.

    An item of a list of sections is named by its number, from 1: `verifier.2.threshold=0.3`.

    Raises:
        InputError: the text is not `key=value`, its value is not YAML, or its key leads to no section.
    """
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not all((*sections, last)):
        raise InputError(f"{override!r:.80} is not key=value, such as filtering.box_threshold=0.3")
    try:
        value = parse_yaml(text)
    except InputError as error:
        raise InputError(f"the value of {override!r:.80} cannot be read: {error}") from error
    place: Any = data
    name = ""
    for section in sections:
        at = _position(place, section, name, override)
        if isinstance(place, dict) and place.get(at) is None:
            place[at] = {}
        place, name = place[at], section
        if not isinstance(place, dict) and not _is_list_of_sections(place):
            raise InputError(f"{override!r:.80}: {section!r:.80} is not a section of the recipe")
    place[_position(place, last, name, override)] = value


def _is_list_of_sections(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _position(place: Any, part: str, name: str, override: str) -> Any:
    """Return the key of a part in a section, or its index in the list of sections called `name`."""
    if isinstance(place, dict):
        return part
    if part.isdecimal() and 1 <= int(part) <= len(place):
        return int(part) - 1
    raise InputError(
        f"{override!r:.80}: {name!r:.80} is a list of {len(place)}; write {name:.80}.NUMBER, with a number from 1 to "
        f"{len(place)}"
    )
