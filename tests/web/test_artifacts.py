"""Downloads of a session, read back by independent readers."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from openavs.media import open_clip, probe
from openavs.results.result import Result
from openavs.results.serialization import result_from_json
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import Caption
from openavs.web.artifacts import captions_vtt, filter_instances, list_instances, write_files, write_overlay_video
from openavs.web.inference import ModelCache, SegmentRequest, run_request
from tests.web.conftest import CONFIG


@pytest.fixture(scope="module")
def result(models: ModelCache, scene: Path) -> Result:
    found = list(run_request(SegmentRequest(scene), models, CONFIG))[-1].result
    assert found is not None
    return found


@pytest.fixture(scope="module")
def folder(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder, result)
    return folder


def test_masks_are_png_files_with_a_legend(folder: Path, result: Result) -> None:
    with zipfile.ZipFile(folder / "masks.zip") as archive:
        legend = json.loads(archive.read("masks.json"))
        assert legend["values"] == "instance"
        for row, frame in zip(legend["frames"], result.frames, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(archive.read(row["file"]))))
            assert set(np.unique(pixels)) - {0} <= {int(value) for value in row["values"]}
            union = np.zeros(pixels.shape, dtype=bool)
            for segment in frame.segments:
                union |= rle_to_mask(segment.mask)
            assert np.array_equal(pixels > 0, union)


def test_the_json_contains_no_paths_of_the_server(folder: Path, scene: Path) -> None:
    text = (folder / "result.json").read_text()
    result = result_from_json(json.loads(text))
    assert result.source == "scene.mp4"
    assert str(scene.parent) not in text
    assert "assets" not in json.dumps(result.models)


def test_pycocotools_reads_the_coco_file(folder: Path, result: Result) -> None:
    coco = COCO(str(folder / "coco.json"))
    assert len(coco.getAnnIds()) == sum(len(frame.segments) for frame in result.frames)


def test_the_overlay_video_has_audio_and_the_selected_objects(result: Result, tmp_path: Path) -> None:
    everything = write_overlay_video(tmp_path, result)
    assert probe(everything).audio_codec is not None
    names = [instance.name for instance in list_instances(result)]
    assert names
    nothing = write_overlay_video(tmp_path, result, [])
    part = write_overlay_video(tmp_path, result, names[:1])
    assert write_overlay_video(tmp_path, result, names) == everything  # written once
    where = next(frame.index for frame in result.frames if names[0] in {s.phrase for s in frame.segments})
    plain, overlay = (next(iter(open_clip(path).frames(frozenset({where})))).image for path in (nothing, part))
    mask = next(rle_to_mask(s.mask) for s in result.frames[where].segments if s.phrase == names[0])
    difference = np.abs(plain.astype(int) - overlay.astype(int)).mean(axis=2)
    assert difference[mask].mean() > 20


def test_hiding_an_object_removes_only_its_segments(result: Result) -> None:
    first = list_instances(result)[0].name
    rest = filter_instances(result, {instance.name for instance in list_instances(result)} - {first})
    assert first not in {instance.name for instance in list_instances(rest)}
    assert [frame.captions for frame in rest.frames] == [frame.captions for frame in result.frames]


def test_two_of_a_kind_with_tracks_are_separate_objects(result: Result) -> None:
    frame = next(frame for frame in result.frames if frame.segments)
    twins = tuple(replace(frame.segments[0], phrase="dog", track=track) for track in (1, 4))
    names = [instance.name for instance in list_instances(replace(result, frames=(replace(frame, segments=twins),)))]
    assert names == ["dog #1", "dog #4"]


def test_captions_contain_no_markup(result: Result) -> None:
    hostile = Caption("<b>dog</b>\n00:01 --> 00:02", 0.5, 1.0, 61.25)
    frame = replace(result.frames[0], captions=(hostile,))
    text = captions_vtt(replace(result, frames=(frame, frame)))  # a window of two frames
    assert "dog" not in captions_vtt(replace(result, frames=(replace(result.frames[0], captions=()),)))
    assert text.splitlines() == [
        "WEBVTT",
        "",
        "00:00:01.000 --> 00:01:01.250",
        "[&lt;b&gt;dog&lt;/b&gt; 00:01 --&gt; 00:02]",
    ]
