"""Metrics against slow references written from the published formulas, and known cases."""

from __future__ import annotations

import doctest
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from openavs.errors import InputError
from openavs.evaluation.datasets.tables import BASE, CLASSES, NOVEL, S4_CATEGORIES
from openavs.evaluation.metrics import metrics as metrics_module
from openavs.evaluation.metrics.functional import (
    confusion,
    frame_f_curve,
    frame_j,
    keep_classes,
    threshold_counts,
    thresholds,
)
from openavs.evaluation.metrics.metrics import (
    BinaryMetrics,
    ClipFacts,
    Metric,
    OpenVocabularyMetrics,
    SemanticMetrics,
    make_metric,
)
from openavs.evaluation.metrics.silence import SilenceMetrics
from tests.slow_metrics import slow_curve, slow_j, slow_official, slow_open_vocabulary, slow_semantic

Array = np.ndarray[Any, Any]

# -------------------------------------------------------------------------------------------------------- binary


def clip_of(seed: int, frames: int = 5, size: tuple[int, int] = (9, 11)) -> tuple[Array, Array]:
    """A clip with the troubles of real predictions: saturated and 8-bit values, exact thresholds, empty frames."""
    rng = np.random.default_rng(seed)
    probability = rng.random((frames, *size), dtype=np.float32)
    kind = rng.integers(0, 5, frames)
    probability[kind == 1] = np.round(probability[kind == 1])
    probability[kind == 2] = (rng.integers(0, 256, (frames, *size)).astype(np.float32) / np.float32(255))[kind == 2]
    on_edge = thresholds()[rng.integers(0, 255, (frames, *size))]
    probability[kind == 3] = on_edge[kind == 3]
    below = np.nextafter(on_edge, np.float32(0))
    probability[kind == 4] = below[kind == 4]
    truth = rng.random((frames, *size)) < rng.choice([0.0, 0.1, 0.5, 1.0], (frames, 1, 1))
    return probability, truth


def test_thresholds_are_those_of_torch_to_the_last_bit() -> None:
    assert np.array_equal(thresholds(), torch.linspace(0, 1 - 1e-10, 255).numpy())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_curve_is_bit_identical_to_255_comparisons(seed: int) -> None:
    probability, truth = clip_of(seed, frames=2)
    for p, y in zip(probability, truth, strict=True):
        assert np.array_equal(frame_f_curve(p, y), slow_curve(p, y).numpy())
        positive, hit = threshold_counts(p, y)
        assert positive.tolist() == [int((p >= t).sum()) for t in thresholds()]
        assert hit.tolist() == [int((p[y] >= t).sum()) for t in thresholds()]


def test_floats_next_to_a_threshold_are_counted_on_their_side() -> None:
    edges = thresholds()
    near = [np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1))]
    values = np.clip(np.concatenate(near), 0, 1)[None]
    positive, _ = threshold_counts(values, np.zeros(values.shape, dtype=bool))
    assert positive.tolist() == [int((values >= t).sum()) for t in edges]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(1, 4))
def test_official_equals_the_published_formulas(seeds: list[int], clips_per_batch: int) -> None:
    clips = [clip_of(seed, frames=3) for seed in seeds]
    metrics = BinaryMetrics(clips_per_batch)
    for probability, truth in clips:
        metrics.update(probability, truth)
    j, f = slow_official(clips, clips_per_batch)
    figures = metrics.compute("official")
    assert figures["miou"] == pytest.approx(j, abs=1e-6)
    assert figures["f"] == f


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_fixed_depends_neither_on_order_nor_on_batches(seeds: list[int], clips_per_batch: int, random: Any) -> None:
    clips = [clip_of(seed, frames=3) for seed in seeds]
    one, other = BinaryMetrics(1), BinaryMetrics(clips_per_batch)
    for probability, truth in clips:
        one.update(probability, truth)
    random.shuffle(clips)
    for probability, truth in clips:
        other.update(probability, truth)
    first, second = one.compute("fixed"), other.compute("fixed")
    assert first == pytest.approx(second, abs=1e-12)
    frames = [(p, y) for clip in clips for p, y in zip(*clip, strict=True)]
    curves = [slow_curve(p, y).double() for p, y in frames if y.any()]
    expected = float(torch.stack(curves).mean(0).max()) if curves else None
    assert first["f"] == (None if expected is None else pytest.approx(expected, abs=1e-7))
    assert first["miou"] == pytest.approx(np.mean([slow_j(p[None], y[None]) for p, y in frames]), abs=1e-6)


