"""Grounding DINO's adapter against the library's own processor and model, and where those fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from openavs.errors import InputError, ModelError, OpenAVSError
from openavs.stages.detectors.base import Detector
from openavs.stages.detectors.grounding_dino import GroundingDinoDetector
from openavs.structures.types import Detection, ImageArray
from tests.stages.detectors.conftest import noise
from tests.tiny_detectors import save_grounding_dino

PHRASES = ["dog", "red car", "an electric guitar"]
BORDERS = [101, 102, 1012, 1029]


def load(folder: Path, **options: Any) -> GroundingDinoDetector:
    return GroundingDinoDetector(**{"model": str(folder), "floor": 0.0, "device": "cpu", "offline": True} | options)


@pytest.fixture(scope="module")
def detector(grounding_dino: Path) -> GroundingDinoDetector:
    return load(grounding_dino)


class Library:
    """The library's own way: its processor, its model, its post-processing."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder, backend="pil")
        self.model = AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()

    @torch.inference_mode()
    def __call__(self, image: ImageArray, phrases: list[str]) -> tuple[Any, Any, Any]:
        """Its boxes and scores, and the logits of each token."""
        inputs = self.processor(images=image, text=[phrases], return_tensors="pt", input_data_format="channels_last")
        outputs = self.model(**inputs)
        (found,) = self.processor.post_process_grounded_object_detection(
            outputs, threshold=-1.0, text_threshold=0.0, target_sizes=[image.shape[:2]]
        )
        return inputs["input_ids"][0], outputs.logits[0], found


def rows(detections: list[Detection]) -> np.ndarray:
    """Box and score of each, for comparisons."""
    return np.array([[*d.box, d.score] for d in detections])


@pytest.mark.parametrize("name", ["grounding_dino", "mm_grounding_dino"])
@pytest.mark.parametrize("shape", [(120, 200), (96, 96), (333, 190), (1080, 1920), (50, 40)])
def test_the_answer_is_the_librarys(name: str, shape: tuple[int, int], request: pytest.FixtureRequest) -> None:
    folder, image = request.getfixturevalue(name), noise(*shape, seed=3)
    ids, logits, found = Library(folder)(image, PHRASES)
    (ours,) = load(folder).detect([image], [PHRASES])

    # which phrase each token belongs to, from the borders between them
    border = torch.isin(ids, torch.tensor(BORDERS))
    phrase_of = torch.cumsum(border, 0)[~border] - 1
    tokens = logits[:, : len(ids)][:, ~border].sigmoid()
    means = torch.stack([tokens[:, phrase_of == i].mean(dim=-1) for i in range(len(PHRASES))], dim=-1)
    winner = means.argmax(dim=-1)
    best = torch.stack([tokens[:, phrase_of == i].amax(dim=-1) for i in range(len(PHRASES))], dim=-1)
    best = best.gather(1, winner[:, None])[:, 0]
    order = best.argsort(descending=True, stable=True)

    assert [d.phrase for d in ours] == [PHRASES[winner[i]] for i in order]
    assert [d.score for d in ours] == pytest.approx(best[order].tolist(), abs=5e-5)  # the order of sums differs
    limit = torch.tensor([shape[1], shape[0]] * 2)
    expected = torch.minimum(found["boxes"][order].clamp(min=0), limit).numpy()
    assert np.abs(rows(ours)[:, :4] - expected).max() <= 1e-4 * max(shape)

    # the library's score also counts the borders; where a phrase wins there, the two are one number
    official = found["scores"][order]
    same = torch.isclose(official, best[order], atol=1e-7)
    assert bool((official >= best[order] - 1e-6).all()) and bool(same.any())


def test_it_is_a_detector_and_says_what_it_loaded(detector: GroundingDinoDetector, grounding_dino: Path) -> None:
    assert isinstance(detector, Detector)
    assert detector.models == {str(grounding_dino): {"revision": None, "license": None, "path": str(grounding_dino)}}


def count_forwards(detector: GroundingDinoDetector) -> list[int]:
    """A list that grows by the batch size at each forward of the real model."""
    sizes: list[int] = []
    detector.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


def test_one_forward_for_all_phrases_of_a_frame(grounding_dino: Path, picture: ImageArray) -> None:
    joint, apart = load(grounding_dino), load(grounding_dino, phrases_per_caption=1)
    forwards, forwards_apart = count_forwards(joint), count_forwards(apart)
    joint.detect([picture], [PHRASES])
    apart.detect([picture], [PHRASES])
    assert forwards == [1] and forwards_apart == [1, 1, 1]


