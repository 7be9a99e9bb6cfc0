"""The `compile` option: invalid values, compiled modules, and equal results."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from openavs.caching.wrappers import with_cache
from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.models.compile import _check_compiler
from openavs.models.ops.linear import supports_int8
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import Registry, check_backends
from openavs.structures.types import AudioWindow, ImageArray
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import sample_scene
from tests.plugin_recipe import write_recipe

CAPTURED = "aot_eager"


def compiled_modules(backend: Any) -> list[str]:
    return [name for name, module in backend.model.named_modules() if module._compiled_call_impl is not None]


def build(stage: str, use: str, model: str, **options: Any) -> Any:
    return Registry(stage).build(use, {"model": f"openavs:tiny/{model}", **options}, {"device": "cpu"})


@pytest.fixture(scope="module")
def images() -> list[ImageArray]:
    clip = scene_to_clip(sample_scene("ms3", "test", 9, 3).scene, "compiled")
    return [frame.image for frame in clip.frames(None)][:2]


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("segmenter.compile=fast", "compile must be true, false or one of default, .*, not 'fast'"),
        ("segmenter.compile=1", "compile must be true, false or one of .*, not 1"),
        ("translator.compile=true", "'llm' cannot be compiled; remove its option 'compile' .these can: clap, "),
    ],
)
def test_what_cannot_be_compiled_is_a_sentence(key: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        check_backends(load_recipe("tiny", [key]))


def test_false_is_as_good_as_nothing() -> None:
    assert check_backends(load_recipe("tiny", ["segmenter.compile=false"])) == check_backends(load_recipe("tiny"))


def test_without_a_compiler_the_fix_is_named() -> None:
    from torch._inductor import config

    nowhere: Any = config.patch({"cpp.cxx": ("/nowhere/g++",)})
    with nowhere, pytest.raises(InputError, match=r"compile needs a C\+\+ compiler on the cpu, such as g\+\+"):
        build("segmenter", "sam", "sam", compile=True)


def test_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)  # Python's own mark of a module that cannot be had
    with pytest.raises(InputError, match="compile needs the package triton on a GPU: pip install triton"):
        _check_compiler(torch.device("cuda"))
    triton = ModuleType("triton")
    triton.__spec__ = ModuleSpec("triton", None)
    monkeypatch.setitem(sys.modules, "triton", triton)
    _check_compiler(torch.device("cuda"))  # and no C++ compiler


def test_a_plug_in_may_have_an_option_of_that_name(tmp_path: Path) -> None:
    write_recipe(tmp_path)
    plugin = '\n\nclass Choosy(Eye):\n    def __init__(self, *, compile: str = "no"):\n        self.how = compile\n'
    (tmp_path / "stages.py").write_text((tmp_path / "stages.py").read_text() + plugin)
    made = Registry("detector").build("./stages.py:Choosy", {"compile": "yes"}, base=tmp_path)
    assert made.how == "yes"


@pytest.mark.long
@pytest.mark.parametrize(
    "quantize", [None, pytest.param("int8", marks=pytest.mark.skipif(not supports_int8(), reason="no 8-bit kernel"))]
)
def test_a_segmenter_answers_the_same(quantize: str | None, images: list[ImageArray]) -> None:
    plain, captured = (
        build("segmenter", "sam", "sam", quantize=quantize, **how) for how in ({}, {"compile": CAPTURED})
    )
    boxes = [[(10.0, 10.0, 60.0, 60.0)], [(20.0, 5.0, 90.0, 70.0), (0.0, 0.0, 30.0, 30.0)]]
    for one, two in zip(captured.segment(images, boxes), plain.segment(images, boxes), strict=True):
        assert [mask.rle for mask in one] == [mask.rle for mask in two]
        np.testing.assert_allclose([mask.score for mask in one], [mask.score for mask in two], atol=1e-5)
    assert compiled_modules(captured) == ["vision_encoder"]
    assert compiled_modules(plain) == []


@pytest.mark.slow
def test_a_detector_answers_the_same_at_each_shape(images: list[ImageArray]) -> None:
    plain, captured = (
        build("detector", "grounding-dino", "grounding-dino", **how) for how in ({}, {"compile": CAPTURED})
    )
    shapes = [images[0], np.ascontiguousarray(images[1][:, :100])]
    for image in shapes:
        [one], [two] = (detector.detect([image], [["dog", "train"]]) for detector in (plain, captured))
        assert [box.phrase for box in one] == [box.phrase for box in two]
        np.testing.assert_allclose([box.score for box in one], [box.score for box in two], atol=1e-5)
    assert compiled_modules(captured) == ["model.backbone"]


@pytest.mark.slow
def test_a_captioner_answers_the_same() -> None:
    clip = scene_to_clip(sample_scene("ms3", "test", 9, 3).scene, "compiled")
    assert clip.audio is not None
    words = {"vocabulary": ["dog barking", "bell ringing"], "threshold": 0.0}
    plain, captured = (build("captioner", "clap", "clap", **words, **how) for how in ({}, {"compile": CAPTURED}))
    windows = [AudioWindow(clip.audio.cut(i, i + 1), float(i), i + 1.0) for i in range(2)]
    for one, two in zip(plain.caption(windows), captured.caption(windows), strict=True):
        assert [caption.text for caption in one] == [caption.text for caption in two]
        assert [caption.score for caption in one] == pytest.approx([caption.score for caption in two], abs=1e-5)
    assert compiled_modules(captured) == ["audio_model"]


def test_compiled_answers_are_cached_apart(tmp_path: Path) -> None:
    """Kernels that were compiled round otherwise."""
    prints = []
    for how in ([], [f"captioner.compile={CAPTURED}"]):
        recipe = load_recipe("tiny", how)
        pipe = Pipeline.from_recipe(recipe)
        with_cache(pipe, recipe, tmp_path)
        prints.append(pipe.captioner.fingerprint)  # type: ignore[attr-defined]
    assert prints[0] != prints[1]


@pytest.fixture
def compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("this machine has no C++ compiler")


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_segment_the_same(images: list[ImageArray]) -> None:
    plain, compiled = (build("segmenter", "sam", "sam", **how) for how in ({}, {"compile": True}))
    boxes = [[(10.0, 10.0, 60.0, 60.0)], [(20.0, 5.0, 90.0, 70.0)]]
    for one, two in zip(plain.segment(images, boxes), compiled.segment(images, boxes), strict=True):
        assert one[0].score == pytest.approx(two[0].score, abs=1e-3)
        assert abs(one[0].rle.area - two[0].rle.area) <= 2


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_compiled_kernels_detect_the_same(images: list[ImageArray]) -> None:
    """Although the adapter's own linear layers run an operation that the compiler does not take."""
    model = "grounding-dino"
    plain, compiled = (build("detector", model, model, **how) for how in ({}, {"compile": True}))
    [one], [two] = (detector.detect(images[:1], [["dog", "train"]]) for detector in (plain, compiled))
    assert [box.phrase for box in one] == [box.phrase for box in two]
    np.testing.assert_allclose([box.score for box in one], [box.score for box in two], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.slow
def test_cuda_graphs_answer_the_same(images: list[ImageArray]) -> None:
    shared = {"device": "cuda", "dtype": "float32"}
    options = {"model": "openavs:tiny/sam"}
    plain = Registry("segmenter").build("sam", options, shared)
    graphs = Registry("segmenter").build("sam", {**options, "compile": "reduce-overhead"}, shared)
    boxes = [[(10.0, 10.0, 60.0, 60.0)], [(20.0, 5.0, 90.0, 70.0)]]
    for _ in range(3):  # recorded on the first calls, replayed on the next
        for one, two in zip(plain.segment(images, boxes), graphs.segment(images, boxes), strict=True):
            assert one[0].score == pytest.approx(two[0].score, abs=1e-2)
    assert torch.cuda.is_available()
