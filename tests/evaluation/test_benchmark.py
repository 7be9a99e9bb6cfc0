"""Benchmark cards: agreement with code and releases, and custom cards and readers."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.tables import CLASSES, S4_CATEGORIES
from openavs.stages.vocabulary import ClassMapper
from openavs.synthetic.datasets import write_layout

NAMES = ("s4", "ms3", "avss", "ov", "v3", "twins")

CARD = """
title: My benchmark
task: binary
reader: {reader}
layout: one folder
splits: {{test: {{clips: 1}}, holdout: {{}}}}
metric: J and F
obtain: it lies on the shelf
"""

READER = """
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.datasets.tables import MissingDataError

def read(root, split):
    if not root.is_dir():
        raise MissingDataError(f"{root} is not there")
    return Dataset("whatever", "binary", root, split, (), lambda clip: None, lambda clip, folder: None)

def nothing(root, split):
    return None
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "mine.yaml").write_text(CARD.format(reader="./my_reader.py:read"))
    (tmp_path / "my_reader.py").write_text(READER)
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_cards_are_complete(name: str) -> None:
    card = load_benchmark(name)
    assert card.name == name
    assert {"train", "val", "test"} <= card.splits.keys()
    assert card.caveats
    assert "published" in card.published
    assert "github.com/" in card.obtain or name == "twins"
    assert not card.obtain.endswith(".")  # it continues a sentence


def test_sizes_of_the_releases() -> None:
    splits = {name: load_benchmark(name).splits for name in NAMES}
    assert sum(split.clips or 0 for split in splits["s4"].values()) == 4932
    assert sum(split.masks or 0 for split in splits["s4"].values()) == 10852
    assert sum(split.clips or 0 for split in splits["ms3"].values()) == 424
    assert sum(split.frames or 0 for split in splits["ms3"].values()) == 2120
    assert sum(split.clips or 0 for split in splits["avss"].values()) == 11356
    assert splits["avss"]["test"].frames == 740 * 5 + 64 * 5 + 750 * 10
    assert splits["v3"]["test"].frames == 726 * 10 + 32 * 5


@pytest.mark.parametrize("name", ["avss", "ov"])
def test_classes_vocabulary_and_aliases(name: str) -> None:
    card = load_benchmark(name)
    assert tuple(card.classes) == CLASSES
    assert card.vocabulary is not None
    label = ClassMapper(card.vocabulary, card.aliases)
    for phrase in card.vocabulary:
        assert label(phrase) == (phrase, "exact")
    for alias, phrase in card.aliases.items():
        assert label(alias)[0] == phrase  # no alias is another class's name


def test_s4_lists_its_categories_in_order() -> None:
    assert load_benchmark("s4").classes == list(S4_CATEGORIES)


