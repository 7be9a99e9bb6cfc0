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

from openavs.media.clip import probe
from openavs.results.result import Result
from openavs.results.serialization import result_from_json
from openavs.structures.masks import rle_to_mask
from openavs.structures.types import Caption
from openavs.visualization.player import MotionRecorder
from openavs.web import SegmentRequest
from openavs.web.artifacts import captions_vtt, write_files, write_overlay_video
from openavs.web.inference import ModelCache, run_request
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


def test_the_overlay_video_has_audio_and_its_masks_in_motion_are_recorded(result: Result, tmp_path: Path) -> None:
    moving = MotionRecorder()
    path = write_overlay_video(tmp_path, result, moving)
    assert probe(path).audio_codec is not None
    assert any(moving.frames)


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
