"""CSV tables: other columns, other line ends, and invalid rows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.evaluation.datasets.tables import (
    MAX_BYTES,
    MissingDataError,
    TableRow,
    check_names,
    check_present,
    check_unique,
    find_home,
    in_split,
    is_plain_name,
    read_table,
    sounding_classes,
)

S4 = {"name": 0, "category": 2, "split": 3}


def table(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "name,start,category,split\nabc,4,dog,test\n",
        "\ufeffname,start,category,split\r\nabc,4,dog,test\r\n\r\n",
        "video,anything,what,split\nabc,4,dog,test\n",  # unknown headers: by position
        ",name,start,category,split,more\n0,abc,4,dog,test,x\n",  # an index column before, another after
        "split,category,name\ntest,dog, abc \n",
    ],
)
def test_rows_are_read_by_position_or_by_name(tmp_path: Path, text: str) -> None:
    (row,) = read_table(table(tmp_path, text), S4)
    assert (row["name"], row["category"], row["split"]) == ("abc", "dog", "test")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("abc,4,dog,test\n", "is not a header with name,category,split"),
        ("name,category,split,start\nabc\n", "line 2: 1 columns where at least 3"),
        ("split,a,b,c\n1,2,3,4\n", "share a column"),
        (b"name,start,category,split\n\xff\xfe,4,dog,test\n", "UTF-8"),
    ],
)
def test_other_files_than_tables_raise(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_table(table(tmp_path, text), S4)


def test_a_file_too_large_to_be_a_table_is_not_read(tmp_path: Path) -> None:
    path = table(tmp_path, "name,start,category,split\n")
    os.truncate(path, MAX_BYTES + 1)
    with pytest.raises(InputError, match=r"table\.csv is larger than \d+ MiB, the limit for tables"):
        read_table(path, S4)


@pytest.mark.parametrize("name", ["../x", "..", "/etc/passwd", "a/b", "a\\b", "a\0b", "", "C:x", "a\nb", "x" * 256])
def test_names_cannot_leave_their_folder(name: str) -> None:
    assert not is_plain_name(name)
    with pytest.raises(InputError, match=r"line 7: the name .* is not the name of a folder"):
        check_names(Path("t.csv"), [TableRow(7, {"name": name})], "name")


@pytest.mark.parametrize("name", ["-5kRgp_lxpk_0_10000", "--yub8O1H0Y", "h orse", "x_w-93ctLN0_2", "日本"])
def test_plain_names(name: str) -> None:
    assert is_plain_name(name)


def test_a_clip_listed_twice_is_named_with_both_lines() -> None:
    rows = [TableRow(2, {"uid": "a"}), TableRow(3, {"uid": "b"}), TableRow(4, {"uid": "a"})]
    with pytest.raises(InputError, match=r"lists the clip 'a' twice \(lines 2 and 4\)"):
        check_unique(Path("t.csv"), rows, "uid")


def test_an_empty_split_lists_the_existing_ones() -> None:
    rows = [TableRow(2, {"split": "train"}), TableRow(3, {"split": "train"}), TableRow(4, {"split": "test"})]
    assert [row.line for row in in_split(Path("t.csv"), rows, "train")] == [2, 3]
    with pytest.raises(InputError, match=r"no clip of the split 'val'; it holds 'train' \(2\), 'test' \(1\)"):
        in_split(Path("t.csv"), rows, "val")
    with pytest.raises(InputError, match="no clips at all"):
        in_split(Path("t.csv"), [], "val")


@pytest.mark.parametrize(
    ("a_obj", "classes"),
    [
        ("dog", ("dog",)),
        ("woman_emergency-car", ("woman", "emergency-car")),
        ("off-the-screen", ()),
        ("background", ()),
        ("h orse", ("horse",)),
        ("man_off-the-screen_man", ("man",)),
        ("", ()),
    ],
)
def test_dirty_object_names(a_obj: str, classes: tuple[str, ...]) -> None:
    assert sounding_classes(Path("t.csv"), TableRow(2, {"a_obj": a_obj})) == classes


def test_an_unknown_object_is_named_with_the_nearest_class() -> None:
    with pytest.raises(InputError, match=r"line 5: 'giutar' in a_obj .* did you mean 'guitar'"):
        sounding_classes(Path("t.csv"), TableRow(5, {"a_obj": "dog_giutar"}))


def test_the_table_is_found_in_the_usual_places(tmp_path: Path) -> None:
    (tmp_path / "Single-source").mkdir()
    with pytest.raises(MissingDataError, match=r"holds no t.csv, nor do Single-source/ below it; --root is"):
        find_home(tmp_path, "t.csv", ["Single-source"])
    (tmp_path / "Single-source" / "t.csv").touch()
    assert find_home(tmp_path, "t.csv", ["Single-source"]) == tmp_path / "Single-source"
    assert find_home(tmp_path / "Single-source", "t.csv", ["Single-source"]) == tmp_path / "Single-source"
    with pytest.raises(MissingDataError, match="is not a folder"):
        find_home(tmp_path / "nowhere", "t.csv", ["Single-source"])


def test_missing_folders_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "v2" / "a").mkdir(parents=True)
    check_present("test", Path("t.csv"), [(tmp_path / "v2", "a")])
    with pytest.raises(MissingDataError, match=r"2 of the 3 clips of 'test' .* \(first: .*v2/b\)"):
        check_present("test", Path("t.csv"), [(tmp_path / "v2", "a"), (tmp_path / "v2", "b"), (tmp_path / "v9", "c")])
