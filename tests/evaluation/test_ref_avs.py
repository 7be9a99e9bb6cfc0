"""Ref-AVS Bench: its reader, J, F and S in both protocols, and expressions on their way to a system."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.evaluation.datasets.mask_io import interpolate_linear
from openavs.evaluation.evaluator import evaluate
from openavs.evaluation.metrics.metrics import ClipFacts
from openavs.evaluation.metrics.referring import ReferringMetrics
from openavs.evaluation.predictor import Predictor
from openavs.evaluation.scorer import score
from openavs.structures.types import Clip, ClipResult, FrameResult
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome

Run = Callable[..., Outcome]
Array = np.ndarray[Any, Any]

ROWS = """vid,uid,split,fid,exp
other_1,aaa_0_10_cat_1,test_s,0,The cat.
aaa_0_10,aaa_0_10_cat_2,test_s,0,The furry object.
aaa_0_10,aaa_0_10_saw_1,test_s,1,The muted saw.
aaa_0_10,aaa_0_10_saw_1,test_s,0,The louder one.
bbb_0_10,bbb_0_10_emergency-car_1,test_u,0,The car.
ccc_0_10,null_c-ccc_0_10_null_1,test_n,0,The sounding object.
ddd_0_10,ddd_0_10_dog_1,TODO,0,The dog.
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Seven rows over three folders, with masks of 12 x 16 pixels whose left columns are the object."""
    (tmp_path / "metadata.csv").write_text(ROWS)
    for folder, fids in (("aaa_0_10", (0, 1)), ("bbb_0_10", (0,)), ("null_c-ccc_0_10", (0,))):
        for fid in fids:
            mask = np.zeros((12, 16), dtype=np.uint8)
            mask[:, : 0 if folder.startswith("null") else 4 + 4 * fid] = 255
            for k in range(10):
                path = tmp_path / "gt_mask" / folder / f"fid_{fid}" / f"{k:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).convert("RGB").save(path)
    return tmp_path


def copy_truth(root: Path, out: Path) -> None:
    for clip in open_dataset("ref-avs", root).clips:
        for place, path in zip(clip.predictions, clip.truth, strict=True):
            assert path is not None
            (out / place).parent.mkdir(parents=True, exist_ok=True)
            Image.open(path).convert("L").save(out / place)


# ------------------------------------------------------------------------------------------------------------ reader


def test_folders_come_from_the_uid_and_todo_rows_are_left_out(tree: Path) -> None:
    clips = {clip.id: clip for clip in open_dataset("ref-avs", tree).clips}
    assert list(clips) == [
        *("aaa_0_10_cat_1", "aaa_0_10_cat_2", "aaa_0_10_saw_1", "aaa_0_10_saw_1.2", "bbb_0_10_emergency-car_1"),
        "null_c-ccc_0_10_null_1",
    ]
    first, double = clips["aaa_0_10_cat_1"], clips["aaa_0_10_saw_1.2"]
    assert first.audio == tree / "media/aaa_0_10/audio.wav"  # not media/other_1
    assert first.frames[9] == tree / "media/aaa_0_10/frames/9.jpg"
    assert first.truth[9] == tree / "gt_mask/aaa_0_10/fid_0/00009.png"
    assert (first.expression, first.group, first.split) == ("The cat.", "cat", "test_s")
    assert (double.expression, double.predictions[0]) == ("The louder one.", "aaa_0_10_saw_1.2/0.png")
    assert double.truth[0] == first.truth[0]
    assert clips["null_c-ccc_0_10_null_1"].frames[0].parts[-3] == "null_c-ccc_0_10"
    assert [clip.id for clip in open_dataset("ref-avs", tree, "test_u").clips] == ["bbb_0_10_emergency-car_1"]


def test_another_table_beside_the_folders_is_another_benchmark(tree: Path) -> None:
    (tree / "r2.csv").write_text("vid,uid,split,fid,exp\nx,bbb_0_10_emergency-car_1,test_u,0,A harder sentence.\n")
    dataset = open_dataset("ref-avs", tree / "r2.csv")
    assert [(clip.expression, clip.split) for clip in dataset.clips] == [("A harder sentence.", "test_u")]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("v,cat_1,test_s,0,The cat.", "line 9: uid 'cat_1'.*expected were a uid that ends in _<object>_<number>"),
        ("v,aaa_0_10_cat_9,test_s,x,The cat.", "a whole number and a sentence"),
        ("v,aaa_0_10_cat_9,test_s,0,", "a whole number and a sentence"),
        ("v,../aaa_0_10_cat_9,test_s,0,The cat.", "is not the name of a folder"),
        ("v,aaa_0_10_cat_9,test_s,7,The cat.", "1 of the 5 clips of 'test' .* have no folder .*fid_7"),
        ("v,aaa_0_10_cat_9,test_s", "3 columns where at least 5 were expected"),
    ],
)
def test_a_wrong_row_is_one_sentence(tree: Path, row: str, sentence: str) -> None:
    (tree / "metadata.csv").write_text(ROWS + row + "\n")
    with pytest.raises(InputError, match=sentence):
        open_dataset("ref-avs", tree)


def test_bilinear_resizing_equals_opencv() -> None:
    image = (np.arange(35, dtype=np.uint8).reshape(5, 7) * 37) % 251
    expected = _plain_bilinear(image, (3, 5))
    found = interpolate_linear(image.astype(np.uint8), (3, 5))
    assert np.abs(found.astype(int) - np.rint(expected)).max() <= 1
    edge = np.zeros((720, 1024), dtype=np.uint8)
    edge[:, 641] = 255
    small = interpolate_linear(edge, (256, 256))
    assert [int(value) for value in np.unique(small)] == [0, 127]  # OpenCV truncates the half
    assert (small > 0).any(axis=0).sum() == 1


def _plain_bilinear(image: Array, size: tuple[int, int]) -> Array:
    """Textbook bilinear interpolation at pixel centers."""
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            at = [(i + 0.5) * old / new - 0.5 for i, old, new in zip((y, x), image.shape, size, strict=True)]
            at = [min(max(value, 0.0), old - 1.0) for value, old in zip(at, image.shape, strict=True)]
            (r, c), (dy, dx) = (int(at[0]), int(at[1])), (at[0] % 1, at[1] % 1)
            r2, c2 = min(r + 1, image.shape[0] - 1), min(c + 1, image.shape[1] - 1)
            top = float(image[r, c]) * (1 - dx) + float(image[r, c2]) * dx
            low = float(image[r2, c]) * (1 - dx) + float(image[r2, c2]) * dx
            out[y, x] = top * (1 - dy) + low * dy
    return out


# ----------------------------------------------------------------------------------------------------------- metrics


def published(batches: list[tuple[Array, Array]]) -> tuple[float, float]:
    """J and F of Ref-AVS (arXiv 2407.10957), written from their definitions; probability and truth `[N, H, W]`."""
    all_j, all_f = [], []
    for probability, truth in batches:
        j = []
        for p, t in zip(probability > 0.4, truth, strict=True):
            empty = not t.any()
            inter = (~p).sum() if empty else (p & t).sum()
            j.append(inter / ((t.size if empty else (p | t).sum()) + 1e-7))
        curves = []
        for p, t in zip(probability, truth, strict=True):
            if t.any():
                marked = np.array([p >= threshold for threshold in np.linspace(0, 1 - 1e-10, 255, dtype=np.float32)])
                hit = (marked & t).sum(axis=(1, 2))
                precision, recall = hit / (marked.sum(axis=(1, 2)) + 1e-20), hit / t.sum()
                with np.errstate(invalid="ignore"):
                    curves.append(np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall)))
        all_j.append(np.mean(j))
        all_f.append(np.mean(curves, axis=0).max() if curves else 0.0)
    return float(np.mean(all_j)), float(np.mean(all_f))


def test_figures_equal_the_published_formulas_on_random_predictions() -> None:
    rng = np.random.default_rng(9)
    truths: dict[str, Array] = {}
    metric = ReferringMetrics(lambda clip: truths[clip.id])
    values: dict[str, list[tuple[Array, Array]]] = {"test_s": [], "test_u": [], "test_n": []}
    for split, count in (("test_s", 6), ("test_u", 5), ("test_n", 7)):
        for i in range(count):
            predicted = rng.integers(0, 256, (3, 10, 14), dtype=np.uint8)
            truth = rng.random((3, 10, 14)) < (0.0 if split == "test_n" else 0.3)
            truth[0] = False
            clip = BenchmarkClip(f"{split}{i}", split, (), Path(), (), ())
            truths[clip.id] = truth
            metric.update(predicted, truth, ClipFacts(predicted, ("thing",), clip))
            values[split].append((predicted.astype(np.float32) / np.float32(255), truth))

    def batches(split: str, size: int) -> list[tuple[Array, Array]]:
        rows = values[split]
        return [
            (np.concatenate([p for p, _ in rows[i : i + size]]), np.concatenate([t for _, t in rows[i : i + size]]))
            for i in range(0, len(rows), size)
        ]

    (seen_j, seen_f), (unseen_j, unseen_f) = (published(batches(split, 4)) for split in ("test_s", "test_u"))
    s = np.mean([np.sqrt((p > 0.5).mean()) for p, _ in batches("test_n", 4)])
    official, fixed = metric.compute("official"), metric.compute("fixed")
    assert official["j"] == pytest.approx((seen_j + unseen_j) / 2, abs=1e-6)
    assert official["f"] == pytest.approx((seen_f + unseen_f) / 2, abs=1e-6)
    assert official["jf"] == pytest.approx((seen_j + unseen_j + seen_f + unseen_f) / 4, abs=1e-6)
    assert official["s"] == pytest.approx(s, abs=1e-6)
    assert fixed["s"] == pytest.approx(np.mean([np.sqrt((p > 0.5).mean()) for p, _ in values["test_n"]]), abs=1e-9)
    rows = {row["name"]: row for row in metric.groups()}
    assert rows["seen objects, official"]["figures"]["j"] == pytest.approx(seen_j, abs=1e-6)
    assert rows["unseen objects, official"]["figures"]["f"] == pytest.approx(unseen_f, abs=1e-6)
    assert rows["null expressions, official"]["figures"] == {"j": None, "f": None, "jf": None, "s": official["s"]}
    low, high = rows["seen objects, fixed"]["intervals"]["j"]
    assert low <= rows["seen objects, fixed"]["figures"]["j"] <= high


def test_perfect_masks_score_one_in_fixed_in_any_order(tree: Path) -> None:
    copy_truth(tree, tree / "masks")
    dataset = open_dataset("ref-avs", tree)
    for clips in (tuple(dataset.clips), tuple(dataset.clips)[::-1]):
        found = score(replace(dataset, clips=clips), tree / "masks", protocol="fixed").to_dict()
        assert found["metrics"] == {"j": 1.0, "f": 1.0, "jf": 1.0, "s": 0.0}
        assert found["clips_per_batch"] == 4
    assert {row["name"] for row in found["per_class"]} == {"cat", "saw", "emergency-car"}


def test_the_official_truth_grows_at_its_edges(tree: Path) -> None:
    mask = np.zeros((360, 640), dtype=np.uint8)
    mask[100:200, 101:300] = 255
    for path in (tree / "gt_mask/bbb_0_10/fid_0").glob("*.png"):
        Image.fromarray(mask).save(path)
    copy_truth(tree, tree / "masks")
    found = score(open_dataset("ref-avs", tree, "test_u"), tree / "masks")
    assert found.figures["fixed"]["j"] == 1.0
    assert 0.97 < (found.figures["official"]["j"] or 0) < 1.0


# ----------------------------------------------------------------------------------------------------------- commands


def test_score_prints_the_contract_and_names_what_is_missing(openavs: Run, tree: Path) -> None:
    copy_truth(tree, tree / "masks")
    words = ("score", "ref-avs", "--root", tree, "--predictions", tree / "masks")
    answer = openavs(*words, "--protocol", "fixed", "--json").json()
    assert answer["metrics"] == {"j": 1.0, "f": 1.0, "jf": 1.0, "s": 0.0}
    assert "official, 4 clips per batch" in openavs(*words).out
    shutil.rmtree(tree / "masks/aaa_0_10_cat_1")
    refused = openavs(*words)
    assert refused.code == 2 and "10 of 60 predicted masks are missing, in 1 of 6 clips" in refused.err
    assert openavs(*words, "--allow-missing", "--json").json()["missing"] == 1
    (tree / "gt_mask/bbb_0_10/fid_0/00003.png").unlink()
    assert "cannot read the mask" in openavs(*words, "--allow-missing").err


def test_evaluate_gives_the_expression_to_the_system(tmp_path: Path) -> None:
    write_layout("ref-avs", tmp_path / "data", {"test": 2}, seed=2)
    dataset = open_dataset("ref-avs", tmp_path / "data")
    given: dict[str, str | None] = {}

    def system(clip: Clip) -> ClipResult:
        given[clip.id] = clip.expression
        return ClipResult(clip.id, clip.size, tuple(FrameResult(i, t, False) for i, t in enumerate(clip.times)))

    done = evaluate(Predictor({"device": "cpu"}, lambda: system), dataset, tmp_path / "out", limit=1)
    assert done.report is not None and not done.failed
    assert list(given.values()) == [dataset.clips[0].expression]
    assert (done.report["metrics"]["s"], done.report["clips_per_batch"]) == (None, 4)
    assert "seen objects" not in (tmp_path / "out/report.html").read_text("utf-8")  # one split has no groups
