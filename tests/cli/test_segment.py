"""`openavs segment` as a user runs it, on what they may give it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.media.audio import read_audio, write_wav
from openavs.media.clip import probe
from openavs.media.encode import write_video
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.pipeline.offload import OffloadManager
from openavs.pipeline.pipeline import Pipeline
from openavs.results.result import read_result
from openavs.structures.types import Waveform
from openavs.synthetic.datasets import scene_frames, write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.jobs.pool import recipe, tree, videos
from tests.plugin_recipe import write_recipe

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds: a dog barks beside a silent bell."""
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    parts = [Role("dog", (True, True)), Role("bell", (False, False))]
    write_clip(path, plan_scene(parts, scene_rng("test", 40), 2, (160, 208)), fps=10)
    return path


def gray(count: int = 20, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    return [np.full((*size, 3), 128, dtype=np.uint8)] * count


def noise(seconds: float = 2.0) -> Waveform:
    samples = np.random.default_rng(0).normal(0, 0.1, int(16000 * seconds)).clip(-1, 1)
    return Waveform(samples.astype(np.float32), 16000)


@pytest.mark.parametrize(
    ("gpu", "words", "said"),
    [
        (False, (), "recipe openavs-cpu, the default for this machine (no GPU, 16.0 GB of memory)"),
        (True, ("--device", "cpu"), "recipe openavs-cpu, the default for this machine (no GPU, 16.0 GB of memory)"),
        (True, (), "recipe openavs, the default for this machine (a GPU)"),
    ],
)
def test_the_default_recipe_is_said_in_one_line(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, words: Any, said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("openavs.pipeline.memory_estimate.has_gpu", lambda: gpu)
    monkeypatch.setattr("openavs.pipeline.memory_estimate.total_memory", lambda: int(16e9))
    done = openavs("segment", video, "--offline", "--out", tmp_path / "out", *words)
    assert done.err.splitlines()[0].startswith(f"openavs: {said}; choose another with --pipeline")
    assert done.code == 2  # its models are not here
    assert said not in openavs("segment", video, "--offline", "--out", tmp_path / "out", "--quiet", *words).err


def test_all_missing_models_are_named_at_once_with_their_downloads(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    done = openavs("segment", video, "--pipeline", "sam3", "--device", "cpu", "--offline", "--out", tmp_path / "out")
    assert done.code == 2 and not (tmp_path / "out").exists()
    gated, absent, *commands, last = done.err.splitlines()
    assert "sam3@main is gated" in gated and "hf auth login" in gated
    assert absent.endswith("3 of 3 models are not on this disk, and offline mode forbids downloads (about 12.1 GB)")
    checked = openavs("check", "--pipeline", "sam3", "--offline", "--json").json()["recipes"][0]["models"]
    assert [line.strip() for line in commands] == [model["download"] for model in checked]
    assert "openavs check --pipeline sam3" in last


def test_a_folder_of_videos_is_segmented_and_a_second_run_loads_no_model(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for name in ("b.mp4", "more/a.MP4"):
        (folder / name).write_bytes(video.read_bytes())
    (folder / "notes.txt").write_text("not a video")
    words = ("segment", folder, "--pipeline", "tiny", "--out", tmp_path / "out")
    first = openavs(*words)
    assert first.code == 0 and f"openavs: {folder} holds 2 videos\n" in first.err
    clips = [line for line in first.out.splitlines() if line.startswith("clip ")]
    assert [line.partition(": captions")[0] for line in clips] == ["clip 1 of 2, b", "clip 2 of 2, a"]
    assert clips[0].endswith(" left)") and "a: why: dog <- dog barking 1.00" in first.out.splitlines()
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    again = openavs(*words)
    assert again.code == 0 and again.out.count(", already done -> ") == 2
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert f"openavs: all clips of {tmp_path / 'out'}: {tmp_path / 'out' / 'index.html'}\n" in first.err
    assert page.count('href="clips/a/report.html"') == page.count('href="clips/b/report.html"') == 1
    assert page.count("data:image/jpeg;base64,") == 2 and "<div>dog 0." in page


def test_the_page_of_a_run_follows_a_correction(openavs: Run, video: Path, tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(video.read_bytes())
    out = tmp_path / "out"
    assert openavs("segment", tmp_path / "a.mp4", tmp_path / "b.mp4", "--pipeline", "tiny", "--out", out).code == 0
    before = (out / "index.html").read_text("utf-8")
    rename = json.dumps({"action": "rename", "track": 0, "value": "puppy"})
    assert openavs("correct", out / "clips" / "b", rename).code == 0
    page = (out / "index.html").read_text("utf-8")
    assert "puppy" not in before and page.count("<div>puppy 0.") == 1 and page.count("<div>dog 0.") == 1
    old, new = (re.findall('src="(data:[^"]+)"', text) for text in (before, page))
    assert old[0] == new[0] and old[1] != new[1]  # the picture of the other clip was not made again


def test_a_warning_that_all_clips_share_is_printed_once() -> None:
    code = (
        "from openavs.cli.output import configure_logging\nfrom openavs.pipeline.context import RunContext\n"
        "configure_logging()\n"
        "for clip in 'ab':\n    for text in ('shared', f'of {clip}'):\n        RunContext(clip=clip).warn(text)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["openavs: a: shared", "openavs: a: of a", "openavs: b: of b"]


def test_a_folder_without_videos_fails_alone(openavs: Run, video: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "notes.txt").write_text("text")
    done = openavs("segment", folder, video, "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    assert [clip["status"] for clip in done.json()["clips"]] == ["failed", "ok"]
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "<span>found</span> 1" in page and "<span>failed</span> 1" in page and "has no images" in page
    assert "has no images (png, jpg, bmp, webp) and no videos (mp4, " in done.err


def test_files_are_opened_before_models_are_loaded(
    openavs: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failures are recorded as those of any other run, and a repaired file is done by the next one."""
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "notes.mp4").write_text("not a video")
    write_video(tmp_path / "mute.mp4", gray(), 10)
    out = tmp_path / "out"
    words = ("segment", tmp_path / "notes.mp4", tmp_path / "mute.mp4", "--pipeline", "tiny", "--out", out, "--json")
    assert [clip["status"] for clip in openavs(*words).json()["clips"]] == ["failed", "failed"]
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {"mute": "no_sound", "notes": "unreadable"}
    monkeypatch.undo()
    write_video(tmp_path / "notes.mp4", gray(), 10, noise())
    assert [clip["status"] for clip in openavs(*words).json()["clips"]] == ["ok", "failed"]


def test_threshold_fps_and_track_change_the_recipe(openavs: Run, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("segment", video, "--pipeline", "tiny", "--threshold", "0.3", "--fps", "2", "--track", "--out", out)
    assert openavs(*words).code == 0
    result = read_result(out)
    made = result.recipe
    assert (made["filtering"]["box_threshold"], made["sample"]["fps"], made["tracker"]) == (0.3, 2.0, {"use": "iou"})
    assert len(result.frames) == 4 and {s.track for frame in result.frames for s in frame.segments} <= {0, 1}
    assert "filtering.box_threshold" in openavs(*words[:4], "--threshold", "3", "--out", out).err


def results(out: Path) -> dict[str, Any]:
    """The results in a folder without their times."""
    found = {path.parent.name: json.loads(path.read_bytes()) for path in out.glob("clips/*/result.json")}
    return {name: {**result, "timings": None} for name, result in found.items()}


def test_models_that_do_not_fit_together_are_offloaded(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The results are the same; each group of stages is loaded for all videos and not for each."""
    write_video(tmp_path / "silent.mp4", gray(), fps=10, audio=Waveform(np.zeros(32000, np.float32), 16000))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    second = shutil.copy(video, tmp_path / "second.mp4")
    words = ("segment", video, tmp_path / "broken.mp4", tmp_path / "silent.mp4", second, "--pipeline", "tiny", "--out")
    whole = openavs(*words, tmp_path / "whole", "--json")
    monkeypatch.setenv("OPENAVS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "openavs.pipeline.memory_estimate.free_memory", lambda place: estimate_memory(load_recipe("tiny"))[1]
    )
    made: list[OffloadManager] = []
    init = OffloadManager.__init__
    monkeypatch.setattr(OffloadManager, "__init__", lambda self, checked: (init(self, checked), made.append(self))[0])
    turned = openavs(*words, tmp_path / "turned", "--lock", tmp_path / "openavs.lock", "--json")

    assert "so they are loaded one group at a time" in caplog.text
    assert (whole.code, turned.code) == (1, 1) and whole.json()["failed"] == turned.json()["failed"] == 1
    assert results(tmp_path / "turned") == results(tmp_path / "whole") != {}
    [turns] = made
    assert turns.most == 3 and turns.loads["captioner"] == 1  # last to be loaded at the start
    assert all(turns.loads[stage] == 2 for stage in ("translator", "detector", "segmenter"))


def test_a_recipe_that_cannot_fit_is_refused_before_anything_is_loaded(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: int(8e9))
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    done = openavs("segment", video, "--pipeline", "openavs", "--device", "cpu", "--out", tmp_path / "out")
    assert done.code == 2
    assert re.fullmatch(
        r"openavs: the recipe openavs needs \d+\.\d GB even if its models are loaded one group at a time, "
        r"and 8\.0 GB of this machine's memory are free; use --pipeline openavs-cpu, which needs \d\.\d GB\n",
        done.err,
    )
    assert not (tmp_path / "out").exists() and not (tmp_path / "empty").exists()


def test_a_video_becomes_a_result_folder(openavs: Run, video: Path, tmp_path: Path) -> None:
    done = openavs("segment", video, "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    answer = done.json()
    assert (answer["ok"], answer["failed"]) == (1, 0)
    clip = answer["clips"][0]
    assert clip["captions"][0]["text"] == "dog barking"
    assert [thing["text"] for thing in clip["found"]] == ["dog"]

    folder = tmp_path / "out" / "clips" / "dog"
    assert {path.name for path in folder.iterdir()} == {
        "masks",
        "overlay.mp4",
        "report.html",
        "result.json",
        "video.mp4",
    }
    names = {"clips", "index.jsonl", "log", "manifest.jsonl", "run.json", "work", ".lock"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    masks = sorted((folder / "masks").iterdir())
    assert [path.name for path in masks] == ["00000.png", "00001.png"]
    assert Image.open(masks[0]).mode == "P"
    assert set(np.unique(np.asarray(Image.open(masks[0])))) == {0, 1}
    sound, source = read_audio(folder / "overlay.mp4"), read_audio(video)
    assert sound is not None
    assert source is not None
    assert sound.dbfs == pytest.approx(source.dbfs, abs=0.5)
    assert probe(folder / "overlay.mp4").duration == pytest.approx(probe(video).duration, abs=0.15)
    assert "dog barking" in (folder / "report.html").read_text(encoding="utf-8")


def test_running_again_redoes_nothing(openavs: Run, video: Path, tmp_path: Path) -> None:
    command = ("segment", video, "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    first = openavs(*command).json()
    result = tmp_path / "out" / "clips" / "dog" / "result.json"
    before = result.stat().st_mtime_ns
    again = openavs(*command).json()
    assert result.stat().st_mtime_ns == before
    assert again["clips"][0]["found"] == first["clips"][0]["found"]
    said = openavs(*command[:-1])
    assert "found dog (" in said.out and "in 2 of 2 frames, already done ->" in said.out
    assert "trained on synthetic clips only" in said.err


def test_another_recipe_in_the_same_folder_is_refused(openavs: Run, video: Path, tmp_path: Path) -> None:
    openavs("segment", video, "--pipeline", "tiny", "--out", tmp_path / "out")
    other = openavs("segment", video, "filtering.box_threshold=0.5", "--pipeline", "tiny", "--out", tmp_path / "out")
    assert other.code == 2
    assert "filtering.box_threshold" in other.err
    assert len(other.err.strip().splitlines()) == 1


def test_a_sentence_is_the_prompt(openavs: Run, video: Path, tmp_path: Path) -> None:
    command = ("segment", video, "--pipeline", "tiny", "--out", tmp_path / "out", "--refer", "the dog", "--json")
    [clip] = openavs(*command).json()["clips"]
    result = json.loads((Path(clip["folder"]) / "result.json").read_text())
    assert {prompt["phrase"] for frame in result["frames"] for prompt in frame["prompts"]} == {"the dog"}
    refused = openavs(*command[:-3], "--refer", " ")
    assert refused.code == 2 and "--refer is empty; write a sentence" in refused.err


def test_a_vocabulary_makes_class_masks(openavs: Run, video: Path, tmp_path: Path) -> None:
    command = ("segment", video, "--pipeline", "tiny", "--out", tmp_path / "out", "--vocab", "bell,dog", "--json")
    assert openavs(*command).json()["clips"][0]["found"][0]["text"] == "dog"
    mask = np.asarray(Image.open(tmp_path / "out" / "clips" / "dog" / "masks" / "00000.png"))
    assert set(np.unique(mask)) == {0, 2}  # dog is the second of the vocabulary


def test_the_sound_may_come_from_another_file(openavs: Run, video: Path, tmp_path: Path) -> None:
    mute, wav = tmp_path / "mute.mp4", tmp_path / "bark.wav"
    parts = [Role("dog", (True, True)), Role("bell", (False, False))]
    scene = plan_scene(parts, scene_rng("test", 40), 2, (160, 208))
    write_video(mute, (scene.picture(i / 10)[0] for i in range(20)), 10)
    write_wav(wav, scene.soundtrack())
    command = ("segment", mute, "--audio", wav, "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    clip = openavs(*command).json()["clips"][0]
    assert [thing["text"] for thing in clip["found"]] == ["dog"]
    sound = read_audio(tmp_path / "out" / "clips" / "mute" / "overlay.mp4")
    assert sound is not None
    assert sound.dbfs > -40


def test_a_folder_of_pictures_with_a_wav(openavs: Run, tmp_path: Path) -> None:
    parts = [Role("horse", (True,) * 3)]
    scene = plan_scene(parts, scene_rng("test", 41), 3)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, (image, _) in enumerate(scene_frames(scene)):
        Image.fromarray(image).save(folder / f"frame{i}.png")
    write_wav(tmp_path / "horse.wav", scene.soundtrack())
    command = ("segment", folder, "--audio", tmp_path / "horse.wav", "--pipeline", "tiny", "--out", tmp_path / "out")
    clip = openavs(*command, "--json").json()["clips"][0]
    assert clip["frames"] == 3
    assert [thing["text"] for thing in clip["found"]] == ["horse"]


def test_good_videos_are_done_beside_bad_ones(openavs: Run, video: Path, tmp_path: Path) -> None:
    text, mute = tmp_path / "notes.mp4", tmp_path / "mute.mp4"
    text.write_text("not a video")
    write_video(mute, gray(), 10)
    done = openavs("segment", text, mute, video, "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    assert done.code == 1
    answer = done.json()
    assert [clip["status"] for clip in answer["clips"]] == ["failed", "failed", "ok"]
    assert "notes.mp4" in answer["clips"][0]["reason"]
    assert "no sound track" in answer["clips"][1]["reason"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert {line["id"]: line["status"] for line in lines} == {"dog": "ok", "mute": "failed", "notes": "failed"}
    assert {path.name for path in (tmp_path / "out" / "clips").iterdir()} == {"dog"}
    assert "Traceback" not in done.err


def test_a_video_for_which_memory_runs_out_is_named_and_the_next_one_is_done(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from openavs.stages.segmenters.sam import SamSegmenter

    segment, errors = SamSegmenter.segment, [torch.OutOfMemoryError("CUDA out of memory")]

    def narrow(self: Any, images: Any, boxes: Any) -> Any:
        if len(images) > 1 or errors:
            raise errors.pop() if len(images) == 1 else MemoryError
        return segment(self, images, boxes)

    monkeypatch.setattr(SamSegmenter, "segment", narrow)
    (tmp_path / "other.mp4").write_bytes(video.read_bytes())
    words = ("segment", video, tmp_path / "other.mp4", "--pipeline", "tiny", "--out", tmp_path / "out", "--json")
    done = openavs(*words)
    assert done.code == 1
    first, second = done.json()["clips"]
    assert (first["status"], second["status"]) == ("failed", "ok")
    assert first["reason"].endswith(
        "not even one frame of this clip fits into memory beside the models; use a smaller model, dtype=bfloat16 or "
        "device=cpu"
    )


def test_a_name_that_is_not_valid_text_is_escaped_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    from openavs.cli.output import print_json

    print_json({"source": "caf\udce9.mp4", "of": "Straße"})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"source": "caf\udce9.mp4", "of": "Straße"}


def test_where_all_failed_nothing_is_said_of_the_models(openavs: Run, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("not a video")
    done = openavs("segment", tmp_path / "notes.mp4", "--pipeline", "tiny", "--out", tmp_path / "out")
    assert (done.code, done.out) == (1, "notes: failed\n")
    assert "notes.mp4" in done.err
    assert "synthetic clips" not in done.err


def test_silent_sound_gives_empty_masks_and_says_so(openavs: Run, tmp_path: Path) -> None:
    path = tmp_path / "hush.mp4"
    write_video(path, gray(), 10, Waveform(np.zeros(32000, dtype=np.float32), 16000))
    clip = openavs("segment", path, "--pipeline", "tiny", "--out", tmp_path / "out", "--json").json()["clips"][0]
    assert clip["status"] == "ok"
    assert clip["segments"] == 0
    assert "silent" in clip["warnings"][0]


def test_each_clip_is_reported_when_it_ends(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order of the videos, with those of an earlier run in their places."""
    from openavs.cli import segment as command

    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
    shared = ("--pipeline", "tiny", "--out", tmp_path / "out")
    assert openavs("segment", tmp_path / "b.mp4", *shared).code == 0
    events: list[str] = []
    call, echo = Pipeline.__call__, command.echo

    def watched(self: Any, clip: Any, progress: Any = None) -> Any:
        events.append(clip.id)
        return call(self, clip, progress)

    monkeypatch.setattr(Pipeline, "__call__", watched)
    monkeypatch.setattr(command, "echo", lambda text: (events.append(text[:14]), echo(text)))
    done = openavs("segment", *(tmp_path / f"{name}.mp4" for name in ("a", "b", "c")), *shared)
    assert done.code == 0
    assert [event for event in events if len(event) > 1] == ["clip 1 of 3, a", "clip 2 of 3, b", "clip 3 of 3, c"]
    assert events.index("clip 1 of 3, a") < len(events) - 2, "not at the end of all"
    assert ", already done ->" in done.out.splitlines()[2]


def test_an_interruption_says_how_many_clips_are_done_and_how_to_continue(
    openavs: Run, video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.mp4").write_bytes(video.read_bytes())
    call = Pipeline.__call__

    def interrupted(self: Any, clip: Any, progress: Any = None) -> Any:
        if clip.id == "other":
            raise KeyboardInterrupt
        return call(self, clip, progress)

    words = ("segment", video, tmp_path / "other.mp4", "--pipeline", "tiny", "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "__call__", interrupted)
        done = openavs(*words)
    assert done.code == 130
    assert done.out.startswith("clip 1 of 2, dog: captions dog barking")
    kept = f"1 of 2 clips done, their results are in {tmp_path / 'out'}"
    assert f"openavs: interrupted with {kept}; run the same command again to continue\n" in done.err
    status = [json.loads((tmp_path / "out" / "run.json").read_text())["status"]]
    assert openavs(*words).code == 0
    assert [*status, json.loads((tmp_path / "out" / "run.json").read_text())["status"]] == ["interrupted", "finished"]


def comparable(out: Path) -> dict[str, str]:
    """The files that must be the same; H.264 encoders differ in some bits from run to run."""
    skipped = (".mp4", "work/shards/")
    return {name: digest for name, digest in tree(out).items() if not any(part in name for part in skipped)}


def test_workers_write_the_same_bytes(openavs: Run, video: Path, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(video.read_bytes())
    words = ("segment", *(tmp_path / f"{name}.mp4" for name in ("a", "b", "c")), "--pipeline", write_recipe(tmp_path))
    one = openavs(*words, "--out", tmp_path / "one", "--json")
    two = openavs(*words, "--out", tmp_path / "two", "--workers", "2", "--json")
    assert [one.code, two.code] == [0, 0], two.err
    plain = ("id", "captions", "found", "frames", "segments")
    answers = [[{key: clip[key] for key in plain} for clip in done.json()["clips"]] for done in (one, two)]
    assert answers[0] == answers[1]
    assert comparable(tmp_path / "one") == comparable(tmp_path / "two")


EVENTS_AND_VERDICTS = '''
from dataclasses import replace

from openavs.structures.types import Event, Rejection, Verdict


class Timer:
    """A dog barks from 0.24 to 1.88 s."""

    def events(self, audio):
        return [Event("dog", 0.24, 1.88, 0.9, 25.0, (0.5, 0.9))]


class Judge:
    """The first frame is unresolved; in the others nothing fits the sound."""

    def verify_clip(self, frames, evidence):
        unresolved = Verdict("unresolved", 0.5, 0.03, None, "judge")
        for one in frames:
            if one.frame.index == 0:
                yield replace(one, segments=tuple(replace(s, verdicts=(unresolved,)) for s in one.segments))
            else:
                lost = tuple(Rejection(s.phrase, "off-screen", 0.1, s.box, 0.4, "judge") for s in one.segments)
                yield replace(one, segments=(), rejected=(*one.rejected, *lost))
'''


def test_events_and_verdicts_reach_every_output(openavs: Run, tmp_path: Path) -> None:
    write_video(tmp_path / "dog.mp4", gray(), 10, noise())
    stages = {"captioner": {"use": "./more.py:Timer"}, "verifier": {"use": "./more.py:Judge"}}
    (tmp_path / "more.py").write_text(EVENTS_AND_VERDICTS)
    words = ("segment", tmp_path / "dog.mp4", "--pipeline", write_recipe(tmp_path, **stages), "--out", tmp_path / "out")
    done = openavs(*words)
    assert done.out.splitlines()[1:] == [
        "dog: why: dog <- dog 0.90",
        "dog: dog unresolved in 1 of 2 frames: kept, the evidence is too weak",
        "dog: dog off-screen in 1 of 2 frames: nothing in the picture fits the sound",
    ], done.err
    (clip,) = openavs(*words, "--json").json()["clips"]  # read from the folder
    assert clip["caveats"] == {"unresolved": {"dog": 1}, "off-screen": {"dog": 1}}
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "index.jsonl").read_text().splitlines()]
    assert row["rejected"] == {"off-screen": 1}
    page = (tmp_path / "out" / "clips" / "dog" / "report.html").read_text("utf-8")
    assert "Sound dog: 0.24 to 1.88 s (0.90)" in page and "judge: unresolved" in page
    result = read_result(tmp_path / "out")
    assert [(event.onset, event.offset) for event in result.events] == [(0.24, 1.88)]
    assert result.frames[1].rejected[0].margin == 0.4
    assert "dog 0.24 to 1.88 s (0.90)" in result._repr_html_()
    result.save(tmp_path / "saved", overlay=False)
    assert read_result(tmp_path / "saved") == result
    assert openavs("export", "timeline", tmp_path / "saved", "--out", tmp_path / "csv").code == 0
    assert (tmp_path / "csv" / "events.csv").read_text().splitlines()[1].startswith("dog,,,sound,dog,0.9,,,,0.24,1.88")


def test_a_clip_that_crashes_its_worker_costs_that_clip_alone(openavs: Run, tmp_path: Path) -> None:
    folder = videos(tmp_path / "videos", 3, white=(1,))
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Fatal"})
    paths = sorted(folder.glob("*.mp4"))
    done = openavs("segment", *paths, "--pipeline", made, "--out", tmp_path / "out", "--workers", "2", "--json")
    assert done.code == 1
    assert [clip["status"] for clip in done.json()["clips"]] == ["ok", "failed", "ok"]
    assert "the worker crashed 2 times while it ran nothing but this clip" in done.json()["clips"][1]["reason"]


def test_warnings_name_their_clip_and_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    hush, text = tmp_path / "hush.mp4", tmp_path / "a\x1b]0;owned\x07\x1b[2J\rb\u202e\n.mp4"
    write_video(hush, gray(), 10, Waveform(np.zeros(32000, dtype=np.float32), 16000))
    text.write_text("not a video")
    command = [sys.executable, "-m", "openavs", "segment", text, hush, "-p", "tiny", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert "openavs: hush: the audio is silent throughout, so no frame has prompts\n" in done.stderr
    assert r"a\x1b]0;owned\x07\x1b[2J\rb\u202e\n.mp4" in done.stderr
    assert not {letter for letter in done.stdout + done.stderr if not letter.isprintable()} - {"\n"}
    assert all(line.startswith("openavs: ") for line in done.stderr.splitlines())


@pytest.mark.parametrize("size", [(1, 1), (3, 801), (600, 4)])
def test_pictures_of_any_shape(openavs: Run, tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "odd.png"
    Image.fromarray(np.full((*size, 3), 90, dtype=np.uint8)).save(path)
    write_wav(tmp_path / "a.wav", noise(1.0))
    done = openavs("segment", path, "--audio", tmp_path / "a.wav", "--pipeline", "tiny", "--out", tmp_path / "out")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_an_8k_picture(openavs: Run, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(np.full((4320, 7680, 3), 90, dtype=np.uint8)).save(path, compress_level=1)
    write_wav(tmp_path / "a.wav", noise(1.0))
    done = openavs("segment", path, "--audio", tmp_path / "a.wav", "--pipeline", "tiny", "--out", tmp_path / "out")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("absent.mp4",), "absent.mp4 does not exist"),
        (("--pipeline", "tiny"), "VIDEO"),
        (("{video}", "--pipeline", "tinny"), "tiny"),
        (("{video}", "filtering.box_treshold=0.3"), "box_threshold"),
        (("{video}", "filtering.box_threshold=high"), "must be a number"),
        (("{video}", "captioner.use=clapp"), "clap"),
        (("{video}", "captioner.topk=2"), "top_k"),
        (("{video}", "detector.model=./nowhere"), "nowhere"),
        (("{video}", "{video}", "--audio", "{video}"), "exactly one video"),
    ],
)
def test_wrong_usage_is_one_sentence(
    openavs: Run, video: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    given = [word.replace("{video}", str(video)) for word in words]
    pipeline = [] if "--pipeline" in given else ["--pipeline", "tiny"]
    done = openavs("segment", *given, *pipeline, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out" / "clips").exists() or not any((tmp_path / "out" / "clips").iterdir())
