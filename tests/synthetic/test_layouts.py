"""The synthetic data sets lie on disk as the releases do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.evaluation.datasets.tables import CLASSES, S4_CATEGORIES
from openavs.media.audio import read_audio
from openavs.media.clip import open_clip, probe
from openavs.structures.masks import RLE, rle_to_mask, voc_palette
from openavs.synthetic.datasets import write_clip, write_layout
from openavs.synthetic.scenes import sample_scene


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_s4(tmp_path: Path) -> None:
    assert write_layout("s4", tmp_path, {"train": 1, "test": 2}, seed=5) == {"train": 1, "val": 0, "test": 2}
    data = tmp_path / "s4_data"
    table = rows(tmp_path / "s4_meta_data.csv")
    assert [row["split"] for row in table] == ["train", "test", "test"]
    for row in table:
        assert row["category"] in S4_CATEGORIES
        home = Path(row["split"]) / row["category"] / row["name"]
        masks = sorted((data / "gt_masks" / home).iterdir())
        frames = sorted((data / "visual_frames" / home).iterdir())
        assert [path.name for path in frames] == [f"{row['name']}_{k}.png" for k in range(1, 6)]
        assert len(masks) == (1 if row["split"] == "train" else 5)
        assert {path.name for path in masks} <= {path.name for path in frames}
        for path in masks:
            assert Image.open(path).mode == "L"
            assert set(np.unique(pixels(path))) == {0, 255}
            assert pixels(path).shape == (224, 224)
        assert pixels(frames[0]).shape == (224, 224, 3)
        sound = read_audio(data / "audio_wav" / f"{home}.wav")
        assert sound is not None
        assert (sound.rate, round(sound.duration, 2)) == (16000, 5.0)


def test_ms3(tmp_path: Path) -> None:
    write_layout("ms3", tmp_path, {"val": 2}, seed=1)
    data = tmp_path / "ms3_data"
    for row in rows(tmp_path / "ms3_meta_data.csv"):
        name = row["video_id"]
        frames = {path.name for path in (data / "visual_frames" / name).iterdir()}
        masks = {path.name for path in (data / "gt_masks" / "val" / name).iterdir()}
        assert frames == {f"{name}.mp4_{k}.png" for k in range(1, 6)}
        assert masks == {f"{name}_{k}.png" for k in range(1, 6)}
        assert (data / "audio_wav" / "val" / f"{name}.wav").is_file()


def test_avss(tmp_path: Path) -> None:
    write_layout("avss", tmp_path, {"train": 5, "test": 5}, seed=2)
    table = rows(tmp_path / "metadata.csv")
    assert list(table[0]) == ["vid", "uid", "s_min", "s_sec", "a_obj", "split", "label"]
    assert {row["label"] for row in table} == {"v1s", "v1m", "v2"}
    assert json.loads((tmp_path / "label2idx.json").read_text()) == {name: i for i, name in enumerate(CLASSES)}
    palette = voc_palette()
    for row in table:
        home = tmp_path / row["label"] / row["uid"]
        count = 10 if row["label"] == "v2" else 5
        labeled = 1 if (row["label"], row["split"]) == ("v1s", "train") else count
        assert sorted(int(path.stem) for path in (home / "frames").iterdir()) == list(range(count))
        assert sorted(int(path.stem) for path in (home / "labels_semantic").iterdir()) == list(range(labeled))
        for k in range(labeled):
            labels = pixels(home / "labels_semantic" / f"{k}.png")
            assert np.array_equal(pixels(home / "labels_rgb" / f"{k}.png"), palette[labels])
            shown = {CLASSES[i] for i in np.unique(labels) if i}
            assert shown <= set(row["a_obj"].split("_"))
        sound = read_audio(home / "audio.wav")
        assert sound is not None
        assert round(sound.duration) == count


def test_ov(tmp_path: Path) -> None:
    write_layout("ov", tmp_path, {"train": 3, "test": 3}, seed=3)
    folder = tmp_path / "AVSBench-openvoc"
    for split, name in (("train", "avsbench_ov_train_base"), ("test", "avsbench_ov_test_base_novel")):
        data = json.loads((folder / f"{name}.json").read_text())
        assert [category["name"] for category in data["categories"]] == list(CLASSES[1:])
        videos = {video["id"]: video for video in data["videos"]}
        assert len(videos) == 3
        for entry in data["annotations"]:
            video = videos[entry["video_id"]]
            assert len(entry["segmentations"]) == len(entry["bboxes"]) == len(entry["areas"]) == video["length"]
            uid = video["file_names"][0].split("/")[0]
            for k, code in enumerate(entry["segmentations"]):
                assert (folder / split / "JPEGImages" / video["file_names"][k]).is_file()
                if code is None:
                    continue
                mask = rle_to_mask(RLE(tuple(code["size"]), code["counts"]))
                assert entry["areas"][k] == mask.sum()
                labels = tmp_path / "AVSBench-semantic" / video["label"] / uid / "labels_semantic" / f"{k}.png"
                if labels.is_file():  # v1s has one labeled frame in training
                    assert np.array_equal(mask, pixels(labels) == entry["category_id"])


def test_twins(tmp_path: Path) -> None:
    write_layout("twins", tmp_path, {"test": 1}, seed=4)
    [row] = rows(tmp_path / "clips.csv")
    assert row == {"name": "te004w00000", "split": "test", "camera": "static", "off_screen": "no", "kind": row["kind"]}
    name, scene = row["name"], sample_scene("twins", "test", 4, 0).scene
    listed = json.loads((tmp_path / "scenes" / f"{name}.json").read_text())["instances"]
    assert [entry["kind"] for entry in listed] == [actor.kind for actor in scene.actors]
    assert [[k in entry["sounding"] for k in range(8)] for entry in listed] == [list(a.on) for a in scene.actors]
    for entry in listed:
        own = [(e.onset, e.offset) for e in scene.events() if e.instance == entry["instance"]]
        assert [(e["onset"], e["offset"]) for e in entry["events"]] == [pytest.approx(times) for times in own]
    dense = open_clip(tmp_path / "videos" / f"{name}.mp4", fps=25)
    images = {frame.index: frame.image.astype(int) for frame in dense.frames(frozenset({0, 100, 199}))}
    for k, image in images.items():
        assert np.abs(image - scene.picture(k / 25)[0]).mean() < 6
    for k in range(8):
        image, owners = scene.picture(k + 0.5)
        assert np.array_equal(pixels(tmp_path / "frames" / name / f"{k}.png"), image)
        assert np.array_equal(pixels(tmp_path / "instances" / name / f"{k}.png"), owners)
    sound = read_audio(tmp_path / "audio" / f"{name}.wav")
    assert sound is not None
    assert sound.duration == 8


def test_a_folder_that_holds_something_and_an_unknown_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="not empty"):
        write_layout("s4", tmp_path, {"test": 1})
    with pytest.raises(InputError, match="there is no layout 's5'; there are s4, ms3, avss, ov, twins"):
        write_layout("s5", tmp_path / "new", {"test": 1})
    with pytest.raises(InputError, match="there is no split 'tset'; there are train, val, test"):
        write_layout("s4", tmp_path / "new", {"tset": 1})


@pytest.mark.parametrize(("layout", "place"), [("s4", "test/*/*.mp4"), ("ms3", "*.mp4")])
def test_videos_are_written_where_the_releases_have_them(layout: str, place: str, tmp_path: Path) -> None:
    write_layout(layout, tmp_path, {"test": 1}, videos=True)
    [video] = (tmp_path / f"{layout}_data" / "raw_videos").glob(place)
    assert round(probe(video).duration) == 5
    [sound] = (tmp_path / f"{layout}_data" / "audio_wav").rglob("*.wav")
    assert sound.stem == video.stem


def test_a_clip_is_a_video_with_sound(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, sample_scene("clip", "test", 0, 0, size=(96, 128), seconds=2).scene, fps=10)
    info = probe(path)
    assert (info.kind, info.size) == ("video", (96, 128))
    assert abs(info.duration - 2.0) < 0.15
    sound = read_audio(path)
    assert sound is not None
    assert sound.dbfs > -60
