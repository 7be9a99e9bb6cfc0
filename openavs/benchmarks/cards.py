"""Benchmark cards: what eval/*.yaml say of a benchmark, and the data set that a card's reader opens.

A new benchmark is one card and one reader: a function `(root: Path, split: str) -> Dataset`, named in the card as
`module:function` or `./file.py:function` (looked for beside the card).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from openavs import resources
from openavs.benchmarks.dataset import Dataset, Task
from openavs.benchmarks.metadata import MissingDataError
from openavs.spelling import nearest
from openavs.types import InputError
from openavs.yamlfile import read_yaml

Reader = Callable[[Path, str], Dataset]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Split(_Section):
    """How much a split of the release holds; None where nobody has published it."""

    clips: Count | None = None
    frames: Count | None = None
    masks: Count | None = None
    note: str = ""


class Card(_Section):
    """A benchmark as plain data. `classes` are its class names in index order (0 is the background where there is one).

    `vocabulary` spells the classes 1, 2, ... as phrases that a detector understands, in their order; `aliases` are
    further phrases and the class that they mean.
    """

    name: Text
    title: Text
    task: Task
    reader: Text
    layout: Text
    splits: dict[str, Split]
    size: str = ""
    classes: list[Text] = []
    metric: Text
    caveats: list[Text] = []
    published: str = ""
    obtain: Text
    vocabulary: list[Text] | None = None
    aliases: dict[str, Text] = {}

    _base: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.vocabulary is not None and len(self.vocabulary) != len(self.classes) - 1:
            raise ValueError(
                f"'vocabulary' has {len(self.vocabulary)} phrases for {len(self.classes) - 1} classes after the first"
            )
        return self

    @property
    def base(self) -> Path | None:
        """The folder of the card's file."""
        return self._base


def load_card(name_or_path: str | Path) -> Card:
    """A benchmark's card by its short name or its file.

    Raises:
        InputError: no such card, a file that is not one, an unknown key (the nearest is named) or a wrong type.
    """
    path = resources.find("eval", name_or_path)
    try:
        card = Card.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as problem:
        raise InputError(f"benchmark card {path}: {problem}") from None
    card._base = path.parent
    return card


def open_dataset(benchmark: str, root: Path, split: str = "test") -> Dataset:
    """A split of a benchmark, read by its card's reader; `benchmark` is a short name or a card's file.

    Raises:
        InputError: no such benchmark or split, or data that is not as the layout says; where data is missing the
            sentence says how it is obtained.
    """
    card = load_card(benchmark)
    if split not in card.splits:
        raise InputError(f"{card.name} has no split {split!r}; {nearest(split, card.splits)}")
    reader = load_reader(card)
    try:
        return replace(reader(Path(root), split), benchmark=card.name)
    except MissingDataError as problem:
        raise MissingDataError(f"{problem}; {card.obtain}") from problem


def load_reader(card: Card) -> Reader:
    """The function that a card names as its reader."""
    module, _, attribute = card.reader.rpartition(":")
    reader = getattr(import_module(module), attribute)
    return reader
