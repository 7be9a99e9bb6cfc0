"""OmDet-Turbo's adapter against the library's model, and in the environment of `make test-timm` its processor."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, OmDetTurboForObjectDetection
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from openavs.errors import InputError, InvalidOutputError, ModelError
from openavs.stages.detectors.base import Detector
from openavs.stages.detectors.omdet_turbo import OmDetTurboDetector
from openavs.structures.types import Detection, ImageArray
from tests.stages.detectors.conftest import noise
from tests.tiny_detectors import save_omdet_turbo

PHRASES = ["dog", "red car", "guitar"]
TEXT = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}


@pytest.fixture(scope="module")
def detector(omdet_turbo: Path) -> OmDetTurboDetector:
    return load(omdet_turbo, batch_size=2)


def load(folder: Path, **options: Any) -> OmDetTurboDetector:
    return OmDetTurboDetector(**{"model": str(folder), "floor": 0.0, "device": "cpu", "offline": True} | options)


def rows(detections: list[Detection], phrases: list[str]) -> np.ndarray:
    return np.array([[*d.box, d.score, phrases.index(d.phrase)] for d in detections])


@cache
def library(folder: Path) -> OmDetTurboForObjectDetection:
    return OmDetTurboForObjectDetection.from_pretrained(folder).eval()


@torch.inference_mode()
def direct(folder: Path, image: ImageArray, phrases: list[str]) -> np.ndarray:
    """Rows of box, score and best phrase, best first, by a direct call of the model as its processor makes it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classes, task = tokenizer(phrases, **TEXT), tokenizer([f"Detect {', '.join(phrases)}."], **TEXT)
    pixels = DetrImageProcessorPil.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    output = library(folder)(
        pixels,
        classes["input_ids"],
        classes["attention_mask"],
        task["input_ids"],
        task["attention_mask"],
        torch.tensor([len(phrases)]),
    )
    scores, best = output.decoder_class_logits[0].sigmoid().max(dim=-1)
    centers, sizes = output.decoder_coord_logits[0].split(2, dim=-1)
    height, width = image.shape[:2]
    edges = torch.tensor([width, height])
    corners = [(point * edges).clamp(torch.zeros(2), edges) for point in (centers - sizes / 2, centers + sizes / 2)]
    found = torch.cat([*corners, scores[:, None], best[:, None]], dim=-1)
    return found[scores.argsort(descending=True, stable=True)].numpy()


def edited(folder: Path, copy: Path, name: str, **changes: Any) -> None:
    """Copies a model and changes one of its JSON files."""
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    (copy / name).write_text(json.dumps(json.loads((copy / name).read_text()) | changes))


@pytest.mark.parametrize("shape", [(64, 64), (120, 200), (333, 190)])
def test_boxes_equal_a_direct_call_of_the_model(
    detector: OmDetTurboDetector, omdet_turbo: Path, shape: tuple[int, int]
) -> None:
    image = noise(*shape, seed=3)
    [found] = detector.detect([image], [PHRASES])
    ours, theirs = rows(found, PHRASES), direct(omdet_turbo, image, PHRASES)
    assert len(ours) == 20 and len(set(ours[:, 5])) > 1 and np.ptp(ours[:, 4]) > 0.01
    assert np.abs(ours[:, :4] - theirs[:, :4]).max() <= 1e-4 * max(shape)
    assert np.abs(ours[:, 4] - theirs[:, 4]).max() <= 1e-5 and (ours[:, 5] == theirs[:, 5]).all()


def test_a_batch_mate_changes_nothing(detector: OmDetTurboDetector, omdet_turbo: Path) -> None:
    """Even one with more phrases, whose list the library would pad the shorter one to."""
    frames = [noise(120, 200, seed=i) for i in range(3)]
    lists = [PHRASES, ["dog"], PHRASES]
    for frame, own, found in zip(frames, lists, detector.detect(frames, lists), strict=True):
        assert np.abs(rows(found, own) - direct(omdet_turbo, frame, own)).max() <= 1e-4 * 200


