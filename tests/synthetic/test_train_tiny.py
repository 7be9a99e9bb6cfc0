"""Training scripts of the tiny models: reproducible weights and correct targets."""

from __future__ import annotations

import hashlib
import logging
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import openavs
from openavs.synthetic.categories import KINDS
from openavs.synthetic.scenes import scene_rng
from scripts.train_tiny import (
    __main__ as train_all,
    audio_data,
    clip,
    grounding_dino,
    lm,
    resnet,
    sam,
    vggish,
)
from scripts.train_tiny.common import StepLogger
from scripts.train_tiny.image_data import LabeledImage, batches, to_tensor
from scripts.train_tiny.lm_data import VAL

HOME = Path(openavs.__file__).parent / "assets" / "tiny"


def train(script: str, out: Path, *options: str) -> str:
    """Return the hash of the weights of a short training."""
    command = [sys.executable, "-m", f"scripts.train_tiny.{script}", "--out", str(out), *options]
    subprocess.run(command, check=True, capture_output=True)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("grounding_dino", ("--cells", "3", "--steps", "3", "--repeated", "2", "--bystanders", "2")),
        ("sam", ("--dense", "3", "--steps", "3")),
        ("resnet", ("--steps", "3", "--batch", "4")),
        ("mask2former", ("--steps", "3", "--batch", "2")),
        ("clip", ("--steps", "3", "--images", "2")),
    ],
)
def test_same_seed_gives_the_same_weights(script: str, options: tuple[str, ...], tmp_path: Path) -> None:
    first = train(script, tmp_path / "a", *options)
    assert train(script, tmp_path / "b", *options) == first
    assert train(script, tmp_path / "c", *options, "--seed", "9") != first


@pytest.mark.slow
def test_language_model_training_is_reproducible() -> None:
    tokenizer = lm.build_tokenizer()

    def trained(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = lm.build_model(len(tokenizer))
        lm.train(model, tokenizer, steps=20, batch=1, rate=1e-3, seed=seed)
        assert not model.training
        figures = lm.evaluate(model, tokenizer, split=VAL, count=2)
        assert set(figures) == {"answers", "frames"} and all(0 <= share <= 1 for share in figures.values())
        return [weight.detach() for weight in model.parameters()]

    first = trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, trained(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, trained(2), strict=True))


