"""`key=value` overrides of recipes, as plain data before validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openavs.errors import InputError
from openavs.utils.serialization import parse_yaml


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
