"""Backends that do not keep to their stage's protocol: the error names the stage and what it must return."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openavs.errors import InputError, InvalidOutputError
from openavs.registry import STAGES, check_backends
from openavs.stages.contracts import CONTRACTS, call_stage, check_methods
from tests.conftest import Outcome
from tests.media_files import gray, make_media, tone
from tests.plugin_recipe import STAGES as PLUGINS, write_recipe

BROKEN = """
from openavs.stages.translators.base import Translation
from openavs.structures.types import Verdict


class TupleEar(Ear):
    def caption(self, windows):
        return [[("dog", 0.9)] for _ in windows]


class NothingEar(Ear):
    def caption(self, windows):
        pass


class TupleEye(Eye):
    def detect(self, images, phrases):
        return [[((0, 0, 4, 4), "dog", 0.9)] for _ in images]


class ShortEye(Eye):
    def detect(self, images, phrases):
        return []


class NumberEye(Eye):
    def detect(self, images, phrases):
        return [1 for _ in images]


class OneHand(Hand):
    def segment(self, images, boxes):
        return [[] for _ in images]


class FlatTongue:
    def translate(self, requests):
        return [["dog"] for _ in requests]


class ShortTongue:
    def translate(self, requests):
        return [Translation((("dog",),), "mine") for _ in requests]


class NamelessTongue:
    def translate(self, requests):
        return [Translation((("dog",),) * len(r.frames), "llm", origins=("llm",)) for r in requests]


class BooleanJudge:
    def verify(self, images, segments, asked):
        return [[True for _ in own] for own in segments]


class NumberFollower:
    keyframe_interval = 1

    def track(self, frames):
        return [1]


class DeafEye:
    def look(self, images, phrases):
        return []


class NarrowEye:
    def detect(self, images):
        return []
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_media(tmp_path_factory.mktemp("v") / "good.mp4", [gray(i) for i in range(30)], sound=tone(3))


DETECT = r"detect(images, phrases) must return a list of Detection for each image"
CAPTION = r"caption(windows) must return a list of Caption for each window"
TRANSLATE = "translate(requests) must return a Translation for each request"


@pytest.mark.parametrize(
    ("stage", "cls", "said"),
    [
        (
            "captioner",
            "TupleEar",
            f"the captioner returned an object of type tuple among the items of an input; {CAPTION}",
        ),
        ("captioner", "NothingEar", f"the captioner returned nothing (None); {CAPTION}"),
        ("translator", "FlatTongue", f"the translator returned an object of type list for a request; {TRANSLATE}"),
        ("translator", "NamelessTongue", f"the translator returned origins for 1 of 3 frames; {TRANSLATE}"),
        ("translator", "ShortTongue", f"the translator returned phrases for 1 of 3 frames; {TRANSLATE}"),
        (
            "detector",
            "TupleEye",
            f"the detector returned an object of type tuple among the items of an input; {DETECT}",
        ),
        ("detector", "ShortEye", f"the detector returned 0 answers for 3 inputs; {DETECT}"),
        ("detector", "NumberEye", f"the detector returned an object of type int for an input; {DETECT}"),
        ("segmenter", "OneHand", "the segmenter returned 0 items for an input with 1; segment(images, boxes) must"),
        ("verifier", "BooleanJudge", "an object of type bool among the items of an input; verify(images, segments"),
        (
            "tracker",
            "NumberFollower",
            "the tracker returned an object of type int among its frames; track(frames",
        ),
    ],
)
def test_an_invalid_return_value_is_an_error_that_states_the_contract(
    openavs: Callable[..., Outcome], video: Path, tmp_path: Path, stage: str, cls: str, said: str
) -> None:
    recipe = write_recipe(tmp_path, **{stage: {"use": f"./stages.py:{cls}"}})
    (tmp_path / "stages.py").write_text(PLUGINS + BROKEN)
    done = openavs("segment", video, "-p", recipe, "--out", tmp_path / "out")
    assert done.code == 1
    assert said in done.err


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        ("DeafEye", "the detector './stages.py:DeafEye' has no method detect(images, phrases); add it to the class"),
        ("NarrowEye", "has detect(self, images) and is called as detect(images, phrases); change its parameters"),
    ],
)
def test_another_signature_is_refused_before_models_are_loaded(
    openavs: Callable[..., Outcome], video: Path, tmp_path: Path, cls: str, said: str
) -> None:
    recipe = write_recipe(tmp_path, detector={"use": f"./stages.py:{cls}"})
    (tmp_path / "stages.py").write_text(PLUGINS + BROKEN)
    done = openavs("segment", video, "-p", recipe, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out").exists()


def test_further_parameters_and_other_names_are_allowed() -> None:
    class Wide:
        def detect(self, pictures: Any, words: Any, more: int = 1) -> Any: ...

    class Anything:
        @staticmethod
        def detect(*given: Any) -> Any: ...

    class Late:
        def __getattr__(self, name: str) -> Any: ...

    for cls in (Wide, Anything, Late):
        check_methods("detector", "mine", cls)
    with pytest.raises(InputError, match=r"no method segment\(images, boxes\) or segment_phrases\(images, phrases\)"):
        check_methods("segmenter", "mine", Wide)


@pytest.mark.parametrize(
    ("stage", "methods"),
    [
        ("captioner", ("caption(windows)", "events(audio)")),
        ("verifier", ("verify(images, segments, phrases)", "verify_clip(frames, evidence)")),
    ],
)
def test_one_of_the_methods_of_a_stage_suffices(stage: str, methods: tuple[str, str]) -> None:
    for method in methods:
        name = method.partition("(")[0]
        check_methods(stage, "mine", type("Mine", (), {name: getattr(CONTRACTS[name].protocol, name)}))
        narrow = type("Narrow", (), {name: lambda self: []})
        with pytest.raises(InputError, match=re.escape(f"has {name}(self) and is called as {method}; change its")):
            check_methods(stage, "mine", narrow)
    with pytest.raises(InputError, match=re.escape(f"has no method {' or '.join(methods)}; add it to the class")):
        check_methods(stage, "mine", type("Nothing", (), {}))


def test_a_method_without_a_signature_is_accepted() -> None:
    class Compiled:
        detect = dict.update

    check_methods("detector", "mine", Compiled)


def test_the_embedded_backends_keep_the_contract_of_every_stage() -> None:
    from openavs.config.recipe import load_recipe

    assert {contract.stage for contract in CONTRACTS.values()} == set(STAGES)
    check_backends(load_recipe("tiny"))


def test_a_method_that_was_replaced_may_have_another_name() -> None:
    def counting(windows: Any) -> Any:
        return [[] for _ in windows]

    assert call_stage("caption", SimpleNamespace(caption=counting), [1, 2]) == [[], []]
    with pytest.raises(InvalidOutputError, match="the captioner returned nothing"):
        call_stage("caption", SimpleNamespace(caption=partial(lambda found, windows: found, None)), [1])
