"""The SAM and SAM-HQ segmenters against the library's own processor and model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SamHQModel, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.models.hub import ResolvedModel
from openavs.stages.segmenters import box_prompts
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.segmenters.box_prompts import masks_per_chunk
from openavs.stages.segmenters.sam import LongestEdgeResize, SamHqSegmenter, SamSegmenter
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import Box, ImageArray
from tests.stages.segmenters.images import picture, same_but_for_rounding, some_boxes
from tests.tiny_models import SAM_SIZE, make_clap, make_sam

SHAPES = [(48, 64), (90, 130), (131, 77), (64, 64), (20, 31), (360, 640), (1, 1), (3, 200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam(tmp_path_factory.mktemp("sam") / "model")


@pytest.fixture(scope="module")
def hq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam(tmp_path_factory.mktemp("sam-hq") / "model", hq=True)


def library(
    folder: Path, image: ImageArray, boxes: list[Box], multimask: bool = False, model_class: Any = SamModel
) -> tuple[np.ndarray, np.ndarray]:
    """Masks [boxes, answers, H, W] and scores [boxes, answers] by a direct call of SamProcessor and the model."""
    processor: Any = SamProcessor(SamImageProcessorPil.from_pretrained(folder))
    model: Any = model_class.from_pretrained(folder).eval()
    inputs = processor(
        images=image, input_boxes=[[list(box) for box in boxes]], input_data_format="channels_last", return_tensors="pt"
    )
    with torch.no_grad():
        answer = model(**inputs, multimask_output=multimask)
    masks = processor.image_processor.post_process_masks(
        answer.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
    )
    return masks[0].numpy(), answer.iou_scores[0].numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_the_librarys(folder: Path, shape: tuple[int, int]) -> None:
    image, boxes = picture(*shape), some_boxes(*shape, count=3)
    [ours] = SamSegmenter(model=str(folder)).segment([image], [boxes])
    masks, scores = library(folder, image, boxes)
    assert same_but_for_rounding(np.stack([rle_to_mask(mask.rle) for mask in ours]), masks[:, 0])
    assert np.abs([mask.score for mask in ours] - scores[:, 0].clip(0, 1)).max() < 1e-5
    if min(shape) > 10:
        assert 0.02 < masks.mean() < 0.98  # the comparison is of something


def test_multimask_keeps_the_mask_with_the_highest_score(folder: Path) -> None:
    image, boxes = picture(90, 130), some_boxes(90, 130, count=4)
    [ours] = SamSegmenter(model=str(folder), multimask=True).segment([image], [boxes])
    masks, scores = library(folder, image, boxes, multimask=True)
    best = scores.argmax(axis=1)
    for position, mask in enumerate(ours):
        assert same_but_for_rounding(rle_to_mask(mask.rle), masks[position, best[position]])


def test_kept_encodings_are_not_computed_again_up_to_their_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(90, 130, seed) for seed in range(3)]
    boxes = [some_boxes(90, 130, count=2)] * 3
    segmenter = SamSegmenter(model=str(folder))
    plain, encode, encoded = segmenter.segment(images, boxes), segmenter._encode, []
    monkeypatch.setattr(segmenter, "_encode", lambda own: encoded.extend(own) or encode(own))
    segmenter.kept.limit = 2 * 4 * int(encode(images[:1])[0].nelement())
    assert segmenter.segment(images, boxes) == plain
    encoded.clear()
    assert segmenter.segment([image.copy() for image in images[1:]], boxes[1:]) == plain[1:]
    assert encoded == []
    segmenter.segment(images[:1], boxes[:1])  # which has been dropped for the others
    assert len(encoded) == 1


@pytest.mark.parametrize("multimask", [False, True])
def test_masks_of_sam_hq_are_the_librarys_alone_and_in_batches(hq: Path, multimask: bool) -> None:
    images = [picture(90, 130, seed) for seed in range(3)]
    boxes = [some_boxes(90, 130, count, seed=count) for count in (3, 1, 2)]
    segmenter = SamHqSegmenter(model=str(hq), batch_size=2, multimask=multimask)
    for image, own, ours in zip(images, boxes, segmenter.segment(images, boxes), strict=True):
        masks, scores = library(hq, image, own, multimask, SamHQModel)
        found = np.stack([rle_to_mask(mask.rle) for mask in ours])
        assert same_but_for_rounding(found, masks[:, 0])  # sorted by their scores
        assert np.abs([mask.score for mask in ours] - scores[:, 0].clip(0, 1)).max() < 1e-5


@pytest.mark.parametrize("shape", [(720, 1280), (224, 224), (333, 500), (2000, 1500)])
def test_pixels_at_full_size_are_the_librarys_bit_for_bit(tmp_path: Path, shape: tuple[int, int]) -> None:
    processor: Any = SamImageProcessorPil()  # SAM's own settings: 1024 pixels, ImageNet's mean
    processor.save_pretrained(tmp_path)
    image = picture(*shape)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = LongestEdgeResize(ResolvedModel(tmp_path, "here"), 1024, torch.device("cpu")).prepare(image)
    assert ours.dtype == theirs.dtype == torch.float32 and torch.equal(ours, theirs)


@pytest.mark.parametrize("left_out", ["do_normalize", "do_rescale"])
def test_a_preprocessor_may_leave_out_a_step(tmp_path: Path, left_out: str) -> None:
    processor: Any = SamImageProcessorPil(size={"longest_edge": 64}, pad_size={"height": 64, "width": 64})
    setattr(processor, left_out, False)
    processor.save_pretrained(tmp_path)
    image = picture(64, 48)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    ours = LongestEdgeResize(ResolvedModel(tmp_path, "here"), 64, torch.device("cpu")).prepare(image)
    assert torch.allclose(ours, theirs.float(), atol=1e-4)
    processor.resample = 3
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the preprocessor of 'here' is not SAM's \(a bilinear resize"):
        LongestEdgeResize(ResolvedModel(tmp_path, "here"), 64, torch.device("cpu"))


def test_each_image_with_boxes_is_encoded_once_and_others_never(folder: Path) -> None:
    segmenter = SamSegmenter(model=str(folder))
    encoded: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    images = [picture(48, 64, seed) for seed in range(4)]
    answer = segmenter.segment(images, [some_boxes(48, 64, 5), [], some_boxes(48, 64, 1), []])
    assert [len(masks) for masks in answer] == [5, 0, 1, 0]
    assert encoded == [1, 1]
    assert segmenter.segment(images, [[], [], [], []]) == [[], [], [], []]
    assert segmenter.segment([], []) == []
    assert encoded == [1, 1]


def test_batches_hold_one_shape_and_change_no_result(folder: Path) -> None:
    shapes = [(48, 64), (90, 130), (48, 64), (48, 64), (90, 130)]
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    boxes = [some_boxes(*shape, 1 + seed, seed) for seed, shape in enumerate(shapes)]
    alone = SamSegmenter(model=str(folder)).segment(images, boxes)
    segmenter = SamSegmenter(model=str(folder), batch_size=2)
    encoded: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    together = segmenter.segment(images, boxes)
    assert encoded == [2, 1, 2]  # three of the first shape, two of the second
    for ours, theirs in zip(together, alone, strict=True):
        assert [mask.rle for mask in ours] == [mask.rle for mask in theirs]
        assert [mask.score for mask in ours] == pytest.approx([mask.score for mask in theirs], abs=1e-5)


def test_many_boxes_are_enlarged_in_parts_without_a_difference(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = picture(48, 64), some_boxes(48, 64, count=9)
    segmenter = SamSegmenter(model=str(folder))
    whole = segmenter.segment([image], [boxes])
    monkeypatch.setattr(box_prompts, "MAX_UPSCALED_PIXELS", 2 * SAM_SIZE**2)
    assert masks_per_chunk((48, 64), (SAM_SIZE, SAM_SIZE)) == 2
    monkeypatch.setattr(box_prompts, "MAX_BOXES", 4)
    [parts] = segmenter.segment([image], [boxes])
    assert [mask.rle for mask in parts] == [mask.rle for mask in whole[0]]


def test_enlarged_masks_are_bounded_whatever_the_frame() -> None:
    for size in [(1, 1), (224, 224), (720, 1280), (2160, 3840), (4320, 7680), (10_000, 10_000)]:
        count = masks_per_chunk(size, (1024, 1024))
        assert count >= 1 and (count == 1 or count * max(size[0] * size[1], 1024**2) <= 1 << 26)


def test_an_8k_frame(folder: Path) -> None:
    image = np.tile(picture(540, 960), (8, 8, 1))
    boxes: list[Box] = [(100.0, 200.0, 5000.0, 4000.0), (3000.5, 10.0, 7600.0, 900.0)]
    [ours] = SamSegmenter(model=str(folder)).segment([image], [boxes])
    masks, _ = library(folder, image, boxes)
    for mask, theirs in zip(ours, masks[:, 0], strict=True):
        assert mask.rle.size == (4320, 7680)
        assert same_but_for_rounding(rle_to_mask(mask.rle), theirs)


def test_a_frame_with_a_resized_height_of_zero(folder: Path) -> None:
    [[mask]] = SamSegmenter(model=str(folder)).segment([picture(1, 4000)], [[(0.0, 0.0, 2000.0, 1.0)]])
    assert mask.rle.size == (1, 4000)


def test_a_bfloat16_encoder_keeps_the_prompts_exact(folder: Path) -> None:
    image, boxes = picture(90, 130), some_boxes(90, 130, count=3)
    exact, rounded = (SamSegmenter(model=str(folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.model.vision_encoder.layers[0].qkv.weight.dtype == torch.bfloat16
    assert rounded.model.prompt_encoder.shared_embedding.positional_embedding.dtype == torch.float32
    for ours, theirs in zip(rounded.segment([image], [boxes])[0], exact.segment([image], [boxes])[0], strict=True):
        one, other = rle_to_mask(ours.rle), rle_to_mask(theirs.rle)
        assert (one & other).sum() / (one | other).sum() > 0.9


def test_it_is_a_segmenter_and_records_its_model(folder: Path) -> None:
    segmenter = SamSegmenter(model=str(folder))
    assert isinstance(segmenter, Segmenter)
    assert segmenter.models == {str(folder): {"revision": None, "license": None, "path": str(folder)}}


@pytest.mark.parametrize("part", ["mask_decoder.iou_prediction_head.proj_out.bias", "no_mask"])
def test_answers_that_are_not_finite_are_an_error_never_an_empty_mask(folder: Path, part: str) -> None:
    segmenter = SamSegmenter(model=str(folder))
    name = part if "." in part else "prompt_encoder.no_mask_embed.weight"
    segmenter.model.get_parameter(name).fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for image 1 of the batch"):
        segmenter.segment([picture(48, 64)] * 2, [[], [(1.0, 1.0, 30.0, 30.0)]])


def test_bad_input_is_refused_in_a_sentence(folder: Path) -> None:
    segmenter = SamSegmenter(model=str(folder))
    box: Box = (1.0, 1.0, 30.0, 30.0)
    with pytest.raises(InputError, match="1 images but boxes for 2"):
        segmenter.segment([picture(48, 64)], [[box], [box]])
    with pytest.raises(InputError, match="not finite"):
        segmenter.segment([picture(48, 64)], [[(1.0, float("nan"), 30.0, 30.0)]])
    for wrong in (np.zeros((48, 64), np.uint8), np.zeros((48, 64, 3), np.float32), np.zeros((0, 64, 3), np.uint8)):
        with pytest.raises(InputError, match=r"an image must be uint8 \[H, W, 3\]"):
            segmenter.segment([wrong], [[box]])
    with pytest.raises(InputError, match="batch_size"):
        SamSegmenter(model=str(folder), batch_size=0)


def test_the_older_preprocessor_file_of_published_checkpoints_is_read(tmp_path: Path) -> None:
    new = make_sam(tmp_path / "new")
    old = make_sam(tmp_path / "old")
    (old / "processor_config.json").unlink()
    settings = {"image_processor_type": "SamImageProcessor", "processor_class": "SamProcessor", "resample": 2}
    settings |= {"size": {"longest_edge": SAM_SIZE}, "pad_size": {"height": SAM_SIZE, "width": SAM_SIZE}}
    (old / "preprocessor_config.json").write_text(json.dumps(settings))
    image, boxes = picture(48, 64), some_boxes(48, 64, count=2)
    first, second = (SamSegmenter(model=str(folder)).segment([image], [boxes]) for folder in (new, old))
    assert first == second
    (old / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded as SamImageProcessorPil"):
        SamSegmenter(model=str(old))


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"SamModel|SamImageProcessorPil"):
        SamSegmenter(model=str(make_clap(tmp_path / "clap")))
    alien = make_sam(tmp_path / "sam")
    SamProcessor(SamImageProcessorPil()).save_pretrained(alien)
    with pytest.raises(ModelError, match=r"takes images of 64 pixels but its preprocessor makes \(1024, 1024\)"):
        SamSegmenter(model=str(alien))
    with pytest.raises(ModelError, match="does not exist"):
        SamSegmenter(model=str(tmp_path / "nowhere"))


def test_points_give_the_masks_of_the_librarys_processor(folder: Path) -> None:
    image, points, labels = picture(60, 90), [(10.0, 12.0), (70.0, 40.0)], [True, False]
    processor: Any = SamProcessor(SamImageProcessorPil.from_pretrained(folder))
    pixels = {"images": image, "input_data_format": "channels_last", "return_tensors": "pt"}
    inputs = processor(**pixels, input_points=[[list(point) for point in points]], input_labels=[[1, 0]])
    with torch.inference_mode():
        output = SamModel.from_pretrained(folder)(**{**inputs, "input_points": inputs["input_points"].float()})
    sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    [[masks]] = processor.image_processor.post_process_masks(output.pred_masks, *sizes)
    order = output.iou_scores[0, 0].clamp(0, 1).argsort(descending=True, stable=True)
    single, *three = SamSegmenter(model=str(folder)).segment_points(image, points, labels)
    assert single.rle.size == (60, 90) and len(three) == 3
    for ours, place in zip(three, order, strict=True):
        assert np.mean(rle_to_mask(ours.rle) != masks[place].numpy()) < 0.001


def test_a_mask_before_and_a_box_are_prompts_too(folder: Path, hq: Path) -> None:
    image = picture(60, 90)
    before = mask_to_rle(np.arange(60 * 90).reshape(60, 90) % 90 < 45)
    for segmenter in (SamSegmenter(model=str(folder)), SamHqSegmenter(model=str(hq))):
        plain = segmenter.segment_points(image, [(10, 12)], [True])
        prompted = segmenter.segment_points(image, [(10, 12)], [True], (0, 0, 45, 60), before)
        assert len(prompted) == 4 and [m.score for m in prompted] != [m.score for m in plain]
    with pytest.raises(InputError, match="1 points and 0 labels; give a label for each point"):
        segmenter.segment_points(image, [(10, 12)], [])