EMPTY, FULL = np.zeros((4, 6), dtype=bool), np.ones((4, 6), dtype=bool)
HALF = np.repeat([[True], [True], [False], [False]], 6, axis=1)


@pytest.mark.parametrize(
    ("predicted", "truth", "j"),
    [(EMPTY, EMPTY, 1.0), (HALF, EMPTY, 0.5), (FULL, EMPTY, 0.0), (EMPTY, FULL, 0.0), (HALF, FULL, 0.5)],
)
def test_j_of_empty_and_full_masks(predicted: Array, truth: Array, j: float) -> None:
    assert frame_j(predicted, truth) == j
    assert frame_j(predicted.astype(np.float32), truth) == j
    assert frame_j(predicted.astype(np.uint8) * 255, truth) == j


def test_a_probability_of_exactly_one_half_is_background() -> None:
    assert frame_j(np.full((4, 6), 0.5, dtype=np.float32), FULL) == 0.0
    assert frame_j(np.full((4, 6), 128, dtype=np.uint8), FULL) == 1.0
    assert frame_j(np.full((4, 6), 127, dtype=np.uint8), FULL) == 0.0


def test_all_background_on_a_full_mask_has_f_1() -> None:
    metrics = BinaryMetrics()
    metrics.update(EMPTY[None], FULL[None])
    assert metrics.compute("official") == {"miou": 0.0, "f": pytest.approx(1.0, abs=1e-6)}


def test_f_has_a_floor_by_the_share_of_truth() -> None:
    metrics = BinaryMetrics()
    metrics.update(EMPTY[None], HALF[None])
    assert metrics.compute("official")["f"] == pytest.approx(1.3 * 0.5 / (0.3 * 0.5 + 1))


def test_a_batch_without_truth_counts_as_zero_in_official_only() -> None:
    metrics = BinaryMetrics(clips_per_batch=1)
    assert metrics.update(HALF[None], HALF[None]) == (1.0, pytest.approx(1.0))
    assert metrics.update(EMPTY[None], EMPTY[None]) == (1.0, None)
    assert metrics.compute("official")["f"] == pytest.approx(0.5)
    assert metrics.compute("fixed") == {"miou": 1.0, "f": pytest.approx(1.0), "miou_sounding": 1.0}
    together = BinaryMetrics(clips_per_batch=2)
    together.update(HALF[None], HALF[None])
    together.update(EMPTY[None], EMPTY[None])
    assert together.compute("official")["f"] == pytest.approx(1.0)


def test_the_mean_curve_is_over_frames_with_truth() -> None:
    metrics = BinaryMetrics()
    assert metrics.curve() is None
    metrics.update(HALF[None], HALF[None])
    curve = metrics.curve()
    assert curve is not None and np.array_equal(curve["f"], frame_f_curve(HALF, HALF))
    metrics.reset()
    clips = [clip_of(seed) for seed in range(3)]
    for probability, truth in clips:
        metrics.update(probability, truth)
    metrics.update(HALF[None], EMPTY[None])
    curves = [slow_curve(p, y).double() for clip in clips for p, y in zip(*clip, strict=True) if y.any()]
    assert len(curves) == metrics.sounding < metrics.frames
    curve = metrics.curve()
    assert curve is not None and curve["f"] == pytest.approx(torch.stack(curves).mean(0).numpy(), abs=1e-7)


