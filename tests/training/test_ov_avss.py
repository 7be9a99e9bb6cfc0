"""The OV-AVSS student: protocol, classification by any vocabulary, saving and loading."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel, Mask2FormerConfig, Mask2FormerForUniversalSegmentation, PreTrainedTokenizerFast

from openavs.errors import InputError, ModelError
from openavs.evaluation.benchmark import load_benchmark
from openavs.models.hub import ResolvedModel, resolve
from openavs.structures.masks import RLE, segments_to_label_map
from openavs.synthetic.datasets import write_layout
from openavs.training.base import InstanceMask, StudentPrediction, load_student, student_class
from openavs.training.config import load_training_recipe
from openavs.training.inference import concatenate_predictions, label_maps
from openavs.training.models.ov_avss.classifier import TEMPLATES, MaskClassifier, mask_crops
from openavs.training.models.ov_avss.model import OvAvss, _binary, _pixels, _target, best_pairs
from openavs.training.models.ov_avss.network import ClipOutput
from tests.conftest import Outcome
from tests.training.ov_avss_models import CLIP_SIDE, batch, make_clip, mask2former_options, tiny_student

NAMES = ["dog", "bell", "siren", "guitar"]
WORDS = ["a", "photo", "of", "this", "This", "is", "There", "in", "the", "scene", "small", "medium", "large", *NAMES]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_clip(tmp_path_factory.mktemp("clip"), WORDS))


def test_clip_output_does_not_depend_on_its_batch() -> None:
    """Neither the number of clips nor their lengths and sizes, which determine the padding, matter."""
    shapes = [(5, (64, 80)), (3, (48, 96)), (5, (64, 80))]
    student, together = tiny_student(), batch([*shapes])
    answers = student(together)
    for row, (count, (height, width)) in enumerate(shapes):
        h, w = (-(-side // 32) * 32 for side in (height, width))
        alone = replace(
            together,
            ids=together.ids[row : row + 1],
            frames=together.frames[row : row + 1, :count, :, :h, :w],
            audio=together.audio[row : row + 1, :count],
            present=together.present[row : row + 1, :count],
            inner=together.inner[row : row + 1],
            sizes=together.sizes[row : row + 1],
        )
        for mine, other in zip(answers[row], student(alone)[0], strict=True):
            torch.testing.assert_close(mine.masks, other.masks, rtol=1e-3, atol=1e-4 * other.masks.abs().max().item())


def test_loss_has_gradients_and_skips_clips_without_labels() -> None:
    student = tiny_student().train()
    clips = batch([(5, (64, 64)), (3, (64, 96)), (5, (64, 64))], labeled=[[0], [], [1, 4]])
    output = student(clips)
    torch.manual_seed(0)
    parts = student.loss(output, clips)
    assert {"loss", "objectness", "mask", "dice"} == set(parts) and torch.isfinite(parts["loss"])
    parts["loss"].backward(retain_graph=True)
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    without = replace(clips, masks=clips.masks.clone())
    without.masks[1] = 9  # any content of the unlabeled clip
    torch.manual_seed(0)
    assert student.loss(output, without)["loss"] == parts["loss"]
    nothing = replace(clips, labeled=torch.zeros_like(clips.labeled))
    assert student.loss(output, nothing)["loss"] == 0


def test_objects_are_the_classes_of_the_labeled_frames() -> None:
    clips = batch([(4, (64, 64))], labeled=[[1, 3]])
    found = _target(clips, 0)
    assert found.frames.tolist() == [1, 3] and found.masks.shape == (2, 2, 64, 64)
    assert torch.equal(found.masks[0].bool(), clips.masks[0, [1, 3]] == 3)
    assert torch.equal(found.masks[1].bool(), clips.masks[0, [1, 3]] == 7)


def test_padding_is_zero_after_normalization() -> None:
    pixels = _pixels(batch([(2, (40, 64))]), 0, (64, 64))
    assert pixels.shape == (2, 3, 64, 64)
    assert not pixels[:, :, 40:].any() and pixels[:, :, :40].std() > 0.5


def test_binary_masks_are_the_union_of_confident_queries() -> None:
    output = some_output()
    prediction = _binary(output, (64, 64), (128, 128))
    full = F.interpolate(output.masks, size=(64, 64), mode="bilinear", align_corners=False)
    large = F.interpolate(full, size=(128, 128), mode="bilinear", align_corners=False)
    sure = (large[[1, 3, 5]] > 0).any(0).numpy()
    assert sure.any() and not sure.all()
    unsure = torch.tensor([-1.0, 1.0]).softmax(0)[0] * large[[0, 2, 4]].sigmoid()
    graded = torch.maximum(unsure.amax(0), large[[1, 3, 5]].sigmoid().amax(0)).numpy()
    assert prediction.probability is not None
    np.testing.assert_allclose(prediction.probability, graded, atol=1e-6)
    for frame, mask in zip(prediction.frames, sure, strict=True):
        union = frame[0].mask if frame else np.zeros((128, 128), bool)
        assert (union == mask).mean() > 0.9999  # a logit of 0 to the last bit


# --------------------------------------------------------------------------------------------- classification


def test_fourteen_prompt_templates() -> None:
    assert len(set(TEMPLATES)) == 14
    assert TEMPLATES[0] == "a photo of a {}." and "There is a small {} in the scene." in TEMPLATES


def slow_names(folder: str, frames: torch.Tensor, masks: torch.Tensor, names: list[str]) -> torch.Tensor:
    """CLIP called crop by crop and prompt by prompt."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    texts = []
    for name in names:
        own = []
        for template in TEMPLATES:
            tokens = tokenizer(template.format(name), return_tensors="pt", return_token_type_ids=False)
            own.append(F.normalize(model.get_text_features(**tokens).pooler_output[0], dim=0))
        texts.append(F.normalize(torch.stack(own).mean(0), dim=0))
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    probabilities = torch.zeros(len(masks), len(names))
    for query, crops in mask_crops(frames, masks, CLIP_SIDE):
        logits = []
        for crop in crops:
            pixels = (crop / 255 - mean[:, None, None]) / std[:, None, None]
            image = F.normalize(model.get_image_features(pixel_values=pixels[None]).pooler_output[0], dim=0)
            logits.append(model.logit_scale.exp() * torch.stack([image @ text for text in texts]))
        probabilities[query] = torch.stack(logits).mean(0).softmax(0)
    return probabilities


