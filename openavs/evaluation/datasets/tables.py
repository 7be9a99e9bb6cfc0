"""Tables and folders of AVSBench: its classes, CSV files, safe names, folder listings."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openavs.errors import InputError
from openavs.utils.text import did_you_mean

CLASSES: tuple[str, ...] = (
    *("background", "accordion", "airplane", "axe", "baby", "bassoon", "bell", "bird", "boat", "boy", "bus", "car"),
    *("cat", "cello", "clarinet", "clipper", "clock", "dog", "donkey", "drum", "duck", "elephant", "emergency-car"),
    *("erhu", "flute", "frying-food", "girl", "goose", "guitar", "gun", "guzheng", "hair-dryer", "handpan"),
    *("harmonica", "harp", "helicopter", "hen", "horse", "keyboard", "leopard", "lion", "man", "marimba"),
    *("missile-rocket", "motorcycle", "mower", "parrot", "piano", "pig", "pipa", "saw", "saxophone", "sheep", "sitar"),
    *("sorna", "squirrel", "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet", "tuba"),
    *("ukulele", "utv", "vacuum-cleaner", "violin", "wolf", "woman"),
)
"""The names by index, 0 is the background; 1 to 70 are in alphabetical order."""

NOVEL: tuple[int, ...] = (
    *(1, 3, 5, 13, 14, 15, 22, 23, 24, 25, 30, 32, 33, 34, 39),
    *(42, 45, 49, 50, 51, 53, 54, 56, 57, 61, 64, 65, 66, 68, 69),
)
"""AVSBench-OV's 30 novel classes: those that are rare in LVIS or not among its names."""

BASE: tuple[int, ...] = tuple(index for index in range(1, 71) if index not in NOVEL)
"""AVSBench-OV's 40 base classes."""

S4_CATEGORIES: dict[str, str] = {
    "baby_laughter": "baby",
    "female_singing": "woman",
    "male_speech": "man",
    "dog_barking": "dog",
    "cat_meowing": "cat",
    "lions_roaring": "lion",
    "horse_clip-clop": "horse",
    "coyote_howling": "wolf",
    "mynah_bird_singing": "bird",
    "playing_acoustic_guitar": "guitar",
    "playing_tabla": "tabla",
    "playing_violin": "violin",
    "playing_piano": "piano",
    "playing_ukulele": "ukulele",
    "playing_glockenspiel": "marimba",
    "helicopter": "helicopter",
    "race_car": "car",
    "driving_buses": "bus",
    "ambulance_siren": "emergency-car",
    "typing_on_computer_keyboard": "keyboard",
    "chainsawing_trees": "saw",
    "cap_gun_shooting": "gun",
    "lawn_mowing": "mower",
}
"""S4's 23 categories and the AVSS class that their masks have in AVSBench-semantic."""


MAX_BYTES = 64 << 20  # the largest released table has 0.7 MB
NOT_CLASSES = frozenset({"", "off-the-screen", "background"})  # values of a_obj if nothing on screen sounds
MISSPELLED = {"h orse": "horse"}  # one row of the release

_CLASSES = frozenset(CLASSES[1:])


class MissingDataError(InputError):
    """Files of a data set are missing; `open_dataset` adds instructions for obtaining them."""


class MissingSplitError(InputError):
    """A data set has no clip of the requested split."""


