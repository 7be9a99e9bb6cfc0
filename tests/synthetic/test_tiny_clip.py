"""The embedded CLIP on held-out images: classification of crops, as a verifier and for students."""

from __future__ import annotations

import torch
from transformers import AutoTokenizer, CLIPModel

from openavs.evaluation.datasets.tables import CLASSES
from openavs.models.hub import load_pretrained, load_processor, resolve
from openavs.stages.verifiers.clip import ClipVerifier
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Segment
from openavs.synthetic.datasets import scene_frames
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.training.models.ov_avss.classifier import MaskClassifier
from scripts.train_tiny import clip

MODEL = "openavs:tiny/clip"


def test_clip_classifies_base_novel_and_background_crops() -> None:
    found = resolve(MODEL)
    model = load_pretrained(CLIPModel, found, torch.float32, "cpu")
    figures = clip.evaluate(model, load_processor(AutoTokenizer, found), split="test", images=100)
    assert figures["base"] > 0.8 and figures["novel"] > 0.8 and figures["background"] > 0.9


def test_verifier_keeps_matching_phrases_only() -> None:
    verifier = ClipVerifier(model=MODEL, device="cpu")
    right = wrong = total = 0
    for index in range(10):
        parts = [Role("dog", (True,)), Role("violin", (True,))]
        scene = plan_scene(parts, scene_rng("test", 930, index), 1, (160, 160))
        image, masks = next(scene_frames(scene))
        names = list(masks)
        segments = [
            Segment(mask_to_rle(masks[shown]), (0, 0, 160, 160), phrase, 0.5) for shown in names for phrase in names
        ]
        verdicts = verifier.verify([image], [segments], [names])[0]
        for segment, verdict, shown in zip(segments, verdicts, [a for a in names for _ in names], strict=True):
            if segment.phrase == shown:
                right, total = right + verdict.kept, total + 1
            else:
                wrong += verdict.kept
    assert total == 20 and right >= 18 and wrong <= 2


def test_mask_classifier_selects_among_all_names() -> None:
    """With the crops and prompts of OV-AVSS, which differ from those of the verifier."""
    names, right, total = list(CLASSES[1:]), 0, 0
    classifier = MaskClassifier(MODEL, "cpu")
    for index in range(10):
        parts = [Role(kind, (True,)) for kind in ("bird", "harp", "saw")]
        image, masks = next(scene_frames(plan_scene(parts, scene_rng("test", 931, index), 1, (160, 160))))
        frames = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        shown = [name for name in masks if masks[name].sum() > 200]
        logits = torch.stack([torch.from_numpy(masks[name]).float() * 20 - 10 for name in shown])[:, None]
        best = classifier.classify(frames, logits, names).argmax(1)
        right, total = (
            right + sum(names[int(i)] == name for i, name in zip(best, shown, strict=True)),
            total + len(shown),
        )
    assert total > 20 and right > 0.9 * total