def some_masks(queries: int = 3) -> torch.Tensor:
    masks = torch.full((queries, 2, 16, 16), -5.0)
    masks[0, :, 2:9, 3:6] = 5.0
    masks[1, 1, 8:15, 8:15] = 5.0
    return masks  # the other masks are empty


@torch.no_grad()
def test_classifier_equals_clip_called_per_crop(clip: str) -> None:
    frames = batch([(2, (64, 64))]).frames[0]
    got = MaskClassifier(clip, "cpu", batch_size=2).classify(frames, some_masks(), NAMES)
    torch.testing.assert_close(got, slow_names(clip, frames, some_masks(), NAMES), rtol=1e-3, atol=1e-4)
    assert not got[2].any()


def test_vocabulary_can_change_between_calls(clip: str) -> None:
    """The embedding of a name does not depend on the other names."""
    used, fresh = MaskClassifier(clip, "cpu"), MaskClassifier(clip, "cpu")
    used.embed_names(["dog", "bell"])
    torch.testing.assert_close(used.embed_names(["siren", "bell", "dog"]), fresh.embed_names(["siren", "bell", "dog"]))
    frames = batch([(2, (64, 64))]).frames[0]
    narrow = used.classify(frames, some_masks(), ["dog", "bell"])
    wide = used.classify(frames, some_masks(), ["bell", "guitar", "dog"])
    torch.testing.assert_close(wide[:2, [2, 0]] / wide[:2, [2, 0]].sum(1, keepdim=True), narrow[:2])
    with pytest.raises(InputError, match="a vocabulary has at least one class"):
        used.embed_names([])


def test_best_pairs_can_contain_a_query_twice() -> None:
    probabilities = torch.tensor([[0.45, 0.35, 0.2], [0.05, 0.9, 0.05], [0.0, 0.0, 0.0]])
    pairs = best_pairs(probabilities, top=10, threshold=0.3)
    assert [(query, label) for query, label, _ in pairs] == [(1, 1), (0, 0), (0, 1)]
    assert best_pairs(probabilities, top=1, threshold=0.3) == pairs[:1]
    assert best_pairs(probabilities, top=10, threshold=0.95) == []


