"""examples/edge: the plug-in files with small generated models, and with real ones if available."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openavs.config.recipe import load_recipe
from openavs.errors import ModelError
from openavs.evaluation.metrics.metrics import BinaryMetrics
from openavs.media.clip import open_clip
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.captioners.base import Captioner
from openavs.stages.detectors.base import Detector
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import AudioWindow, Clip, Frame, ImageArray, Waveform
from openavs.utils.plugins import load_file_class
from tests.examples.tiny_onnx import write_onnx

pytest.importorskip("onnxruntime", reason='needs onnxruntime: pip install "openavs[edge]"')

EDGE = Path(__file__).parents[2] / "examples" / "edge"
DOG, HORSE = 16, 17  # of COCO's classes


def stage(use: str, **options: Any) -> Any:
    return load_file_class(f"{EDGE}/{use}")(**options)


# --------------------------------------------------------------------------------------------- small models made here


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Create a tagger that always returns a dog, a detector with a dog at one place, a segmenter of bright pixels."""
    folder = tmp_path_factory.mktemp("models")
    torch.save(tiny_tagger("Dog"), folder / "tagger.pt")
    detector = write_onnx(
        folder / "boxes.onnx", [1, 3, 64, 64], [("Identity", ["raw"], "boxes")], {"raw": one_box(DOG)}
    )
    bright = {
        "to": np.array([[0, 3], [0, 3], [0, 3]], np.float32)
    }  # logits: 0 for background, up to 9 where it is white
    nodes = [("MatMul", ["x", "to"], "classes")]
    segmenter = write_onnx(folder / "classes.onnx", [1, 33, 33, 3], nodes, bright)
    return {"captioner": str(folder / "tagger.pt"), "detector": detector, "segmenter": segmenter}