@pytest.mark.parametrize("task", ["binary", "semantic", "open-vocabulary"])
def test_reset_removes_all_clips(task: Any) -> None:
    def update(metric: Metric) -> Any:
        for seed in range(3):
            probability, truth = clip_of(seed) if task == "binary" else labels_of(seed, 71)
            metric.update(probability, truth, ClipFacts(names=("dog",)))
        results = [metric.sample("fixed").figures(np.ones((1, 3))), metric.compute("official"), metric.per_class()]
        return repr((results, metric.curve(), metric.frames))

    metric = make_metric(task, CLASSES, clips_per_batch=2)
    first = update(metric)
    metric.reset()
    with pytest.raises(InputError, match="nothing to score"):
        metric.compute("official")
    assert update(metric) == first


def test_larger_batches_lower_the_official_f() -> None:
    """Each clip has its own best threshold; the more share one, the less any of them gets."""
    rng = np.random.default_rng(3)
    truth = rng.random((32, 5, 12, 12)) < 0.3
    level = rng.random((32, 1, 1, 1))
    probability = np.clip(level + 0.2 * truth + 0.05 * rng.normal(size=truth.shape), 0, 1).astype(np.float32)
    scores = []
    for size in (1, 2, 4, 8, 16, 32):
        metrics = BinaryMetrics(size)
        for p, y in zip(probability, truth, strict=True):
            metrics.update(p, y)
        scores.append(metrics.compute("official")["f"])
    assert all(a > b for a, b in pairwise(scores))
    assert metrics.compute("fixed")["f"] == pytest.approx(scores[-1], abs=1e-6)


def test_a_smaller_last_batch_counts_as_much_as_the_others() -> None:
    metrics = BinaryMetrics(clips_per_batch=2)
    for predicted in (FULL, FULL, EMPTY):
        metrics.update(predicted[None], FULL[None])
    assert metrics.compute("official")["miou"] == 0.5
    assert metrics.compute("official") == metrics.compute("official")
    metrics.update(EMPTY[None], FULL[None])
    assert metrics.compute("official")["miou"] == 0.5
    assert metrics.compute("fixed")["miou"] == 0.5


def test_eight_bit_masks_score_as_their_floats() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (5, 30, 40)).astype(np.uint8)
    truth = rng.random(values.shape) < 0.4
    for frame, true in zip(values, truth, strict=True):
        floats = frame.astype(np.float32) / np.float32(255)
        assert np.array_equal(frame_f_curve(frame, true), frame_f_curve(floats, true))
        assert frame_j(frame, true) == frame_j(floats, true)
    hard = values > 99
    assert np.array_equal(frame_f_curve(hard[0], truth[0]), slow_curve(hard[0].astype(np.float32), truth[0]).numpy())


@pytest.mark.parametrize(
    ("probability", "truth", "says"),
    [
        (np.full((1, 2, 2), 1.5, np.float32), np.ones((1, 2, 2), bool), "^a .* not logits$"),
        (np.full((1, 2, 2), np.nan, np.float32), np.ones((1, 2, 2), bool), "NaN"),
        (np.zeros((1, 2, 3), np.float32), np.ones((1, 2, 2), bool), "does not fit"),
        (np.zeros((1, 2, 2), np.int64), np.ones((1, 2, 2), bool), "not int64"),
        (np.zeros((1, 2, 2), np.float32), np.ones((1, 2, 2), np.uint8), "truth is bool"),
        (np.zeros((0, 2, 2), np.float32), np.ones((0, 2, 2), bool), "truth is bool"),
    ],
)
def test_invalid_predictions_raise(probability: Array, truth: Array, says: str) -> None:
    with pytest.raises(InputError, match=says):
        BinaryMetrics().update(probability, truth)


