"""The CLIP verifier against a direct call of the model and its own processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from transformers import AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.pipeline.pipeline import Pipeline
from openavs.stages.verifiers import clip
from openavs.stages.verifiers.base import Verifier, calibrate
from openavs.stages.verifiers.clip import ClipVerifier
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import BoolMask, ImageArray, Rejection, Segment, Verdict
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.stages.segmenters.images import picture
from tests.stages.verifiers.tiny_clip import make_clip
from tests.tiny_models import make_clap

NEGATIVE = ("a photo of nothing", "a wall", "the sky")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture(scope="module")
def verifier(folder: Path) -> ClipVerifier:
    return ClipVerifier(model=str(folder), negative_prompts=NEGATIVE, template="a photo of a {}")


def patch(height: int, width: int, y: int, x: int, side: int) -> BoolMask:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[y : y + side, x : x + side] = True
    return mask


def segment(phrase: str, mask: BoolMask) -> Segment:
    return Segment(mask_to_rle(mask), (0.0, 0.0, 1.0, 1.0), phrase, 0.5)


def direct(folder: Path, square: ImageArray, texts: list[str]) -> torch.Tensor:
    """CLIP's own logits of a crop for some texts, by its own processor."""
    model: Any = CLIPModel.from_pretrained(folder).eval()
    pixels = CLIPImageProcessorPil.from_pretrained(folder)(Image.fromarray(square), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        answer = model(**pixels, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    logits: torch.Tensor = answer.logits_per_image[0]
    return logits


@pytest.mark.parametrize("side", [5, 32, 64, 77, 300])
def test_pixels_are_those_of_the_librarys_processor(folder: Path, verifier: ClipVerifier, side: int) -> None:
    square = picture(side, side)
    theirs = CLIPImageProcessorPil.from_pretrained(folder)(Image.fromarray(square), return_tensors="pt")
    assert torch.allclose(verifier._pixels.prepare(square), theirs["pixel_values"][0], atol=1e-6)


def test_a_processor_that_crops(tmp_path: Path) -> None:
    cropping = ClipVerifier(model=str(make_clip(tmp_path / "crop", crop=24)), negative_prompts=NEGATIVE)
    square = picture(50, 50)
    theirs = CLIPImageProcessorPil.from_pretrained(tmp_path / "crop")(Image.fromarray(square), return_tensors="pt")
    assert torch.allclose(cropping._pixels.prepare(square), theirs["pixel_values"][0], atol=1e-6)


def test_a_processor_that_crops_more_than_there_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="crops 40 pixels out of 32; use the preprocessor"):
        ClipVerifier(model=str(make_clip(tmp_path / "crop", crop=40)), negative_prompts=NEGATIVE)


def test_the_number_of_cached_texts_is_limited(
    folder: Path, verifier: ClipVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, own = ["dog", "bell", "cat"], [segment("dog", patch(90, 130, 20, 30, 40))]
    asked = [picture(90, 130)], [own], [names]
    expected = verifier.verify(*asked)
    monkeypatch.setattr(clip, "_MAX_TEXTS", 6)
    forgetful = ClipVerifier(model=str(folder), negative_prompts=NEGATIVE, template="a photo of a {}")
    forgetful.verify([picture(90, 130)], [own], [["sky"]])
    assert forgetful.verify(*asked) == expected
    assert len(forgetful._texts) == 6 and "a photo of a sky" not in forgetful._texts


def test_a_score_is_the_softmax_of_a_direct_call(folder: Path, verifier: ClipVerifier) -> None:
    image, mask = picture(90, 130), patch(90, 130, 20, 30, 40)
    [[verdict]] = verifier.verify([image], [[segment("dog", mask)]], [["dog", "bell", "cat"]])
    square = verifier._pixels.crop(image, mask, 0.1, 0.0)
    logits = direct(folder, square, ["a photo of a dog", "a photo of a bell", "a photo of a cat", *NEGATIVE])
    together = torch.cat([logits[:3], logits[3:].max()[None]]).softmax(0)
    assert verdict.score == pytest.approx(float(together[0]), abs=1e-5)
    assert verdict.kept == (verdict.score >= 0.5)
    best = int(together.argmax())
    assert verdict.best_match == (["dog", "bell", "cat", None][best])


def test_phrases_that_share_a_word_are_not_compared(verifier: ClipVerifier) -> None:
    image, own = picture(90, 130), [segment("dog", patch(90, 130, 20, 30, 40))]
    [[alone]] = verifier.verify([image], [own], [["dog"]])
    [[akin]] = verifier.verify([image], [own], [["dog", "barking dog"]])
    [[rival]] = verifier.verify([image], [own], [["dog", "bell"]])
    assert alone.score == pytest.approx(akin.score, abs=1e-6)
    assert rival.score < alone.score


def test_other_phrases_may_be_excluded(folder: Path) -> None:
    image, own = picture(90, 130), [segment("dog", patch(90, 130, 20, 30, 40))]
    strict = ClipVerifier(model=str(folder), compare_phrases=False)
    assert strict.verify([image], [own], [["dog", "bell"]]) == strict.verify([image], [own], [["dog"]])


def test_the_background_of_a_mask_is_filled(verifier: ClipVerifier) -> None:
    image = picture(90, 130)
    mask = patch(90, 130, 20, 30, 40)
    ground = verifier._pixels.fill
    square = verifier._pixels.crop(image, mask, 0.1, 0.0)
    assert square.shape == (48, 48, 3)
    assert np.array_equal(square[4:44, 4:44], image[20:60, 30:70])
    assert (square[:4] == ground).all() and (square[:, 44:] == ground).all()
    assert np.array_equal(verifier._pixels.crop(image, mask, 0.1, 1.0), image[16:64, 26:74])  # left as it is


@pytest.mark.parametrize("corner", [(0, 0), (0, 110), (70, 0), (70, 110)])
def test_masks_at_the_edge_of_the_picture(verifier: ClipVerifier, corner: tuple[int, int]) -> None:
    square = verifier._pixels.crop(picture(90, 130), patch(90, 130, *corner, 20), 0.5, 1.0)
    assert square.shape == (40, 40, 3)
    inside = picture(90, 130)[corner[0] : corner[0] + 20, corner[1] : corner[1] + 20]
    assert np.array_equal(square[10:30, 10:30], inside)


def test_an_empty_mask_and_a_single_pixel(verifier: ClipVerifier) -> None:
    image = picture(20, 20)
    for mask in (patch(20, 20, 0, 0, 0), patch(20, 20, 19, 19, 1)):
        [[verdict]] = verifier.verify([image], [[segment("dog", mask)]], [["dog"]])
        assert 0 <= verdict.score <= 1


def test_batches_change_nothing_and_texts_are_embedded_once(folder: Path) -> None:
    images = [picture(60, 80, seed) for seed in range(3)]
    segments = [[segment("dog", patch(60, 80, 5, 5, 9 + i))] * i for i in range(3)]
    asked = [["dog", "bell"]] * 3
    one, many = (ClipVerifier(model=str(folder), batch_size=size) for size in (1, 32))
    texts: list[int] = []
    many.model.text_model.register_forward_hook(lambda _, __, kwargs, ___: texts.append(1), with_kwargs=True)
    for ours, theirs in zip(many.verify(images, segments, asked), one.verify(images, segments, asked), strict=True):
        assert [v.score for v in ours] == pytest.approx([v.score for v in theirs], abs=1e-5)
    before = len(texts)
    many.verify(images, segments, asked)
    assert len(texts) == before > 0
    assert many.verify([images[0]], [[]], [["dog"]]) == [[]]


def test_braces_of_a_template_are_text_but_for_the_one_pair(folder: Path) -> None:
    odd = ClipVerifier(model=str(folder), template="a {kind} {} {")
    assert odd.verify([picture(20, 20)], [[segment("dog", patch(20, 20, 2, 2, 9))]], [["dog"]])
    assert "a {kind} dog {" in odd._texts


def test_numbers_that_are_not_finite_are_an_error(folder: Path) -> None:
    broken = ClipVerifier(model=str(folder))
    broken.model.get_parameter("visual_projection.weight").fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite"):
        broken.verify([picture(20, 20)], [[segment("dog", patch(20, 20, 2, 2, 9))]], [["dog"]])


def test_bad_options_and_models_are_refused(folder: Path, tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"threshold": 2.0},
        {"margin": -1.0},
        {"negative_prompts": []},
        {"template": "a photo"},
    ]
    wrong += [{"template": "{} and {}"}]
    for option in wrong:
        with pytest.raises(InputError, match="clip: "):
            ClipVerifier(model=str(folder), **option)
    with pytest.raises(ModelError):
        ClipVerifier(model=str(make_clap(tmp_path / "clap")))


# ---------------------------------------------------------------------------------------------------- calibration


def test_the_threshold_keeps_as_many_right_ones_as_it_must() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.65, 0.4, 0.3]
    right = [True] * 5 + [False] * 3
    loose, tight = calibrate(scores, right, keep=1.0), calibrate(scores, right, keep=0.6)
    assert (loose.threshold, loose.right_kept) == (0.5, 1.0) and loose.wrong_rejected == pytest.approx(2 / 3)
    assert (tight.threshold, tight.right_kept, tight.wrong_rejected) == (0.7, 0.6, 1.0)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30).filter(
        lambda rows: 0 < sum(right for _, right in rows) < len(rows)
    ),
    st.floats(0.01, 1),
)
def test_no_higher_threshold_would_do(rows: list[tuple[float, bool]], keep: float) -> None:
    scores, right = zip(*rows, strict=True)
    found = calibrate(scores, right, keep)
    good = [score for score, is_right in rows if is_right]
    assert found.right_kept >= keep - 1e-9
    assert sum(score > found.threshold for score in good) / len(good) < keep