def tiny_tagger(label: str) -> dict[str, torch.Tensor]:
    """Return a state dict with the layers of the real one, four channels wide, whose last bias favors one label."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}

    def dense(name: str, *shape: int) -> None:
        weights[f"{name}.weight"] = torch.randn(*shape, generator=generator) * 0.1
        weights[f"{name}.bias"] = torch.zeros(shape[0])

    def conv(name: str, *shape: int) -> None:
        weights[f"{name}.0.weight"] = torch.randn(*shape, generator=generator) * 0.1
        weights.update({f"{name}.1.{key}": torch.ones(shape[0]) for key in ("weight", "running_var")})
        weights.update({f"{name}.1.{key}": torch.zeros(shape[0]) for key in ("bias", "running_mean")})

    conv("features.0", 4, 1, 3, 3)
    for number in range(1, 16):
        block = f"features.{number}.block"
        conv(f"{block}.0", 8, 4, 1, 1)
        conv(f"{block}.1", 8, 1, 3, 3)
        dense(f"{block}.2.conc_se_layers.0.fc1", 2, 8)
        dense(f"{block}.2.conc_se_layers.0.fc2", 8, 2)
        conv(f"{block}.3", 4, 8, 1, 1)
    conv("features.16", 8, 4, 1, 1)
    dense("classifier.2", 8, 8)
    dense("classifier.5", 527, 8)
    weights["classifier.5.bias"] -= 6.0
    weights["classifier.5.bias"][load_vocabulary("audioset").index(label)] = 6.0
    return weights


def one_box(kind: int) -> np.ndarray:
    """A raw YOLOX head for 64 pixels (8 x 8, 4 x 4, 2 x 2 cells): one box of 24 pixels around (20, 28), score 0.9."""
    raw = np.zeros((1, 84, 85), np.float32)
    raw[0, 3 * 8 + 2, :5] = 0.5, 0.5, math.log(3), math.log(3), 0.9
    raw[0, 3 * 8 + 2, 5 + kind] = 1.0
    return raw


def picture() -> ImageArray:
    """A bright square from (16, 32) to (64, 80) in 128 x 128 dark pixels: the place of `one_box`, at twice its size."""
    image = np.full((128, 128, 3), 20, np.uint8)
    image[32:80, 16:64] = 230
    return image


def clip(loudness: float) -> Clip:
    def frames(wanted: frozenset[int] | None) -> Iterator[Frame]:
        yield from (Frame(i, i + 0.5, picture()) for i in range(2) if wanted is None or i in wanted)

    noise = np.random.default_rng(0).uniform(-loudness, loudness, 32000).astype(np.float32)
    return Clip("square", (0.5, 1.5), 1.0, (128, 128), frames, Waveform(noise, 16000))


def test_the_stages_keep_the_protocols(models: dict[str, str]) -> None:
    assert isinstance(stage("tagger.py:Tagger", model=models["captioner"]), Captioner)
    assert isinstance(stage("coco_detector.py:CocoDetector", model=models["detector"]), Detector)
    assert isinstance(stage("box_segmenter.py:BoxSegmenter", model=models["segmenter"]), Segmenter)


def test_the_recipe_runs_from_sound_to_mask(models: dict[str, str]) -> None:
    pipe = Pipeline.from_recipe(
        load_recipe(EDGE / "edge.yaml", [f"{key}.model={path}" for key, path in models.items()])
    )
    result = pipe(clip(loudness=0.1))
    for frame in result.frames:
        assert frame.captions[0].text == "Dog" and [prompt.phrase for prompt in frame.prompts] == ["dog"]
        (segment,) = frame.segments
        mask, truth = rle_to_mask(segment.mask), picture()[..., 0] > 100
        assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    silent = pipe(clip(loudness=0.0))
    assert all(frame.silent and not frame.segments for frame in silent.frames)


def test_the_tagger_takes_windows_of_any_length_and_rate(models: dict[str, str]) -> None:
    tagger = stage("tagger.py:Tagger", model=models["captioner"], top_k=3, threshold=0.0)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 96000).astype(np.float32)
    windows = [
        AudioWindow(Waveform(noise[:n], rate), 0.0, n / rate) for n, rate in ((160, 16000), (96000, 44100), (1, 8000))
    ]
    together = tagger.caption(windows)
    assert [captions[0].text for captions in together] == ["Dog"] * 3
    assert together == [tagger.caption([window])[0] for window in windows]
    scores = [caption.score for caption in together[0]]
    assert scores == sorted(scores, reverse=True)


def test_a_pickle_that_holds_more_than_arrays_is_refused(tmp_path: Path) -> None:
    torch.save({"classifier.5.bias": Path("anything")}, tmp_path / "tagger.pt")
    with pytest.raises(ModelError, match="not a plain state dict"):
        stage("tagger.py:Tagger", model=str(tmp_path / "tagger.pt"))


@pytest.mark.parametrize("use", ["coco_detector.py:CocoDetector", "box_segmenter.py:BoxSegmenter"])
def test_models_of_another_kind_are_refused(use: str, models: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "torn.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="onnxruntime cannot load"):
        stage(use, model=str(tmp_path / "torn.onnx"))
    other = "segmenter" if "detector" in use else "detector"
    with pytest.raises(ModelError, match=r"YOLOX trained on COCO|as for DeepLab"):
        stage(use, model=models[other])


@pytest.mark.parametrize("use", ["tagger.py:Tagger", "coco_detector.py:CocoDetector", "box_segmenter.py:BoxSegmenter"])
def test_a_missing_model_says_which_option_names_it(use: str) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.bin does not exist; put it beside .*, or set \w+\.model=FILE"):
        stage(use, model="nowhere.bin")


def test_the_detector_answers_only_what_it_knows(models: dict[str, str]) -> None:
    detector = stage("coco_detector.py:CocoDetector", model=models["detector"])
    asked = ["violin", "animal", "barking dog", "cat"]
    (found,) = detector.detect([picture()], [asked])
    assert [box.phrase for box in found] == ["barking dog", "animal"]  # the narrowest phrase first
    assert found[0].box == pytest.approx((16, 32, 64, 80), abs=0.1) and found[0].score == pytest.approx(0.9)
    assert detector.detect([picture()] * 2, [["violin"], []]) == [[], []]


@pytest.mark.parametrize(
    ("phrase", "classes"),
    [
        ("men", ("person",)),
        ("police car", ("car",)),
        ("Fire engine", ("truck",)),
        ("hen", ("bird",)),
        ("vehicle", ("car", "motorcycle", "bus", "train", "truck")),
        ("mouse", ()),
        ("violin", ()),
    ],
)
def test_phrases_and_the_classes_they_name(models: dict[str, str], phrase: str, classes: tuple[str, ...]) -> None:
    detector = stage("coco_detector.py:CocoDetector", model=models["detector"])
    assert detector.classes_of(phrase) == classes
    assert detector.knows(phrase) == bool(classes)


def test_suppression_is_stricter_within_a_class(models: dict[str, str]) -> None:
    detector = stage("coco_detector.py:CocoDetector", model=models["detector"])
    suppress = sys.modules[type(detector).__module__].suppress
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 7], [0, 0, 10, 7], [50, 50, 60, 60]], np.float32)  # IoU 0.7
    kinds = np.array([DOG, DOG, HORSE, DOG])
    assert suppress(boxes, np.array([0.9, 0.8, 0.7, 0.1]), kinds, 0.45, 0.75) == [0, 2, 3]


@pytest.mark.parametrize("size", [(1, 1), (3, 400), (400, 3)])
def test_the_segmenter_answers_in_the_size_of_any_image(models: dict[str, str], size: tuple[int, int]) -> None:
    segmenter = stage("box_segmenter.py:BoxSegmenter", model=models["segmenter"])
    image = np.full((*size, 3), 128, np.uint8)
    whole, outside, empty = (0.0, 0.0, float(size[1]), float(size[0])), (-9.0, -9.0, -1.0, -1.0), (0.5, 0.5, 0.5, 0.5)
    (masks,) = segmenter.segment([image], [[whole, outside, empty]])
    assert [mask.rle.size for mask in masks] == [size] * 3
    assert masks[1].rle.area == 0
    assert segmenter.segment([image], [[]]) == [[]]


def test_the_cut_finds_the_outline_that_the_network_blurs(models: dict[str, str]) -> None:
    sharp, blurred = (stage("box_segmenter.py:BoxSegmenter", model=models["segmenter"], rounds=n) for n in (3, 0))
    image, truth = picture(), picture()[..., 0] > 100
    image[32:80, 16:64] += np.random.default_rng(0).integers(0, 20, (48, 48, 3), dtype=np.uint8)
    share = []
    for segmenter in (sharp, blurred):
        mask = rle_to_mask(segmenter.segment([image], [[(6.0, 22.0, 74.0, 90.0)]])[0][0].rle)
        share.append((mask & truth).sum() / (mask | truth).sum())
    assert share[0] > 0.98 and share[0] > share[1]


# ---------------------------------------------------------------------------------------------------- real models


def folder_of(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"set {variable} (examples/edge/README.md says what it holds)")
    return Path(value)


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    folder = folder_of("OPENAVS_EDGE_MODELS")
    recipe = load_recipe(EDGE / "edge.yaml")
    overrides = [f"{key}.model={folder / Path(reference).name}" for key, reference in recipe.models().items()]
    return Pipeline.from_recipe(load_recipe(EDGE / "edge.yaml", overrides))


@pytest.mark.weights
def test_real_clips_have_captions_and_silent_ones_stay_empty(pipe: Pipeline) -> None:
    videos = sorted(folder_of("OPENAVS_EDGE_CLIPS").rglob("*.mp4"))
    assert videos
    for video in videos:
        result = pipe(open_clip(video))
        assert len(result.frames) == len(open_clip(video).times)
        if "SILENT" in video.name:
            assert not any(frame.captions or frame.prompts or frame.segments for frame in result.frames)
        else:
            assert any(frame.captions for frame in result.frames), video.name


@pytest.mark.weights
def test_the_real_s4_tree_is_segmented(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EDGE)
    import score_s4

    trees = list(folder_of("OPENAVS_EDGE_CLIPS").rglob("s4_data"))
    if not trees:
        pytest.skip("OPENAVS_EDGE_CLIPS holds no s4_data tree")
    metrics = BinaryMetrics()
    for real, truth in score_s4.clips(trees[0], "test"):
        metrics.update(score_s4.predicted(pipe(real)), truth)
    figures = metrics.compute("fixed")
    print(figures)
    assert figures["miou"] > 0.6 and figures["f"] > 0.65
