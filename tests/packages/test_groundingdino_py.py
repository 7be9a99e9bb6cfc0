"""The package groundingdino-py against transformers' Grounding DINO: the same random weights, the same boxes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel, GroundingDinoConfig, SwinConfig

from openavs.errors import InputError, ModelError
from openavs.models.convert import convert
from openavs.registry import Registry
from openavs.stages.detectors.base import Detector
from openavs.stages.detectors.grounding_dino import BaseGroundingDino, GroundingDinoDetector
from openavs.stages.detectors.groundingdino_py import GroundingDinoPackageDetector
from openavs.structures.types import Detection
from tests.packages.grounding_dino_names import carry_across
from tests.stages.detectors.conftest import noise
from tests.tiny_detectors import bert_tokenizer, save_grounding_dino

pytest.importorskip("groundingdino", reason="groundingdino-py is not installed: make test-packages")

PHRASES = ["dog", "red car", "an electric guitar"]
SHAPES = [(120, 200), (333, 190), (1080, 1920), (50, 40), (4000, 60)]
# The package knows its backbones by name, the smallest being Swin-T, and a width of 256; the rest is small.
SETTINGS = {"enc_layers": 2, "dec_layers": 2, "dim_feedforward": 64, "num_queries": 50}


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    swin_t = SwinConfig(
        image_size=224,
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_indices=[2, 3, 4],
    )
    return save_grounding_dino(
        tmp_path_factory.mktemp("grounding-dino") / "transformers",
        backbone_config=swin_t,
        d_model=256,
        encoder_attention_heads=8,
        decoder_attention_heads=8,
    )


@pytest.fixture(scope="module")
def folder(transformers_folder: Path) -> Path:
    return carry_across(transformers_folder, transformers_folder.parent / "package", SETTINGS)


@pytest.fixture(scope="module")
def bert(transformers_folder: Path) -> Path:
    """The folder of a BERT of the right sizes with the tokenizer; its weights are others, and must not matter."""
    place = transformers_folder.parent / "bert"
    BertModel(GroundingDinoConfig.from_pretrained(transformers_folder).text_config).save_pretrained(place)
    bert_tokenizer().save_pretrained(place)
    return place


def load(folder: Path, bert: Path, **options: Any) -> GroundingDinoPackageDetector:
    small = {"shortest_edge": 96, "longest_edge": 160, "floor": 0.0, "device": "cpu", "offline": True}
    return GroundingDinoPackageDetector(**{"model": str(folder), "text_encoder": str(bert)} | small | options)


@pytest.fixture(scope="module")
def package(folder: Path, bert: Path) -> GroundingDinoPackageDetector:
    return load(folder, bert)


@pytest.fixture(scope="module")
def reference(transformers_folder: Path) -> GroundingDinoDetector:
    return GroundingDinoDetector(model=str(transformers_folder), floor=0.0, device="cpu", dtype="float32", offline=True)


def answers(detector: BaseGroundingDino, images: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token logits [B, 50, T] and boxes [B, 50, 4] of the network, in its own order."""
    caption = [101, *(i for ids in detector._encode(PHRASES) for i in (*ids, 1012)), 102]
    ids = torch.tensor([caption]).expand(len(images), -1)
    with torch.inference_mode():
        pixels = detector._prepare(images, [detector._resize_policy(image) for image in images])
        logits, boxes = detector._forward(pixels, ids)
    return logits[..., : len(caption)], boxes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_network_answers_as_transformers_does(
    package: GroundingDinoPackageDetector, reference: GroundingDinoDetector, shape: tuple[int, int]
) -> None:
    images = [noise(*shape, seed=3), noise(*shape, seed=4)]
    (logits, boxes), (expected, expected_boxes) = answers(package, images), answers(reference, images)
    assert expected.std() > 1 and expected_boxes.std() > 0.05  # the comparison is of something
    assert float((logits - expected).abs().max() / expected.abs().max()) < 1e-4
    assert float((logits.sigmoid() - expected.sigmoid()).abs().max()) < 1e-4
    assert float((boxes - expected_boxes).abs().max()) < 1e-4


def compare(ours: list[Detection], theirs: list[Detection], side: int) -> None:
    """The same detections, in the same order but for near ties."""
    assert len(ours) == len(theirs) > 0
    assert [d.score for d in ours] == pytest.approx([d.score for d in theirs], abs=1e-4)
    for found in ours:
        twins = [d for d in theirs if d.phrase == found.phrase and abs(d.score - found.score) < 1e-4]
        assert min(np.abs(np.subtract(d.box, found.box)).max() for d in twins) < 1e-4 * side