@pytest.mark.timm
def test_with_timms_backbone_boxes_equal_the_librarys_processor_and_model(tmp_path: Path) -> None:
    from transformers import OmDetTurboProcessor

    folder = save_omdet_turbo(tmp_path / "omdet-turbo", timm=True)
    image = noise(64, 64, seed=3)  # of the model's size: the processor resizes with torchvision, in other bytes
    processor = OmDetTurboProcessor.from_pretrained(folder)
    inputs = processor(image, text=["dog"], return_tensors="pt")
    with torch.inference_mode():
        output = library(folder)(**inputs)
    [theirs] = processor.post_process_grounded_object_detection(
        output, threshold=0.0, nms_threshold=1.0, target_sizes=[(64, 64)]
    )
    [ours] = load(folder, dtype="float32").detect([image], [["dog"]])
    order = theirs["scores"].argsort(descending=True)
    assert [d.score for d in ours] == pytest.approx(theirs["scores"][order].tolist(), abs=1e-5)
    assert np.abs(rows(ours, ["dog"])[:, :4] - theirs["boxes"][order].numpy()).max() <= 1e-4 * 64


def test_each_image_phrase_and_list_is_encoded_once(omdet_turbo: Path) -> None:
    detector = load(omdet_turbo, batch_size=2)
    texts: list[int] = []
    images: list[int] = []
    detector.model.language_backbone.model.register_forward_hook(lambda _, i, out: texts.append(len(out[0])))
    detector.model.vision_backbone.register_forward_hook(lambda _, i, out: images.append(len(i[0])))
    frames = [noise(64, 64, seed=i) for i in range(3)]
    detector.detect(frames, [PHRASES] * 3)
    assert images == [2, 1] and texts == [1] * 4  # three phrases and their list
    detector.detect(frames, [PHRASES, PHRASES, ["guitar", " \n"]])
    assert images == [2, 1, 2, 1] and len(texts) == 5
    assert detector.detect(frames, [[], ["\t"], []]) == [[], [], []] and len(images) == 4


def test_phrases_in_any_script_of_any_length_and_number(detector: OmDetTurboDetector) -> None:
    phrases = ["café", "犬", "ταξί 🚕", "dog\udc80", "Dog", "dog", "a very long phrase " * 20, *map(str, range(40))]
    [found] = detector.detect([noise(8, 400)], [phrases])
    assert found and {d.phrase for d in found} <= set(phrases) - {"dog"}
    assert all(0 <= d.box[0] < d.box[2] <= 400 and 0 <= d.box[1] < d.box[3] <= 8 for d in found)


def test_bfloat16_changes_little(omdet_turbo: Path, detector: OmDetTurboDetector) -> None:
    def best(found: list[Detection]) -> float:
        return found[0].score

    images = [noise(64, 64, seed=i) for i in range(4)]
    [exact, rounded] = (one.detect(images, [["dog"]] * 4) for one in (detector, load(omdet_turbo, dtype="bfloat16")))
    assert list(map(best, rounded)) == pytest.approx(list(map(best, exact)), abs=0.02)
    assert list(map(best, rounded)) != list(map(best, exact))


def test_a_released_detector_leaves_memory(omdet_turbo: Path) -> None:
    detector = load(omdet_turbo)
    detector.detect([noise(64, 64)], [["dog"]])
    decoder = weakref.ref(detector.model.decoder)
    del detector
    gc.collect()
    assert decoder() is None


def test_it_is_a_detector_and_refuses_other_models(detector: OmDetTurboDetector, owlv2: Path) -> None:
    assert isinstance(detector, Detector)
    with pytest.raises(ModelError, match="is a owlv2 model; the detector omdet-turbo needs one of type omdet-turbo"):
        load(owlv2)


def test_a_preprocessor_of_another_size_is_refused(omdet_turbo: Path, tmp_path: Path) -> None:
    size = {"shortest_edge": 64, "longest_edge": 64}
    edited(omdet_turbo, tmp_path, "preprocessor_config.json", size=size)
    with pytest.raises(ModelError, match="takes images of 64 x 64 pixels"):
        load(tmp_path)


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_the_error_names_the_extra(omdet_turbo: Path, tmp_path: Path) -> None:
    backbone = {"model_type": "timm_backbone", "backbone": "swin_tiny_patch4_window7_224"}
    edited(omdet_turbo, tmp_path, "config.json", backbone_config=backbone)
    with pytest.raises(InputError, match=r"torchvision is not installed; pip install \"openavs\[timm\]\""):
        load(tmp_path)


def test_outputs_that_are_not_finite_are_an_error(omdet_turbo: Path) -> None:
    detector = load(omdet_turbo)
    with torch.no_grad():
        detector.model.encoder.lateral_convs[0].norm.weight.fill_(float("nan"))
    with pytest.raises(InvalidOutputError, match="not finite"):
        detector.detect([noise(64, 64)], [["dog"]])
