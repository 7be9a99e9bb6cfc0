"""The SAM 2 and EdgeTAM segmenters against the documented processing and a direct call of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import EdgeTamModel, Sam2Model

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.models.hub import ResolvedModel
from openavs.stages.segmenters import box_prompts
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.segmenters.box_prompts import SquareResize
from openavs.stages.segmenters.sam import EdgeTamSegmenter, Sam2Segmenter
from openavs.structures.masks import mask_to_rle, rle_to_mask
from openavs.structures.types import Box, ImageArray
from tests.stages.segmenters.images import picture, same_but_for_rounding, some_boxes
from tests.tiny_models import make_clap
from tests.tiny_sams import IMAGENET, SAM2_SIZE, make_edgetam, make_edgetam_video, make_sam2, make_sam2_video

SHAPES = [(48, 64), (90, 130), (131, 77), (64, 64), (20, 31), (360, 640), (1, 1), (3, 200)]
MEAN, STD = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))


@dataclass(frozen=True)
class Family:
    """An adapter, the library's class, and a random model."""

    adapter: type[Sam2Segmenter]
    library: Any
    folder: Path

    def load(self, **options: Any) -> Sam2Segmenter:
        return self.adapter(model=str(self.folder), **options)


FAMILIES = {"sam2": (Sam2Segmenter, Sam2Model, make_sam2), "edgetam": (EdgeTamSegmenter, EdgeTamModel, make_edgetam)}


