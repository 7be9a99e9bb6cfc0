"""The commands that need nothing: the demo, and the synthetic world on disk."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.media.audio import read_audio
from openavs.media.clip import probe

Run = Callable[..., Any]


def test_the_demo_runs_in_a_fresh_process_and_replaces_an_earlier_one(openavs: Run, tmp_path: Path) -> None:
    """Under 30 s and 2 GB on two cores; a busy machine may be slower, so the time is only kept from running away."""
    out = tmp_path / "demo"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "openavs", "demo", "--out", str(out), "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    answer = json.loads(done.stdout)
    why = {"caveats", "chains", "unprompted", "remedy"}
    assert set(answer) == {"miou", "captions", "found", *why, "seconds", "out"}
    assert answer["miou"] > 0.7
    assert {thing["text"] for thing in answer["found"]}
    assert answer["out"] == str(out)
    for name in ("scene.mp4", "run.json", "clips/demo/result.json", "clips/demo/overlay.mp4", "clips/demo/report.html"):
        assert (out / name).is_file(), name
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 * 2**20  # KiB
    assert time.monotonic() - started < 180

    earlier = (out / "scene.mp4").read_bytes()
    again = openavs("demo", "--out", out, "--seed", "2")
    assert again.code == 0
    assert "mIoU with the true masks: 0." in again.out and "\nwhy: " in again.out
    assert f"see {out}/clips/demo/report.html" in again.out
    assert (out / "scene.mp4").read_bytes() != earlier
    assert len((out / "index.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "there",
    [
        ("clips/video/result.json", "scene.mp4", "index.jsonl", "run.json"),  # `segment --out` of the same name
        ("clips/demo/result.json", "index.jsonl", "run.json"),  # a run of a video that is called demo.mp4
        ("manifest.jsonl", "work/manifest.json"),  # a job
    ],
)
def test_the_demo_replaces_only_a_demo(openavs: Run, tmp_path: Path, there: tuple[str, ...]) -> None:
    out = tmp_path / "out"
    for name in there:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("not to be lost")
    refused = openavs("demo", "--out", out)
    sentence = f"openavs: {out} holds results of another command, which a demo would replace; give another --out\n"
    assert (refused.code, refused.out, refused.err) == (2, "", sentence)
    left = {path.relative_to(out).as_posix(): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert left == dict.fromkeys(there, "not to be lost")


def test_synth_writes_the_requested_splits(openavs: Run, tmp_path: Path) -> None:
    done = openavs("synth", "s4", "--out", tmp_path / "s4", "--clips", "2", "--train", "1", "--seed", "3", "--json")
    assert done.json()["clips"] == {"train": 1, "val": 0, "test": 2}
    assert len((tmp_path / "s4" / "s4_meta_data.csv").read_text().splitlines()) == 4


def test_synth_clip_is_a_video(openavs: Run, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.mp4"
    done = openavs("synth", "clip", "--out", path, "--seconds", "2", "--size", "128x96", "--fps", "8", "--json")
    assert len(done.json()["sounding"]) == 2
    assert probe(path).size == (96, 128)
    assert read_audio(path) is not None


def test_synth_clip_replaces_a_file_only_with_overwrite(openavs: Run, tmp_path: Path) -> None:
    path = tmp_path / "holiday.mp4"
    path.write_bytes(b"not to be lost")
    words = ("synth", "clip", "--out", path, "--seconds", "2", "--size", "32x32", "--fps", "2", "--quiet")
    refused = openavs(*words)
    assert refused.code == 2
    assert refused.err == f"openavs: {path} exists; give another --out, or --overwrite to replace it\n"
    assert path.read_bytes() == b"not to be lost"
    done = openavs(*words, "--overwrite")
    assert (done.code, done.out) == (0, "")
    assert probe(path).size == (32, 32)
    folder = openavs("synth", "clip", "--out", tmp_path, "--overwrite")
    assert (folder.code, "is a folder; give --out the name of a video" in folder.err) == (2, True)


def test_synth_refuses_invalid_arguments(openavs: Run, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    full = openavs("synth", "ms3", "--out", tmp_path / "full")
    assert (full.code, "not empty" in full.err) == (2, True)
    size = openavs("synth", "clip", "--out", tmp_path / "b.mp4", "--size", "wide")
    assert (size.code, "WIDTHxHEIGHT" in size.err) == (2, True)
