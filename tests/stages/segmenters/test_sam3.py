"""The SAM 3 segmenters against a direct call of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import AutoTokenizer, Sam3LiteTextModel, Sam3Model

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.segmenters import sam3
from openavs.stages.segmenters.base import PhraseSegmenter, Segmenter
from openavs.stages.segmenters.sam3 import Sam3LiteTextSegmenter, Sam3Segmenter
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import ImageArray
from tests.stages.segmenters.images import picture
from tests.tiny_models import make_clap
from tests.tiny_sams import HALVES, SAM3_SIZE, make_sam3, make_sam3_lite_text

SQUARE = (SAM3_SIZE, SAM3_SIZE)  # the model's own size: nothing is resized on the way in
PHRASES = ["dog", "barking dog", "engine"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam3(tmp_path_factory.mktemp("sam3") / "model")


FAMILIES = {  # the adapter, the library's class, the length of its texts, and a random model
    "sam3": (Sam3Segmenter, Sam3Model, 12, make_sam3),
    "sam3-lite-text": (Sam3LiteTextSegmenter, Sam3LiteTextModel, 32, make_sam3_lite_text),
}


def direct(
    folder: Path, image: ImageArray, phrase: str, family: str = "sam3"
) -> list[tuple[float, list[float], np.ndarray]]:
    """Score, box and mask of every query, best first, as the library's own post-processing makes them."""
    _, library, length, _ = FAMILIES[family]
    model: Any = library.from_pretrained(folder).eval()
    height, width = image.shape[:2]
    small = interpolate(
        torch.from_numpy(image).permute(2, 0, 1)[None], SQUARE, mode="bilinear", align_corners=False, antialias=True
    )
    pixels = (small.float() / 255 - HALVES["image_mean"][0]) / HALVES["image_std"][0]
    tokens = AutoTokenizer.from_pretrained(folder)(phrase, padding="max_length", max_length=length, return_tensors="pt")
    with torch.no_grad():
        answer = model(pixel_values=pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    scores = (answer.pred_logits.sigmoid() * answer.presence_logits.sigmoid())[0]
    boxes = answer.pred_boxes[0] * torch.tensor([width, height, width, height])
    masks = interpolate(answer.pred_masks.sigmoid(), (height, width), mode="bilinear", align_corners=False)[0] > 0.5
    order = scores.argsort(descending=True)
    return [(float(scores[i]), boxes[i].tolist(), masks[i].numpy()) for i in order]


def alike(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / max((one | other).sum(), 1)) if (one | other).any() else 1.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [SQUARE, (90, 130), (131, 77)])
def test_finds_equal_a_direct_call_of_the_model(
    tmp_path_factory: pytest.TempPathFactory, family: str, shape: tuple[int, int]
) -> None:
    image = picture(*shape)
    adapter, _, _, make = FAMILIES[family]
    folder = make(tmp_path_factory.mktemp(family) / "model")
    [finds] = adapter(model=str(folder), floor=0.0).segment_phrases([image], [PHRASES])
    loose = 0 if shape == SQUARE else 1  # resized pixels may differ by one gray level
    for phrase in PHRASES:
        ours = [(box, mask) for box, mask in finds if box.phrase == phrase]
        theirs = direct(folder, image, phrase, family)
        assert len(ours) == len(theirs) == 12
        assert [box.score for box, _ in ours] == pytest.approx([s for s, _, _ in theirs], abs=2e-2 if loose else 1e-5)
        if loose:
            continue
        for (box, mask), (_, corners, dense) in zip(ours, theirs, strict=True):
            inside = np.clip(corners, 0, [shape[1], shape[0], shape[1], shape[0]])
            assert box.box == pytest.approx(inside, abs=1e-3)
            assert alike(rle_to_mask(mask.rle), dense) > 0.999
    assert [box.score for box, _ in finds] == sorted((box.score for box, _ in finds), reverse=True)
    assert len({round(box.score, 4) for box, _ in finds}) > 12  # phrases do matter


def test_the_floor_and_the_number_of_candidates_hold_per_phrase(folder: Path) -> None:
    image = picture(90, 130)
    [every] = Sam3Segmenter(model=str(folder), floor=0.0).segment_phrases([image], [PHRASES])
    [few] = Sam3Segmenter(model=str(folder), floor=0.0, max_candidates=2).segment_phrases([image], [PHRASES])
    assert sorted(box.phrase for box, _ in few) == sorted(PHRASES * 2)
    assert few[0][0] == every[0][0]
    limit = every[9][0].score
    [high] = Sam3Segmenter(model=str(folder), floor=limit).segment_phrases([image], [PHRASES])
    assert [box.score for box, _ in high] == pytest.approx([box.score for box, _ in every[:10]], abs=1e-5)


