"""V3: tables of GAVS, folders of AVSBench-semantic, and binary masks of the frames' own size."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_semantic import read_v3
from openavs.synthetic.datasets import write_layout

HEADER = "vid,uid,s_min,s_sec,a_obj,split,label"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v3") / "AVSBench-semantic"
    write_layout("avss", root, {"test": 4}, seed=3)  # v2, v1s, v2, v1m
    with (root / "metadata.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"] != "v1s"]
    unseen = [f"{r['vid']},{r['uid']},0,0,{r['a_obj']},unseen,{r['label']}" for r in rows]
    few = [f"{r['vid']},{r['uid']},,,,v3_1_shot_train,{r['label']}" for r in rows[1:]]
    (root / "v3" / "v3_1_shot").mkdir(parents=True)
    (root / "v3" / "meta_v3_unseen.csv").write_text("\n".join([HEADER, *unseen]))
    (root / "v3" / "v3_1_shot" / "test.csv").write_text("\n".join([HEADER, *few]))
    return root


def test_zero_shot_split(data: Path) -> None:
    dataset = read_v3(data)
    assert (dataset.benchmark, dataset.task) == ("v3", "binary")
    assert [clip.group for clip in dataset.clips] == ["v2", "v2", "v1m"]
    clip = dataset.clips[0]
    truth = dataset.read_truth(clip)
    assert (truth.shape, truth.dtype) == ((10, 240, 320), np.bool_)
    indices = data / "v2" / clip.id / "labels_semantic" / "4.png"
    assert np.array_equal(truth[4], np.asarray(Image.open(indices)) > 0)


def test_few_shot_tables_get_their_classes_from_the_metadata(data: Path) -> None:
    dataset = read_v3(data, "1-shot-test")
    everything = {clip.id: clip.classes for clip in read_v3(data).clips}
    assert [clip.classes for clip in dataset.clips] == [everything[clip.id] for clip in dataset.clips]
    assert all(clip.classes for clip in dataset.clips)


def test_predictions_have_the_size_of_the_frames(data: Path, tmp_path: Path) -> None:
    dataset = read_v3(data)
    clip = dataset.clips[2]
    assert dataset.read_prediction(clip, tmp_path) is None
    for k, name in enumerate(clip.predictions):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (320, 240), 40 * k).save(tmp_path / name)
    predicted = dataset.read_prediction(clip, tmp_path)
    assert predicted is not None
    assert predicted[:, 0, 0].tolist() == [0, 40, 80, 120, 160]
    Image.new("L", (224, 224)).save(tmp_path / clip.predictions[0])
    with pytest.raises(InputError, match="224 x 224 pixels where its ground truth has 320 x 240"):
        dataset.read_prediction(clip, tmp_path)


def test_missing_files_are_named(data: Path) -> None:
    with pytest.raises(InputError, match=r"holds no v3_3_shot/train\.csv, nor do v3/"):
        read_v3(data, "3-shot-train")
    with pytest.raises(InputError, match="V3 has no split 'unseen'; there are 1-shot-test"):
        read_v3(data, "unseen")
    (data / "v3" / "v3_1_shot" / "train.csv").write_text(HEADER + "\n")
    with pytest.raises(InputError, match=r"v3_1_shot/train\.csv lists no clip"):
        read_v3(data, "1-shot-train")
