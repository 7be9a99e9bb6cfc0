"""OWLv2's adapter against the library's own processor and model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.detectors.base import Detector
from openavs.stages.detectors.owlv2 import Owlv2Detector, resize_in_square
from openavs.structures.types import Detection, ImageArray
from tests.stages.detectors.conftest import noise

PHRASES = ["dog", "red car", "guitar"]
CPU = torch.device("cpu")


def load(folder: Path, **options: Any) -> Owlv2Detector:
    return Owlv2Detector(**{"model": str(folder), "floor": 0.0, "device": "cpu", "offline": True} | options)


def rows(detections: list[Detection]) -> np.ndarray:
    return np.array([[*d.box, d.score] for d in detections])


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (40, 30), (96, 96), (333, 97), (5, 3)])
def test_resizing_is_the_librarys(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    library = Owlv2ImageProcessorPil(size={"height": 96, "width": 80}, do_normalize=False)
    expected = library(images=image, return_tensors="pt", input_data_format="channels_last").pixel_values[0]
    assert (resize_in_square(image, (96, 80), CPU) / 255 - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("shape", [(120, 200), (333, 190), (50, 40)])
@torch.inference_mode()
def test_the_answer_is_the_librarys(owlv2: Path, shape: tuple[int, int]) -> None:
    image = noise(*shape, seed=3)
    processor = AutoProcessor.from_pretrained(owlv2, backend="pil")
    inputs = processor(
        images=image,
        text=[[f"a photo of a {phrase}" for phrase in PHRASES]],
        return_tensors="pt",
        input_data_format="channels_last",
        padding="max_length",
        truncation=True,
    )
    outputs = Owlv2ForObjectDetection.from_pretrained(owlv2).eval()(**inputs)
    (found,) = processor.post_process_grounded_object_detection(
        outputs, threshold=-1.0, target_sizes=[shape], text_labels=[PHRASES]
    )
    # boxes entirely in the padding are not candidates of ours
    inside = (found["boxes"][:, 0] < shape[1]) & (found["boxes"][:, 1] < shape[0])
    order = [i for i in found["scores"].argsort(descending=True, stable=True).tolist() if inside[i]]
    (ours,) = load(owlv2).detect([image], [PHRASES])

    assert [d.phrase for d in ours] == [found["text_labels"][i] for i in order]
    assert [d.score for d in ours] == pytest.approx(found["scores"][order].tolist(), abs=1e-5)
    limit = torch.tensor([shape[1], shape[0]] * 2)
    expected = torch.minimum(found["boxes"][order].clamp(min=0), limit).numpy()
    assert np.abs(rows(ours)[:, :4] - expected).max() <= 1e-4 * max(shape)


def count_forwards(detector: Owlv2Detector) -> dict[str, list[int]]:
    """The batch sizes that went through the image and the text encoder."""
    sizes: dict[str, list[int]] = {"images": [], "texts": []}
    model = detector.model.owlv2
    model.vision_model.register_forward_hook(lambda m, a, out: sizes["images"].append(len(out[0])))
    model.text_model.register_forward_hook(lambda m, a, out: sizes["texts"].append(len(out[0])))
    return sizes


def test_each_image_and_each_list_of_phrases_is_encoded_once(owlv2: Path, picture: ImageArray) -> None:
    detector = load(owlv2, batch_size=2)
    sizes = count_forwards(detector)
    detector.detect([picture, noise(30, 300), picture, picture], [PHRASES, PHRASES, PHRASES, []])
    assert sizes == {"images": [2, 1], "texts": [3]}


def test_no_phrases_no_forward(owlv2: Path, picture: ImageArray) -> None:
    detector = load(owlv2)
    sizes = count_forwards(detector)
    assert detector.detect([picture, picture], [[], [" \n"]]) == [[], []]
    assert sizes == {"images": [], "texts": []}


def test_three_hundred_phrases_and_one_image_forward(owlv2: Path, picture: ImageArray) -> None:
    phrases = [f"thing {number}" for number in range(300)]
    detector = load(owlv2)
    sizes = count_forwards(detector)
    (found,) = detector.detect([picture], [phrases])
    assert sizes["images"] == [1] and sum(sizes["texts"]) == 300
    assert found and {d.phrase for d in found} <= set(phrases)


def test_an_answer_does_not_depend_on_batch_mates(owlv2: Path) -> None:
    frames = [noise(120, 200, seed=i) for i in range(3)]
    batched = load(owlv2, batch_size=3).detect(frames, [PHRASES] * 3)
    for frame, found in zip(frames, batched, strict=True):
        (alone,) = load(owlv2).detect([frame], [PHRASES])
        assert [d.phrase for d in found] == [d.phrase for d in alone]
        assert np.abs(rows(found)[:, 4] - rows(alone)[:, 4]).max() <= 1e-5
        assert np.abs(rows(found)[:, :4] - rows(alone)[:, :4]).max() <= 1e-5 * 200


def test_the_order_of_phrases_does_not_matter(owlv2: Path, picture: ImageArray) -> None:
    forward, backward = load(owlv2).detect([picture, picture], [PHRASES, PHRASES[::-1]])
    assert [d.phrase for d in forward] == [d.phrase for d in backward]
    assert np.abs(rows(forward) - rows(backward)).max() <= 1e-3


@pytest.mark.parametrize("shape", [(4000, 60), (8, 4000), (1, 1), (4320, 7680)])
def test_frames_of_any_shape(owlv2: Path, shape: tuple[int, int]) -> None:
    (found,) = load(owlv2).detect([noise(*shape)], [PHRASES])
    for detection in found:
        x0, y0, x1, y1 = detection.box
        assert 0 <= x0 < x1 <= shape[1] and 0 <= y0 < y1 <= shape[0]


def test_phrases_in_any_script_and_of_any_length(owlv2: Path, picture: ImageArray) -> None:
    phrases = ["café", "犬", "ταξί 🚕", "dog\udc80", "a very long phrase " * 20]
    (found,) = load(owlv2).detect([picture], [phrases])
    assert found and {d.phrase for d in found} <= set(phrases)


def test_the_template_is_applied_to_phrases(owlv2: Path, picture: ImageArray) -> None:
    (whole,) = load(owlv2, template="{}").detect([picture], [["a photo of a dog"]])
    (asked,) = load(owlv2).detect([picture], [["dog"]])
    assert rows(whole).tolist() == rows(asked).tolist()
    with pytest.raises(InputError, match="template"):
        load(owlv2, template="a photo")


def test_it_is_a_detector_and_refuses_other_models(owlv2: Path, grounding_dino: Path) -> None:
    detector = load(owlv2)
    assert isinstance(detector, Detector) and list(detector.models) == [str(owlv2)]
    with pytest.raises(ModelError, match="is a grounding-dino model"):
        load(grounding_dino)


def test_outputs_that_are_not_finite_are_an_error(owlv2: Path, picture: ImageArray) -> None:
    detector = load(owlv2)
    with torch.no_grad():
        detector.model.layer_norm.weight.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite"):
        detector.detect([picture], [PHRASES])


def test_half_precision_runs(owlv2: Path, picture: ImageArray) -> None:
    assert load(owlv2, dtype="bfloat16").detect([picture], [PHRASES])[0]


def test_boxes_and_scores_of_a_bfloat16_model_are_those_of_float32_heads(owlv2: Path, picture: ImageArray) -> None:
    half, exact = load(owlv2, dtype="bfloat16"), load(owlv2, dtype="float32")
    with torch.inference_mode():
        pixels = half._prepare([picture])
        features, _ = half.model.image_embedder(pixels)
        exact.model.image_embedder = lambda _: (features.float(), None)
        (_, queries), (_, same) = half._embed(PHRASES), exact._embed(PHRASES)
        assert features.dtype == torch.bfloat16 and queries.shape == same.shape
        answers = zip(half._forward(pixels, queries), exact._forward(pixels, queries.float()), strict=True)
    assert all(np.abs(ours - expected).max() < 1e-6 for ours, expected in answers)