def test_an_image_is_encoded_once_whatever_its_phrases_and_not_without(folder: Path) -> None:
    segmenter = Sam3Segmenter(model=str(folder), floor=0.0, batch_size=2)
    encoded: list[int] = []
    texts: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    segmenter.model.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    images = [picture(48, 64, seed) for seed in range(3)]
    answers = segmenter.segment_phrases(images, [PHRASES, [], ["dog"]])
    assert [len(finds) for finds in answers] == [36, 0, 12]
    assert encoded == [1, 1]
    assert len(texts) == 2  # two phrases, one phrase; the dog is known by then
    assert segmenter.segment_phrases([], []) == [] and segmenter.segment_phrases(images[:1], [[]]) == [[]]


def test_the_number_of_cached_phrases_is_limited(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(48, 64)
    [expected] = Sam3Segmenter(model=str(folder), floor=0.0).segment_phrases([image], [PHRASES])
    monkeypatch.setattr(sam3, "_MAX_TEXTS", 2)
    segmenter = Sam3Segmenter(model=str(folder), floor=0.0)
    segmenter.segment_phrases([image], [["cat"]])
    assert segmenter.segment_phrases([image], [PHRASES]) == [expected]
    assert set(segmenter._texts) == set(PHRASES), "those before are forgotten"


def test_phrases_together_or_alone_give_the_same(folder: Path) -> None:
    image = picture(90, 130)
    [one], [many] = (
        Sam3Segmenter(model=str(folder), floor=0.0, batch_size=size).segment_phrases([image], [PHRASES])
        for size in (1, 3)
    )
    assert [box.phrase for box, _ in one] == [box.phrase for box, _ in many]
    assert [box.score for box, _ in one] == pytest.approx([box.score for box, _ in many], abs=1e-5)
    assert min(alike(rle_to_mask(a.rle), rle_to_mask(b.rle)) for (_, a), (_, b) in zip(one, many, strict=True)) > 0.99


def test_a_bfloat16_backbone_keeps_its_rotary_tables(folder: Path) -> None:
    rounded = Sam3Segmenter(model=str(folder), floor=0.0, dtype="bfloat16")
    backbone = rounded.model.vision_encoder.backbone
    assert {p.dtype for p in backbone.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in backbone.buffers() if b.is_floating_point()} <= {torch.float32}
    assert {p.dtype for p in rounded.model.detr_decoder.parameters()} == {torch.float32}
    [finds] = rounded.segment_phrases([picture(90, 130)], [["dog"]])
    exact = direct(folder, picture(90, 130), "dog")
    assert finds[0][0].score == pytest.approx(exact[0][0], abs=0.05)


def test_it_is_a_phrase_segmenter_and_records_its_model(folder: Path) -> None:
    segmenter = Sam3Segmenter(model=str(folder))
    assert isinstance(segmenter, PhraseSegmenter) and not isinstance(segmenter, Segmenter)
    assert set(segmenter.models) == {str(folder)}


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    broken = Sam3Segmenter(model=str(folder))
    broken.model.get_parameter("text_projection.bias").fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for image 1 of the batch"):
        broken.segment_phrases([picture(48, 64)] * 2, [[], ["dog"]])


def test_bad_input_is_refused_in_a_sentence(folder: Path, tmp_path: Path) -> None:
    segmenter = Sam3Segmenter(model=str(folder))
    with pytest.raises(InputError, match="1 images but phrases for 2"):
        segmenter.segment_phrases([picture(48, 64)], [["dog"], ["dog"]])
    with pytest.raises(InputError, match=r"an image must be uint8 \[H, W, 3\]"):
        segmenter.segment_phrases([np.zeros((4, 4), np.uint8)], [["dog"]])
    for options in ({"floor": -1.0}, {"batch_size": 0}, {"max_candidates": 0}):
        with pytest.raises(InputError, match="sam3: floor"):
            Sam3Segmenter(model=str(folder), **options)
    with pytest.raises(ModelError):
        Sam3Segmenter(model=str(make_clap(tmp_path / "clap")))