@pytest.mark.slow
def test_vggish_training_is_reproducible() -> None:
    def trained(seed: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network, tags = vggish.Vggish(vggish.CONFIG), torch.nn.Linear(vggish.CONFIG.features, len(KINDS))
        vggish.train(network, tags, steps=20, batch=2, rate=1e-3, seed=seed, clips=1)
        figures = vggish.evaluate(network, tags, split=audio_data.VAL, count=2)
        assert set(figures) == {"single_top1", "pair_top2", "triple_top3"}
        assert all(0 <= share <= 1 for share in figures.values())
        return [weight.detach() for weight in network.parameters()]

    first = trained(1)
    assert all(torch.equal(a, b) for a, b in zip(first, trained(1), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, trained(2), strict=True))


def test_step_logger_logs_every_n_steps(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_step = StepLogger(logging.getLogger("a test"), "dense", every=50)
        for step in range(120):
            log_step(step, loss=step / 4, IoU=0.5)
    lines = [re.sub(r", \d+ s$", "", record.message) for record in caplog.records]
    assert lines == ["dense 50: loss 12.2500, IoU 0.5000", "dense 100: loss 24.7500, IoU 0.5000"]


def test_every_tiny_model_has_a_script() -> None:
    lanes = [model for lane in train_all.LANES for model in lane]
    assert {folder for _, folder in lanes} == {path.name for path in HOME.iterdir() if path.is_dir()}
    assert all(find_spec(f"scripts.train_tiny.{script}") for script, _ in lanes)


def test_lane_stops_at_the_first_failure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_all, "LANES", ((("no_such_script", "sam"), ("lm_data", "lm")), ()))
    monkeypatch.setattr(sys, "argv", ["training", "--out", str(tmp_path)])
    with pytest.raises(subprocess.CalledProcessError):
        train_all.main()
    printed = capfd.readouterr()
    assert "training sam" in printed.out and "training lm" not in printed.out
    assert "No module named scripts.train_tiny.no_such_script" in printed.err
    train_all.run_lane((("lm_data", "lm"),), tmp_path)  # a module without a main function succeeds


def test_hidden_object_has_no_box() -> None:
    owners = np.zeros((32, 32), dtype=np.uint8)
    owners[4:20, 4:20], owners[30, 3:9] = 1, 2
    seen, hidden = LabeledImage(np.zeros((32, 32, 3), dtype=np.uint8), owners, (0, 1)).boxes()
    assert seen.tolist() == [4, 4, 20, 20] and np.isnan(hidden).all()


def test_boxes_enclose_the_masks() -> None:
    for item in next(batches("train", 3, 8, ((128, 171),))):
        assert item.image.shape == (128, 171, 3)
        for number, (x0, y0, x1, y1) in enumerate(item.boxes().tolist()):
            inside = item.owners[int(y0) : int(y1), int(x0) : int(x1)] == number + 1
            assert inside.sum() == (item.owners == number + 1).sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_phrases_include_present_and_absent_objects() -> None:
    for item in next(batches("train", 4, 16, ((128, 128),))):
        rng = scene_rng("train", 1)
        phrases = grounding_dino.phrases_for(item, 8, rng)
        assert len(set(phrases)) == 8
        target = grounding_dino.targets_for(item, phrases)
        named = {phrases[place] for place in target["class_labels"].tolist()}
        assert named == {KINDS[k].name for k in item.kinds} & set(phrases)
        assert target["boxes"].min() >= 0 and target["boxes"].max() <= 1


def test_batch_loss_follows_from_the_losses_of_its_images(tmp_path: Path) -> None:
    """The library's loss assigns phrases correctly only if all captions of a batch have the same shape.

    Losses are sums over the batch divided by its number of boxes, so the losses of images determine that of a batch.
    """
    torch.manual_seed(0)
    words = grounding_dino.tokenizer(tmp_path)
    model = grounding_dino.build(len(words)).eval()
    batch = [item for item in next(batches("train", 5, 6, ((128, 128),))) if not np.isnan(item.boxes()).any()]
    rng = scene_rng("train", 2)
    phrases = [grounding_dino.phrases_for(item, 6, rng) for item in batch]
    labels = [grounding_dino.targets_for(item, own) for item, own in zip(batch, phrases, strict=True)]
    kept = [i for i, label in enumerate(labels) if len(label["class_labels"])]

    def loss(indices: list[int]) -> float:
        text = words([" . ".join(phrases[i]) + " ." for i in indices], return_tensors="pt")
        pixels = torch.from_numpy(to_tensor([batch[i] for i in indices], grounding_dino.MEAN, grounding_dino.STD))
        with torch.no_grad():
            return float(model(pixel_values=pixels, labels=[labels[i] for i in indices], **text).loss)

    boxes = [len(labels[i]["class_labels"]) for i in kept]
    whole = sum(loss([i]) * n for i, n in zip(kept, boxes, strict=True)) / sum(boxes)
    assert len(kept) >= 3
    assert loss(kept) == pytest.approx(whole, rel=1e-4)


def test_image_without_phrases_has_no_dense_loss(tmp_path: Path) -> None:
    words = grounding_dino.tokenizer(tmp_path)
    model = grounding_dino.build(len(words))
    batch = next(batches("train", 5, 1, ((128, 128),)))
    phrases = [["accordion", "airplane"]]
    text = words([" . ".join(phrases[0]) + " ."], return_tensors="pt")
    outputs = model(pixel_values=torch.from_numpy(to_tensor(batch, grounding_dino.MEAN, grounding_dino.STD)), **text)
    loss = grounding_dino.dense_loss(outputs, batch, phrases, [grounding_dino.targets_for(batch[0], phrases[0])])
    assert loss == 0 and loss.requires_grad


def test_prompt_boxes_are_jittered_like_detections() -> None:
    errors = []
    for item in next(batches("train", 6, 24, ((128, 128),))):
        boxes, masks = sam.targets_for(item, scene_rng("train", 3))
        assert boxes.shape == (4, 4) and masks.shape == (4, 64, 64)
        tight = item.boxes()[~np.isnan(item.boxes()).any(axis=1)]
        for box, mask in zip(boxes.numpy(), masks.numpy(), strict=True):
            best = min(tight, key=lambda t: np.abs(t - box).sum())
            errors.append(np.abs(best - box).mean() / (best[2:] - best[:2]).mean())
            assert mask.sum() > 0
    assert 0.01 < float(np.mean(errors)) < 0.08


def test_tokenizer_keeps_the_ids_of_the_library(tmp_path: Path) -> None:
    words = grounding_dino.tokenizer(tmp_path)
    assert words("dog . ? ").input_ids == [101, words.convert_tokens_to_ids("dog"), 1012, 1029, 102]
    assert all(len(words.tokenize(kind.name)) == 1 for kind in KINDS)


def test_images_are_tagged_with_their_categories() -> None:
    pictures, tags = resnet.batch_of(scene_rng("train", 5), 12, 96)
    assert pictures.shape == (12, 3, 96, 96) and pictures.dtype == torch.uint8
    assert set(tags.sum(dim=1).tolist()) <= {1.0, 2.0, 3.0}
    again, _ = resnet.batch_of(scene_rng("val", 5), 12, 96)
    assert not torch.equal(pictures, again)


def test_crops_show_objects_and_background() -> None:
    kinds = {kind.name for kind in KINDS}
    for index in range(6):
        images, names = clip.sample_crops(scene_rng("train", 6, index))
        assert images.shape == (len(names), clip.EDGE, clip.EDGE, 3)
        assert {clip.NAMES[name] for name in names if name >= 0} <= kinds
        assert names.count(-1) <= 1 and len(names) >= 1


def test_faint_mask_gives_a_crop_of_the_whole_image() -> None:
    image = np.full((80, 80, 3), 200, dtype=np.uint8)
    faint = np.full((80, 80), 0.4, dtype=np.float32)
    crop = clip.crop_mask(image, faint, np.random.default_rng(0))
    assert crop.shape == (clip.EDGE, clip.EDGE, 3) and crop.any()


def test_augmented_mask_overlaps_the_mask() -> None:
    mask = np.zeros((80, 80), dtype=bool)
    mask[20:50, 30:70] = True
    for index in range(10):
        soft = clip.augment_mask(mask, scene_rng("train", 7, index))
        assert soft.min() >= 0 and soft.max() <= 1
        assert (soft > 0.5)[mask].mean() > 0.8 and (soft > 0.5)[~mask].mean() < 0.1


def test_tokenizer_distinguishes_all_names() -> None:
    tokenizer = clip.build_tokenizer()
    tokens = [tuple(tokenizer(f"a photo of a {name}").input_ids) for name in clip.NAMES]
    assert len(set(tokens)) == 70 and not any(tokenizer.unk_token_id in ids for ids in tokens)
