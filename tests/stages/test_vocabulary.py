"""Vocabularies: by name, from a file, as given; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.stages.vocabulary import load_vocabulary


def test_audioset_is_its_527_display_names() -> None:
    labels = load_vocabulary("audioset")
    assert len(labels) == len(set(labels)) == 527
    assert labels[0] == "Speech" and {"Bark", "Church bell", "Male speech, man speaking", "Silence"} <= set(labels)


def test_a_text_file_has_one_entry_a_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# mine\nchurch bell\n\n  dog  \nMale speech, man speaking\ndog\n", encoding="utf-8")
    assert load_vocabulary(str(path)) == ("church bell", "dog", "Male speech, man speaking")


def test_a_sequence_is_taken_in_order_without_repeats() -> None:
    assert load_vocabulary(["dog", "bell ", "dog"]) == ("dog", "bell")


def test_what_is_no_vocabulary_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "clip.mp4"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for spec in ("audioste", str(tmp_path), str(binary)):
        with pytest.raises(InputError, match="cannot be read as a text file"):
            load_vocabulary(spec)
    for empty in ([], ["", "  "]):
        with pytest.raises(InputError, match="is empty"):
            load_vocabulary(empty)
    with pytest.raises(InputError, match="a list of words"):
        load_vocabulary([True])  # type: ignore[list-item]  # YAML reads an unquoted `yes` so
