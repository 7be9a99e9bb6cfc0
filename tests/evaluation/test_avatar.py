"""AVATAR: its reader, CIoU, AUC and true negative rate, and the frames that a system gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip
from openavs.evaluation.evaluator import evaluate
from openavs.evaluation.metrics.localization import LocalizationMetrics
from openavs.evaluation.metrics.metrics import ClipFacts
from openavs.evaluation.predictor import Predictor
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Clip, ClipResult, FrameResult
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import Outcome

Run = Callable[..., Outcome]


def annotate(root: Path, video: str, frame: int, *annotations: dict[str, Any], **facts: Any) -> Path:
    path = root / "metadata" / video / f"{frame:05d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"fps": 10.0, "original_width": 128, "original_height": 72, "frame_number": frame}
    path.write_text(json.dumps(known | {"annotations": list(annotations)} | facts))
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    mask = np.zeros((72, 128), dtype=bool)
    mask[:36, :64] = True
    rle = mask_to_rle(mask)
    code = {"size": list(rle.size), "counts": rle.counts}
    annotate(tmp_path, "abc_1", 3, {"task": "Single-Sound", "segmentation": code})
    annotate(tmp_path, "abc_1", 12, {"task": "Mixed-Sound", "bbox": [64, 36, 64, 36]}, {"task": "Off-Screen"})
    annotate(tmp_path, "xyz_2", 7, {"task": "Off-Screen", "bbox": None})
    return tmp_path


def test_the_truth_is_the_union_of_what_sounds_on_the_screen(tree: Path) -> None:
    first, second = open_dataset("avatar", tree).clips
    truth = open_dataset("avatar", tree).read_truth(first)
    assert truth.shape == (2, 360, 640)
    assert truth[0, :180, :320].all() and truth[0].sum() == 180 * 320
    assert truth[1, 180:, 320:].all() and truth[1].sum() == 180 * 320
    assert not open_dataset("avatar", tree).read_truth(second).any()
    assert first.predictions == ("abc_1/00003.png", "abc_1/00012.png")
    assert first.times is not None and first.times() == (0.35, 1.25)


def test_figures_equal_the_published_formulas_on_random_maps() -> None:
    rng = np.random.default_rng(4)
    kinds = [{"Single-Sound"}, {"Multi-Entity", "Off-Screen"}, {"Off-Screen"}]
    tasks = {f"c{i}": tuple(frozenset(kinds[(i + k) % 3]) for k in range(3)) for i in range(6)}
    metric = LocalizationMetrics(lambda clip: tasks[clip.id])
    ious, negatives = [], []
    for name, own in tasks.items():
        maps = rng.integers(0, 60, (3, 9, 16), dtype=np.uint8)
        truth = rng.random((3, 9, 16)) < 0.6
        for k, kind in enumerate(own):
            truth[k] &= kind != {"Off-Screen"}
            marked = maps[k].astype(np.float32) / 255 >= 0.1
            if kind != {"Off-Screen"}:
                ious.append((marked & truth[k]).sum() / (truth[k].sum() + (marked & ~truth[k]).sum()))
            if "Off-Screen" in kind:
                negatives.append(((~marked & ~truth[k]).sum(), (~truth[k]).sum()))
        metric.update(maps, truth, ClipFacts(clip=BenchmarkClip(name, "test", (), Path(), (), ())))
    found = metric.compute("official")
    reached = [np.mean(np.array(ious) >= 0.05 * i) for i in range(21)]
    assert found["ciou"] == pytest.approx(np.mean(ious), abs=1e-9)
    assert found["auc"] == pytest.approx(np.trapezoid(reached, dx=0.05), abs=1e-9)
    assert found["tn"] == pytest.approx(sum(a for a, _ in negatives) / sum(b for _, b in negatives), abs=1e-9)
    assert {row["name"] for row in metric.groups()} == {"Single-Sound", "Multi-Entity"}
    assert metric.compute("fixed")["ciou"] == 0.0, "no value of the maps is above 0.5"


def test_perfect_masks_score_one(openavs: Run, tree: Path) -> None:
    dataset = open_dataset("avatar", tree)
    for clip in dataset.clips:
        for place, mask in zip(clip.predictions, dataset.read_truth(clip), strict=True):
            (tree / "masks" / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(tree / "masks" / place)
    words = ("score", "avatar", "--root", tree, "--predictions", tree / "masks")
    answer = openavs(*words, "--protocol", "fixed", "--json").json()
    assert answer["metrics"] == {"ciou": 1.0, "auc": pytest.approx(1.0), "tn": 1.0, "left_empty": 1.0}
    assert answer["figures"]["official"] == answer["figures"]["fixed"]
    assert "Mixed-Sound (1 clip)" in openavs(*words).out
    (tree / "masks/xyz_2/00007.png").unlink()
    assert "1 of 3 predicted masks are missing" in openavs(*words).err


def test_a_system_gets_the_annotated_frames_of_the_video(tmp_path: Path) -> None:
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (72, 128))
    (tmp_path / "video").mkdir()
    write_clip(tmp_path / "video/abc_1.mp4", scene, fps=10)
    for frame in (3, 12):
        annotate(tmp_path, "abc_1", frame, {"task": "Single-Sound", "bbox": [0, 0, 64, 72]})
    given: list[Clip] = []

    def system(clip: Clip) -> ClipResult:
        given.append(clip)
        assert [frame.time for frame in clip.frames(None)] == [0.35, 1.25]
        return ClipResult(clip.id, clip.size, tuple(FrameResult(i, t, False) for i, t in enumerate(clip.times)))

    done = evaluate(Predictor({"device": "cpu"}, lambda: system), open_dataset("avatar", tmp_path), tmp_path / "out")
    assert done.failed == {} and done.report is not None
    assert (done.report["metrics"]["ciou"], done.report["metrics"]["tn"]) == (0.0, None)
    assert given[0].audio is not None and given[0].audio.duration > 1.9
    assert "Frame 1 of 2" in (tmp_path / "out/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"annotations": None}, "has no list 'annotations'"),
        ({"annotations": [{"task": "Loud"}]}, "has the task 'Loud'; there are Single-Sound"),
        ({"annotations": [{"task": "Single-Sound"}]}, "neither a segmentation"),
        ({"original_width": "wide"}, "has no positive number 'original_width'"),
    ],
)
def test_a_wrong_annotation_is_one_sentence(tree: Path, change: dict[str, Any], sentence: str) -> None:
    path = tree / "metadata/abc_1/00003.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    dataset = open_dataset("avatar", tree)
    with pytest.raises(InputError, match=sentence):
        dataset.read_truth(dataset.clips[0])


def test_a_wrong_folder_is_one_sentence(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no folder metadata/; .*hf download mipal/AVATAR"):
        open_dataset("avatar", tree / "metadata")
    (tree / "metadata/abc_1/first.json").write_text("{}")
    with pytest.raises(InputError, match="is not named by the number of its frame"):
        open_dataset("avatar", tree)
