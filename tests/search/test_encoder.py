"""Text embeddings: similarity to phrases without a common word, and models that change."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir

import pytest

from openavs.config import resources
from openavs.errors import InputError
from openavs.search.encoder import TextEncoder
from openavs.search.query import SoundIndex
from openavs.search.sound_index import update_index
from tests.search.conftest import Sound, write_run

DOG, CLOCK = Sound("dog barking", "dog", 0, 2), Sound("clock ticking", "clock", 1, 3)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoundIndex]:
    """The index of the clip `street` with the embeddings of a copy of `tiny`, to which `square` was added later."""
    folder = tmp_path_factory.mktemp("embedded")
    (folder / "mine.yaml").write_bytes(resources.find("pipelines", "tiny").read_bytes())
    runs = [write_run(folder / "run", street=[DOG])]
    with chdir(folder):  # the recipe is found again from another folder
        update_index(folder / "sounds.db", runs, encoder="mine.yaml")
    write_run(folder / "run", square=[CLOCK])
    update_index(folder / "sounds.db")
    with SoundIndex(folder / "sounds.db") as index:
        yield index


def test_every_text_has_a_vector(embedded: SoundIndex) -> None:
    assert embedded.count("vectors") == embedded.count("texts") == 4


def test_a_similar_text_is_found_and_weighted(embedded: SoundIndex) -> None:
    assert embedded.find("bird").total == 0
    (hit,) = embedded.find("bird", similar=0.5).hits  # the tiny model has learned little: a clock is similar to a bird
    assert (hit.clip, hit.phrase) == ("square", "clock ticking")
    assert 0.5 * 0.8 < hit.score < 0.7 * 0.8


def test_words_count_more(embedded: SoundIndex) -> None:
    hits = embedded.find("clock", similar=0.2).hits
    assert [(hit.clip, hit.score) for hit in hits] == [("square", 0.8)]


def test_a_captioner_without_text_embeddings_is_refused(embedded: SoundIndex) -> None:
    with pytest.raises(InputError, match="the captioner oracle of oracle has no text embeddings"):
        TextEncoder("oracle")


def test_another_model_needs_another_index(embedded: SoundIndex) -> None:
    with pytest.raises(InputError, match=r"the embeddings of the index are of x \(1\).*--encoder tiny"):
        TextEncoder("tiny", {"x": "1"})


def test_nothing_heavy_is_loaded_without_similarity(embedded: SoundIndex) -> None:
    program = "import sys, openavs.cli as c; c.main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, "find", "dog", "--index", str(embedded.path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "street" in lines[0]
    assert not {"numpy", "torch", "PIL"} & set(lines[-1].split())