def test_empty_metrics_and_unknown_protocols_raise() -> None:
    for metrics in (BinaryMetrics(), SemanticMetrics(), OpenVocabularyMetrics()):
        with pytest.raises(InputError, match=r"^there is nothing to score: no clip was added$"):
            metrics.compute("fixed")
    with pytest.raises(InputError, match="'official' or 'fixed'"):
        BinaryMetrics().compute("paper")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one clip"):
        BinaryMetrics(0)
    assert BinaryMetrics().clips_per_batch == 1, "unless it is said otherwise"


# ------------------------------------------------------------------------------------------------------ semantic


def labels_of(seed: int, classes: int, frames: int = 3) -> tuple[Array, Array]:
    """A clip's label maps with few classes each, some wrong, some ignored (-1) and some out of range (255)."""
    rng = np.random.default_rng(seed)
    palette = rng.choice(classes, 4)
    truth = palette[rng.integers(0, 4, (frames, 6, 7))].astype(np.int16)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, palette[rng.integers(0, 4, truth.shape)])
    truth[rng.random(truth.shape) < 0.1] = -1
    truth[rng.random(truth.shape) < 0.1] = 255
    return predicted.astype(np.uint8), truth


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=4), st.sampled_from([2, 5, 71]))
def test_semantic_figures_equal_the_published_formulas(seeds: list[int], classes: int) -> None:
    clips = [labels_of(seed, classes) for seed in seeds]
    metrics = SemanticMetrics(CLASSES[:classes], pad_to=5)
    for predicted, truth in clips:
        metrics.update(predicted, truth)
    real = [(p, y) for clip in clips for p, y in zip(*clip, strict=True)]
    blank = np.zeros((6, 7), dtype=np.int16)
    padded = real + [(blank, blank)] * (2 * len(clips))

    iou, f, held, _ = slow_semantic(padded, classes)
    j = [i / n if n else 0.0 for i, n in zip(iou, held, strict=True)]
    g = [s / n if n else 0.0 for s, n in zip(f, held, strict=True)]
    official = metrics.compute("official")
    assert official["miou"] == pytest.approx(sum(j) / classes, abs=1e-9)
    assert official["f"] == pytest.approx(sum(g) / classes, abs=1e-9)
    assert official["miou_nobg"] == pytest.approx(sum(j[:-1]) / (classes - 1), abs=1e-9)
    assert official["f_nobg"] == pytest.approx(sum(g[:-1]) / (classes - 1), abs=1e-9)

    iou, f, held, true = slow_semantic(real, classes)
    j = [i / n for i, n, t in zip(iou, held, true, strict=True) if t]
    g = [s / n for s, n, t in zip(f, held, true, strict=True) if t]
    fixed = metrics.compute("fixed")
    assert fixed["miou"] == pytest.approx(np.mean(j), abs=1e-9)
    assert fixed["f"] == pytest.approx(np.mean(g), abs=1e-9)
    for name, sums in (("miou_foreground", iou), ("f_foreground", f)):
        front = [i / n for i, n, t in list(zip(sums, held, true, strict=True))[1:] if t]
        assert fixed[name] == (pytest.approx(np.mean(front), abs=1e-9) if front else None)


def test_a_perfect_prediction_without_four_classes_has_67_of_71() -> None:
    present = [c for c in range(71) if CLASSES[c] not in ("axe", "clipper", "harmonica", "utv")]
    truth = np.array(present, dtype=np.uint8).reshape(1, 1, 67)
    metrics = SemanticMetrics()
    metrics.update(truth, truth)
    assert metrics.compute("official")["miou"] == pytest.approx(67 / 71, abs=1e-12)
    assert metrics.compute("official")["f"] == pytest.approx(67 / 71, abs=1e-12)
    assert metrics.compute("fixed")["miou"] == pytest.approx(1.0, abs=1e-12)


def test_label_255_is_a_false_positive_and_minus_1_is_ignored() -> None:
    predicted = np.array([[[1, 1, 1, 1]]])
    for label, iou in ((-1, 1.0), (255, 0.5)):
        metrics = SemanticMetrics(CLASSES[:3])
        metrics.update(predicted, np.array([[[1, 1, label, label]]]))
        assert metrics.compute("fixed")["miou"] == pytest.approx(iou)


