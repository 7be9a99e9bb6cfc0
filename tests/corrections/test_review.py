"""The queue of uncertain clips, and receipts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from openavs.corrections.review import accept, assess, is_reviewed, review_queue
from openavs.errors import InputError
from openavs.jobs.checkpoint import read_completion
from openavs.jobs.job import RENDERED
from openavs.jobs.manifest import read_manifest
from openavs.jobs.save import save_result
from openavs.media.clip import open_clip, probe
from openavs.results.serialization import read_result, write_result
from openavs.structures.types import Caption, Prompt, Verdict
from openavs.utils.fs import stamp_file
from tests.conftest import Outcome
from tests.corrections.conftest import square, three_frames
from tests.media_files import gray, make_media, tone

Run = Callable[..., Outcome]


def sure(name: str) -> Any:
    frames = tuple(replace(f, segments=(square(f.index, score=0.9),)) for f in three_frames().frames)
    return replace(three_frames(name), frames=frames)


def test_the_least_certain_clip_is_first_with_its_reasons(tmp_path: Path) -> None:
    missing = tuple(replace(f, segments=(), prompts=(Prompt("dog"),)) for f in sure("lost").frames)
    verdict = Verdict("unresolved", 0.1, verifier="sync")
    doubted = tuple(replace(f, segments=(replace(f.segments[0], verdicts=(verdict,)),)) for f in sure("twins").frames)
    for result in (sure("a"), replace(sure("lost"), frames=missing), replace(sure("twins"), frames=doubted)):
        write_result(tmp_path, result)
    queue = review_queue(tmp_path)
    assert [item.clip for item in queue] == ["lost", "twins", "a"]
    assert queue[0].reasons[0] == "dog is in the sound and nothing is found (3 frames)"
    assert queue[1].reasons == ("the verifier could not decide about dog (3 frames)",)
    assert queue[2].uncertainty == 0 and queue[2].reasons == ()


def test_doubts_of_each_stage_add_up() -> None:
    prompt = (Prompt("dog", captions=(Caption("dog", 0.2, 0, 1),)),)
    weak = square(0, score=0.1, mask_score=0.5)
    frames = tuple(replace(f, segments=(weak,), prompts=prompt) for f in three_frames().frames)
    unsure = assess(replace(three_frames(), frames=frames, recipe={"filtering": {"box_threshold": 0.1}}))
    assert unsure.uncertainty == pytest.approx(0.15 + 0.10 + 0.04)
    assert [reason.split(" (")[0] for reason in unsure.reasons] == [
        "the segmenter is not sure of the mask of dog",
        "the detector is not sure of dog",
        "the captioner is not sure of dog",
    ]
    gap = replace(three_frames(), frames=(frames[0], replace(frames[1], segments=()), frames[2]))
    assert "dog is found before and after, but not there (1 frame)" in assess(gap).reasons
    double = replace(frames[1], segments=(weak, square(8)))
    assert (
        "the mask of dog is larger or smaller than in other frames (1 frame)"
        in assess(replace(three_frames(), frames=(frames[0], double, frames[2]))).reasons
    )
    own = tuple(replace(f, segments=(replace(weak, author="person"),)) for f in frames)
    assert assess(replace(three_frames(), frames=own)).uncertainty == 0, "a person's segments are certain"
    assert assess(replace(three_frames(), frames=())).uncertainty == 0


def test_a_reviewed_clip_leaves_the_queue_until_it_changes(folder: Path) -> None:
    out = folder.parent.parent
    receipt = accept(out, "clip", "Ada")
    assert receipt.by == "Ada" and review_queue(out) == []
    write_result(out, replace(read_result(out, "clip"), warnings=("changed",)), extras=None)
    assert not is_reviewed(out, "clip")
    accept(out, "clip", "Ada")
    (folder / "review.json").write_text("[]")
    with pytest.raises(InputError, match=r"review\.json is not a receipt"):
        review_queue(out)


def test_a_fifo_in_the_place_of_a_receipt_counts_as_no_receipt(folder: Path) -> None:
    os.mkfifo(folder / "review.json")
    assert not is_reviewed(folder.parent.parent, "clip")


def test_the_commands_queue_correct_and_accept(folder: Path, openavs: Run) -> None:
    out = folder.parent.parent
    [item] = openavs("review", out, "--json").json()["queue"]
    assert item["clip"] == "clip"
    record = json.dumps({"action": "rename", "track": 1, "value": "wolf"})
    done = openavs("correct", folder, record, '{"action": "reject", "track": 2, "frame": 0}', "--author", "Ada")
    assert (
        done.code == 0 and "clip: 2 corrections, 3 frames changed" in done.out and "track 1: wolf, 3 frames" in done.out
    )
    row = json.loads((out / "index.jsonl").read_text())
    assert row["prompts"] == ["wolf", "cat"] and row["rejected"] == {"person": 1}
    assert [c["author"] for c in openavs("correct", folder, "--json").json()["corrections"]] == ["Ada", "Ada"]
    assert openavs("review", out, "--accept", "clip", "--json").json() == {"clips": 1, "reviewed": 1, "queue": []}
    for words, sentence in {
        ("review", out, "--accept", "none"): "has no finished clip 'none'; nothing was accepted",
        ("correct", folder, '{"frame": 1}'): "line 1 of the correction is not a correction; its keys are action",
        ("correct", folder.parent.parent): "is not a clip's folder; give OUT/clips/ID of a result folder",
        ("correct", folder, "lost.jsonl"): "lost.jsonl cannot be read as corrections",
        ("correct", folder, '{"action": "reject", "frame": 9, "track": 1}'): "has no frame 9",
    }.items():
        refused = openavs(*words)
        assert refused.code == 2 and sentence in refused.err


def test_the_overlay_and_the_report_follow_a_correction(
    tmp_path: Path, openavs: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    video = make_media(tmp_path / "clip.mp4", [gray(i, (20, 30)) for i in range(6)], fps=2)
    sound = make_media(tmp_path / "sound.wav", sound=tone(3, 16000), rate=16000, sound_codec="pcm_s16le")
    source = partial(open_clip, video, fps=1.0, audio=sound)
    folder = save_result(tmp_path / "out", three_frames(), source, files=RENDERED)

    def stamps() -> dict[str, str]:
        return {name: stamp_file(folder / name) for name in (*RENDERED, "video.mp4")}

    before = stamps()
    record = json.dumps({"action": "rename", "track": 1, "value": "wolf"})
    assert openavs("correct", folder, record, "--no-render").code == 0 and stamps() == before
    assert openavs("correct", folder, "--render").code == 0
    after = stamps()
    assert {name for name in after if after[name] != before[name]} == {"overlay.mp4", "report.html"}
    assert "wolf" in (folder / "report.html").read_text() and probe(folder / "overlay.mp4").audio_codec
    manifest = read_manifest(tmp_path / "out")
    assert manifest and (completion := read_completion(tmp_path / "out", 0, manifest.key))
    assert {f"clips/clip/{name}": own for name, own in after.items()}.items() <= completion["files"]["clip"].items()

    exported = tmp_path / "coco.json"
    assert openavs("export", "coco", tmp_path / "out", "--out", exported).code == 0
    data = json.loads(exported.read_text())
    data["annotations"].pop()
    exported.write_text(json.dumps(data))
    assert openavs("import", "coco", exported, "--into", tmp_path / "out").code == 0
    last = stamps()
    assert last["overlay.mp4"] != after["overlay.mp4"] and last["video.mp4"] == before["video.mp4"]

    video.unlink()
    done = openavs("correct", folder, '{"action": "reject", "track": 1}')
    assert (done.code, len(done.err.splitlines()), stamps()) == (0, 1, last)
    assert (
        "show it before the correction (the source" in done.err and f"'openavs correct {folder} --render'" in done.err
    )
