"""Overlays: colors, masks, labels, captions, and the frame that is shown at a time."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from openavs.structures.masks import mask_to_rle, voc_palette
from openavs.structures.types import Caption, ClipResult, FrameResult, ImageArray, Prompt, Segment
from openavs.visualization.colors import DISTINCT, Palette, palette_of, text_color
from openavs.visualization.moving_masks import MovingMasks
from openavs.visualization.overlay import OverlayPainter, paint, paint_frame, status_line


def gray(height: int, width: int) -> ImageArray:
    return np.full((height, width, 3), 128, dtype=np.uint8)


def square(phrase: str, score: float, size: tuple[int, int], x: int, y: int, side: int) -> Segment:
    mask = np.zeros(size, dtype=np.bool_)
    mask[y : y + side, x : x + side] = True
    return Segment(mask_to_rle(mask), (float(x), float(y), float(x + side), float(y + side)), phrase, score)


def test_a_mask_is_tinted_and_outlined_and_the_rest_unchanged() -> None:
    image = gray(240, 320)
    segment = square("dog", 0.8, (240, 320), 100, 80, 100)
    painted = paint(image, [segment])
    assert (image == 128).all()  # a copy
    color = np.array(DISTINCT[0])
    assert np.abs(painted[130, 150].astype(int) - (0.55 * 128 + 0.45 * color)).max() <= 1
    assert (painted[130, 100] == color).all()  # the inner edge
    assert (painted[130, 99] < 60).all()  # the outer edge
    assert (painted[130, 90] == 128).all()
    assert (painted[200:] == 128).all()


def test_a_label_is_above_its_mask_in_its_color() -> None:
    painted = paint(gray(240, 320), [square("dog", 0.8, (240, 320), 100, 80, 100)])
    label = painted[66:78, 101:140].reshape(-1, 3).astype(int)
    near = np.abs(label - np.array(DISTINCT[0])).max(axis=1) < 25
    assert near.mean() > 0.4
    assert (label.sum(axis=1) < 150).any()  # dark letters on it


def test_the_best_score_is_on_top() -> None:
    size = (200, 200)
    low, high = square("dog", 0.3, size, 20, 60, 120), square("cat", 0.9, size, 60, 60, 120)
    palette = Palette(["dog", "cat"])
    one, other = paint(gray(*size), [low, high], palette), paint(gray(*size), [high, low], palette)
    assert (one == other).all()
    assert (one[150, 60] == DISTINCT[1]).all()


def test_labels_do_not_cover_each_other() -> None:
    size = (300, 300)
    together = paint(gray(*size), [square("dog", 0.9, size, 50, 100, 60), square("cat", 0.8, size, 52, 100, 60)])
    for color in DISTINCT[:2]:  # both labels are complete
        assert (np.abs(together.astype(int) - np.array(color)).max(axis=2) < 25).sum() > 250


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5), (16, 16), (90, 2000), (2000, 90)])
def test_images_of_any_size_can_be_painted(size: tuple[int, int]) -> None:
    segments = [square("a long name of a thing", 0.5, size, 0, 0, 2000), square("dog", 0.4, size, 0, 0, 1)]
    painted = paint(gray(*size), segments, status="captions: a sound 0.50")
    assert painted.shape == (*size, 3)
    assert painted.dtype == np.uint8


def test_text_grows_with_the_image() -> None:
    def strip(height: int, width: int) -> int:
        painted = paint(gray(height, width), [], status="captions: dog 0.50")
        return int((painted[:, 1] != 128).any(axis=1).sum())

    assert 14 <= strip(200, 300) <= 20
    assert strip(1000, 1500) == pytest.approx(1000 / 22 * 1.75, rel=0.1)


def test_captions_are_a_strip_at_the_bottom() -> None:
    captions = (Caption("a dog\nbarks\x00", 0.81, 0, 1), Caption("x" * 500, None, 0, 1))
    painted = paint_frame(gray(240, 320), FrameResult(0, 0.0, captions=captions))
    assert (painted[:200] == 128).all()
    assert (painted[-12:] > 200).any()  # light letters
    assert (painted[-3, 300] < 60).all()  # on a dark ground


def test_silence_missing_captions_missing_prompts_and_missing_objects_are_distinct() -> None:
    bark = Caption("dog barking", 0.81, 0, 1)
    dog = square("dog", 0.5, (60, 60), 5, 20, 20)
    prompts = (Prompt("dog"), Prompt("horse"))
    assert status_line(FrameResult(0, 0.0, silent=True)) == "silent"
    assert status_line(FrameResult(0, 0.0)) == "no caption"
    assert status_line(FrameResult(0, 0.0, captions=(bark,))) == "no prompt; captions: dog barking 0.81"
    some = FrameResult(0, 0.0, captions=(bark,), prompts=prompts, segments=(dog,))
    assert status_line(some) == "not found: horse; captions: dog barking 0.81"
    assert status_line(replace(some, prompts=prompts[:1])) == "captions: dog barking 0.81"


def test_masks_of_another_size_are_scaled_and_empty_ones_skipped() -> None:
    segment = square("dog", 0.8, (50, 50), 20, 30, 10)
    painted = paint(gray(200, 200), [segment])
    assert (painted[139, 99] != 128).any()
    assert (painted[190, 190] == 128).all()
    nothing = replace(segment, mask=mask_to_rle(np.zeros((50, 50), dtype=np.bool_)))
    assert (paint(gray(50, 50), [nothing]) == 128).all()


def test_a_phrase_keeps_its_color_through_the_clip() -> None:
    size = (60, 60)
    dog, cat = square("dog", 0.5, size, 5, 20, 20), square("cat", 0.9, size, 30, 20, 20)
    frames = (FrameResult(0, 0.0, segments=(dog,)), FrameResult(1, 1.0, segments=(cat, dog)))
    palette = palette_of(frames)
    assert (palette["dog"], palette["cat"]) == DISTINCT[:2]
    assert palette.phrases == ("dog", "cat")
    last_alone = paint_frame(gray(*size), frames[1], palette)
    assert (last_alone[30, 5] == DISTINCT[0]).all()


def test_colors_repeat_only_after_the_last() -> None:
    palette = Palette(f"thing {i}" for i in range(len(DISTINCT) + 1))
    assert palette["thing 0"] == palette[f"thing {len(DISTINCT)}"]
    assert len({palette[f"thing {i}"] for i in range(len(DISTINCT))}) == len(DISTINCT)


def test_the_first_colors_are_distinct_under_color_deficiencies() -> None:
    """Simulated protanopia and deuteranopia (Vienot 1999, linear RGB): the seven Okabe-Ito hues stay distinct."""
    protan = np.array([[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]])
    deutan = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    linear = (np.array(DISTINCT[:7]) / 255) ** 2.2
    for sight in (protan, deutan):
        seen = np.clip(linear @ sight.T, 0, 1) ** (1 / 2.2)
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 0.12


def test_label_text_has_contrast() -> None:
    assert text_color((240, 228, 66)) == (0, 0, 0)
    assert text_color((51, 34, 136)) == (255, 255, 255)


def test_the_voc_palette_has_the_published_check_values() -> None:
    palette = voc_palette()
    check = {
        **{1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 7: (128, 128, 128), 8: (64, 0, 0)},
        **{63: (192, 192, 192), 64: (32, 0, 0), 70: (32, 128, 128)},
    }
    assert {index: tuple(palette[index].tolist()) for index in check} == check
    assert len({tuple(color) for color in palette.tolist()}) == 256


def test_the_nearest_sampled_frame_is_shown() -> None:
    frames = [FrameResult(i, i + 0.5) for i in range(3)]
    timeline = MovingMasks(frames[::-1])
    assert [timeline.at(t) for t in (0.0, 0.99, 1.01, 2.2, 3.0)] == [frames[i] for i in (0, 0, 1, 2, 2)]
    assert timeline.at(9.0) is None  # outside of the sampled frames
    assert MovingMasks([]).at(0.0) is None
    assert MovingMasks(frames[:1]).at(100.0) == frames[0]  # one frame for the whole clip


def test_results_of_synthetic_models_have_a_watermark() -> None:
    size = (120, 200)
    dog = square("dog", 0.5, size, 5, 20, 20)
    frames = (FrameResult(0, 0.0, segments=(dog,)), FrameResult(1, 1.0))
    plain = ClipResult("clip", size, frames, models={"hf:org/clap": {}})
    student = {"/runs/mine": {"facts": {"audio": {"model": "openavs:tiny/vggish"}}}}
    for models in ({"openavs:tiny/clap": {}}, student):
        marked = OverlayPainter(replace(plain, models=models))
        for time in (0.0, 1.0, 9.0):
            before, after = OverlayPainter(plain)(time, gray(*size)).astype(int), marked(time, gray(*size)).astype(int)
            rows, columns = np.nonzero(np.abs(after - before).max(axis=2))
            assert rows.max() < 20 and columns.min() > 70  # the upper right corner
            assert after[rows.min() : rows.max() + 1, columns.min() :].max() > 200  # letters
    assert (OverlayPainter(replace(plain, models=student))(9.0, gray(1, 1)) == gray(1, 1)).all()  # too small for text


def test_a_painter_paints_the_frame_at_a_time() -> None:
    size = (60, 60)
    frames = (FrameResult(0, 0.0, segments=(square("dog", 0.5, size, 5, 20, 20),)), FrameResult(1, 1.0))
    painter = OverlayPainter(ClipResult("clip", size, frames))
    assert (painter(0.4, gray(*size)) == paint_frame(gray(*size), frames[0])).all()
    assert (painter(0.6, gray(*size)) == paint_frame(gray(*size), frames[1])).all()
    assert (painter(7.0, gray(*size)) == 128).all()