def test_opening_a_split(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_layout("s4", tmp_path / "s4", {"test": 1})
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset("s4", tmp_path / "s4")
    assert (dataset.benchmark, dataset.split, len(dataset.clips)) == ("s4", "test", 1)
    assert dataset.incomparable == "the clips are synthetic (openavs synth)"
    assert f"s4 test: {dataset.incomparable}, so figures do not compare with published ones" in caplog.text


@pytest.mark.parametrize(("released", "reason"), [(1, None), (2, "the split has 1 clips here and 2 in the release")])
def test_a_split_with_the_released_number_of_clips_is_comparable(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, released: int, reason: str | None
) -> None:
    write_layout("s4", tmp_path / "s4", {"test": 1})
    for path in sorted((tmp_path / "s4").rglob("*te000w00000*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.replace("te000w00000", "-AbcdEfgHij")))
    table = tmp_path / "s4/s4_meta_data.csv"
    table.write_text(table.read_text().replace("te000w00000", "-AbcdEfgHij"))
    card = CARD.format(reader="openavs.evaluation.datasets.avsbench_object:read_s4")
    own.write_text(card.replace("clips: 1", f"clips: {released}"))
    assert open_dataset(own, tmp_path / "s4").incomparable == reason
    assert (reason is None) == ("compare with published" not in caplog.text)


@pytest.mark.parametrize("layout", ["s4", "ms3", "avss", "ov"])
def test_synthetic_clips_are_never_comparable(layout: str, tmp_path: Path) -> None:
    write_layout(layout, tmp_path / layout, {"test": 1, "val": 1}, seed=999)
    for split in ("test", "val"):
        reason = open_dataset(layout, tmp_path / layout, split).incomparable
        assert reason == "the clips are synthetic (openavs synth)"


@pytest.mark.parametrize(
    ("benchmark", "split", "says"),
    [
        ("avs", "test", "there is no benchmark 'avs'; did you mean 'avss'"),
        ("s4", "tets", "s4 has no split 'tets'; did you mean 'test'"),
        ("s4", "test", r"holds no s4_meta_data\.csv.*; AVSBench is available from its authors on request"),
        ("ms3", "test", r"holds no ms3_meta_data\.csv.*available from its authors"),
        ("avss", "test", r"holds no metadata\.csv.*available from its authors"),
        ("ov", "test", "does not hold AVSBench-openvoc/.*linked by its authors"),
        ("v3", "test", r"holds no metadata\.csv.*the tables are in github"),
        ("twins", "test", r"holds no clips\.csv.*'openavs synth twins --out DIR --clips 200' writes it"),
    ],
)
def test_unreadable_benchmarks_raise(tmp_path: Path, benchmark: str, split: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_dataset(benchmark, tmp_path, split)


# ----------------------------------------------------------------------------------------------- custom benchmark


def test_a_card_and_a_reader_make_a_benchmark(own: Path, tmp_path: Path) -> None:
    dataset = open_dataset(own, tmp_path, "holdout")
    assert (dataset.benchmark, dataset.root, dataset.split) == ("mine", tmp_path, "holdout")
    with pytest.raises(InputError, match="nowhere is not there; it lies on the shelf"):
        open_dataset(own, tmp_path / "nowhere")


def test_a_reader_in_an_installed_module(own: Path, tmp_path: Path) -> None:
    own.write_text(CARD.format(reader="openavs.evaluation.datasets.avsbench_object:read_s4"))
    write_layout("s4", tmp_path / "data", {"test": 1})
    assert open_dataset(own, tmp_path / "data").benchmark == "mine"


@pytest.mark.parametrize(
    ("reader", "says"),
    [
        ("./my_reader.py:raed", "there is no function 'raed' in ./my_reader.py; did you mean 'read'"),
        ("./other.py:read", "other.py does not exist"),
        ("./my_reader.py:nothing", "returns a NoneType, not a Dataset"),
        ("no.such.module:read", "cannot be imported"),
        ("openavs.evaluation.datasets.tables:CLASSES", "is not a function"),
        ("json", "is not a function"),
    ],
)
def test_an_invalid_reader_raises(own: Path, tmp_path: Path, reader: str, says: str) -> None:
    own.write_text(CARD.format(reader=reader))
    with pytest.raises(InputError, match=says):
        open_dataset(own, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("layout:", "lay_out:", "there is no key 'lay_out'; did you mean 'layout'"),
        ("clips: 1", "clisp: 1", "there is no key 'splits.test.clisp'; did you mean 'clips'"),
        ("clips: 1", "clips: many", "'splits.test.clips' must be a whole number, not 'many'"),
        (
            "task: binary",
            "task: panoptic",
            "'task' must be one of 'binary', 'semantic', 'open-vocabulary' or 'instances'",
        ),
        ("obtain: it lies on the shelf", "", "the key 'obtain' is missing; see eval/s4.yaml"),
        ("obtain:", "vocabulary: [a, b]\nclasses: [none, a]\nobtain:", "'vocabulary' has 2 phrases for 1 classes"),
        (
            "obtain:",
            "classes: [none, a]\nvocabulary: [a]\naliases: {b: [c]}\nobtain:",
            "'aliases.c' means 'b', which is not in 'vocabulary'",
        ),
        (
            "obtain:",
            "classes: [none, a, b]\nvocabulary: [a, b]\naliases: {a: [c], b: [c]}\nobtain:",
            "the alias 'c' means both 'a' and 'b'",
        ),
        ("obtain:", "aliases: [a, b]\nobtain:", "'aliases' must be a section of keys and values"),
    ],
)
def test_an_invalid_card_raises(own: Path, old: str, new: str, says: str) -> None:
    own.write_text(own.read_text().replace(old, new))
    with pytest.raises(InputError, match=rf"mine\.yaml: {says}"):
        load_benchmark(own)
