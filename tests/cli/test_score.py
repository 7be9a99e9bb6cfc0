"""`openavs score`: its JSON, its tables, and one sentence for everything that can be wrong with predictions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.evaluation.benchmark import open_dataset
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome

Run = Callable[..., Outcome]
Edit = Callable[[Path], None]


@pytest.fixture(scope="session")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic test splits, with the ground truth as predictions in `<layout>-masks`."""
    root = tmp_path_factory.mktemp("released")
    for layout in ("s4", "ms3", "avss", "ov"):
        write_layout(layout, root / layout, {"test": 2})
        dataset = open_dataset(layout, root / layout)
        for clip in dataset.clips:
            for place, mask in zip(clip.predictions, dataset.read_truth(clip), strict=True):
                path = root / f"{layout}-masks" / place
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * np.uint8(255 if dataset.task == "binary" else 1)).save(path)
    return root


@pytest.fixture
def own(released: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(released, tmp_path / "own"))


def arguments(root: Path, layout: str) -> list[str | Path]:
    return ["score", layout, "--root", root / layout, "--predictions", root / f"{layout}-masks"]


@pytest.mark.parametrize(
    ("layout", "metrics"),
    [
        ("s4", {"miou": 1.0, "f": 1.0}),
        ("ms3", {"miou": 1.0}),
        ("avss", {"miou_nobg": None, "f": None, "miou": None}),
        ("ov", {"base": None, "novel": None, "harmonic": None, "miou": 1.0}),
    ],
)
def test_json_is_one_object_with_the_contract(
    openavs: Run, released: Path, layout: str, metrics: dict[str, float | None]
) -> None:
    answer = openavs(*arguments(released, layout), "--json")
    assert answer.code == 0
    found = answer.json()
    assert (found["benchmark"], found["protocol"], found["clips"], found["split"]) == (layout, "official", 2, "test")
    assert found["frames"] == sum(len(clip.annotated) for clip in open_dataset(layout, released / layout).clips)
    assert found["metrics"] == found["figures"]["official"]
    assert found["clips_per_batch"] == 1
    for name, value in metrics.items():
        assert name in found["metrics"]
        assert value is None or found["metrics"][name] == pytest.approx(value, abs=1e-6)
    assert set(found["intervals"]["official"]) <= set(found["metrics"])
    assert "per_clip" not in found and "curve" not in found


def test_a_perfect_system_is_perfect_under_fixed(openavs: Run, released: Path) -> None:
    found = openavs(*arguments(released, "avss"), "--protocol", "fixed", "--json").json()
    assert found["protocol"] == "fixed"
    assert found["metrics"] == found["figures"]["fixed"]
    assert found["metrics"]["miou"] == pytest.approx(1.0)


def test_the_table_names_the_protocol_and_the_batch(openavs: Run, released: Path) -> None:
    told = openavs(*arguments(released, "s4"), "--clips-per-batch", 2).out
    for words in ("official, 2 clips per batch", "fixed", "2 clips, 10 frames", "mIoU (J)", "[100.00, 100.00]"):
        assert words in told
    assert "worst classes" in told
    assert openavs(*arguments(released, "s4"), "-q").out == ""