def some_output() -> ClipOutput:
    """Six queries; those with odd numbers are confident."""
    generator = torch.Generator().manual_seed(2)
    masks = F.interpolate(torch.randn(6, 2, 4, 4, generator=generator), size=(16, 16), mode="bilinear") * 4 - 2
    return ClipOutput(torch.tensor([[-1.0, 1.0], [1.0, -1.0]] * 3), masks)


def slow_map(masks: torch.Tensor, probabilities: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """The published composition, pixel by pixel: the ten best pairs, painted best first and never painted over."""
    triples = sorted(
        ((float(probabilities[q, c]), q, c) for q in range(len(probabilities)) for c in range(probabilities.shape[1])),
        reverse=True,
    )[:10]
    full = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)
    painted = np.zeros((masks.shape[1], *size), dtype=np.uint8)
    for score, query, label in triples:
        if score > 0.3:
            painted[(painted == 0) & (full[query] > 0).numpy()] = label + 1
    return painted


def painted(prediction: StudentPrediction, names: list[str], size: tuple[int, int]) -> np.ndarray:
    from openavs.structures.masks import mask_to_rle
    from openavs.structures.types import Segment

    def segment(found: InstanceMask) -> Segment:
        return Segment(mask_to_rle(found.mask), (0, 0, 1, 1), str(found.label), found.score)

    maps = []
    for frame in prediction.frames:
        numbers = [names.index(str(found.label)) + 1 for found in frame]
        maps.append(segments_to_label_map([segment(found) for found in frame], numbers, size))
    return np.stack(maps)


def test_label_map_equals_the_published_composition(clip: str) -> None:
    student, clips, output = tiny_student(clip=clip), replace(batch([(2, (64, 64))]), sizes=((64, 64),)), some_output()
    prediction = student.classify_queries(clips, 0, output, NAMES)
    probabilities = slow_names(clip, clips.frames[0], output.masks, NAMES).detach()
    expected = slow_map(output.masks, probabilities, (64, 64))
    assert len(np.unique(expected)) > 2
    assert (painted(prediction, NAMES, (64, 64)) == expected).mean() > 0.999  # a logit of 0 to the last bit
    assert all(found.label in NAMES and found.score > 0.3 for frame in prediction.frames for found in frame)


def test_only_confident_queries_are_classified(clip: str) -> None:
    """The option skips queries without an object and does not change the others."""
    clips = batch([(2, (64, 64))])
    every, sure = tiny_student(clip=clip, top=100), tiny_student(clip=clip, top=100, objectness=0.5)
    all_of_them = every.classify_queries(clips, 0, some_output(), NAMES).frames[0]
    got = sure.classify_queries(clips, 0, some_output(), NAMES).frames[0]
    kept = [found for found in all_of_them if found.track in (1, 3, 5)]
    assert 0 < len(kept) < len(all_of_them)
    assert [(f.track, f.label) for f in got] == [(f.track, f.label) for f in kept]
    assert [f.score for f in got] == pytest.approx([f.score for f in kept], rel=1e-4)


def test_instance_is_in_the_frames_with_its_mask(clip: str) -> None:
    masks = torch.full((1, 2, 16, 16), -5.0)
    masks[0, 1, 4:12, 4:12] = 5.0
    student, output = tiny_student(clip=clip, top=1, threshold=0.0), ClipOutput(torch.tensor([[1.0, -1.0]]), masks)
    first, second = student.classify_queries(batch([(2, (64, 64))]), 0, output, NAMES).frames
    assert first == () and len(second) == 1 and second[0].mask.any()


def test_no_confident_query_gives_an_empty_prediction(clip: str) -> None:
    student, clips = tiny_student(clip=clip, objectness=0.999), batch([(2, (64, 64))])
    with torch.no_grad():
        student.network.sound_predictor.bias.copy_(torch.tensor([-50.0, 50.0]))
    assert student.predict(clips, NAMES)[0].frames == ((), ())
    binary = student.predict(clips, None)[0]
    assert binary.frames == ((), ()) and binary.probability is not None and binary.probability.max() < 1e-6


# ------------------------------------------------------------------------------------------------ disk and bad input


