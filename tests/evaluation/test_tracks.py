"""HOTA, TrackMAP and FSLA of tracks: executed examples of the published code, the formulas, and what `fixed` means."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from openavs.evaluation.datasets.base import InstanceTrack
from openavs.evaluation.metrics.functional import Protocol
from openavs.evaluation.metrics.track_metrics import TrackMetrics
from openavs.evaluation.metrics.tracks import ALPHAS, IOU_THRESHOLDS
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask

CLASSES = ("background", "person", "violin", "cat")
Clip = tuple[list[InstanceTrack], list[InstanceTrack]]


def box(place: int, size: tuple[int, int] = (720, 1280)) -> RLE:
    """The mask of the thing at a place; different places do not overlap."""
    mask = np.zeros(size, dtype=bool)
    mask[10:110, 120 * place : 120 * place + 100] = True
    return mask_to_rle(mask)


def tracks(*sounding: str, classes: Sequence[int] = (), empty: RLE | None = None) -> list[InstanceTrack]:
    """One track for each text, with a mask where the text has an x, else `empty`."""
    return [
        InstanceTrack(
            classes[i] if classes else 1, tuple(box(i) if on == "x" else empty for on in text), 1 - i / 10, i + 1
        )
        for i, text in enumerate(sounding)
    ]


def figures(*clips: Clip, protocol: Protocol = "fixed") -> dict[str, float | None]:
    metric = TrackMetrics(CLASSES)
    for truth, predicted in clips:
        metric.update(truth, predicted, len((truth or predicted)[0].masks))
    return metric.compute(protocol)


def fsla(found: dict[str, float | None]) -> list[float | None]:
    values = (found["fsla"], found["fsla_n"], found["fsla_s"], found["fsla_m"])
    return [None if value is None else round(value, 3) for value in values]


# ------------------------------------------------------------------------------- examples run with the published code

EMPTY = mask_to_rle(np.zeros((720, 1280), dtype=bool))
EXAMPLES = {
    "one thing, then two silent frames": (("x..",), (), [0.333, 0, 1, None], [1, 1, 1, None]),
    "two classes: one, both, none": (("xx.", ".x."), (1, 2), [0.333, 0, 0, 1], [1, 1, 1, 1]),
    "the second of two sounds alone": (("x.", "xx"), (1, 2), [0.5, None, 0, 1], None),
    "two of three of one class": (("x.", "xx", "xx"), (), [1, None, None, 1], None),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_official_fsla_of_perfect_predictions_equals_the_published_code(name: str) -> None:
    sounding, classes, with_empty, with_null = EXAMPLES[name]
    truth = tracks(*sounding, classes=classes)
    written = tracks(*sounding, classes=classes, empty=EMPTY)
    assert fsla(figures((truth, written), protocol="official")) == with_empty
    assert fsla(figures((truth, truth), protocol="official")) == (with_null or [None] * 4)  # None: an IndexError
    for predicted in (truth, written):
        assert figures((truth, predicted))["fsla"] == 1


def test_official_fsla_depends_on_the_order_of_the_tracks() -> None:
    truth, written = tracks("xxx", "xx.", "xx."), tracks("xxx", "xx.", "xx.", empty=EMPTY)
    turned = [*written[1:], written[0]]
    assert fsla(figures((truth, written), protocol="official")) == [1, None, 1, 1]
    assert fsla(figures((truth, turned), protocol="official")) == [0.667, None, 0, 1]
    assert fsla(figures((truth, turned))) == [1, None, 1, 1]


def test_official_fsla_recognizes_silence_by_the_empty_mask_of_720p_alone() -> None:
    small = mask_to_rle(np.zeros((360, 640), dtype=bool))
    truth = [InstanceTrack(1, (box(0, (360, 640)), None), id=1)]
    predicted = [InstanceTrack(1, (box(0, (360, 640)), small))]
    assert EMPTY.counts == "PPTl0" != small.counts
    assert figures((truth, predicted), protocol="official")["fsla_n"] == 0
    assert figures((truth, predicted))["fsla_n"] == 1


def test_official_hota_and_map_count_empty_masks_as_detections() -> None:
    truth, predicted = tracks("x."), tracks("x.", empty=EMPTY)
    nothing = InstanceTrack(1, (EMPTY, EMPTY), score=2.0)
    official = figures((truth, [*predicted, nothing]), protocol="official")
    assert official["det_pr"] == pytest.approx(1 / 4 / 3)  # one of four masks, and two classes without any
    assert official["map"] == pytest.approx(1 / 2)
    assert figures((truth, [*predicted, nothing]))["hota"] == figures((truth, [*predicted, nothing]))["map"] == 1


def test_official_map_lets_the_first_track_of_all_share_its_match() -> None:
    truth, twice = tracks("xx", "xx"), [tracks("xx")[0], InstanceTrack(1, (box(0), box(0)), score=0.95)]
    assert figures((truth, twice), protocol="official")["ar"] == 1  # two matches of one true track
    assert figures((truth, twice))["ar"] == 0.5


# ----------------------------------------------------------------------------------- references, written from formulas


def random_clip(rng: np.random.Generator, frames: int = 5, size: tuple[int, int] = (12, 16)) -> Clip:
    """Two to four true tracks, and predictions that shift, miss, split and invent."""

    def track(masks: list[np.ndarray | None], category: int, score: float, number: int) -> InstanceTrack:
        return InstanceTrack(category, tuple(None if m is None else mask_to_rle(m) for m in masks), score, number)

    def blob() -> np.ndarray:
        mask = np.zeros(size, dtype=bool)
        y, x = rng.integers(0, size[0] - 4), rng.integers(0, size[1] - 4)
        mask[y : y + rng.integers(3, 7), x : x + rng.integers(3, 7)] = True
        return mask

    truth, predicted = [], []
    for number in range(1, rng.integers(3, 6)):
        category, first = int(rng.integers(1, 4)), blob()
        masks = [None if rng.random() < 0.2 else np.roll(first, (0, t), (0, 1)) for t in range(frames)]
        masks[0] = first
        truth.append(track(masks, category, 1.0, number))
        for _ in range(rng.integers(1, 3)):
            shift = int(rng.integers(0, 3))
            own = [None if m is None or rng.random() < 0.2 else np.roll(m, shift, axis=1) for m in masks]
            own[-1] = blob()
            wrong = int(rng.integers(1, 4)) if rng.random() < 0.2 else category
            predicted.append(track(own, wrong, float(rng.random()), 0))
    return truth, predicted


def grids(track: InstanceTrack) -> np.ndarray:
    return np.stack([np.zeros((12, 16), dtype=bool) if m is None else rle_to_mask(m) for m in track.masks])


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    return float((one & two).sum() / max((one | two).sum(), 1))


def reference_hota(clips: Sequence[Clip], alpha: float) -> float:
    """HOTA of one class at a threshold: sqrt(sum of A(c) over TP / (TP + FN + FP)); the matching by brute force."""
    total, alike = 0, []
    for truth, predicted in clips:
        true, own = [grids(t) for t in truth], [grids(p) for p in predicted]
        frames = range(len(true[0]) if true else len(own[0]) if own else 0)
        lengths, widths = [t.any(axis=(1, 2)).sum() for t in true], [p.any(axis=(1, 2)).sum() for p in own]
        similar = {
            (t, g, p): overlap(true[g][t], own[p][t]) for t in frames for g in range(len(true)) for p in range(len(own))
        }
        share = dict.fromkeys(itertools.product(range(len(true)), range(len(own))), 0.0)
        for (t, g, p), value in similar.items():
            rest = sum(similar[t, g, q] for q in range(len(own))) + sum(similar[t, h, p] for h in range(len(true)))
            share[g, p] += value / (rest - value) if value else 0.0
        matches = []
        for t in frames:
            rows, columns = (
                [g for g in range(len(true)) if true[g][t].any()],
                [p for p in range(len(own)) if own[p][t].any()],
            )
            total += len(rows) + len(columns)
            best = max(
                (
                    list(zip(chosen, columns, strict=False))
                    if len(rows) >= len(columns)
                    else list(zip(rows, chosen, strict=False))
                    for chosen in itertools.permutations(
                        rows if len(rows) >= len(columns) else columns, min(len(rows), len(columns))
                    )
                ),
                key=lambda pairs: sum(
                    similar[t, g, p] * share[g, p] / (lengths[g] + widths[p] - share[g, p]) for g, p in pairs
                ),
            )
            matches += [(g, p) for g, p in best if similar[t, g, p] >= alpha - 1e-12]
        total -= len(matches)
        for pair in matches:
            both = matches.count(pair)
            alike.append(both / (lengths[pair[0]] + widths[pair[1]] - both))
    return math.sqrt(sum(alike) / total) if total else 0.0


def reference_ap(clips: Sequence[Clip], threshold: float) -> float | None:
    """Average precision of one class: greedy matches by score, 101 recalls."""
    rows, count = [], sum(len(truth) for truth, _ in clips)
    for truth, predicted in clips:
        free = [grids(t) for t in truth]
        for own in sorted(predicted, key=lambda p: -p.score):
            found = max(range(len(free)), key=lambda g: overlap(free[g], grids(own)), default=None)
            hit = found is not None and overlap(free[found], grids(own)) >= threshold - 1e-12
            rows.append((own.score, hit))
            if hit:
                free.pop(found)
    hits = [hit for _, hit in sorted(rows, key=lambda row: -row[0])]
    points = [(sum(hits[: n + 1]) / count, sum(hits[: n + 1]) / (n + 1)) for n in range(len(hits))] if count else []
    recalls = [k / 100 for k in range(101)]
    return sum(max((p for r, p in points if r >= k - 1e-12), default=0.0) for k in recalls) / 101 if count else None


def of_class(clips: Sequence[Clip], c: int) -> list[Clip]:
    return [
        ([t for t in truth if t.category == c], [p for p in predicted if p.category == c]) for truth, predicted in clips
    ]


@pytest.mark.parametrize("seed", range(3))
def test_hota_and_map_equal_a_plain_implementation_of_the_formulas(seed: int) -> None:
    rng = np.random.default_rng(seed)
    clips = [random_clip(rng) for _ in range(3)]
    found = figures(*clips)
    held = [own for own in (of_class(clips, c) for c in (1, 2, 3)) if any(truth for truth, _ in own)]
    assert found["hota"] == pytest.approx(np.mean([[reference_hota(own, a) for a in ALPHAS] for own in held]), abs=1e-9)
    assert found["map"] == pytest.approx(
        np.mean([[reference_ap(own, x) for x in IOU_THRESHOLDS] for own in held]), abs=1e-9
    )


# ---------------------------------------------------------------------------------------------------------- fixed


def test_fixed_depends_neither_on_the_order_of_tracks_nor_on_empty_masks() -> None:
    rng = np.random.default_rng(5)
    empty = mask_to_rle(np.zeros((12, 16), dtype=bool))
    clips = [random_clip(rng) for _ in range(4)]
    plain = figures(*clips)
    turned, filled = [], []
    for truth, predicted in clips:
        turned.append((truth[::-1], [predicted[i] for i in rng.permutation(len(predicted))]))
        full = [InstanceTrack(p.category, tuple(m or empty for m in p.masks), p.score) for p in predicted]
        filled.append((truth, [*full, InstanceTrack(2, (empty,) * 5, 0.99)]))
    assert figures(*turned) == plain == figures(*filled)


def test_fixed_scores_1_for_the_truth_with_overlaps_and_silent_tracks() -> None:
    clips = [random_clip(np.random.default_rng(seed))[0] for seed in range(6)]
    clips.append([InstanceTrack(3, (None,) * 5, id=9), *clips[0][1:]])
    found = figures(*((truth, truth) for truth in clips))
    assert {name: value for name, value in found.items() if value not in (1, None)} == {}
    assert found["map"] == found["hota"] == found["fsla"] == 1


def test_a_frame_is_right_if_number_classes_and_overlap_are() -> None:
    truth = tracks("xx", "xx", classes=(1, 2))
    swapped = tracks("xx", "xx", classes=(2, 1))
    assert figures((truth, swapped))["fsla"] == 0
    assert figures((truth, [*truth, *tracks("...", "..", ".x")[2:]]))["fsla"] == 0.5
    assert figures((truth, truth[:1]))["fsla"] == 0
    half = np.zeros((720, 1280), dtype=bool)
    half[10:60, :100] = True  # IoU 0.5: above 9 of 19 thresholds
    shrunk = InstanceTrack(1, (box(0), mask_to_rle(half)))
    assert figures((truth, [shrunk, truth[1]]))["fsla_m"] == pytest.approx((1 + 9 / 19) / 2)


@pytest.mark.parametrize("protocol", ["official", "fixed"])
def test_weights_of_clips_count_like_repeated_clips(protocol: Protocol) -> None:
    rng = np.random.default_rng(1)
    empty = mask_to_rle(np.zeros((12, 16), dtype=bool))
    clips = [
        (truth, [replace(p, masks=tuple(m or empty for m in p.masks)) for p in own])
        for truth, own in (random_clip(rng) for _ in range(3))
    ]
    metric = TrackMetrics(CLASSES)
    for truth, predicted in clips:
        metric.update(truth, predicted, 5)
    found = metric.sample(protocol).figures(np.array([[1.0, 1, 1], [2, 0, 1]]))
    for row, own in enumerate((clips, [clips[0], clips[0], clips[2]])):
        expected = figures(*own, protocol=protocol)
        # The first track is special in official, and only once.
        names = [
            name for name in found if expected[name] is not None and (name, protocol, row) != ("map", "official", 1)
        ]
        assert [found[name][row] for name in names] == pytest.approx([expected[name] for name in names])


def test_rows_of_classes_have_hota_and_map_of_the_classes_in_the_truth() -> None:
    metric = TrackMetrics(CLASSES)
    metric.update(tracks("xx."), tracks("xx."), 3)
    person, violin, _ = metric.per_class()
    assert person == {"name": "person", "clips": 1, "frames": 2, "hota": 1.0, "map": 1.0}
    assert violin == {"name": "violin", "clips": 0, "frames": 0, "hota": None, "map": None}
