"""The package segment-anything against transformers' SamModel: the same random weights, the same masks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SamConfig, SamModel, SamProcessor
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.models.convert import convert
from openavs.registry import Registry
from openavs.stages.segmenters import box_prompts
from openavs.stages.segmenters.base import Segmenter
from openavs.stages.segmenters.sam import SamSegmenter
from openavs.stages.segmenters.segment_anything import SegmentAnythingSegmenter, infer_sizes
from openavs.structures.masks import rle_to_mask
from openavs.utils.optional_deps import stub_modules
from tests.packages.sam_names import carry_across
from tests.stages.segmenters.images import picture, some_boxes
from tests.tiny_models import make_sam

with stub_modules({"torchvision": {}}):
    pytest.importorskip("segment_anything", reason="segment-anything is not installed: make test-packages")

SHAPES = [(48, 64), (90, 130), (131, 77), (64, 64), (360, 640), (1, 4000), (3, 200)]


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SamModel with the package's eight heads in the decoder (no tensor's shape depends on them).

    The package's decoder normalizes with an epsilon of 1e-5, the transformers configuration says 1e-6. At this width
    of 32 that alone moves random logits by 3e-4 of the largest, so the comparison gives both the same; at the
    published size it does not matter (`test_the_published_size_agrees_too` leaves it as it is).
    """
    folder = make_sam(tmp_path_factory.mktemp("sam") / "transformers")
    config = json.loads((folder / "config.json").read_text())
    config["mask_decoder_config"] |= {"num_attention_heads": 8, "layer_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def folder(transformers_folder: Path) -> Path:
    return carry_across(transformers_folder, transformers_folder.parent / "package")


def watched(segmenter: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """A list that gets the mask logits [boxes, answers, h, w] and scores of each call of the decoder."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        logits, scores = output[0], output[1]
        seen.append((logits.flatten(0, -4).clone(), scores.flatten(0, -2).clone()))

    segmenter.model.mask_decoder.register_forward_hook(keep)
    return seen


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_mask_logits_are_those_of_transformers(
    folder: Path, transformers_folder: Path, shape: tuple[int, int], multimask: bool
) -> None:
    image, boxes = picture(*shape), some_boxes(*shape, count=5)
    package = SegmentAnythingSegmenter(model=str(folder), multimask=multimask)
    reference = SamSegmenter(model=str(transformers_folder), multimask=multimask)
    seen, expected = watched(package), watched(reference)
    [ours], [theirs] = package.segment([image], [boxes]), reference.segment([image], [boxes])
    assert len(seen) == len(expected) == 1, "all boxes go through the decoder together"
    assert expected[0][0].std() > 0.1
    assert relative(seen[0][0], expected[0][0]) < 1e-4
    assert relative(seen[0][1], expected[0][1]) < 1e-4
    for mask, other in zip(ours, theirs, strict=True):
        assert mask.score == pytest.approx(other.score, abs=1e-4)
        assert (rle_to_mask(mask.rle) != rle_to_mask(other.rle)).mean() < 1e-3


@pytest.mark.slow
def test_the_published_size_agrees_too(tmp_path: Path) -> None:
    """ViT-B at 1024 pixels with random weights: the sizes are read off the weights, the logits agree."""
    torch.manual_seed(0)
    model = SamModel(SamConfig()).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "rel_pos" not in name:
                parameter.normal_(0.0, (parameter.numel() / parameter.shape[0]) ** -0.5)
    model.save_pretrained(tmp_path / "transformers")
    SamProcessor(SamImageProcessorPil()).save_pretrained(tmp_path / "transformers")
    image, boxes = picture(360, 640), some_boxes(360, 640, count=3)
    answers = []
    for segmenter in (
        SegmentAnythingSegmenter(model=str(carry_across(tmp_path / "transformers", tmp_path / "package"))),
        SamSegmenter(model=str(tmp_path / "transformers")),
    ):
        answers.append(watched(segmenter))
        segmenter.segment([image], [boxes])
    difference = relative(answers[0][0][0], answers[1][0][0])
    print(f"ViT-B: relative difference of mask logits {difference:.1e}")
    assert difference < 1e-4


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sizes_read_off_the_weights_are_the_packages_own(name: str) -> None:
    """For each published size: an empty network of the package, and one of the sizes its tensors show."""
    import segment_anything

    from openavs.stages.segmenters import segment_anything as adapter

    with torch.device("meta"):
        official = segment_anything.sam_model_registry[name]()
        ours = adapter._network(segment_anything, official.state_dict(), name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in official.state_dict().items()}
    assert str(ours) == str(official)
    encoder, _, _ = infer_sizes(official.state_dict())
    blocks = [block.window_size for block in official.image_encoder.blocks]
    assert encoder["global_attn_indexes"] == tuple(i for i, window in enumerate(blocks) if window == 0)
    assert {encoder["window_size"]} == set(blocks) - {0}
    heads = {block.attn.num_heads for block in official.image_encoder.blocks}
    assert heads == {encoder["num_heads"]}
    assert ours.mask_decoder.transformer.num_heads == official.mask_decoder.transformer.num_heads
    assert torch.equal(adapter.torch.tensor(adapter._MEAN), torch.tensor([123.675, 116.28, 103.53]))


def test_the_image_reaches_the_encoder_as_the_package_would_put_it(folder: Path) -> None:
    """Against the package's own arithmetic; Pillow resizes as torchvision does for a PIL image."""
    from PIL import Image

    segmenter = SegmentAnythingSegmenter(model=str(folder))
    seen: list[torch.Tensor] = []
    segmenter.model.image_encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    image = picture(90, 130)
    segmenter.segment([image], [[(1.0, 2.0, 50.0, 60.0)]])
    height, width = segmenter._predictor.transform.get_preprocess_shape(90, 130, segmenter.side)
    small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    expected = segmenter.model.preprocess(torch.from_numpy(small).permute(2, 0, 1)[None])
    assert torch.equal(seen[0], expected)


def test_each_image_with_boxes_is_encoded_once_and_others_never(folder: Path) -> None:
    segmenter = SegmentAnythingSegmenter(model=str(folder))
    encoded: list[int] = []
    segmenter.model.image_encoder.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    images = [picture(48, 64, seed) for seed in range(4)]
    answer = segmenter.segment(images, [some_boxes(48, 64, 5), [], some_boxes(48, 64, 1), []])
    assert [len(masks) for masks in answer] == [5, 0, 1, 0]
    assert encoded == [1, 1]
    assert segmenter.segment([], []) == []


def test_many_boxes_or_large_frames_are_decoded_in_parts(folder: Path, monkeypatch: Any) -> None:
    segmenter = SegmentAnythingSegmenter(model=str(folder))
    image, boxes = picture(48, 64), some_boxes(48, 64, count=9)
    [whole] = segmenter.segment([image], [boxes])
    monkeypatch.setattr(box_prompts, "MAX_UPSCALED_PIXELS", 2 * segmenter.side**2)
    assert segmenter._boxes_per_chunk((48, 64)) == 2
    [parts] = segmenter.segment([image], [boxes])
    assert [mask.rle for mask in parts] == [mask.rle for mask in whole]


def test_a_bfloat16_encoder_keeps_the_prompts_exact(folder: Path) -> None:
    image, boxes = picture(90, 130), some_boxes(90, 130, count=3)
    exact, rounded = (SegmentAnythingSegmenter(model=str(folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert rounded.model.image_encoder.pos_embed.dtype == torch.bfloat16
    assert rounded.model.prompt_encoder.no_mask_embed.weight.dtype == torch.float32
    for ours, theirs in zip(rounded.segment([image], [boxes])[0], exact.segment([image], [boxes])[0], strict=True):
        one, other = rle_to_mask(ours.rle), rle_to_mask(theirs.rle)
        assert (one & other).sum() / (one | other).sum() > 0.9


def test_it_is_found_by_name_and_leaves_no_stub_of_torchvision(folder: Path) -> None:
    segmenter = Registry("segmenter").build("segment-anything", {"model": str(folder)}, {"device": "cpu"})
    assert isinstance(segmenter, Segmenter)
    assert segmenter.models == {str(folder): {"revision": None, "license": None, "path": str(folder)}}
    assert all(sys.modules[name].__spec__.origin for name in sys.modules if name.startswith("torchvision"))


def test_a_published_checkpoint_is_converted(folder: Path, tmp_path: Path) -> None:
    """The package publishes a bare state dict as a .pth; what is made of it is the same model."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, tmp_path / "sam_vit_tiny.pth")
    convert(tmp_path / "sam_vit_tiny.pth", tmp_path / "converted")
    image, boxes = picture(48, 64), some_boxes(48, 64, count=2)
    first, second = (
        SegmentAnythingSegmenter(model=str(place)).segment([image], [boxes])
        for place in (folder, tmp_path / "converted")
    )
    assert first == second


def test_bad_input_is_refused_in_a_sentence(folder: Path) -> None:
    segmenter = SegmentAnythingSegmenter(model=str(folder))
    box = (1.0, 1.0, 30.0, 30.0)
    with pytest.raises(InputError, match="1 images but boxes for 2"):
        segmenter.segment([picture(48, 64)], [[box], [box]])
    with pytest.raises(InputError, match="not finite"):
        segmenter.segment([picture(48, 64)], [[(1.0, float("nan"), 30.0, 30.0)]])
    with pytest.raises(InputError, match=r"an image must be uint8 \[H, W, 3\]"):
        segmenter.segment([np.zeros((48, 64, 3), np.float32)], [[box]])  # type: ignore[list-item]
    segmenter.model.mask_decoder.iou_token.weight.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite for image 1 of the batch"):
        segmenter.segment([picture(48, 64)] * 2, [[], [box]])


def lacking(folder: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of the folder with changed weights."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    target.mkdir()
    save_file(weights, target / "model.safetensors")
    (target / "config.json").write_text('{"model_type": "segment-anything"}')
    return target


def test_models_that_do_not_fit_are_refused(folder: Path, transformers_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a 'sam' model, not a 'segment-anything' one; .*openavs\.models\.convert"):
        SegmentAnythingSegmenter(model=str(transformers_folder))
    half = lacking(folder, tmp_path / "half", lambda weights: weights.pop("mask_decoder.iou_token.weight"))
    with pytest.raises(ModelError, match=r"1 of \d+ tensors are missing .* mask_decoder\.iou_token\.weight"):
        SegmentAnythingSegmenter(model=str(half))
    alien = lacking(folder, tmp_path / "alien", lambda weights: weights.pop("image_encoder.pos_embed"))
    with pytest.raises(ModelError, match="are not segment-anything's"):
        SegmentAnythingSegmenter(model=str(alien))
    with pytest.raises(ModelError, match="does not exist"):
        SegmentAnythingSegmenter(model=str(tmp_path / "nowhere"))