@dataclass(frozen=True)
class TableRow:
    """One line of a table: its number in the file and its cells by column."""

    line: int
    cells: Mapping[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


def find_home(root: Path, table: str, places: Sequence[str]) -> Path:
    """Return the folder of the file `table`: `root`, or one of the `places` below it.

    Raises:
        MissingDataError: none of them has it.
    """
    for place in ("", *places):
        if (root / place / table).is_file():
            return root / place
    state = "holds no" if root.is_dir() else "is not a folder with a"
    also = f", nor do {', '.join(f'{place}/' for place in places)} below it" if root.is_dir() else ""
    raise MissingDataError(f"{root} {state} {table}{also}; --root is the folder that holds {table}")


def read_table(path: Path, columns: Mapping[str, int]) -> list[TableRow]:
    """Read the rows of a CSV file with a header; cells are stripped and blank lines are left out.

    Args:
        path: the file.
        columns: names of the columns to read, with their positions in the release. A column whose name has another
            position in the header is read there, because some copies have an index column or another order.

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
        raise InputError(f"{path} has the header {','.join(header)[:80]!r}, in which {expected} share a column")
    last = max(places.values())
    rows = []
    for number, cells in lines[1:]:
        if len(cells) <= last:
            raise InputError(f"{path}, line {number}: {len(cells)} columns where at least {last + 1} were expected")
        rows.append(TableRow(number, {name: cells[place].strip() for name, place in places.items()}))
    return rows


def read_clip_table(path: Path, columns: Mapping[str, int], *names: str) -> list[TableRow]:
    """Read a table of clips (see `read_table`); the columns `names` are safe names, and the first has no duplicates.

    Raises:
        InputError: as `read_table`, an unsafe name, or a clip that is listed twice.
    """
    rows = read_table(path, columns)
    check_names(path, rows, *names)
    check_unique(path, rows, names[0])
    return rows


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path} is larger than {MAX_BYTES >> 20} MiB, the limit for tables of clips")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path} as a CSV table in UTF-8: {error}") from error


def check_names(path: Path, rows: Iterable[TableRow], *columns: str) -> None:
    """Raise InputError for cells that are not the name of one file or folder, such as `../`, `/a` or an empty one."""
    for row in rows:
        for column in columns:
            if not is_plain_name(row[column]):
                raise InputError(
                    f"{path}, line {row.line}: the {column} {row[column][:80]!r} is not the name of a folder "
                    "(no '/', '\\' or control characters, not '..')"
                )


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of one file or folder on any system."""
    return 0 < len(name) <= 255 and name not in (".", "..") and name.isprintable() and not set(name) & set("/\\:")


def check_unique(path: Path, rows: Iterable[TableRow], column: str) -> None:
    """Raise InputError for a table that lists a clip twice."""
    first: dict[str, int] = {}
    for row in rows:
        if row[column] in first:
            raise InputError(
                f"{path} lists the clip {row[column]!r} twice (lines {first[row[column]]} and {row.line}); remove one"
            )
        first[row[column]] = row.line


def in_split(path: Path, rows: Iterable[TableRow], split: str) -> list[TableRow]:
    """Return the rows of a split in the order of the file.

    Raises:
        MissingSplitError: no such row; the message lists the existing splits.
    """
    found = Counter(row["split"] for row in rows)
    if split not in found:
        existing = ", ".join(f"{name or 'no name'!r} ({count})" for name, count in found.items()) or "no clips at all"
        raise MissingSplitError(f"{path} lists no clip of the split {split!r}; it holds {existing[:200]}")
    return [row for row in rows if row["split"] == split]


def sounding_classes(path: Path, row: TableRow) -> tuple[str, ...]:
    """Return the classes in a row's `a_obj` (joined by `_`), without off-screen sounds and background.

    Raises:
        InputError: an unknown class.
    """
    names = (MISSPELLED.get(name, name) for name in map(str.strip, row["a_obj"].split("_")))
    kept = tuple(dict.fromkeys(name for name in names if name not in NOT_CLASSES))
    for name in kept:
        if name not in _CLASSES:
            raise InputError(
                f"{path}, line {row.line}: {name!r:.80} in a_obj is not a class of AVSBench-semantic; "
                f"{did_you_mean(name, _CLASSES)}"
            )
    return kept


def listing(folder: Path) -> frozenset[str]:
    """Return the names in a folder; empty if it does not exist."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def existing_file(path: Path) -> Path | None:
    """Return the path if there is such a file."""
    return path if os.path.isfile(path) else None


def check_present(split: str, table: Path, wanted: Sequence[tuple[Path, str]]) -> None:
    """Raise MissingDataError if folders of a split are missing; each parent folder is listed once, no file is read."""
    held = {parent: listing(parent) for parent in dict.fromkeys(parent for parent, _ in wanted)}
    missing = [parent / name for parent, name in wanted if name not in held[parent]]
    if missing:
        raise MissingDataError(
            f"{len(missing)} of the {len(wanted)} clips of {split!r} that {table} lists have no folder "
            f"(first: {missing[0]}); to use the others, remove these lines from a copy of the table"
        )