def test_saved_student_predicts_the_same(tmp_path: Path, clip: str) -> None:
    student, clips = tiny_student(clip=clip, sides=[64, 96]), batch([(3, (64, 64))])
    student.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    for loaded in (OvAvss.from_pretrained(tmp_path), load_student(str(tmp_path))):
        assert loaded.config == student.config
        assert np.array_equal(
            loaded.predict(clips, None)[0].probability,  # type: ignore[arg-type]
            student.predict(clips, None)[0].probability,  # type: ignore[arg-type]
        )
    loaded.predict(clips, NAMES)
    classifier = loaded._classifier
    loaded.predict(clips, NAMES)
    assert loaded._classifier is classifier is not None, "CLIP is loaded once"
    assert set(loaded.state_dict()) == set(student.state_dict())  # CLIP is not among its weights


def test_instances_of_a_student_are_tracks_of_avis(openavs: Callable[..., Outcome], tmp_path: Path) -> None:
    write_layout("avis", tmp_path / "data", {"test": 1}, seconds=2)
    words = {word for name in load_benchmark("avis").classes for word in name.replace("_", " ").split()}
    folder = tmp_path / "student"
    tiny_student(clip=str(make_clip(tmp_path / "clip", sorted({*words, "a", "photo", "of"})))).save_pretrained(folder)
    shutil.copytree(resolve("openavs:tiny/vggish").path, folder / "vggish")
    where = ("--root", tmp_path / "data", "--pipeline", f"student:{folder}", "--out", tmp_path / "out")
    done = openavs("evaluate", "avis", *where, "--json")
    assert done.code == 0, done.err
    assert done.json()["metrics"]["hota"] is not None
    tracks = json.loads((tmp_path / "out" / "predictions" / "results.json").read_text())
    codes = [[RLE(tuple(mask["size"]), mask["counts"]) for mask in track["segmentations"]] for track in tracks]
    assert any(all(code.area for code in own) for own in codes), "one query is one track of both frames"


def test_mask2former_of_the_same_sizes_initializes_it(tmp_path: Path) -> None:
    options = mask2former_options() | {"backbone_config": tiny_student().network.config.backbone_config}
    torch.manual_seed(3)
    donor = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(**options))
    donor.save_pretrained(tmp_path)
    student = tiny_student()
    student.initialize("mask2former", str(tmp_path))
    name = "model.transformer_module.queries_features.weight"
    assert torch.equal(student.network.state_dict()[name], donor.state_dict()[name])
    with pytest.raises(ModelError, match=r"other sizes .* set its 'model.backbone'"):
        tiny_student(queries=7).initialize("mask2former", str(tmp_path))


def test_backbone_initializes_it(tmp_path: Path) -> None:
    from transformers import ResNetBackbone, ResNetModel

    config = tiny_student().network.config.backbone_config
    torch.manual_seed(4)
    donor = ResNetModel(config)
    donor.save_pretrained(tmp_path)
    student = tiny_student()
    student.initialize("backbone", str(tmp_path))
    encoder = student.network.model.pixel_level_module.encoder
    assert torch.equal(
        encoder.state_dict()["embedder.embedder.convolution.weight"], donor.embedder.embedder.convolution.weight
    )
    config.depths = [1, 1, 1, 2]
    with pytest.raises(
        ModelError, match=r"the backbone '.*' is not a resnet_tiny \(.* does not fit\); set 'init\.backbone'"
    ):
        deeper = tiny_student()
        deeper.network.model.pixel_level_module.encoder = ResNetBackbone(config)
        deeper.initialize("backbone", str(tmp_path))