@pytest.fixture(scope="module", params=["sam2", pytest.param("edgetam", marks=pytest.mark.timm)])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    adapter, library, make = FAMILIES[request.param]
    return Family(adapter, library, make(tmp_path_factory.mktemp(request.param) / "model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sam2(tmp_path_factory.mktemp("sam2") / "model")


def documented(image: ImageArray, edge: int, *, rounded: bool) -> torch.Tensor:
    """SAM 2's processing: torch's own antialiased resize to a square, of bytes (the library) or floats (the paper)."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    pixels = pixels if rounded else pixels.float()
    small = interpolate(pixels, (edge, edge), mode="bilinear", align_corners=False, antialias=True)
    return (small.float() / 255 - MEAN) / STD


def direct(
    family: Family, image: ImageArray, boxes: list[Box], multimask: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Masks [boxes, answers, H, W] and scores [boxes, answers] by a direct call of the model on the same pixels."""
    model: Any = family.library.from_pretrained(family.folder).eval()
    height, width = image.shape[:2]
    pixels = documented(image, SAM2_SIZE, rounded=True)
    scaled = torch.tensor(boxes) * torch.tensor([SAM2_SIZE / width, SAM2_SIZE / height] * 2)
    with torch.no_grad():
        answer = model(pixel_values=pixels, input_boxes=scaled[None], multimask_output=multimask)
    masks = interpolate(answer.pred_masks[0], (height, width), mode="bilinear", align_corners=False) > 0
    return masks.numpy(), answer.iou_scores[0].numpy()


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """IoU of two masks; of two empty ones 1."""
    return float((one & other).sum() / max((one | other).sum(), 1)) if (one | other).any() else 1.0


@pytest.mark.parametrize("shape", [(720, 1280), (224, 224), (333, 500), (1500, 900), (64, 2000)])
def test_pixels_are_the_documented_ones(tmp_path: Path, shape: tuple[int, int]) -> None:
    """At full size: within one gray level of the library's way on bytes, and of the original's on floats."""
    settings = {"size": {"height": 1024, "width": 1024}, **IMAGENET}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = picture(*shape)
    ours = SquareResize(ResolvedModel(tmp_path, "here"), 1024, torch.device("cpu"), "sam2").prepare(image)[None]
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, 1024, 1024)
    for rounded in (True, False):
        levels = (ours - documented(image, 1024, rounded=rounded)).abs() * STD * 255
        assert levels.max() < 1.01 and levels.mean() < (0.1 if rounded else 0.4)


def test_pixels_are_not_normalized_if_the_preprocessor_does_not(tmp_path: Path) -> None:
    settings = {"size": {"height": 64, "width": 64}, "do_normalize": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    image = picture(64, 64)
    ours = SquareResize(ResolvedModel(tmp_path, "here"), 64, torch.device("cpu"), "sam2").prepare(image)
    assert torch.allclose(ours, torch.from_numpy(image).permute(2, 0, 1) / 255, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_masks_equal_a_direct_call_of_the_model(family: Family, shape: tuple[int, int]) -> None:
    image, boxes = picture(*shape), some_boxes(*shape, count=3)
    [ours] = family.load().segment([image], [boxes])
    masks, scores = direct(family, image, boxes)
    for mask, theirs in zip(ours, masks[:, 0], strict=True):
        assert mask.rle.size == shape
        assert alike(rle_to_mask(mask.rle), theirs) > 0.98  # the pixels may differ by one gray level
    assert np.abs([mask.score for mask in ours] - scores[:, 0].clip(0, 1)).max() < 5e-3
    if min(shape) > 10:
        assert 0.02 < masks.mean() < 0.98  # the comparison is of something


def test_the_same_pixels_give_the_same_masks(family: Family) -> None:
    """A frame of the model's own size is not resized, so nothing may differ at all."""
    image, boxes = picture(SAM2_SIZE, SAM2_SIZE), some_boxes(SAM2_SIZE, SAM2_SIZE, count=4)
    [ours] = family.load().segment([image], [boxes])
    masks, scores = direct(family, image, boxes)
    assert same_but_for_rounding(np.stack([rle_to_mask(mask.rle) for mask in ours]), masks[:, 0])
    assert np.abs([mask.score for mask in ours] - scores[:, 0].clip(0, 1)).max() < 1e-5


def test_multimask_keeps_the_mask_with_the_highest_score(family: Family) -> None:
    image, boxes = picture(SAM2_SIZE, SAM2_SIZE), some_boxes(SAM2_SIZE, SAM2_SIZE, count=4)
    [ours] = family.load(multimask=True).segment([image], [boxes])
    masks, scores = direct(family, image, boxes, multimask=True)
    best = scores.argmax(axis=1)
    for position, mask in enumerate(ours):
        assert same_but_for_rounding(rle_to_mask(mask.rle), masks[position, best[position]])


def test_each_image_with_boxes_is_encoded_once_and_others_never(family: Family) -> None:
    segmenter = family.load()
    encoded: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    images = [picture(48, 64, seed) for seed in range(4)]
    answer = segmenter.segment(images, [some_boxes(48, 64, 5), [], some_boxes(48, 64, 1), []])
    assert [len(masks) for masks in answer] == [5, 0, 1, 0]
    assert encoded == [1, 1]
    assert segmenter.segment(images, [[], [], [], []]) == [[], [], [], []]
    assert segmenter.segment([], []) == []
    assert encoded == [1, 1]


def test_batches_of_any_shapes_change_no_result(family: Family) -> None:
    shapes = [(48, 64), (90, 130), (48, 64), (131, 77), (90, 130)]
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    boxes = [some_boxes(*shape, 1 + seed, seed) for seed, shape in enumerate(shapes)]
    alone = family.load().segment(images, boxes)
    segmenter = family.load(batch_size=2)
    encoded: list[int] = []
    segmenter.model.vision_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    together = segmenter.segment(images, boxes)
    assert encoded == [2, 2, 1]
    for ours, theirs in zip(together, alone, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert alike(rle_to_mask(one.rle), rle_to_mask(other.rle)) > 0.999
            assert one.score == pytest.approx(other.score, abs=1e-5)


def test_many_boxes_are_decoded_and_enlarged_in_parts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, boxes = picture(48, 64), some_boxes(48, 64, count=9)
    segmenter = Sam2Segmenter(model=str(folder))
    [whole] = segmenter.segment([image], [boxes])
    monkeypatch.setattr(box_prompts, "MAX_BOXES", 4)
    monkeypatch.setattr(box_prompts, "MAX_UPSCALED_PIXELS", 2 * 48 * 64)
    [parts] = segmenter.segment([image], [boxes])
    assert [mask.rle for mask in parts] == [mask.rle for mask in whole]


@pytest.mark.parametrize(
    ("name", "make"), [("sam2", make_sam2_video), pytest.param("edgetam", make_edgetam_video, marks=pytest.mark.timm)]
)
def test_video_checkpoints_serve_as_well(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    """As on the hub; the image model in them gives the masks of its own weights."""
    family = Family(*FAMILIES[name][:2], make(tmp_path / "video"))
    image, boxes = picture(SAM2_SIZE, SAM2_SIZE), some_boxes(SAM2_SIZE, SAM2_SIZE, count=2)
    [ours] = family.load().segment([image], [boxes])
    masks, _ = direct(family, image, boxes)
    assert same_but_for_rounding(np.stack([rle_to_mask(mask.rle) for mask in ours]), masks[:, 0])


def test_a_bfloat16_backbone_keeps_the_prompts_exact(folder: Path) -> None:
    image, boxes = picture(90, 130), some_boxes(90, 130, count=3)
    exact, rounded = (Sam2Segmenter(model=str(folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.model.vision_encoder.backbone.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert rounded.model.shared_image_embedding.positional_embedding.dtype == torch.float32
    for ours, theirs in zip(rounded.segment([image], [boxes])[0], exact.segment([image], [boxes])[0], strict=True):
        assert alike(rle_to_mask(ours.rle), rle_to_mask(theirs.rle)) > 0.9


def test_a_smaller_square_equals_a_model_made_for_it(folder: Path, tmp_path: Path) -> None:
    edge = SAM2_SIZE // 2
    copytree(folder, smaller := tmp_path / "smaller")
    config = json.loads((smaller / "config.json").read_text())
    config["prompt_encoder_config"]["image_size"] = edge
    config["vision_config"]["backbone_config"]["image_size"] = [edge, edge]
    config["vision_config"]["backbone_feature_sizes"] = [[edge // stride] * 2 for stride in (4, 8, 16)]
    (smaller / "config.json").write_text(json.dumps(config))
    settings = {"size": {"height": edge, "width": edge}, **IMAGENET}
    (smaller / "preprocessor_config.json").write_text(json.dumps(settings))
    image, boxes = picture(90, 130), some_boxes(90, 130, count=3)
    [ours] = Sam2Segmenter(model=str(folder), image_size=edge).segment([image], [boxes])
    [theirs] = Sam2Segmenter(model=str(smaller)).segment([image], [boxes])
    assert [mask.rle for mask in ours] == [mask.rle for mask in theirs]
    [full] = Sam2Segmenter(model=str(folder)).segment([image], [boxes])
    assert [mask.rle for mask in ours] != [mask.rle for mask in full]


@pytest.mark.parametrize("wrong", [{"image_size": 0}, {"image_size": 40}, {"image_size": 4096}, {"quantize": "int4"}])
def test_options_outside_their_range_are_refused(folder: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sam2Segmenter(model=str(folder), **wrong)


def test_it_is_a_segmenter_and_records_its_model(folder: Path) -> None:
    segmenter = Sam2Segmenter(model=str(folder))
    assert isinstance(segmenter, Segmenter)
    assert segmenter.models == {str(folder): {"revision": None, "license": None, "path": str(folder)}}


def test_answers_that_are_not_finite_are_an_error_never_an_empty_mask(folder: Path) -> None:
    segmenter = Sam2Segmenter(model=str(folder))
    segmenter.model.get_parameter("mask_decoder.conv_s0.bias").fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for image 1 of the batch"):
        segmenter.segment([picture(48, 64)] * 2, [[], [(1.0, 1.0, 30.0, 30.0)]])


def test_bad_input_is_refused_in_a_sentence(folder: Path) -> None:
    segmenter = Sam2Segmenter(model=str(folder))
    box: Box = (1.0, 1.0, 30.0, 30.0)
    with pytest.raises(InputError, match="1 images but boxes for 2"):
        segmenter.segment([picture(48, 64)], [[box], [box]])
    with pytest.raises(InputError, match="not finite"):
        segmenter.segment([picture(48, 64)], [[(1.0, float("nan"), 30.0, 30.0)]])
    shapes: list[Any] = [((48, 64), np.uint8), ((48, 64, 3), np.float32), ((0, 64, 3), np.uint8)]
    for wrong in (np.zeros(*shape) for shape in shapes):
        with pytest.raises(InputError, match=r"an image must be uint8 \[H, W, 3\]"):
            segmenter.segment([wrong], [[box]])
    with pytest.raises(InputError, match="batch_size"):
        Sam2Segmenter(model=str(folder), batch_size=0)


def test_preprocessor_files_old_and_new(tmp_path: Path) -> None:
    folder = make_sam2(tmp_path / "model")
    image, boxes = picture(48, 64), some_boxes(48, 64, count=2)
    old = Sam2Segmenter(model=str(folder)).segment([image], [boxes])
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text(json.dumps({"target_size": 64, "image_processor": settings}))
    assert Sam2Segmenter(model=str(folder)).segment([image], [boxes]) == old
    (folder / "processor_config.json").write_text(json.dumps({"target_size": 64, "point_pad_value": -10}))
    with pytest.raises(ModelError, match="has no preprocessor file with its image size"):
        Sam2Segmenter(model=str(folder))
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match="is damaged"):
        Sam2Segmenter(model=str(folder))
    for change, words in (({"size": {"height": 1024, "width": 1024}}, "takes images of 64"), ({"resample": 3}, "not")):
        (folder / "preprocessor_config.json").write_text(json.dumps({**settings, **change}))
        with pytest.raises(ModelError, match=words):
            Sam2Segmenter(model=str(folder))


def test_models_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Sam2Model"):
        Sam2Segmenter(model=str(make_clap(tmp_path / "clap")))
    with pytest.raises(ModelError, match="does not exist"):
        Sam2Segmenter(model=str(tmp_path / "nowhere"))


@pytest.mark.timm
def test_a_config_without_repvit_is_refused_not_built_as_a_resnet(tmp_path: Path) -> None:
    folder = make_edgetam(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["backbone_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="edgetam"):
        EdgeTamSegmenter(model=str(folder))


@pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed")
def test_without_timm_the_error_names_the_extra(folder: Path) -> None:
    with pytest.raises(InputError, match=r"torchvision is not installed; pip install \"openavs\[timm\]\""):
        EdgeTamSegmenter(model=str(folder))


def test_points_and_the_mask_before_are_prompts(family: Family) -> None:
    segmenter, image = family.load(), picture(48, 64)
    before = mask_to_rle(np.arange(48 * 64).reshape(48, 64) % 64 < 20)
    plain = segmenter.segment_points(image, [(10, 12), (50, 30)], [True, False])
    prompted = segmenter.segment_points(image, [(10, 12)], [True], (0, 0, 20, 48), before)
    assert [m.rle.size for m in plain] == [(48, 64)] * 4
    assert [m.score for m in prompted] != [m.score for m in plain]
