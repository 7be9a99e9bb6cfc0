"""Recipes: what is in the box is valid, what is wrong says so in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from openavs.config import resources
from openavs.config.recipe import Recipe, load_recipe, recipe_from_dict
from openavs.errors import InputError

SMALL = """
captioner: {use: clap, model: openavs:tiny/clap}
translator: {use: none}
detector: {use: grounding-dino, model: openavs:tiny/grounding-dino}
segmenter: {use: sam, model: openavs:tiny/sam}
"""


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", resources.names("pipelines"))
def test_every_shipped_recipe_is_valid_and_headed_by_its_command(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    assert recipe.license
    first_line = resources.find("pipelines", name).read_text(encoding="utf-8").splitlines()[0]
    assert first_line.startswith("# openavs evaluate " if name == "oracle" else "# openavs segment ")
    assert f"--pipeline {name}" in first_line


@pytest.mark.parametrize("name", resources.names("pipelines"))
def test_a_written_recipe_is_complete_and_reads_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, ["filtering.box_threshold=0.31"])
    again = load_recipe(write(tmp_path, recipe.to_yaml(), "other.yaml"))
    assert again.to_dict() == recipe.to_dict()
    assert again.to_yaml() == recipe.to_yaml()
    assert str(resources.find("pipelines", name).parent) not in recipe.to_yaml()


def test_tiny_vocabulary_is_the_canonical_sounds_of_the_world() -> None:
    from openavs.synthetic.categories import KINDS

    assert load_recipe("tiny").captioner.options["vocabulary"] == [kind.heard[0] for kind in KINDS]


def test_defaults_and_the_name_of_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALL))
    assert (recipe.name, recipe.sample.fps, recipe.filtering.box_threshold) == ("mine", 1.0, 0.25)
    assert recipe.vocabulary is None
    assert recipe.base == tmp_path
    assert recipe.models() == {
        "captioner": "openavs:tiny/clap",
        "detector": "openavs:tiny/grounding-dino",
        "segmenter": "openavs:tiny/sam",
    }


def test_overrides_are_dotted_yaml() -> None:
    recipe = load_recipe(
        "tiny",
        [
            "filtering.box_threshold=3e-1",
            "filtering.nms_iou=null",
            "captioner.top_k=2",
            "vocabulary=[dog, cat]",
            "offline=true",
        ],
    )
    assert (recipe.filtering.box_threshold, recipe.filtering.nms_iou) == (0.3, None)
    assert recipe.captioner.options["top_k"] == 2
    assert recipe.vocabulary == ["dog", "cat"]
    assert recipe.offline is True
    assert load_recipe("tiny").filtering.box_threshold != 0.3  # the recipe itself is as it was


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("filtering.box_treshold=0.3", "no key 'filtering.box_treshold'; did you mean 'box_threshold'?"),
        ("filterng.box_threshold=0.3", "no key 'filterng'; did you mean 'filtering'?"),
        ("filtering.box_threshold=high", "'filtering.box_threshold' must be a number, not 'high' (text)"),
        ("filtering.box_threshold=true", "'filtering.box_threshold' must be a number, not True (true or false)"),
        ("filtering.box_threshold=2", "'filtering.box_threshold' must be at most 1, not 2 (a number)"),
        ("filtering.max_boxes=2.5", "'filtering.max_boxes' must be a whole number, not 2.5 (a number)"),
        ("filtering=3", "'filtering' must be a section of keys and values, not 3 (a number)"),
        ("sample.fps=0", "'sample.fps' must be more than 0, not 0 (a number)"),
        ("sample.fps=.nan", "'sample.fps' must be"),
        ("vocabulary=3", "'vocabulary' must be a list, not 3 (a number)"),
        ("vocabulary=[]", "'vocabulary' is empty; name at least one thing, such as dog,bell, or leave it out"),
        ("vocabulary=' , '", "'vocabulary' is empty; name at least one thing"),
        ("box_threshold=0.3", "no key 'box_threshold'; did you mean 'filtering.box_threshold'?"),
        ("box_treshold=0.3", "no key 'box_treshold'; did you mean 'filtering.box_threshold'?"),
        ("min_area=3", "no key 'min_area'; did you mean 'filtering.min_area' or 'label_filter.min_area'?"),
        ("filterng=3", "no key 'filterng'; did you mean 'filtering'?"),
        ("vocabulary=[dog, no]", "'vocabulary.2' must be text, not False (true or false); write it in quotes"),
        ("vocabulary=[747]", "'vocabulary.1' must be text, not 747 (a number); write it in quotes"),
        ("dtype=int8", "'dtype' must be one of"),
        ("captioner.use.deeper=1", "'use' is not a section"),
        ("translator.api_key=sk-1", "the translator's option 'api_key' would be saved with every result; put it into"),
        ("filtering.box_threshold", "is not key=value"),
        ("=1", "is not key=value"),
        ("filtering.max_boxes=[1", "cannot be read: line 1: this is not YAML"),
        ("vocabulary=" + "[" * 30, "line 1: sections are nested more than 20 deep"),
        ("summary=" + "x" * (1 << 20), "this is longer than 256 KiB, the limit for recipes, benchmarks and lock files"),
    ],
)
def test_a_wrong_override_is_one_sentence(override: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        load_recipe("tiny", [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (SMALL + "name: a\nname: b\n", "line 7: the key 'name' occurs twice"),
        (SMALL + "aliases: {on: light}\n", "line 6: the key 'on' is read as True; write it in quotes"),
        (SMALL + "name: &a x\nsummary: *a\n", "aliases (*name) are not allowed"),
        (SMALL + "summary: this: that\n", "needs quotes"),
        (SMALL + "summary: !!python/object/apply:os.getcwd []\n", "this is not YAML"),
        (SMALL.replace("detector", "detektor"), "no key 'detektor'; did you mean 'detector'?"),
        (SMALL.replace("detector", "#"), "the key 'detector' is missing"),
        (SMALL.replace("use: none", "model: x"), "the key 'translator.use' is missing"),
        ("- a\n- b\n", "has no keys and values"),
        ("", "has no keys and values"),
        ("\x00\x01", "this is not YAML"),
        ("# " + "x" * (1 << 20), "is larger than 256 KiB"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_recipe(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("verifier", ["verifier=null", "verifier={use: sync}"])
def test_a_minimum_verifier_score_needs_a_verifier(verifier: str) -> None:
    with pytest.raises(InputError, match=r"'label_filter\.min_verifier_score' needs a verifier of the look; add one"):
        load_recipe("tiny", ["label_filter.min_verifier_score=0.5", verifier])


def test_a_vocabulary_in_one_text_is_split_at_its_commas(tmp_path: Path) -> None:
    assert load_recipe("tiny", ["vocabulary=dog, church bell"]).vocabulary == ["dog", "church bell"]
    assert load_recipe(write(tmp_path, SMALL + "vocabulary: dog,bell\n")).vocabulary == ["dog", "bell"]


def test_another_backend_keeps_only_the_options_given_beside_it() -> None:
    changed = load_recipe("tiny", ["detector.share=0.5", "detector.use=./my.py:Mine", "captioner.top_k=2"])
    assert changed.detector is not None
    assert changed.detector.model_dump() == {"use": "./my.py:Mine", "share": 0.5}
    assert changed.captioner.options["model"] == load_recipe("tiny").captioner.options["model"]
    assert load_recipe("tiny", ["captioner.use=clap"]) == load_recipe("tiny")
    added = load_recipe("tiny", ["verifier.use=clip", "verifier.model=DIR"])
    assert added.verifier is not None
    assert added.verifier.options == {"model": "DIR"}


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        load_recipe(path)


@given(
    threshold=st.floats(0, 1),
    fps=st.floats(0.01, 240),
    words=st.lists(st.text(min_size=1).filter(lambda word: word.isprintable()), min_size=1, max_size=5),
)
def test_any_recipe_survives_writing(threshold: float, fps: float, words: list[str]) -> None:
    from openavs.utils.serialization import parse_yaml

    data = load_recipe("tiny").to_dict()
    data["filtering"]["box_threshold"], data["sample"]["fps"], data["vocabulary"] = threshold, fps, words
    recipe: Recipe = recipe_from_dict(data)
    assert recipe_from_dict(parse_yaml(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in ("box-prompt", "paper", "paper-sam2", "oracle")]
    + [(name, None) for name in ("openavs", "openavs-cpu", "openavs-fast", "llmdet", "mm-grounding-dino")],
)
def test_detectors_of_recipes_with_published_figures_are_exact(name: str, dtype: str | None) -> None:
    detector = load_recipe(name).detector
    assert detector is not None and detector.options.get("dtype") == dtype