@pytest.mark.parametrize("phrases_per_caption", [8, 1])
def test_detections_are_those_of_the_transformers_adapter(
    folder: Path, bert: Path, transformers_folder: Path, phrases_per_caption: int
) -> None:
    images = [noise(120, 200, seed=3), noise(120, 200, seed=4)]
    phrases = [PHRASES, PHRASES] if phrases_per_caption > 1 else [PHRASES[:2], PHRASES[:2]]
    ours = load(folder, bert, phrases_per_caption=phrases_per_caption, batch_size=2).detect(images, phrases)
    other = GroundingDinoDetector(
        model=str(transformers_folder),
        floor=0.0,
        device="cpu",
        dtype="float32",
        phrases_per_caption=phrases_per_caption,
        batch_size=2,
        offline=True,
    )
    for mine, theirs, image in zip(ours, other.detect(images, phrases), images, strict=True):
        compare(mine, theirs, max(image.shape))


def test_one_forward_for_all_phrases_of_a_frame_and_none_without(folder: Path, bert: Path) -> None:
    detector = load(folder, bert)
    forwards: list[int] = []
    detector.model.register_forward_hook(lambda _, inputs, __: forwards.append(len(inputs[0].tensors)))
    detector.detect([noise(120, 200)], [PHRASES])
    assert detector.detect([noise(120, 200)], [[]]) == [[]]
    assert forwards == [1]


def test_it_is_found_by_name_and_prints_nothing(
    folder: Path, bert: Path, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    options = {"model": str(folder), "text_encoder": str(bert), "shortest_edge": 96, "longest_edge": 160}
    detector = Registry("detector").build("groundingdino-py", options, {"device": "cpu", "offline": True})
    assert isinstance(detector, Detector)
    assert set(detector.models) == {str(folder), str(bert)}
    assert capsys.readouterr().out == "", "the package prints; a command's standard output is its own"


def test_stubs_are_removed_after_the_import(package: GroundingDinoPackageDetector) -> None:
    for name in [name for name in sys.modules if name.startswith(("torchvision", "timm", "addict", "yapf"))]:
        assert sys.modules[name].__spec__.origin, f"{name} is a stand-in"
    from transformers.utils import is_torchvision_available

    assert is_torchvision_available() == ("torchvision" in sys.modules)


def test_a_published_checkpoint_is_converted(
    folder: Path, bert: Path, package: GroundingDinoPackageDetector, tmp_path: Path
) -> None:
    """The package publishes {"model": {"module.<name>": tensor}}, with tensors that only training needed."""
    weights = {f"module.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    weights |= {"module.label_enc.weight": torch.zeros(3, 4), "module.bert.pooler.dense.weight": torch.zeros(2, 2)}
    torch.save({"model": weights}, tmp_path / "groundingdino_swint.pth")
    convert(tmp_path / "groundingdino_swint.pth", tmp_path / "converted")
    config = json.loads((tmp_path / "converted" / "config.json").read_text())
    assert config == {"model_type": "groundingdino", "backbone": "swin_T_224_1k"}
    (tmp_path / "converted" / "config.json").write_text(json.dumps(config | SETTINGS))
    image = noise(120, 200)
    assert load(tmp_path / "converted", bert).detect([image], [PHRASES]) == package.detect([image], [PHRASES])


def changed(folder: Path, target: Path, **config: Any) -> Path:
    """The folder again with other settings, its weights linked."""
    target.mkdir()
    (target / "model.safetensors").symlink_to(folder / "model.safetensors")
    (target / "config.json").write_text(json.dumps({"model_type": "groundingdino", **SETTINGS, **config}))
    return target


def test_models_that_do_not_fit_are_refused(
    folder: Path, bert: Path, transformers_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="is a 'grounding-dino' model, not a 'groundingdino' one"):
        load(transformers_folder, bert)
    with pytest.raises(ModelError, match="unknown key 'num_querys'; did you mean 'num_queries'"):
        load(changed(folder, tmp_path / "key", num_querys=3), bert)
    with pytest.raises(ModelError, match=r"describes no network \(Unknown backbone swin_XXL"):
        load(changed(folder, tmp_path / "backbone", backbone="swin_XXL"), bert)
    with pytest.raises(ModelError, match=r"40 of 472 tensors are missing or of another shape, such as bbox_embed\.2"):
        load(changed(folder, tmp_path / "deeper", dec_layers=3), bert)
    other = tmp_path / "other"
    shutil.copytree(bert, other)
    text = (other / "tokenizer.json").read_text(encoding="utf-8")
    (other / "tokenizer.json").write_text(text.replace('".": 1012', '".": 1013'), encoding="utf-8")
    with pytest.raises(ModelError, match="needs BERT's"):
        load(folder, other)
    save_file({"x": torch.zeros(1)}, other / "model.safetensors")  # BERT's own weights are not read
    shutil.copy(bert / "tokenizer.json", other)
    assert load(folder, other).detect([noise(50, 40)], [["dog"]])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"dtype": "bfloat16"}, "computes in float32, not bfloat16; write 'dtype: float32'"),
        ({"shortest_edge": 200}, r"shortest_edge \(200\) must be more than 0 and at most longest_edge \(160\)"),
        ({"floor": 1.5}, "floor"),
    ],
)
def test_options_outside_their_range_are_refused(
    folder: Path, bert: Path, wrong: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        load(folder, bert, **wrong)