def test_no_phrases_no_forward(grounding_dino: Path, picture: ImageArray) -> None:
    detector = load(grounding_dino)
    forwards = count_forwards(detector)
    assert detector.detect([picture, picture], [[], ["..."]]) == [[], []]
    assert detector.detect([], []) == []
    assert forwards == []


def test_one_phrase_per_caption_equals_separate_calls(grounding_dino: Path, picture: ImageArray) -> None:
    (together,) = load(grounding_dino, phrases_per_caption=1).detect([picture], [PHRASES])
    alone = [d for phrase in PHRASES for d in load(grounding_dino).detect([picture], [[phrase]])[0]]
    assert together == sorted(alone, key=lambda d: -d.score)


def test_frames_share_a_forward_only_if_alike(grounding_dino: Path) -> None:
    detector = load(grounding_dino, batch_size=4)
    forwards = count_forwards(detector)
    wide, tall = noise(60, 100), noise(100, 60)
    detector.detect([wide, tall, wide, wide], [PHRASES, PHRASES, PHRASES, ["dog"]])
    assert forwards == [2, 1, 1]


def test_an_answer_does_not_depend_on_batch_mates(grounding_dino: Path) -> None:
    frames = [noise(120, 200, seed=i) for i in range(3)]
    mates = [noise(200, 120, seed=9), *frames]  # another shape in between
    batched = load(grounding_dino, batch_size=3).detect(mates, [PHRASES] * 4)[1:]
    for frame, found in zip(frames, batched, strict=True):
        (alone,) = load(grounding_dino).detect([frame], [PHRASES])
        assert [d.phrase for d in found] == [d.phrase for d in alone]
        assert np.abs(rows(found)[:, 4] - rows(alone)[:, 4]).max() <= 1e-5
        assert np.abs(rows(found)[:, :4] - rows(alone)[:, :4]).max() <= 1e-5 * 200


def test_the_order_of_phrases_does_not_matter(detector: GroundingDinoDetector, picture: ImageArray) -> None:
    forward, backward = detector.detect([picture, picture], [PHRASES, PHRASES[::-1]])
    assert [d.phrase for d in forward] == [d.phrase for d in backward]
    assert np.abs(rows(forward) - rows(backward)).max() <= 1e-3


def test_three_hundred_phrases_are_all_processed(grounding_dino: Path, picture: ImageArray) -> None:
    phrases = [f"thing {number}" for number in range(300)]
    detector = load(grounding_dino, max_candidates=100_000)
    forwards = count_forwards(detector)
    (found,) = detector.detect([picture], [phrases])
    assert len(forwards) > 1 and len(found) == 50 * len(forwards), "50 queries a caption, none lost"
    assert {d.phrase for d in found} <= set(phrases)
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)


def test_a_split_list_is_the_answers_of_its_parts(tmp_path: Path, picture: ImageArray) -> None:
    detector = load(save_grounding_dino(tmp_path, max_text_len=16))
    phrases = ["dog", "car", "red dog", "red car", "guitar", "a dog"]  # 2 + 14 tokens, then 2 + 2 + 3
    (whole,) = detector.detect([picture], [phrases])
    parts = [d for part in (phrases[:5], phrases[5:]) for d in detector.detect([picture], [part])[0]]
    assert whole == sorted(parts, key=lambda d: -d.score)


def test_phrases_in_any_script(detector: GroundingDinoDetector, picture: ImageArray) -> None:
    phrases = ["café", "犬", "ταξί 🚕", "dog\udc80", "DOG (barking?)"]
    (found,) = detector.detect([picture], [phrases])
    assert found and {d.phrase for d in found} <= set(phrases)


@pytest.mark.parametrize("shape", [(4000, 60), (8, 4000), (1, 1), (1, 3000), (4320, 7680)])
def test_frames_of_any_shape(grounding_dino: Path, shape: tuple[int, int], picture: ImageArray) -> None:
    detector = load(grounding_dino, batch_size=2)
    odd, usual = detector.detect([noise(*shape), picture], [PHRASES, PHRASES])
    if min(shape) > 16 or shape == (1, 1):  # a strip a pixel thin may well hold none of this random model's boxes
        assert odd
    for found in odd:
        x0, y0, x1, y1 = found.box
        assert 0 <= x0 < x1 <= shape[1] and 0 <= y0 < y1 <= shape[0]
    assert usual == load(grounding_dino).detect([picture], [PHRASES])[0], "its neighbors notice nothing"


