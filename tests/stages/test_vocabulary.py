"""Vocabularies: loading by name, file or list, invalid ones, and phrases that match their classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.stages.lexicon import lexicon
from openavs.stages.vocabulary import load_vocabulary, match_classes
from tests.stages.avsbench import AVSBENCH


def test_audioset_is_its_527_display_names() -> None:
    labels = load_vocabulary("audioset")
    assert len(labels) == len(set(labels)) == 527
    assert labels[0] == "Speech" and {"Bark", "Church bell", "Male speech, man speaking", "Silence"} <= set(labels)


def test_a_text_file_has_one_entry_per_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("\ufeff# mine\nchurch bell\n\n  dog  \nMale speech, man speaking\ndog\n", encoding="utf-8")
    assert load_vocabulary(str(path)) == ("church bell", "dog", "Male speech, man speaking")


def test_a_sequence_keeps_its_order_without_duplicates() -> None:
    assert load_vocabulary(["dog", "bell ", "dog"]) == ("dog", "bell")


def test_invalid_vocabularies_are_errors(tmp_path: Path) -> None:
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


# ------------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize("name", AVSBENCH)
def test_every_class_of_avsbench_matches_itself(name: str) -> None:
    assert lexicon(name)
    assert match_classes(name, AVSBENCH) == match_classes(name.replace("-", " ").upper(), AVSBENCH) == (name,)


@pytest.mark.parametrize(
    ("phrase", "classes"),
    [
        ("puppies", ("dog",)),
        ("ambulance", ("emergency-car",)),
        ("xylophone", ("marimba",)),
        ("toy piano", ("piano",)),
        ("hi-hat", ("drum",)),
        ("person", ("man", "woman", "boy", "girl", "baby")),
        ("crowd", ("man", "woman", "boy", "girl", "baby")),
        ("toaster", ()),
        ("", ()),
    ],
)
def test_phrases_match_their_class(phrase: str, classes: tuple[str, ...]) -> None:
    assert match_classes(phrase, AVSBENCH) == classes


def test_siblings_do_not_match() -> None:
    assert match_classes("dog", ["cat", "horse"]) == ()
    assert match_classes("man", ["woman", "baby"]) == ()