def test_calibration_needs_both_kinds() -> None:
    for scores, right, keep in (([0.5], [True], 0.9), ([0.5], [False], 0.9), ([0.5, 0.4], [True, False], 0.0)):
        with pytest.raises(InputError, match="calibration"):
            calibrate(scores, right, keep)


# ----------------------------------------------------------------------------------------------- in the pipeline


@dataclass
class OnlyBig:
    """Keeps what covers many pixels."""

    least: int

    def verify(self, images: Any, segments: Any, asked: Any) -> list[list[Verdict]]:
        return [[Verdict("kept" if s.mask.area >= self.least else "rejected", 0.125) for s in own] for own in segments]


def test_rejections_of_a_verifier_have_its_score(tiny: Pipeline) -> None:
    clip = scene_to_clip(plan_scene([Role("dog", (True, True))], scene_rng("test", 77, 5), 2), "verified")
    stages = (tiny.captioner, tiny.translator, tiny.detector, tiny.segmenter)
    verified = Pipeline(*stages, tiny.settings, verifiers=[OnlyBig(1)])(clip)
    assert {s.verifier_score for f in verified.frames for s in f.segments} == {0.125}
    [kept] = {len(f.segments) for f in verified.frames}
    result = Pipeline(*stages, tiny.settings, verifiers=[OnlyBig(10**6)])(clip)
    assert kept == 1 and "verify" in result.timings
    for frame in result.frames:
        assert frame.segments == ()
        [drop] = frame.rejected
        assert (drop.phrase, drop.reason, drop.score) == ("dog", "verifier", 0.125) and drop.box is not None
        assert isinstance(drop, Rejection)


def test_it_is_a_verifier_and_records_its_model(verifier: ClipVerifier, folder: Path) -> None:
    assert isinstance(verifier, Verifier)
    assert set(verifier.models) == {str(folder)}