def test_the_library_cannot_take_thin_frames(grounding_dino: Path) -> None:
    """Why frames are letterboxed; when this fails, it is no longer needed."""
    with pytest.raises(RuntimeError, match="out of range"):
        Library(grounding_dino)(noise(4000, 60), PHRASES)


def test_letterboxing_equals_a_canvas_of_the_mean_color(tmp_path: Path) -> None:
    color = (102, 153, 204)
    detector = load(save_grounding_dino(tmp_path, mean=[level / 255 for level in color]))
    thin = noise(12, 160)  # as wide as the model wants it, so that nothing is resized
    assert detector._resize_policy(thin).canvas == (40, 160)
    canvas = np.empty((40, 160, 3), np.uint8)
    canvas[:] = color
    canvas[:12] = thin
    boxed, drawn = detector.detect([thin, canvas], [PHRASES, PHRASES])
    reaching = [d for d in drawn if d.box[1] < 12]
    assert [d.phrase for d in boxed] == [d.phrase for d in reaching] and boxed
    expected = rows(reaching)
    expected[:, 3] = expected[:, 3].clip(max=12)
    assert np.abs(rows(boxed) - expected).max() <= 1e-2


def test_candidates_below_the_floor_are_left_out(grounding_dino: Path, picture: ImageArray) -> None:
    (everything,) = load(grounding_dino).detect([picture], [PHRASES])
    floor = everything[4].score
    assert load(grounding_dino, floor=floor).detect([picture], [PHRASES])[0] == everything[:5]


def test_outputs_that_are_not_finite_are_an_error(grounding_dino: Path, picture: ImageArray) -> None:
    detector = load(grounding_dino)
    with torch.no_grad():
        detector.model.model.text_projection.bias.fill_(float("nan"))
    with pytest.raises(OpenAVSError, match="not finite"):
        detector.detect([picture], [PHRASES])


def test_half_precision_runs(grounding_dino: Path, picture: ImageArray) -> None:
    (half,) = load(grounding_dino, dtype="bfloat16").detect([picture], [PHRASES])
    assert len(half) == 50


def test_a_model_of_another_kind_is_refused(owlv2: Path) -> None:
    with pytest.raises(ModelError, match="is a owlv2 model"):
        load(owlv2)


def test_a_tokenizer_of_another_kind_is_refused(grounding_dino: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "processor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((grounding_dino / name).read_bytes())
    text = (grounding_dino / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace('".": 1012', '".": 1013').replace('".":1012', '".":1013'))
    with pytest.raises(ModelError, match="needs BERT's"):
        load(tmp_path)


def test_a_processor_without_edges_is_refused(grounding_dino: Path, tmp_path: Path) -> None:
    for file in grounding_dino.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    settings = json.loads((tmp_path / "processor_config.json").read_text(encoding="utf-8"))
    settings["image_processor"]["size"] = {"height": 96, "width": 96}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ModelError, match="shortest_edge"):
        load(tmp_path)


def test_a_model_with_more_queries_than_image_cells_is_refused(tmp_path: Path) -> None:
    greedy = load(save_grounding_dino(tmp_path, num_queries=600))
    with pytest.raises(ModelError, match=r"selects 600 boxes from fewer image cells .* use a larger shortest_edge"):
        greedy.detect([noise(96, 160)], [["dog"]])


def test_a_shortest_edge_equals_that_of_the_checkpoints_preprocessor(tmp_path: Path, picture: ImageArray) -> None:
    folder = save_grounding_dino(tmp_path)
    larger = load(folder, shortest_edge=144).detect([picture], [["dog"]])
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["image_processor"]["size"] = {"shortest_edge": 144, "longest_edge": 240}
    path.write_text(json.dumps(settings), encoding="utf-8")
    assert larger == load(folder).detect([picture], [["dog"]])


def test_eight_bits_run_and_scores_are_near(grounding_dino: Path, picture: ImageArray) -> None:
    exact, eight = (load(grounding_dino, quantize=q).detect([picture], [["dog", "bell"]])[0] for q in (None, "int8"))
    assert len(exact) == len(eight)  # which random box is best may change, its score hardly does
    assert exact != eight and exact[0].score == pytest.approx(eight[0].score, abs=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"floor": 1.5}, {"batch_size": 0}, {"max_candidates": 0}, {"shortest_edge": 64}, {"quantize": "int4"}],
)
def test_options_outside_their_range_are_refused(grounding_dino: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        load(grounding_dino, **wrong)
