"""Backends are found by name, as a plug-in or in a file, and get only options they understand."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from openavs import registry
from openavs.checks.recipe_check import check_recipe
from openavs.config.options import options_of
from openavs.config.recipe import load_recipe, stage_of
from openavs.errors import InputError
from openavs.registry import STAGES, Registry, build_backends
from openavs.stages.backends import BackendSpec

PLUGIN = '''
from dataclasses import dataclass

@dataclass
class Whistle:
    """Hears one thing."""
    word: str = "whistle"
    top_k: int = 1
    rate: float = 0.5
    loud: bool = False
    words: list[str] | None = None
    model: str = ""
    device: str = "auto"

    def caption(self, windows):
        return [[] for _ in windows]

not_a_class = 3
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


def build(folder: Path, shared: dict[str, Any] | None = None, /, **options: Any) -> Any:
    return Registry("captioner").build("./mine.py:Whistle", options, shared, folder)


# ------------------------------------------------------------------------------------------------------ names


def test_every_stage_has_its_built_in_backends() -> None:
    names = {stage: set(Registry(stage).names()) for stage in STAGES}
    assert names["captioner"] >= {"clap"}
    assert names["translator"] >= {"llm", "lexicon", "none"}
    assert names["detector"] >= {"grounding-dino", "owlv2"}
    assert names["segmenter"] >= {"sam"}


@pytest.mark.parametrize("entry", [e for stage in STAGES for e in Registry(stage).entries()], ids=lambda e: e.name)
def test_every_built_in_class_can_be_imported_and_has_only_named_options(entry: BackendSpec) -> None:
    cls = Registry(entry.stage).load(entry.name)
    parameters = options_of(cls)[0].values()
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters)
    assert entry.summary


@pytest.mark.parametrize(
    ("stage", "use", "sentence"),
    [
        ("detector", "grounding-dyno", "there is no detector 'grounding-dyno'; did you mean 'grounding-dino'?"),
        ("segmenter", "zebra", "there is no segmenter 'zebra'; there are box, "),
        ("captioner", "package.module:Class", "a class in a file is written ./file.py:Class"),
    ],
)
def test_an_unknown_name_gets_the_nearest(stage: str, use: str, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        Registry(stage).load(use)
    assert sentence in str(caught.value)


def test_an_unknown_stage() -> None:
    with pytest.raises(InputError, match="did you mean 'captioner'"):
        Registry("captoner")


# ------------------------------------------------------------------------------------------------- ./file.py:Class


def test_a_class_in_a_file_beside_the_recipe(plugin: Path) -> None:
    made = build(plugin, word="train whistle", top_k=2)
    assert (made.word, made.top_k) == ("train whistle", 2)
    assert type(made) is type(build(plugin)), "the file is loaded once"


def test_or_in_the_working_directory(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (plugin / "elsewhere").mkdir()
    monkeypatch.chdir(plugin)
    assert build(plugin / "elsewhere").word == "whistle"


def test_files_of_one_name_do_not_collide_and_edited_ones_are_reloaded(plugin: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(PLUGIN.replace('"whistle"', '"kettle"'))
    assert (build(plugin).word, build(other).word) == ("whistle", "kettle")
    (other / "mine.py").write_text(PLUGIN.replace('"whistle"', '"steam engine"'))
    assert build(other).word == "steam engine"


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        ("./absent.py:Whistle", "the plug-in file ./absent.py does not exist (looked for "),
        ("./mine.py:Whistl", "there is no class 'Whistl' in ./mine.py; did you mean 'Whistle'?"),
        ("./mine.py:not_a_class", "there is no class 'not_a_class' in ./mine.py"),
        ("./mine.py", "names no class: write ./mine.py:ClassName"),
        ("./broken.py:A", "fails when it is loaded: SyntaxError"),
        ("./raises.py:A", "fails when it is loaded: ZeroDivisionError: division by zero"),
        ("./needs.py:A", "needs the package 'no_such_package': pip install it"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(plugin: Path, use: str, sentence: str) -> None:
    (plugin / "broken.py").write_text("class A(:")
    (plugin / "raises.py").write_text("1 / 0")
    (plugin / "needs.py").write_text("import no_such_package")
    with pytest.raises(InputError) as caught:
        Registry("captioner").load(use, plugin)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ options


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"wrod": "x"}, "captioner './mine.py:Whistle' has no option 'wrod'; did you mean 'word'?"),
        ({"top_k": "three"}, "the option 'captioner.top_k' must be a whole number, not 'three' (text)"),
        ({"top_k": True}, "'captioner.top_k' must be a whole number, not True (true or false)"),
        ({"top_k": 2.5}, "'captioner.top_k' must be a whole number, not 2.5 (a number)"),
        ({"rate": [1]}, "'captioner.rate' must be a number, not [1] (a list)"),
        ({"loud": 1}, "'captioner.loud' must be true or false, not 1 (a number)"),
        ({"word": False}, "'captioner.word' must be text, not False (true or false); write it in quotes"),
        ({"words": "dog"}, "'captioner.words' must be a list of texts or nothing, not 'dog' (text)"),
        ({"words": ["dog", False]}, "must be a list of texts (write False in quotes)"),
    ],
)
def test_a_wrong_option_is_one_sentence(plugin: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        build(plugin, **options)
    assert sentence in str(caught.value)


def test_numbers_that_yaml_reads_as_text_become_numbers(plugin: Path) -> None:
    made = build(plugin, rate="3e-4", top_k="7", words=["a", "b"])
    assert (made.rate, made.top_k, made.words) == (3e-4, 7, ["a", "b"])
    assert build(plugin, rate=1).rate == 1.0
    assert build(plugin, words=None).words is None


def test_shared_options_go_only_where_they_are_known_and_the_recipe_wins(plugin: Path) -> None:
    shared = {"device": "cpu", "dtype": "float32", "offline": True}
    assert build(plugin, shared).device == "cpu"
    assert build(plugin, shared, device="cuda:1").device == "cuda:1"


def test_a_required_option_that_is_missing() -> None:
    with pytest.raises(InputError, match="segmenter 'sam' needs the option 'model'"):
        Registry("segmenter").check("sam", {})


def test_a_relative_path_starts_from_the_recipe(plugin: Path) -> None:
    (plugin / "models").mkdir()
    assert build(plugin, model="./models").model == str((plugin / "models").resolve())
    assert build(plugin, model="./absent").model == "./absent"
    assert build(plugin, model="models").model == "models"


class _Strict:
    def __init__(self, *, names: Sequence[str] | str, limit: int | None = None, **more: Any) -> None:
        self.names, self.limit, self.more = names, limit, more


def test_unions_and_open_constructors() -> None:
    from openavs.config.options import bind_options

    bound = bind_options(_Strict, {"names": "audioset", "limit": None, "anything": 1}, stage="captioner", name="x")
    assert bound == {"names": "audioset", "limit": None, "anything": 1}
    assert bind_options(_Strict, {"names": ["a"]}, stage="captioner", name="x") == {"names": ["a"]}
    with pytest.raises(InputError, match=r"must be a list of texts or text, not 3"):
        bind_options(_Strict, {"names": 3}, stage="captioner", name="x")


# --------------------------------------------------------------------------------------------------- entry points


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a package with two captioners were installed."""
    points = [
        EntryPoint("parrot", "collections:Counter", "openavs.captioner"),
        EntryPoint("clap", "collections:OrderedDict", "openavs.captioner"),
        EntryPoint("ghost", "no_such_package.module:Class", "openavs.captioner"),
        EntryPoint("function", "collections:namedtuple", "openavs.captioner"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


@pytest.mark.usefixtures("installed")
def test_an_installed_plugin_is_a_backend_but_takes_no_built_in_name(caplog: pytest.LogCaptureFixture) -> None:
    captioners = Registry("captioner")
    with caplog.at_level(logging.WARNING, logger="openavs.registry"):
        assert {"clap", "ghost", "parrot"} <= set(captioners.names())
    assert "clap" in caplog.text
    assert captioners.entry("clap").target.startswith("openavs.")
    assert captioners.load("parrot").__name__ == "Counter"
    assert not {"ghost", "parrot"} & set(Registry("detector").names())


@pytest.mark.usefixtures("installed")
def test_the_model_of_an_installed_plugin_may_be_any_file(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"weights")
    recipe = load_recipe("tiny", [f"captioner={{use: parrot, model: {tmp_path / 'net.onnx'}}}"])
    checked = check_recipe(recipe, tmp_path)
    assert checked.obstacles == () and "local" in {model.state for model in checked.weights}


@pytest.mark.usefixtures("installed")
def test_a_package_that_is_absent_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"'ghost' cannot be loaded .*: pip install no_such_package"):
        Registry("captioner").load("ghost")


@pytest.mark.usefixtures("installed")
def test_a_plug_in_that_names_no_class_is_one_sentence() -> None:
    with pytest.raises(InputError, match=r"the captioner 'function' of .* is not a class: collections:namedtuple"):
        Registry("captioner").load("function")


def test_a_part_of_openavs_that_is_missing_is_nothing_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BackendSpec("segmenter", "old", "openavs.no_such_module:Sam", "ours")
    monkeypatch.setattr(registry, "BUILT_IN", (entry,))
    with pytest.raises(ModuleNotFoundError, match=r"openavs\.no_such_module"):
        Registry("segmenter").load("old")


def test_a_backend_with_an_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = BackendSpec("segmenter", "old", "no_such_package:Sam", "the package", extra="segment-anything")
    monkeypatch.setattr(registry, "BUILT_IN", (entry,))
    with pytest.raises(InputError, match=r'pip install "openavs\[segment-anything\]"'):
        Registry("segmenter").load("old")


# ------------------------------------------------------------------------------------------------------- a recipe


def test_all_four_stages_are_checked_before_the_first_is_built(tmp_path: Path) -> None:
    """The misspelt option of the last stage is found although the first one's model does not exist."""
    recipe = load_recipe("tiny", ["captioner.model=/no/such/folder", "segmenter.batchsize=2"])
    with pytest.raises(InputError, match="segmenter 'sam' has no option 'batchsize'; did you mean 'batch_size'"):
        build_backends(recipe)


@pytest.mark.parametrize(
    "name", ["tiny", "openavs", "openavs-cpu", "openavs-av", "box-prompt", "owlv2", "mm-grounding-dino"]
)
def test_every_shipped_recipe_fits_its_backends(name: str) -> None:
    recipe = load_recipe(name)
    for key, section in recipe.stages().items():
        Registry(stage_of(key)).check(section.use, section.options, {"device": "cpu"}, recipe.base)