def test_out_has_the_report_and_a_row_per_clip(openavs: Run, released: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    answer = openavs(*arguments(released, "s4"), "--out", out, "--limit", 1, "--json")
    report = json.loads((out / "report.json").read_text())
    assert report["clips"] == answer.json()["clips"] == len(report["per_clip"]) == 1
    assert len(report["curve"]["precision"]) == 255
    assert (out / "per_clip.csv").read_text().count("\n") == 2
    assert sorted(path.name for path in out.iterdir()) == ["per_clip.csv", "report.json"]


def test_missing_masks_may_count_as_empty(openavs: Run, own: Path) -> None:
    shutil.rmtree(next((own / "s4-masks/test").iterdir()))
    refused = openavs(*arguments(own, "s4"), "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "5 of 10 predicted masks are missing, in 1 of 2 clips (first: " in refused.err
    counted = openavs(*arguments(own, "s4"), "--allow-missing", "--json").json()
    assert (counted["missing"], counted["missing_masks"], len(counted["missing_clips"])) == (1, 5, 1)
    assert counted["metrics"]["miou"] == pytest.approx(0.5)
    assert (
        "1 clip without predictions: 5 masks counted as empty" in openavs(*arguments(own, "s4"), "--allow-missing").out
    )


def test_masks_of_published_scripts_are_scored_without_renaming(openavs: Run, released: Path, tmp_path: Path) -> None:
    """`pred_masks/<category>/<video>/<video>_{0..4}.png`, of AVSegFormer in 512 x 512 pixels."""
    for path in (released / "s4-masks/test").rglob("*.png"):
        stem, _, number = path.stem.rpartition("_")
        target = tmp_path / path.parent.parent.name / path.parent.name / f"{stem}_{int(number) - 1}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((512, 512), Image.Resampling.NEAREST).convert("P").save(target)
    command = ("score", "s4", "--root", released / "s4", "--predictions", tmp_path, "--json")
    guessed = openavs(*command, "--allow-missing")
    assert (guessed.code, guessed.out) == (2, "")
    assert "are its masks numbered from 0? s4 counts from 1; pass --numbering 0" in guessed.err
    large = openavs(*command, "--numbering", 0)
    assert (large.code, large.out) == (2, "")
    assert "has 512 x 512 pixels where its ground truth has 224 x 224; " in large.err and "--resize" in large.err
    found = openavs(*command, "--numbering", 0, "--resize").json()
    assert (found["numbering"], found["resize"], found["missing"]) == (0, True, 0)
    assert found["metrics"]["miou"] == pytest.approx(1.0, abs=0.01)
    assert openavs(*command, "--numbering", 2).code == 2


def test_extra_predictions_are_named_and_not_scored(openavs: Run, own: Path) -> None:
    extra = own / "avss-masks/v2/nobody/labels_semantic/0.png"
    extra.parent.mkdir(parents=True)
    Image.new("L", (4, 4)).save(extra)
    answer = openavs(*arguments(own, "avss"), "--json")
    assert answer.code == 0
    assert answer.json()["clips"] == 2


# --------------------------------------------------------------------------------------------------------- bad input


def first_mask(root: Path, layout: str) -> Path:
    return min((root / f"{layout}-masks").rglob("*.png"))


def replaced(mode: str, size: tuple[int, int] | None = None, color: Any = 0) -> Edit:
    def edit(path: Path) -> None:
        old = Image.open(path).size
        Image.new(mode, size or old, color).save(path)

    return edit


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def no_png(path: Path) -> None:
    path.write_bytes(b"GIF89a" + bytes(100))


@pytest.mark.parametrize(
    ("layout", "edit", "says"),
    [
        ("s4", replaced("L", (50, 60)), "50 x 60 pixels"),
        ("s4", replaced("RGB"), "8-bit RGB PNG; a predicted mask is an 8-bit gray PNG"),
        ("s4", replaced("I;16"), "16 bits per channel"),
        ("s4", truncated, "truncated"),
        ("s4", no_png, "not a PNG"),
        ("avss", replaced("RGB", color=(1, 2, 3)), "the color (1, 2, 3), which is not in AVSBench-semantic's palette"),
        ("avss", replaced("L", color=71), "holds the value 71; class indices go from 0 to 70"),
        ("avss", replaced("L", (50, 60)), "50 x 60"),
        ("ov", replaced("RGBA"), "with alpha"),
        ("ov", truncated, "truncated"),
    ],
)
def test_a_bad_prediction_is_one_sentence_with_its_file(
    openavs: Run, own: Path, layout: str, edit: Edit, says: str
) -> None:
    path = first_mask(own, layout)
    edit(path)
    answer = openavs(*arguments(own, layout), "--json")
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err and path.name in answer.err
    assert answer.err.startswith("openavs: ") or "\nopenavs: " in answer.err


@pytest.mark.parametrize(
    ("layout", "table", "row", "says"),
    [
        ("s4", "s4_meta_data.csv", "../../etc,0,dog_barking,test", "not the name of a folder"),
        ("s4", "s4_meta_data.csv", "gone,0,dog_barking,test", "have no folder"),
        ("ms3", "ms3_meta_data.csv", "..,test", "not the name of a folder"),
    ],
)
def test_a_bad_table_is_one_sentence(openavs: Run, own: Path, layout: str, table: str, row: str, says: str) -> None:
    with (own / layout / table).open("a") as file:
        file.write(row + "\n")
    answer = openavs(*arguments(own, layout))
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err


def test_a_clip_that_is_listed_twice_raises(openavs: Run, own: Path) -> None:
    table = own / "s4/s4_meta_data.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[-1] + "\n")
    answer = openavs(*arguments(own, "s4"))
    assert answer.code == 2 and "twice" in answer.err


@pytest.mark.parametrize(
    ("layout", "folder", "edit", "says"),
    [
        ("s4", "gt_masks", replaced("L", color=7), "holds the value 7"),
        ("s4", "gt_masks", truncated, "truncated"),
        ("avss", "labels_semantic", replaced("L", color=200), "holds the value 200"),
        ("avss", "labels_rgb", replaced("RGB", color=(1, 2, 3)), "the color (1, 2, 3)"),
    ],
)
def test_a_bad_truth_is_one_sentence_with_its_file(
    openavs: Run, own: Path, layout: str, folder: str, edit: Edit, says: str
) -> None:
    others = [path for path in (own / layout).rglob("labels_*") if path.name != folder]
    for other in others:
        shutil.rmtree(other)
    path = min(path for path in (own / layout).rglob("*.png") if folder in path.parts)
    edit(path)
    answer = openavs(*arguments(own, layout))
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err and path.name in answer.err


def test_v3_scores_binary_masks_by_class(openavs: Run, own: Path, tmp_path: Path) -> None:
    """V3 is a separate table over the clips of AVSBench-semantic."""
    root, masks = own / "avss", tmp_path / "masks"
    shutil.copy(root / "metadata.csv", root / "meta_v3_unseen.csv")
    dataset = open_dataset("v3", root)
    for clip in dataset.clips:
        for place, mask in zip(clip.predictions, dataset.read_truth(clip), strict=True):
            (masks / place).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * np.uint8(255)).save(masks / place)
    found = openavs("score", "v3", "--root", root, "--predictions", masks, "--protocol", "fixed", "--json").json()
    assert found["metrics"]["miou"] == pytest.approx(1.0)
    assert {row["name"] for row in found["per_class"]} == {name for clip in dataset.clips for name in clip.classes}


def test_wrong_usage_exits_with_2(openavs: Run, released: Path, tmp_path: Path) -> None:
    root = released / "s4"
    for words, says in (
        (["score", "s5", "--root", root, "--predictions", root], "no benchmark 's5'"),
        (["score", "s4", "--root", tmp_path, "--predictions", root], "s4_meta_data.csv"),
        (["score", "s4", "--root", root, "--predictions", root / "nowhere"], "no folder of predictions"),
        ([*arguments(released, "s4"), "--split", "tests"], "no split 'tests'"),
        ([*arguments(released, "s4"), "--protocol", "paper"], "--protocol"),
        ([*arguments(released, "s4"), "--clips-per-batch", 0], "--clips-per-batch"),
        (["score", "s4", "--root", root], "--predictions"),
    ):
        answer = openavs(*words)
        assert (answer.code, answer.out) == (2, ""), words
        assert says in answer.err, words
