"""Exports of a label job on AVSBench-OV: read back by the benchmark's reader and trained on by OV-AVSS."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.tables import CLASSES
from openavs.exports.avsbench import to_label_map
from openavs.exports.base import Categories, read_sources, run_items
from openavs.exports.registry import ExportOptions, export
from openavs.synthetic.datasets import write_layout

Run = Callable[..., Any]
UIDS = ["tr003w00000_0_10000", "tr003w00001_0_5000"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AVSBench-OV's layout with a v2 and a v1s clip to train on."""
    root = tmp_path_factory.mktemp("ov") / "data"
    write_layout("ov", root, {"train": 2, "val": 1}, seed=3)
    return root


@pytest.fixture(scope="module")
def job(data: Path) -> Path:
    """The embedded models' labels of its training clips."""
    from openavs.cli import main

    out = data.parent / "labels"
    words = ["label", data, "--benchmark", "ov", "--split", "train", "--pipeline", "tiny", "--out", out]
    assert main([*map(str, words), "--workers", "1", "-q"]) == 0
    return out


@pytest.mark.parametrize("classes", [("--classes", "ov"), ()])
def test_youtube_vis_names_clips_frames_and_classes_as_avsbench_ov_does(
    openavs: Run, data: Path, job: Path, tmp_path: Path, classes: tuple[str, ...]
) -> None:
    assert openavs("export", "youtube-vis", job, "--out", tmp_path / "ov.json", *classes).code == 0
    written = json.loads((tmp_path / "ov.json").read_text())
    truth = json.loads((data / "AVSBench-openvoc" / "avsbench_ov_train_base.json").read_text())
    plain = [{key: category[key] for key in ("id", "name")} for category in written["categories"]]
    assert plain == truth["categories"]
    assert written["videos"] == truth["videos"]  # sizes, <uid>/3.jpg, and v2 or v1s


def test_ov_avss_trains_on_the_youtube_vis_export(openavs: Run, data: Path, job: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(data, root)
    place = root / "AVSBench-openvoc" / "avsbench_ov_train_base.json"
    assert openavs("export", "youtube-vis", job, "--classes", "ov", "--out", place, "--overwrite").code == 0
    shutil.rmtree(root / "AVSBench-semantic" / "v2" / UIDS[0] / "labels_rgb")
    shutil.rmtree(root / "AVSBench-semantic" / "v2" / UIDS[0] / "labels_semantic")
    dataset = open_dataset("ov", root, "train")
    assert [clip.id for clip in dataset.clips] == UIDS
    results = [item.result for item in run_items(job)]
    for clip, result in zip(dataset.clips, results, strict=True):
        masks = dataset.read_native(clip) if dataset.read_native else []
        assert len(masks) == len(clip.annotated) > 0
        for k, mask in zip(clip.annotated, masks, strict=True):
            assert np.array_equal(mask > 0, to_label_map(result, k) > 0)
            assert set(np.unique(mask)) <= {0, *(CLASSES.index(s.label or "") for s in result.frames[k].segments)}
    words = ("train", "ov-avss", "--root", root, "--benchmark", "ov", "--out", tmp_path / "student", "--max-steps", "1")
    done = openavs(*words, "--json", "-q")
    assert done.code == 0 and done.json()["steps"] == 1


def test_sources_and_sounds_are_found_where_the_job_found_them(
    data: Path, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export("youtube-vis", run_items(job), tmp_path / "set", ExportOptions(Categories(), images=True))
    assert sorted(path.name for path in (tmp_path / "set" / "images" / UIDS[1]).iterdir()) == [
        f"{k}.jpg" for k in range(5)
    ]
    told = export("avsbench-semantic", run_items(job), tmp_path / "semantic")
    assert not [note for note in told.notes if "silence" in note]
    moved = data.rename(data.with_name("moved"))
    try:
        with pytest.raises(InputError, match="does not exist; give the folder of the videos with --root"):
            export("yolo-seg", run_items(job), tmp_path / "yolo")
        assert export("yolo-seg", run_items(job, root=moved), tmp_path / "yolo").clips == 2
    finally:
        moved.rename(data)


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    for line in ("{", "[1]", '{"audio": "a.wav"}', '{"id": "a", "places": [1]}'):
        (tmp_path / "manifest.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match=r"manifest\.jsonl is damaged"):
            read_sources(tmp_path)


def test_an_evaluation_knows_the_subset_of_its_clips_too(job: Path, tmp_path: Path) -> None:
    (tmp_path / "predictions" / "v1s" / UIDS[1] / "labels_semantic").mkdir(parents=True)
    origins = read_sources(tmp_path)
    assert [origins.avsbench(item.result) for item in run_items(job)] == [None, ("v1s", UIDS[1])]


def test_labels_without_a_folder_are_of_no_subset(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "places": ["a.png"]}\n')
    assert read_sources(tmp_path).subsets == {}
