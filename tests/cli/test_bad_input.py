"""Damaged videos, recipes, models and file names: one sentence with the fix, and no incomplete output.

The stages are a few lines in a plug-in file, since none of this reaches a model; what does (single pixels, 8K pictures,
silent sound, options of the models) is in test_segment.py.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.cli import main
from openavs.media.clip import probe
from openavs.structures.types import ImageArray
from tests.media_files import gray, make_media, tone
from tests.plugin_recipe import write_recipe

Run = Callable[..., Any]


def noise(count: int) -> list[ImageArray]:
    """Images that compress badly, so that half of the file is about half of the video."""
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(count)]


def cut(path: Path, at: float) -> None:
    path.write_bytes(path.read_bytes()[: round(path.stat().st_size * at)])


def make_bad_files(folder: Path) -> None:
    pictures, nan = [gray(i) for i in range(20)], tone(2)
    nan[0, 1000] = np.nan
    (folder / "notes.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    (folder / "no-pictures").mkdir()
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.fromarray(gray(1)).save(folder / "picture.png")
    cut(make_media(folder / "half.mp4", noise(20), sound=tone(2)), 0.5)
    cut(make_media(folder / "half-indexed.mp4", noise(100), sound=tone(10), options={"movflags": "+faststart"}), 0.5)
    head = make_media(folder / "zero.mp4", pictures, options={"movflags": "+frag_keyframe+empty_moov+delay_moov"})
    head.write_bytes(head.read_bytes().partition(b"moof")[0][:-4])
    make_media(folder / "mute.mp4", pictures)
    make_media(folder / "sound.wav", sound=tone(1), sound_codec="pcm_s16le")
    make_media(folder / "nan.mkv", pictures, sound=nan, sound_codec="pcm_f32le")


# ---------------------------------------------------------------------------------------- bad files beside a good one


@dataclass(frozen=True)
class Attempt:
    """One run over all bad files and a good one."""

    out: Path
    code: int
    clips: dict[str, dict[str, Any]]
    err: str


@pytest.fixture(scope="module")
def attempt(tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    folder = tmp_path_factory.mktemp("bad")
    make_bad_files(folder)
    make_media(folder / "good.mp4", [gray(i) for i in range(20)], sound=tone(2))
    names = sorted(path.name for path in folder.iterdir())
    words = ["segment", *(str(folder / name) for name in names), "--pipeline", str(write_recipe(folder))]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main([*words, "--out", str(folder / "out"), "--json"])
    answers = json.loads(out.getvalue())["clips"]
    return Attempt(folder / "out", code, dict(zip(names, answers, strict=True)), err.getvalue())


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("notes.mp4", "cannot be read as video or audio"),
        ("empty.mp4", "is empty (0 bytes); download or export it again"),
        ("half.mp4", "truncated before its index"),
        ("zero.mp4", "no frame of"),
        ("mute.mp4", "has no sound track; give its sound with --audio FILE"),
        ("picture.png", "has no sound track; give its sound with --audio FILE"),
        ("sound.wav", "has sound but no picture; give a video"),
        ("nan.mkv", "has NaN or infinite samples; repair or re-encode its track"),
        ("no-pictures", "has no images"),
        ("damaged.png", "cannot be read as a png, jpg, bmp or webp image; check the file"),
    ],
)
def test_a_bad_file_is_recorded_with_one_sentence(attempt: Attempt, name: str, said: str) -> None:
    answer = attempt.clips[name]
    assert answer["status"] == "failed"
    reason = answer["reason"]
    assert said in reason
    assert name in reason
    assert "\n" not in reason
    assert ";" in reason  # what is wrong; what to do
    assert f"openavs: {reason}\n" in attempt.err
    lines = map(json.loads, (attempt.out / "index.jsonl").read_text().splitlines())
    assert [line["detail"] for line in lines if line["id"] == answer["id"]] == [reason]


def test_the_other_clips_are_done_and_nothing_is_incomplete(attempt: Attempt) -> None:
    assert attempt.code == 1
    assert "Traceback" not in attempt.err
    done = {name for name, answer in attempt.clips.items() if answer["status"] == "ok"}
    assert done == {"good.mp4", "half-indexed.mp4"}
    assert {path.name for path in (attempt.out / "clips").iterdir()} == {"good", "half-indexed"}
    assert not list(attempt.out.rglob("*.part"))
    assert json.loads((attempt.out / "run.json").read_text())["counts"] == {"ok": 2, "filtered": 0, "failed": 10}


def test_the_readable_part_of_a_truncated_video_is_done(attempt: Attempt) -> None:
    answer = attempt.clips["half-indexed.mp4"]
    assert [warning for warning in answer["warnings"] if "truncated" in warning]
    folder = attempt.out / "clips" / "half-indexed"
    frames = json.loads((folder / "result.json").read_text())["frames"]
    assert len(frames) == len(list((folder / "masks").iterdir()))
    assert [bool(frame["segments"]) for frame in frames if frame["time"] < 4] == [True] * 4
    assert not any(frame["segments"] for frame in frames if frame["time"] > 6)
    assert 3 < probe(folder / "overlay.mp4").duration < 7


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the trial in a child process")
@pytest.mark.faults
def test_a_clip_that_crashes_the_sandbox_fails_alone(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [gray(i) for i in range(10)]
    names = ("first.mp4", "deadly.mov", "last.mp4")
    for name in names:
        codec, form = ("jpeg2000", "rgb24") if name == "deadly.mov" else ("libx264", "yuv420p")
        make_media(tmp_path / name, pictures, codec=codec, pix_fmt=form, sound=tone(1))
    child = tmp_path / "child"
    child.write_text("#!/bin/sh\nkill -SEGV $$\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    out = tmp_path / "out"
    done = openavs("segment", *(tmp_path / name for name in names), "-p", write_recipe(tmp_path), "--out", out)
    assert done.code == 1
    assert {path.name for path in (out / "clips").iterdir()} == {"first", "last"}
    said = f"openavs: {tmp_path / 'deadly.mov'} (jpeg2000) ends the process that decodes it; it is damaged or made to"
    problem, page = done.err.splitlines()
    assert problem.startswith(said) and page.endswith("index.html")


# ------------------------------------------------------------------------------------------------------- wrong usage


@pytest.fixture
def video(tmp_path: Path) -> Path:
    return make_media(tmp_path / "good.mp4", [gray(i) for i in range(10)], sound=tone(1))


def refusal(done: Any, out: Path) -> str:
    """The message of a refused command: one line, before any output."""
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("openavs: ")
    assert len(done.err.splitlines()) == 1
    assert not out.exists()
    return str(done.err)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": {"fps": "fast"}}, "'sample.fps' must be a number, not 'fast' (text)"),
        ({"captioner": "clap"}, "'captioner' must be a section of keys and values, not 'clap' (text)"),
        ({"vocabulary": {"dog": 1}}, "'vocabulary' must be a list"),
        ({"filterng": {"max_boxes": 3}}, "there is no key 'filterng'; did you mean 'filtering'?"),
        ({"detector": {"use": "grounding-dyno"}}, "did you mean 'grounding-dino'?"),
        ({"detector": {"use": "./stages.py:Nose"}}, "there is no class 'Nose' in ./stages.py"),
        ({"segmenter": {"use": "sam"}}, "segmenter 'sam' needs the option 'model'"),
        ({"segmenter": {"use": "sam", "model": 3}}, "the option 'segmenter.model' must be text, not 3"),
    ],
)
def test_an_invalid_recipe_file(openavs: Run, video: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    recipe = write_recipe(tmp_path, **changes)
    assert said in refusal(openavs("segment", video, "-p", recipe, "--out", tmp_path / "out"), tmp_path / "out")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "does not exist; check the path"),
        ([], "it has no *.safetensors weights; copy or download the whole folder again"),
        (["model.safetensors"], "config.json is missing; copy or download the whole folder again"),
        (["config.json", "pytorch_model.bin"], "has pickle weights only (pytorch_model.bin)"),
        (["config.json", "model.safetensors"], "are damaged"),
    ],
)
def test_a_missing_incomplete_or_unsafe_model_folder(
    openavs: Run, video: Path, tmp_path: Path, files: list[str] | None, said: str
) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
    for name in files or ():
        (folder / name).write_text("{}")
    recipe = write_recipe(tmp_path, segmenter={"use": "sam", "model": str(folder)})
    sentence = refusal(openavs("segment", video, "-p", recipe, "--out", tmp_path / "out"), tmp_path / "out")
    assert said in sentence
    assert str(folder) in sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.mp4",), "absent.mp4 does not exist; check the name"),
        (("tiny", "good.mp4"), "tiny does not exist; the recipe is named with --pipeline tiny"),
        (("good.mp4", "absent.mp4"), "absent.mp4 does not exist; check the name"),
        (("good.mp4", "--audio", "absent.wav"), "absent.wav does not exist; check the name"),
        (("https://example.com/v.mp4",), "https://example.com/v.mp4 is an address, and openavs reads files only"),
        (("good.mp4", "--audio", "https://a.org/b.wav"), "https://a.org/b.wav is an address, and openavs reads"),
        (("good.mp4", "filtering.box_threshold"), "recipe key without a value; write filtering.box_threshold=VALUE"),
        (("good.mp4", "detector.model", "x"), "recipe key without a value; write detector.model=VALUE"),
        (("good.mp4", "detector." + "a" * 5000), "without a value"),
        (("good.mp4", "--vocab", ""), "'vocabulary' is empty; name at least one thing"),
        (("good.mp4", "-p", "./absent.yaml"), "the recipe file './absent.yaml' does not exist"),
        (("good.mp4", "--lock", "absent/openavs.lock"), "the folder of the lock file"),
        (("good.mp4", "--out", "good.mp4/out"), "cannot make the output folder"),
    ],
)
def test_missing_files_and_names(
    openavs: Run, video: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(video.parent)
    write_recipe(video.parent)
    shared = [*(() if "-p" in words else ("-p", "recipe.yaml")), *(() if "--out" in words else ("--out", "out"))]
    assert said in refusal(openavs("segment", *words, *shared), video.parent / "out")


@pytest.mark.parametrize(
    ("sound", "said"), [("nan.wav", "NaN"), ("notes.mp4", "cannot be read"), ("mute.mp4", "has no audio")]
)
def test_an_unusable_audio_file(openavs: Run, video: Path, tmp_path: Path, sound: str, said: str) -> None:
    nan = tone(1)
    nan[0, 100] = np.inf
    make_media(tmp_path / "nan.wav", sound=nan, sound_codec="pcm_f32le")
    make_media(tmp_path / "mute.mp4", [gray(0)] * 5)
    (tmp_path / "notes.mp4").write_text("not a video")
    words = ("segment", video, "--audio", tmp_path / sound, "-p", write_recipe(tmp_path), "--out", tmp_path / "out")
    done = openavs(*words, "--json")
    assert done.code == 1
    assert said in done.json()["clips"][0]["reason"]
    assert not (tmp_path / "out" / "clips").exists()


# ----------------------------------------------------------------------------------------------- existing outputs


def test_a_second_video_of_the_same_name_is_kept_apart(openavs: Run, video: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_media(tmp_path / "other" / video.name, [gray(0)] * 5, sound=tone(1))
    shared = ("-p", write_recipe(tmp_path), "--out", tmp_path / "out")
    openavs("segment", video, *shared)
    before = (tmp_path / "out" / "clips" / "good" / "result.json").read_bytes()
    done = openavs("segment", other, *shared)
    assert done.code == 2
    assert f"already holds 'good' made from {video}, not {other}" in done.err
    assert (tmp_path / "out" / "clips" / "good" / "result.json").read_bytes() == before


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="needs a folder in which nobody may write")
def test_a_read_only_output_folder_is_one_sentence(openavs: Run) -> None:
    done = openavs("synth", "clip", "--out", "/sys/clip.mp4", "--seconds", "2", "--size", "32x32")
    assert done.code == 2
    assert "cannot be read or written" in done.err
    assert len(done.err.splitlines()) == 1
