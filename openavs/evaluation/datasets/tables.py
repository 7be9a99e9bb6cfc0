"""A data set's tables and folders: csv files read by position, names that cannot leave their folder, listings."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openavs.errors import InputError
from openavs.evaluation.datasets.classes import CLASSES
from openavs.utils.text import did_you_mean

MAX_BYTES = 64 << 20  # the largest released table has 0.7 MB
NOT_CLASSES = frozenset({"", "off-the-screen", "background"})  # what a_obj holds where nothing in the picture sounds
MISSPELT = {"h orse": "horse"}  # one row of the release

_CLASSES = frozenset(CLASSES[1:])


class MissingDataError(InputError):
    """Files of a data set are not where its layout has them; `open_dataset` adds how the data is obtained."""


class MissingSplitError(InputError):
    """A data set has no clip of a split."""


@dataclass(frozen=True)
class Row:
    """One line of a table: its number in the file and its cells by column."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def find_home(root: Path, table: str, places: Sequence[str]) -> Path:
    """The folder that holds the file `table`: `root`, or one of the `places` below it.

    Raises:
        MissingDataError: it is in none of them.
    """
    for place in ("", *places):
        if (root / place / table).is_file():
            return root / place
    state = "holds no" if root.is_dir() else "is not a folder with a"
    also = f", nor do {', '.join(f'{place}/' for place in places)} below it" if root.is_dir() else ""
    raise MissingDataError(f"{root} {state} {table}{also}; --root is the folder that holds {table}")


def read_table(path: Path, columns: Mapping[str, int]) -> list[Row]:
    """The rows of a csv file with a header, as texts without surrounding blanks; blank lines are left out.

    `columns` are the wanted columns and their places in the release. A column whose name stands at another place of
    the header is read there (copies with an index column or in another order); any further columns are ignored.

    Raises:
        InputError: not a text table, no header with `split`, or a line that is too short.
    """
    lines = _lines(path)
    expected = ",".join(sorted(columns, key=lambda name: columns[name]))
    if not lines:
        raise InputError(f"{path} is empty; a header and one line per clip were expected")
    header = [cell.strip().lower() for cell in lines[0][1]]
    if "split" not in header:
        raise InputError(f"{path} begins with {','.join(header)[:80]!r}, which is not a header with {expected}")
    places = {name: header.index(name) if name in header else place for name, place in columns.items()}
    if len(set(places.values())) < len(places):
        raise InputError(f"{path} has the header {','.join(header)[:80]!r}, in which {expected} cannot be told apart")
    last = max(places.values())
    rows = []
    for number, cells in lines[1:]:
        if len(cells) <= last:
            raise InputError(f"{path}, line {number}: {len(cells)} columns where at least {last + 1} were expected")
        rows.append(Row(number, {name: cells[place].strip() for name, place in places.items()}))
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no table of clips is")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise InputError(f"cannot read {path} as a csv table in UTF-8: {problem}") from problem


def check_names(path: Path, rows: Iterable[Row], *columns: str) -> None:
    """Refuses cells that cannot be the name of one file or folder (`../`, absolute, NUL, a backslash, nothing)."""
    for row in rows:
        for column in columns:
            if not is_plain_name(row[column]):
                raise InputError(
                    f"{path}, line {row.line}: the {column} {row[column][:80]!r} is not the name of a folder "
                    "(no '/', '\\' or control characters, not '..')"
                )


def is_plain_name(name: str) -> bool:
    """Whether a text names one thing within a folder, on any system."""
    return 0 < len(name) <= 255 and name not in (".", "..") and name.isprintable() and not set(name) & set("/\\:")


def check_unique(path: Path, rows: Iterable[Row], column: str) -> None:
    """Refuses a table that lists a clip twice."""
    first: dict[str, int] = {}
    for row in rows:
        if row[column] in first:
            raise InputError(
                f"{path} lists the clip {row[column]!r} twice (lines {first[row[column]]} and {row.line}); remove one"
            )
        first[row[column]] = row.line


def in_split(path: Path, rows: Iterable[Row], split: str) -> list[Row]:
    """The rows of a split, in the order of the file; `InputError` names the splits that are there if it has none."""
    found = Counter(row["split"] for row in rows)
    if split not in found:
        there = ", ".join(f"{name or 'no name'!r} ({count})" for name, count in found.items()) or "no clips at all"
        raise MissingSplitError(f"{path} lists no clip of the split {split!r}; it holds {there[:200]}")
    return [row for row in rows if row["split"] == split]


def sounding_classes(path: Path, row: Row) -> tuple[str, ...]:
    """The classes in `a_obj`, joined there by `_`; what is off the screen or background is no class."""
    names = (MISSPELT.get(name, name) for name in map(str.strip, row["a_obj"].split("_")))
    kept = tuple(dict.fromkeys(name for name in names if name not in NOT_CLASSES))
    for name in kept:
        if name not in _CLASSES:
            raise InputError(
                f"{path}, line {row.line}: {name!r:.80} in a_obj is not a class of AVSBench-semantic; "
                f"{did_you_mean(name, _CLASSES)}"
            )
    return kept


def listing(folder: Path) -> frozenset[str]:
    """The names in a folder; none if there is no such folder."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def check_present(split: str, table: Path, wanted: Sequence[tuple[Path, str]]) -> None:
    """Refuses a split of which folders are missing; each folder above is listed once, nothing else is looked at."""
    held = {parent: listing(parent) for parent in dict.fromkeys(parent for parent, _ in wanted)}
    missing = [parent / name for parent, name in wanted if name not in held[parent]]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of the {len(wanted)} clips of {split!r} that {table} lists have no folder "
            f"(first: {missing[0]}); to use the others, remove these lines from a copy of the table"
        )