def test_one_stray_pixel_adds_a_frame_of_zero() -> None:
    truth = np.ones((2, 4, 4), dtype=np.uint8)
    truth[1] = 0
    predicted = truth.copy()
    predicted[1, 0, 0] = 1
    metrics = SemanticMetrics(CLASSES[:3])
    metrics.update(predicted, truth)
    assert metrics.compute("fixed")["miou"] == pytest.approx((15 / 16 + 0.5) / 2)


@pytest.mark.parametrize("frames", [3, 4])
def test_a_clip_that_is_long_enough_is_not_padded(frames: int) -> None:
    truth = np.zeros((frames, 2, 2), dtype=np.uint8)
    metrics = SemanticMetrics(CLASSES[:2], pad_to=3)
    for _ in range(2):
        metrics.update(np.ones_like(truth), truth)
    assert metrics.compute("official")["miou"] == 0.0
    assert metrics.frames == 2 * frames


@pytest.mark.filterwarnings("error")
def test_absent_classes_cause_no_warning() -> None:
    metrics = SemanticMetrics()
    metrics.update(np.array([[[0, 1]]]), np.array([[[0, 2]]]))
    assert metrics.compute("fixed") == pytest.approx({"miou": 0.5, "f": 0.5, "miou_foreground": 0, "f_foreground": 0})


def test_labels_past_the_71_classes_of_the_benchmark_are_ignored() -> None:
    metrics = OpenVocabularyMetrics()
    metrics.update(np.array([[[0, 0]]]), np.array([[[0, 71]]]))
    assert metrics.compute("official")["miou"] == 1.0


def test_padding_adds_background_in_official_only() -> None:
    truth = np.zeros((5, 2, 2), dtype=np.uint8)
    predicted = np.ones_like(truth)
    metrics = SemanticMetrics(CLASSES[:2])
    metrics.update(predicted, truth)
    assert metrics.compute("official")["miou"] == pytest.approx(0.5 / 2)
    assert metrics.compute("fixed")["miou"] == 0.0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint16])
def test_a_confusion_matrix_counts_every_pixel_once(dtype: Any) -> None:
    rng = np.random.default_rng(1)
    predicted, truth = rng.integers(0, 71, (2, 40, 50)).astype(dtype)
    matrix = confusion(predicted, truth, 71)
    assert matrix.sum() == truth.size
    for row, column in ((0, 0), (70, 3), (17, 70)):
        assert matrix[row, column] == ((truth == row) & (predicted == column)).sum()


@pytest.mark.parametrize("classes", [2, 255, 256, 300])
def test_a_confusion_matrix_has_its_last_cell_for_any_class_count(classes: int) -> None:
    matrix = confusion(np.array([classes - 1]), np.array([classes + 9]), classes)
    assert matrix.shape == (classes + 1, classes) and matrix[classes, classes - 1] == matrix.sum() == 1
    with pytest.raises(InputError, match=f"0 to {classes - 1}"):
        confusion(np.array([classes]), np.array([0]), classes)


def test_predicted_labels_outside_the_classes_raise() -> None:
    with pytest.raises(InputError, match="0 to 70"):
        SemanticMetrics().update(np.full((1, 2, 2), 255), np.zeros((1, 2, 2), dtype=int))
    with pytest.raises(InputError, match=r"\[T, H, W\]"):
        SemanticMetrics().update(np.zeros((2, 2), int), np.zeros((2, 2), int))
    with pytest.raises(InputError, match="does not fit"):
        SemanticMetrics().update(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int))
    with pytest.raises(InputError, match=r"a prediction of \[2, 2\] does not fit a truth of \[2, 3\]"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 71)
    with pytest.raises(InputError, match="does not fit"):
        OpenVocabularyMetrics().update(np.zeros((1, 2, 2), int), np.zeros((1, 2, 3), int))


