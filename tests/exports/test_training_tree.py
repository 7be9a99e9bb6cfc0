"""The tree for the published AVSBench training scripts: each file that their loaders open exists."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.benchmark import open_dataset
from openavs.evaluation.datasets.mask_io import decode_palette
from openavs.evaluation.datasets.tables import CLASSES
from openavs.evaluation.job_io import gray_png
from openavs.exports.base import Categories
from openavs.exports.registry import ExportOptions, ExportSummary, export as write_export
from openavs.exports.training_tree import log_mel_tensor
from openavs.media.audio import read_audio, write_wav
from openavs.media.log_mel import examples
from openavs.results.serialization import palette_png
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import write_layout

Run = Callable[..., Any]


def written(layout: str, root: Path, labels: Path, without: int) -> None:
    """A benchmark, and labels of its training clips but one: class 3 (binary: foreground) in the upper left quarter."""
    write_layout(layout, root, {"train": 3, "val": 1, "test": 1}, seed=2)
    for number, clip in enumerate(open_dataset(layout, root, "train").clips):
        for place in clip.predictions if number != without else ():
            mask = np.zeros((240, 320) if layout == "avss" else (224, 224), np.uint8)
            mask[:100, :100] = 3 if layout == "avss" else 255
            (labels / place).parent.mkdir(parents=True, exist_ok=True)
            (labels / place).write_bytes((palette_png if layout == "avss" else gray_png)(mask))


def make(run: Path, out: Path, **options: Any) -> ExportSummary:
    return write_export("avsbench-training", [], out, ExportOptions(Categories(), run=run, **options))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> Any:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_one_result_is_not_a_folder_of_labels(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder of labels"):
        write_export("avsbench-training", [], tmp_path / "out", ExportOptions(Categories()))


@pytest.mark.long
def test_s4_with_the_labels_of_a_job_of_which_a_clip_failed(openavs: Run, tmp_path: Path) -> None:
    root, job, tree = tmp_path / "s4", tmp_path / "labels", tmp_path / "tree"
    write_layout("s4", root, {"train": 2, "val": 1, "test": 1}, seed=2)
    table = rows(root / "s4_meta_data.csv")
    bad = table[0]
    shutil.rmtree(root / "s4_data" / "visual_frames" / "train" / bad["category"] / bad["name"])
    words = ("label", root, "--split", "train", "--pipeline", "tiny", "--workers", "1", "--out", job, "-q")
    assert openavs(*words).code == 1
    done = openavs("export", "avsbench-training", job, "--out", tree)
    assert done.out == f"avsbench-training: 5 masks in 5 frames of 1 clip -> {tree}\n"
    assert "1 clip of train without labels: not in the table" in done.err
    assert rows(tree / "s4_meta_data.csv") == table[1:]
    for row in table[1:]:
        place = Path(row["split"]) / row["category"] / row["name"]
        for k in range(1, 6):
            name = f"{row['name']}_{k}.png"
            own, old = tree / "s4_data" / "visual_frames" / place / name, root / "s4_data/visual_frames" / place / name
            assert np.array_equal(pixels(own), pixels(old))
            truth = job / "labels" if row["split"] == "train" else root / "s4_data" / "gt_masks"
            mask = tree / "s4_data" / "gt_masks" / place / name
            assert mask.read_bytes() == (truth / place / name).read_bytes()
            assert mask.is_symlink() == (row["split"] != "train")
        sound = tree / "s4_data" / "audio_wav" / f"{place}.wav"
        heard = pickle.loads((tree / "s4_data" / "audio_log_mel" / f"{place}.pkl").read_bytes())
        assert heard.dtype == torch.float32 and heard.shape == (5, 1, 96, 64)
        assert np.array_equal(heard[:, 0].numpy(), examples(_sound(sound)))
    assert len(open_dataset("s4", tree, "train").clips) == 1  # and so openavs train reads it, too


def test_ms3_names_its_files_as_released(tmp_path: Path) -> None:
    root, tree = tmp_path / "ms3", tmp_path / "tree"
    written("ms3", root, tmp_path / "run" / "labels", without=2)
    table = rows(root / "ms3_meta_data.csv")
    told = make(tmp_path / "run", tree, root=root, benchmark="ms3")
    assert (told.clips, told.frames) == (2, 10)
    left = rows(tree / "ms3_meta_data.csv")
    assert left == [*table[:2], *table[3:]] and [row["split"] for row in left] == ["train", "train", "val", "test"]
    for row in left:
        name, split = row["video_id"], row["split"]
        for k in range(1, 6):
            assert pixels(tree / "ms3_data" / "visual_frames" / name / f"{name}.mp4_{k}.png").shape == (224, 224, 3)
            mask = pixels(tree / "ms3_data" / "gt_masks" / split / name / f"{name}_{k}.png")[..., 0]
            if split == "train":
                assert mask[:100, :100].all() and mask.sum() == 255 * 100 * 100
            else:
                assert np.array_equal(mask, pixels(root / f"ms3_data/gt_masks/{split}/{name}/{name}_{k}.png")[..., 0])
        assert (tree / "ms3_data" / "audio_log_mel" / split / f"{name}.pkl").is_file()
        assert (tree / "ms3_data" / "audio_wav" / split / f"{name}.wav").is_file()


@pytest.mark.long
@pytest.mark.parametrize("truth", ["labels_rgb", "labels_semantic"])
def test_avss_has_colors_beside_indices(truth: str, tmp_path: Path) -> None:
    root, tree = tmp_path / "avss", tmp_path / "tree"
    written("avss", root, tmp_path / "run" / "predictions", without=0)
    for folder in list(root.glob("*/*/labels_*")):  # a copy of the release may have one of the two kinds alone
        if folder.name != truth:
            shutil.rmtree(folder)
    make(tmp_path / "run", tree, root=root, benchmark="avss")
    assert json.loads((tree / "label2idx.json").read_text()) == {name: i for i, name in enumerate(CLASSES)}
    table = rows(tree / "metadata.csv")
    assert table == rows(root / "metadata.csv")[1:]
    originals = {clip.id: clip for split in ("val", "test") for clip in open_dataset("avss", root, split).clips}
    for row in table:
        place, count = tree / row["label"] / row["uid"], 10 if row["label"] == "v2" else 5
        for folder, suffix in (("frames", "jpg"), ("labels_rgb", "png")):
            found = sorted(path.name for path in (place / folder).iterdir())  # their loader counts these files
            assert found == [f"{k}.{suffix}" for k in range(count)]
        assert _sound(place / "audio.wav").duration == count
        for k in range(count):
            labels = decode_palette(pixels(place / "labels_rgb" / f"{k}.png"))
            if row["split"] == "train":
                assert (labels[:100, :100] == 3).all() and np.count_nonzero(labels) == 100 * 100
            else:
                dataset = open_dataset("avss", root, row["split"])
                assert dataset.read_native is not None
                assert np.array_equal(labels, dataset.read_native(originals[row["uid"]])[k])
    assert open_dataset("avss", tree, "train").clips[0].id == table[0]["uid"]


def test_log_mels_of_other_lengths_are_five_examples(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 16000 * 7).astype(np.float32)
    for seconds in (2, 7):
        write_wav(tmp_path / f"{seconds}.wav", Waveform(noise[: 16000 * seconds], 16000))
    short, long = log_mel_tensor(tmp_path / "2.wav"), log_mel_tensor(tmp_path / "7.wav")
    assert short.shape == long.shape == (5, 1, 96, 64)
    assert torch.equal(short[1:], short[1:2].repeat(4, 1, 1, 1)) and not torch.equal(short[0], short[1])
    assert torch.equal(short[:2], long[:2]) and not torch.equal(long[3], long[4])
    write_wav(tmp_path / "0.wav", Waveform(noise[:8000], 16000))
    with pytest.raises(InputError, match=r"0\.wav has less than a second of audio"):
        log_mel_tensor(tmp_path / "0.wav")


def test_what_is_missing_is_said(openavs: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"the benchmark of .*run has no such tree; give --benchmark s4, ms3 or avss$"):
        make(tmp_path / "run", tmp_path / "tree")
    with pytest.raises(InputError, match=r"ov has no such tree; .*, or export youtube-vis for ov"):
        make(tmp_path / "run", tmp_path / "tree", benchmark="ov")
    with pytest.raises(InputError, match="run does not record the folder of s4; give it with --root"):
        make(tmp_path / "run", tmp_path / "tree", benchmark="s4")
    write_layout("s4", tmp_path / "s4", {"train": 1}, seed=2)
    with pytest.raises(InputError, match="there is no result to export as avsbench-training"):
        make(tmp_path / "run", tmp_path / "tree", benchmark="s4", root=tmp_path / "s4")
    refused = openavs("export", "avsbench-training", tmp_path / "run", "--out", tmp_path / "tree", "--classes", "dog")
    assert refused.code == 2 and "exports all labels unchanged" in refused.err
    assert not (tmp_path / "tree").exists()


def _sound(path: Path) -> Waveform:
    sound = read_audio(path)
    assert sound is not None
    return sound
