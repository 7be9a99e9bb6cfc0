"""A corpus of hostile media: each file is a clip that works or one sentence, within limits of time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.media import corpus_bytes, corpus_streams, corpus_tricks
from tests.media.corpus_streams import Make, plain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")

SECONDS = 60.0  # of one file; the slowest takes one on a quiet machine
MEGABYTES = 900  # of address space that one file may take beyond what the process has
RESIDENT = 300  # MB beyond what the process has; measured: see docs/media.md

Outcome = dict[str, Any]
TRIED: list[Outcome] = []


class _Counter(BaseHTTPRequestHandler):
    hits = 0

    def handle(self) -> None:
        type(self).hits += 1


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server on this machine that counts connections; none are allowed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Counter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good video and a trap: a pipe that blocks the process that opens it."""
    folder = tmp_path_factory.mktemp("hostile")
    plain(folder / "good.mp4")
    os.mkfifo(folder / "trap.mp4")
    return folder


def tried(folder: Path, lines: list[dict[str, str]]) -> dict[str, Outcome]:
    """The outcome of each, in processes with limits."""
    command = [sys.executable, "-m", "tests.media.attempts", str(folder), str(SECONDS), str(MEGABYTES)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(lines)
    return {answer["name"]: answer for answer in answers}


def made(folder: Path, table: Mapping[str, Make]) -> list[dict[str, str]]:
    """Writes the files of a table, each in a folder of its own beside the good video and the trap."""
    for name, make in table.items():
        make(folder / name)
    return [{"name": name, "path": name} for name in table]


def check(outcomes: Mapping[str, Outcome], *, allowed: tuple[str, ...] = ("clip", "refused")) -> None:
    """No crash, no hang, one sentence, and no more memory than the limit."""
    TRIED.extend(outcomes.values())
    wrong = [f"{name}: {one}" for name, one in outcomes.items() if not _fine(one, allowed)]
    assert not wrong, "\n".join(wrong)


def _fine(one: Outcome, allowed: tuple[str, ...]) -> bool:
    said = one.get("said", "")
    sentence = one["outcome"] != "refused" or ("\n" not in said and "Errno" not in said and 20 < len(said) < 500)
    return one["outcome"] in allowed and sentence and one["megabytes"] - one["base"] < RESIDENT


def test_unusual_media_that_a_muxer_can_write_work(folder: Path) -> None:
    outcomes = tried(folder, made(folder, corpus_streams.streams()))
    check(outcomes, allowed=("clip",))
    assert all(one["frames"] for one in outcomes.values())
    assert outcomes["two_videos.mkv"]["size"] == [48, 64]
    assert outcomes["resized.ts"]["size"] == [48, 64]
    assert outcomes["turned90.mp4"]["size"] == [64, 48]
    assert outcomes["short_sound.mkv"]["sound"] == pytest.approx(0.1)
    assert outcomes["late_sound.mkv"]["sound"] == pytest.approx(51, abs=0.1)


@pytest.mark.long
def test_damaged_files_give_their_intact_part_and_a_warning(folder: Path) -> None:
    outcomes = tried(folder, made(folder, corpus_bytes.damaged()))
    check(outcomes)
    cut = {name: one for name, one in outcomes.items() if name.startswith("cut") and name.endswith(".mp4")}
    assert sum(one["outcome"] == "clip" for one in cut.values()) >= 15
    assert all(one["notes"] for one in cut.values() if one["outcome"] == "clip")
    assert all(one["outcome"] == "refused" for name, one in outcomes.items() if name.startswith("noise"))


def test_headers_that_lie_are_refused_or_found_out(folder: Path) -> None:
    outcomes = tried(folder, made(folder, corpus_bytes.lies()))
    check(outcomes)
    assert outcomes["secretly_huge.mov"]["outcome"] == "refused"
    assert outcomes["grows_huge.mov"]["frames"] and "damaged" in outcomes["grows_huge.mov"]["logged"][0]
    assert "jumps ahead by" in outcomes["day_of_silence.mkv"]["notes"][0]
    for name in ("64000000_samples_of_1.mp4", "2147483647_samples_of_1.mp4", "20_indexes.mp4", "fragment.mp4"):
        assert "samples of sound or pictures in" in outcomes[name]["said"]  # gigabytes, if the header were trusted


@pytest.mark.long
def test_sounds_beside_a_picture(folder: Path) -> None:
    corpus_tricks.pictures()["cut95.bmp"](folder / "beside.bmp")
    (folder / "beside.png").write_bytes(corpus_tricks.png(side=64))
    lines = made(folder, corpus_bytes.sounds())
    outcomes = tried(folder, [{"name": line["name"], "path": "beside.png", "audio": line["path"]} for line in lines])
    check(outcomes)
    for name in ("rate_1.wav", "rate_10_million.wav", "rate_2e9.wav"):
        assert "outside of the limits of 1000 and 768000" in outcomes[name]["said"]
    for name in ("nan.wav", "inf.wav"):
        assert f"{name} has NaN or infinite samples" in outcomes[name]["said"]
    assert outcomes["loud.wav"]["outcome"] == outcomes["bits_64.wav"]["outcome"] == "clip"


def test_no_playlist_is_followed(folder: Path, port: int) -> None:
    web = f"http://127.0.0.1:{port}/a.mp4"
    targets = {"near": "good.mp4", "far": str(folder / "good.mp4"), "web": web, "trap": str(folder / "trap.mp4")}
    outcomes = tried(folder, made(folder, corpus_tricks.playlists(targets)))
    check(outcomes, allowed=("refused",))
    assert _Counter.hits == 0


def test_a_reference_to_another_file_is_not_followed(folder: Path) -> None:
    table: dict[str, Make] = {
        f"reference_{name}.mov": lambda path, name=name: corpus_tricks.reference_mp4(str(folder / f"{name}.mp4"), path)
        for name in ("good", "trap")
    }
    check(tried(folder, made(folder, table)))


def test_addresses_are_not_files(folder: Path, port: int) -> None:
    addresses = corpus_tricks.addresses(folder, port)
    outcomes = tried(folder, [{"name": f"{i} {name[:40]}", "path": name} for i, name in enumerate(addresses)])
    check(outcomes, allowed=("refused",))
    assert _Counter.hits == 0
    assert "not a regular file" in tried(folder, [{"name": "trap", "path": "trap.mp4"}])["trap"]["said"]


def test_names_are_names_whatever_they_say(folder: Path) -> None:
    good = (folder / "good.mp4").read_bytes()
    for name in corpus_tricks.NAMES:
        (folder / name).write_bytes(good)
    outcomes = tried(folder, [{"name": name, "path": name} for name in corpus_tricks.NAMES])
    check(outcomes, allowed=("clip",))
    assert {one["frames"] for one in outcomes.values()} == {4}


@pytest.mark.long
def test_pictures_that_are_bombs(folder: Path) -> None:
    outcomes = tried(folder, made(folder, corpus_tricks.pictures()))
    check(outcomes)
    for name in ("huge.png", "claims_60000.png", "gif.png", "tiff.jpg", "svg.png", "postscript.jpg"):
        assert outcomes[name]["outcome"] == "refused"


def test_other_files_under_the_name_of_a_video(folder: Path) -> None:
    outcomes = tried(folder, made(folder, corpus_tricks.misnamed()))
    assert outcomes.pop("mp4.wav")["outcome"] == "clip"  # the content counts, among the kinds that are read
    check(outcomes, allowed=("refused",))