def test_another_student_initializes_it(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = tiny_student()
    first.save_pretrained(tmp_path)
    torch.manual_seed(2)
    second = tiny_student()
    second.initialize("student", str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(InputError, match=r"has no part 'head' to start from; remove 'init\.head'"):
        second.initialize("head", str(tmp_path))


def test_backbone_has_a_lower_rate_and_norms_do_not_decay() -> None:
    student = tiny_student()
    groups = {(group["scale"], group.get("weight_decay")): group["params"] for group in student.parameter_groups()}
    assert set(groups) == {(0.1, None), (1.0, None), (1.0, 0.0)}  # the backbone's norms are frozen
    held = [p for params in groups.values() for p in params]
    assert len(held) == sum(p.requires_grad for p in student.parameters())
    assert any(p is student.network.model.transformer_module.queries_features.weight for p in groups[1.0, 0.0])
    assert any(p is student.network.sound_predictor.bias for p in groups[1.0, None])


def test_transforms_are_the_published_ones() -> None:
    student = OvAvss.build({"backbone": "resnet_tiny", "channels": 32})
    assert student.view(True).sides == (240, 360, 480) and student.view(True).flip and student.view(True).frames == 5
    assert student.view(False).sides == (360,) and not student.view(False).flip


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"backbone": "resnet51"}, "no backbone 'resnet51'.*resnet50"),
        ({"backbone": "pvt_v2_b5"}, "no backbone 'pvt_v2_b5'"),
        ({"channels": 40}, "multiple of 32"),
        ({"queries": 0}, "queries is at least 1"),
        ({"sides": []}, "sides are lengths"),
        ({"crops": "round"}, "'corner' or 'centered'"),
        ({"crop_edges": "round"}, "'soft' or 'hard'"),
        ({"quieries": 5}, "quieries"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        OvAvss.build(settings)
    assert "\n" not in str(caught.value)


def test_classes_without_a_clip_model_are_refused() -> None:
    tiny_student().check("binary", ["background", "sounding"])
    with pytest.raises(InputError, match=r"give model\.clip=FOLDER"):
        tiny_student().check("open-vocabulary", ["background", *NAMES])
    with pytest.raises(InputError, match="no CLIP to classify masks"):
        tiny_student().predict(batch([(1, (64, 64))]), NAMES)


def test_missing_clip_model_is_reported_before_training(clip: str) -> None:
    tiny_student(clip=clip).prepare("semantic")
    with pytest.raises(ModelError, match="'missing' does not exist"):
        tiny_student(clip="missing").prepare("semantic")
    tiny_student(clip="missing").prepare("binary")  # no classes


@pytest.mark.parametrize("name", ["ov-avss-tiny", "ov-avss-r50", "ov-avss-swin"])
def test_training_recipes_build_it(name: str) -> None:
    recipe = load_training_recipe(name)
    assert student_class(recipe.student) is OvAvss
    with torch.device("meta"):
        student = OvAvss.build(recipe.model)
    assert set(recipe.init) <= {"backbone", "mask2former"}
    student.check("open-vocabulary", ["background", *NAMES])  # each recipe has a CLIP


def test_offline_is_passed_to_the_clip_model(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def record(ref: str, offline: bool = False) -> ResolvedModel:
        calls.append(offline)
        return resolve(ref, offline)

    monkeypatch.setattr("openavs.training.models.ov_avss.classifier.resolve", record)
    tiny_student(clip=clip).save_pretrained(tmp_path)
    for offline in (True, False):
        load_student(str(tmp_path), offline)._load_classifier(torch.device("cpu"))  # type: ignore[attr-defined]
    assert calls == [True, False]


def test_track_numbers_are_unique_over_runs_of_frames() -> None:
    """Runs of frames are predicted separately: query 1 of one is not query 1 of the next."""
    mask = np.ones((2, 2), dtype=bool)
    parts = [StudentPrediction(((InstanceMask(mask, 0.9, "dog", track),),) * 2) for track in (1, 0, 1)]
    whole = concatenate_predictions(parts)
    assert [frame[0].track for frame in whole.frames] == [1, 1, 2, 2, 4, 4]


def test_unknown_class_is_not_in_the_label_map() -> None:
    low, high = np.zeros((2, 2, 4), dtype=bool)
    low[:, :3], high[:, 2:] = True, True
    shown = StudentPrediction(
        ((InstanceMask(low, 0.5, "dog"), InstanceMask(high, 0.9, "spaceship"), InstanceMask(high, 0.7, None)),)
    )
    assert label_maps(shown, {"dog": 7}, (2, 4)).tolist() == [[[7, 7, 7, 0]] * 2]
    shown = StudentPrediction(((InstanceMask(low, 0.5, "dog"), InstanceMask(high, 0.9, "bell")),))
    assert label_maps(shown, {"dog": 7, "bell": 3}, (2, 4)).tolist() == [[[7, 7, 3, 3]] * 2], "the higher score on top"
