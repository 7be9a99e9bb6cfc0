"""`openavs label`: the contract for scripts, and that nothing which happens to a job shows in what it leaves."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome
from tests.jobs.pool import label, recipe, tree, videos

Openavs = Callable[..., Outcome]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videos(tmp_path_factory.mktemp("pool") / "videos", 12)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe(tmp_path_factory.mktemp("quick"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """0.15 s a clip, so that there is something to interrupt."""
    return recipe(tmp_path_factory.mktemp("slow"), detector={"use": "./stages.py:Slow"})


def finished(process: subprocess.Popen[str]) -> Outcome:
    out, err = process.communicate(timeout=120)
    return Outcome(process.returncode, out, err)


def undisturbed(pool: Path, made: Path, shard_size: int, out: Path) -> dict[str, str]:
    """The tree of a job to which nothing happens."""
    assert finished(label(pool, "--pipeline", made, "--shard-size", shard_size, "--out", out)).code == 0
    return tree(out)


@pytest.fixture(scope="module")
def whole(pool: Path, quick: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The quick job's, in shards of three."""
    return undisturbed(pool, quick, 3, tmp_path_factory.mktemp("whole") / "out")


@pytest.fixture(scope="module")
def slow_whole(pool: Path, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The slow one's, in shards of two."""
    return undisturbed(pool, slow, 2, tmp_path_factory.mktemp("slow-whole") / "out")


def test_a_folder_from_start_to_end_and_again(openavs: Openavs, pool: Path, quick: Path, tmp_path: Path) -> None:
    words = ("label", pool, "--pipeline", quick, "--out", tmp_path / "out", "--shard-size", "5", "--json", "--stats")
    first = openavs(*words)
    answer = first.json()
    assert first.code == 0
    assert {key: answer[key] for key in ("clips", "ok", "failed", "left", "worked")} == {
        "clips": 12, "ok": 12, "failed": 0, "left": 0, "worked": 12,
    }  # fmt: skip
    assert answer["shards"] == {"planned": 3, "completed": 3}
    assert set(answer["stages"]) >= {"caption", "detect", "segment"}
    assert "of 12 clips" in first.err
    before = tree(tmp_path / "out")
    again = openavs(*words)
    assert (again.code, again.json()["worked"]) == (0, 0)
    assert tree(tmp_path / "out") == before
    import pyarrow.parquet as parquet

    table = parquet.read_table(tmp_path / "out/index.parquet").to_pylist()
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").open()]
    columns = ("id", "scores", "areas", "seconds")
    assert [[row[name] for name in columns] for row in table] == [[row[name] for name in columns] for row in rows]
    assert all(row["seconds"] > 0 for row in rows)


def test_another_recipe_or_source_is_refused_and_overwrite_starts_over(
    openavs: Openavs, pool: Path, quick: Path, tmp_path: Path
) -> None:
    source = tmp_path / "videos"
    shutil.copytree(pool, source)
    words = ("label", source, "--pipeline", quick, "--out", tmp_path / "out", "--quiet")
    assert openavs(*words, "--limit", "2").code == 0
    for more, named in (
        (("--limit", "2", "filtering.box_threshold=0.4"), "filtering.box_threshold"),
        (("--limit", "2", "--shard-size", "7"), "shard_size"),
        ((), "its source (10 clips more, such as v02), limit"),
    ):
        refused = openavs(*words, *more)
        assert refused.code == 2
        assert named in refused.err
    (source / "v00.mp4").write_bytes(b"another")
    assert "changed in size since, such as v00;" in openavs(*words, "--limit", "2").err
    anew = openavs(*words, "--limit", "2", "--overwrite", "--json")
    assert (anew.code, anew.json()["failed"]) == (1, 1)


def test_failures_are_named_and_can_be_tried_again(
    openavs: Openavs, pool: Path, quick: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    source = tmp_path / "videos"
    shutil.copytree(pool, source)
    good = (source / "v03.mp4").read_bytes()
    (source / "v03.mp4").write_bytes(good[:100])
    words = ("label", source, "--pipeline", quick, "--out", tmp_path / "out", "--json", "--shard-size", "3")
    failed = openavs(*words)
    assert failed.code == 1
    assert failed.json()["reasons"] == {"unreadable": 1}
    assert "clip v03: " in failed.err
    assert str(source) not in (tmp_path / "out/index.jsonl").read_text()
    assert openavs(*words).code == 1, "what failed is not tried again unasked"
    (source / "v03.mp4").write_bytes(good)
    refused = openavs(*words)
    assert (refused.code, "--retry-failed takes new files" in refused.err) == (2, True)
    retried = openavs(*words, "--retry-failed")
    assert (retried.code, retried.json()["worked"]) == (0, 1)
    assert tree(tmp_path / "out") == whole


def test_a_folder_of_damaged_files_names_the_first_and_counts_the_others(
    openavs: Openavs, quick: Path, tmp_path: Path
) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(22):
        (source / f"v{number:02}.mp4").write_bytes(b"no video")
    (source / "notes.txt").write_text("not a video, and not named as one")
    done = openavs("label", source, "--pipeline", quick, "--out", tmp_path / "out", "--workers", "1", "--stats")
    assert done.code == 1
    assert "skipped: 1 file that is not a video" in done.err
    assert done.err.count("openavs: clip v") == 20
    assert f"openavs: and 2 more clips failed (unreadable 22); see {tmp_path / 'out'}/index.jsonl" in done.err
    assert "0 of 22 clips labeled, 22 failed" in done.out
    assert "synthetic world" not in done.err
    assert "read and write" in done.out  # of the table of stages


def test_filters_drop_and_say_what(openavs: Openavs, pool: Path, quick: Path, tmp_path: Path) -> None:
    words = ("label", pool, "--pipeline", quick, "--out", tmp_path / "out", "--limit", "3", "--json")
    answer = openavs(*words, "label_filter.min_area=0.5", "label_filter.drop_empty=true").json()
    assert (answer["ok"], answer["filtered"]) == (0, 3)
    assert answer["rejected"] == {"label_filter.drop_empty": 3, "label_filter.min_area": 6}
    assert (tmp_path / "out/clips/v00/result.json").is_file()
    assert not (tmp_path / "out/labels").exists()
    said = openavs(*words[:-1], "label_filter.min_area=0.5", "label_filter.drop_empty=true").out
    assert "3 filtered (label_filter.drop_empty 3)\nrejected in frames: label_filter.min_area 6" in said


def test_labels_of_an_avsbench_root_score_as_predictions(openavs: Openavs, quick: Path, tmp_path: Path) -> None:
    write_layout("s4", tmp_path / "s4", {"train": 1, "val": 0, "test": 3})
    done = openavs("label", tmp_path / "s4", "--pipeline", quick, "--out", tmp_path / "out", "--quiet")
    assert done.code == 0
    scored = openavs(
        "score", "s4", "--root", tmp_path / "s4", "--predictions", tmp_path / "out/labels", "--json", "--quiet"
    )
    assert scored.code == 0
    assert scored.json()["clips"] == 3
    evaluated = openavs(
        "evaluate", "s4", "--root", tmp_path / "s4", "--pipeline", quick, "--out", tmp_path / "run", "--quiet", "--json"
    )
    assert evaluated.json()["metrics"] == scored.json()["metrics"]
    assert len(list((tmp_path / "out/labels/train").rglob("*.png"))) == 5, "every frame, not the annotated one alone"


def test_parts_of_a_job_array_make_the_whole(
    openavs: Openavs, pool: Path, quick: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    words = ("label", pool, "--pipeline", quick, "--shard-size", "3", "--json", "--quiet")
    first = openavs(*words, "--out", tmp_path / "out", "--shard-range", "1/3")
    assert first.code == 0
    assert first.json()["shards"] == {"planned": 4, "completed": 2}
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "stopped"
    for part in ("3/3", "2/3"):
        assert openavs(*words, "--out", tmp_path / "out", "--shard-range", part).code == 0
    assert tree(tmp_path / "out") == whole
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "finished"
    assert "from 1 to N" in openavs(*words, "--out", tmp_path / "out", "--shard-range", "0/3").err


@pytest.mark.long
@pytest.mark.faults
def test_a_job_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
    pool: Path, slow: Path, slow_whole: dict[str, str], tmp_path: Path
) -> None:
    assert kill_and_resume(pool, slow, tmp_path / "out", kills=4, shard_size=2) == slow_whole


@pytest.mark.faults
@pytest.mark.slow
def test_twenty_kills_in_two_hundred_clips(tmp_path: Path) -> None:
    source = videos(tmp_path / "videos", 10)
    for copy in range(1, 20):
        shutil.copytree(source, source / f"copy{copy}", ignore=shutil.ignore_patterns("copy*"))
    made = recipe(tmp_path / "r", detector={"use": "./stages.py:Slow"})
    words = (source, "--pipeline", made, "--shard-size", "5", "--quiet", "--workers", "2")
    assert finished(label(*words, "--out", tmp_path / "whole")).code == 0
    assert kill_and_resume(source, made, tmp_path / "out", kills=20, shard_size=5) == tree(tmp_path / "whole")


def kill_and_resume(source: Path, made: Path, out: Path, kills: int, shard_size: int) -> dict[str, str]:
    """The tree of a job that was killed this number of times and then left alone."""
    words = (source, "--pipeline", made, "--shard-size", shard_size, "--quiet", "--workers", "2", "--out", out)
    chance = random.Random(4)
    done = 0
    for _ in range(kills):
        process = label(*words)
        time.sleep(chance.uniform(0.5, 4.0))
        process.kill()
        process.communicate()
        done += process.returncode == -signal.SIGKILL
    assert done, "every run was over before it could be killed"
    last = finished(label(*words))
    assert last.code == 0, last.err
    return tree(out)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def clips_of(out: Path) -> int:
    return len(list(out.glob("clips/*/result.json")))


@pytest.mark.long
@pytest.mark.faults
def test_ctrl_c_once_ends_with_the_clips_at_work_and_twice_at_once(
    pool: Path, slow: Path, slow_whole: dict[str, str], tmp_path: Path
) -> None:
    words = (pool, "--pipeline", slow, "--shard-size", "2", "--workers", "1")
    out = tmp_path / "out"
    once = label(*words, "--out", out, "--json")
    wait_for(lambda: clips_of(out) >= 2)
    once.send_signal(signal.SIGINT)
    answer = finished(once)
    assert answer.code == 1
    assert "stopped" in answer.json()["problem"]
    assert 2 <= clips_of(out) < 12
    twice = label(*words, "--out", out)
    before = clips_of(out)
    wait_for(lambda: clips_of(out) > before)
    for _ in range(2):
        twice.send_signal(signal.SIGINT)
        time.sleep(0.05)
    ended = finished(twice)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert not list(out.rglob("*.part"))
    assert finished(label(*words, "--out", out)).code == 0
    assert tree(out) == slow_whole


@pytest.mark.faults
def test_two_jobs_on_one_folder_share_the_work(
    pool: Path, slow: Path, slow_whole: dict[str, str], tmp_path: Path
) -> None:
    words = (pool, "--pipeline", slow, "--shard-size", "2", "--workers", "1", "--json")
    jobs = [label(*words, "--out", tmp_path / "out") for _ in range(2)]
    wait_for(lambda: clips_of(tmp_path / "out") >= 1)
    for job in jobs:  # so that they hold their shards until the third has seen it, on any machine
        job.send_signal(signal.SIGSTOP)
    refused = finished(label(*words, "--out", tmp_path / "out", "--overwrite"))
    for job in jobs:
        job.send_signal(signal.SIGCONT)
    assert refused.code == 2
    assert "another job is at work" in refused.err
    answers = [finished(job) for job in jobs]
    assert [answer.code for answer in answers] == [0, 0], [answer.err for answer in answers]
    assert sum(answer.json()["worked"] for answer in answers) == 12, "no clip was done twice"
    assert all(answer.json()["ok"] == 12 for answer in answers)
    assert tree(tmp_path / "out") == slow_whole


@pytest.mark.faults
@pytest.mark.skipif("coverage" in sys.modules, reason="the tracer's own file would not fit either")
def test_a_full_disk_stops_the_job_and_nothing_is_half_written(
    pool: Path, quick: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    """A limit on the size of files stands for it: the third clip's result does not fit."""
    out = tmp_path / "out"
    words = (pool, "--pipeline", quick, "--workers", "1", "--shard-size", "3")

    def narrow() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))

    stopped = finished(label(*words, "--out", out, "--json", preexec_fn=narrow))
    assert stopped.code in (1, 2)
    assert "Traceback" not in stopped.err
    assert not list(out.rglob("*.part"))
    if (out / "work/manifest.json").exists():
        assert finished(label(*words, "--out", out)).code == 0
        assert tree(out) == whole


@pytest.mark.faults
@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(openavs: Openavs, pool: Path, quick: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    refused = openavs("label", pool, "--pipeline", quick, "--out", tmp_path / "locked/out")
    assert refused.code == 2
    assert "--out" in refused.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nothing-of-that-name",), "does not exist"),
        (("a", "b"), "name one source, not 2"),
        ((".", "--split", "test"), "--benchmark"),
        ((".", "label_filter.min_aera=0.1"), "did you mean 'min_area'"),
    ],
)
def test_wrong_usage_is_one_sentence(
    openavs: Openavs, quick: Path, tmp_path: Path, words: tuple[str, ...], sentence: str
) -> None:
    refused = openavs("label", *words, "--pipeline", quick, "--out", tmp_path / "out")
    assert refused.code == 2
    assert sentence in refused.err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_results_is_left_alone(openavs: Openavs, pool: Path, quick: Path, tmp_path: Path) -> None:
    (tmp_path / "out/labels/mine").mkdir(parents=True)
    refused = openavs("label", pool, "--pipeline", quick, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "other results" in refused.err
    assert (tmp_path / "out/labels/mine").is_dir()


def test_no_control_character_of_a_name_reaches_the_terminal(quick: Path, tmp_path: Path) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / "a\x1b]0;owned\x07\x1b[2J\r.mp4").write_text("no video")
    done = finished(label(tmp_path / "pool", "--pipeline", quick, "--out", tmp_path / "out"))
    assert done.code == 1
    assert r"\x1b]0;owned\x07" in done.err
    assert not {letter for letter in done.out + done.err if not letter.isprintable()} - {"\n"}


def test_a_job_whose_models_are_missing_is_refused_with_its_downloads_and_leaves_no_folder(
    openavs: Openavs, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("openavs.registry.instantiate", lambda *_: pytest.fail("a model was loaded"))
    words = ("label", pool, "-p", "openavs-cpu", "--device", "cpu", "--offline", "--workers", "2")
    done = openavs(*words, "--out", tmp_path / "out")
    assert done.code == 2 and not (tmp_path / "out").exists()
    assert "3 of 3 models are not on this disk, and offline mode forbids downloads (about 1.7 GB)" in done.err
    assert done.err.count("  hf download ") == 3


def test_the_plan_of_a_job_is_printed_once_while_clips_are_left(
    openavs: Openavs, pool: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("openavs.checks.plan.RunPlan.lines", lambda plan, frames: ["memory: as planned"])
    words = ("label", pool, "--pipeline", quick, "--out", tmp_path / "out")
    for limit, count in (("1", 1), ("1", 0)):
        assert openavs(*words, "--limit", limit).err.count("openavs: memory: as planned") == count
    assert "as planned" not in openavs(*words[:-1], tmp_path / "quiet", "--limit", "1", "--quiet").err