# ---------------------------------------------------------------------------------------- open vocabulary, silence


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_open_vocabulary_uses_one_matrix_over_all_frames(seeds: list[int]) -> None:
    base, novel, clips = (1, 2, 5), (3, 4), [labels_of(seed, 6) for seed in seeds]
    metrics = OpenVocabularyMetrics(CLASSES[:6], base, novel)
    for predicted, truth in clips:
        metrics.update(predicted, truth)
    assert metrics.frames == 3 * len(clips)
    for protocol in ("official", "fixed"):
        assert metrics.compute(protocol) == pytest.approx(slow_open_vocabulary(clips, base, novel, 6, protocol))


def test_a_class_that_is_only_predicted_counts_in_official_only() -> None:
    truth = np.array([[[1, 1, 2, 2]]])
    predicted = np.array([[[1, 1, 2, 3]]])
    metrics = OpenVocabularyMetrics(CLASSES[:4], base=(1, 3), novel=(2,))
    metrics.update(predicted, truth)
    assert metrics.compute("official")["base"] == 0.5
    assert metrics.compute("fixed") == {"miou": 0.75, "base": 1.0, "novel": 0.5, "harmonic": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("predicted", "base", "novel", "harmonic"),
    [([1, 1, 2, 2], 1.0, 1.0, 1.0), ([0, 1, 0, 2], 0.5, 0.5, 0.5), ([1, 1, 0, 0], 1.0, 0.0, 0.0), ([0] * 4, 0, 0, 0)],
)
def test_the_harmonic_mean_is_zero_where_either_is(predicted: Any, base: float, novel: float, harmonic: float) -> None:
    metrics = OpenVocabularyMetrics(CLASSES[:3], base=(1,), novel=(2,))
    metrics.update(np.array([[predicted]]), np.array([[[1, 1, 2, 2]]]))
    figures = metrics.compute("fixed")
    assert (figures["base"], figures["novel"], figures["harmonic"]) == (base, novel, pytest.approx(harmonic))


def test_a_class_of_one_pixel_counts_like_any_other() -> None:
    metrics = OpenVocabularyMetrics(CLASSES[:3], base=(1,), novel=(2,))
    metrics.update(np.array([[[0, 1, 0]]]), np.array([[[0, 1, 2]]]))
    assert metrics.compute("fixed")["base"] == 1.0


def test_classes_outside_the_metadata_become_background() -> None:
    kept = keep_classes(np.array([[0, 1, 3, 7, 255]], dtype=np.uint8), [7])
    assert kept.tolist() == [[0, 0, 0, 7, 0]] and kept.dtype == np.uint8
    assert not keep_classes(np.array([[0, 1, 7]], dtype=np.uint8), []).any()


def test_silence_metrics_reward_empty_predictions() -> None:
    predicted = np.stack([EMPTY, HALF, EMPTY, FULL])
    metrics = SilenceMetrics()
    metrics.update(predicted, np.array([True, True, True, False]))
    assert metrics.compute() == {"silent_accuracy": pytest.approx(2 / 3), "silent_area": pytest.approx(0.5 / 3)}
    assert SilenceMetrics().compute() == {"silent_accuracy": None, "silent_area": None}


def test_the_example_in_the_documentation_runs() -> None:
    found = doctest.testmod(metrics_module)
    assert found.attempted == 5 and not found.failed


def test_the_classes_are_those_of_the_benchmark() -> None:
    assert len(CLASSES) == 71
    assert list(CLASSES[1:]) == sorted(CLASSES[1:])
    assert (CLASSES[0], CLASSES[17], CLASSES[43], CLASSES[70]) == ("background", "dog", "missile-rocket", "woman")
    assert (len(BASE), len(NOVEL)) == (40, 30)
    assert sorted([*BASE, *NOVEL]) == list(range(1, 71))
    assert {CLASSES[i] for i in NOVEL} >= {"accordion", "violin", "wolf", "utv"}
    assert len(S4_CATEGORIES) == 23
    assert set(S4_CATEGORIES.values()) < set(CLASSES)
