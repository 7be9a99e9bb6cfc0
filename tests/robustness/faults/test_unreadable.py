"""A path that cannot be read is its clip's own failure; the other clips are done. The tests also hold for root."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from openavs.errors import InputError
from openavs.jobs.loader import ClipError, ClipLoader
from openavs.jobs.shard import run_shard
from openavs.labeling.open import open_source
from openavs.media.clip import open_clip
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import write_layout
from tests.conftest import Outcome
from tests.jobs.pool import planned
from tests.jobs.test_shard import chain
from tests.media_files import gray, make_media, tone

Openavs = Callable[..., Outcome]
LIST = "scandir" if sys.version_info >= (3, 13) else "listdir"  # what `Path.iterdir` calls
ERRNOS = [errno.EACCES, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG]


@pytest.fixture(params=ERRNOS, ids=lambda number: errno.errorcode[number])
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["stat", "open", "demux"])
def fail(request: pytest.FixtureRequest, number: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the system refuse every path that ends with a name, in one of three calls."""

    def make(name: str) -> None:
        owner, call = {"stat": (os, "stat"), "open": (io, "open"), "demux": (av, "open")}[request.param]
        monkeypatch.setattr(owner, call, refusing(getattr(owner, call), name, number))

    return make


def refusing(call: Callable[..., Any], name: str, number: int) -> Callable[..., Any]:
    """A call of the system that fails for every path that ends with a name."""

    def called(path: Any = ".", *args: Any, **options: Any) -> Any:
        if str(path).endswith(name):
            raise OSError(number, os.strerror(number), str(path))
        return call(path, *args, **options)

    return called


def odd_paths(folder: Path) -> Iterator[tuple[str, str]]:
    """Paths that no user can read, and what the system says of each."""
    yield str(folder / f"{'n' * 300}.mp4"), os.strerror(errno.ENAMETOOLONG)
    (folder / "loop.mp4").symlink_to("loop.mp4")
    yield str(folder / "loop.mp4"), os.strerror(errno.ELOOP)


def test_label_does_the_neighbors_of_unreadable_paths(
    openavs: Openavs, pool: Path, recipe: Path, tmp_path: Path
) -> None:
    odd = dict(odd_paths(tmp_path))
    paths = [str(pool / "v00.mp4"), *odd, str(pool / "v01.mp4")]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("".join(json.dumps({"id": f"c{n}", "path": path}) + "\n" for n, path in enumerate(paths)))
    words = ("label", manifest, "--pipeline", recipe, "--out", tmp_path / "out", "--workers", "1", "--json")
    done = openavs(*words)
    assert done.code == 1, done.err
    assert done.json()["reasons"] == {"unreadable": 2} and done.json()["ok"] == 2
    for reason in odd.values():
        assert f"cannot be read ({reason})" in done.err
    assert "written" not in done.err and "Traceback" not in done.err


def test_a_shard_does_the_neighbors_of_a_clip_that_the_system_refuses(
    pool: Path, recipe: Path, tmp_path: Path, fail: Callable[[str], None], number: int
) -> None:
    spec = planned(pool, recipe, tmp_path / "out", shard_size=6)[2][0]
    segment = chain(spec)
    fail("v02.mp4")
    mark = run_shard(spec, segment)
    assert mark is not None
    assert mark["reasons"] == {"unreadable": 1} and mark["counts"]["ok"] == 5
    assert mark["rows"][2]["detail"].startswith("v02.mp4 cannot be read")


def test_a_file_that_vanishes_before_it_is_decoded_is_missing(pool: Path, recipe: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("v00.mp4", "v01.mp4", "v02.mp4"):
        (source / name).write_bytes((pool / name).read_bytes())
    spec = planned(source, recipe, tmp_path / "out", shard_size=3)[2][0]
    segment = chain(spec)

    def vanishing(clip: Clip) -> ClipResult:
        if clip.id == "v01":
            (source / "v01.mp4").unlink()
        return segment(clip)

    mark = run_shard(spec, vanishing)
    assert mark is not None
    assert [row["reason"] for row in mark["rows"]] == [None, "missing", None]


def test_segment_does_the_neighbors_of_unreadable_paths(
    openavs: Openavs, pool: Path, recipe: Path, tmp_path: Path, fail: Callable[[str], None]
) -> None:
    fail("v01.mp4")
    odd = dict(odd_paths(tmp_path))
    paths = [pool / "v01.mp4", *odd, pool / "v00.mp4"]
    done = openavs("segment", *paths, "--pipeline", recipe, "--out", tmp_path / "out", "--json")
    assert done.code == 1, done.err
    assert [clip["status"] for clip in done.json()["clips"]] == ["failed"] * 3 + ["ok"]
    for reason in odd.values():
        assert f"cannot be read ({reason})" in done.err
    assert "written" not in done.err and "Traceback" not in done.err


def test_evaluate_does_the_neighbors_of_a_clip_that_the_system_refuses(
    openavs: Openavs, recipe: Path, tmp_path: Path, fail: Callable[[str], None]
) -> None:
    write_layout("s4", tmp_path / "data", {"test": 2}, seed=6)
    sounds = sorted((tmp_path / "data").glob("s4_data/audio_wav/**/*.wav"))
    fail(sounds[0].name)
    command = ("evaluate", "s4", "--root", tmp_path / "data", "--pipeline", recipe, "--out", tmp_path / "out")
    done = openavs(*command, "--json")
    assert done.code == 1, done.err
    assert [clip["id"] for clip in done.json()["failed"]] == [sounds[0].stem]
    assert "cannot be read" in done.err and "Traceback" not in done.err
    assert {path.name for path in (tmp_path / "out/clips").iterdir()} == {sounds[1].stem}


def test_a_word_that_is_too_long_for_a_file_name_is_an_override(openavs: Openavs, pool: Path, tmp_path: Path) -> None:
    long = f"vocabulary=[{','.join(f'thing{n}' for n in range(60))}]"
    done = openavs("segment", pool / "v00.mp4", "--pipeline", "tiny", "--out", tmp_path / "out", "--json", long)
    assert done.code == 0, done.err


def test_a_source_whose_name_is_too_long_is_one_sentence(openavs: Openavs, recipe: Path, tmp_path: Path) -> None:
    refused = openavs("label", "n" * 300, "--pipeline", recipe, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "does not exist" in refused.err and "Traceback" not in refused.err


@pytest.mark.parametrize(("call", "name"), [("stat", "bad.png"), (LIST, "pictures")])
def test_a_picture_or_folder_that_the_system_refuses_is_refused_in_a_sentence(
    tmp_path: Path, call: str, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(np.asarray(gray(1))).save(folder / "bad.png")
    sound = make_media(tmp_path / "sound.wav", sound=tone(1), sound_codec="pcm_s16le")
    monkeypatch.setattr(os, call, refusing(getattr(os, call), name, number))
    with pytest.raises(InputError, match="cannot be read"):
        open_clip(folder, audio=sound)


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_tar_that_the_system_refuses_fails_its_clip(
    tmp_path: Path, pool: Path, call: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(pool / "v00.mp4", "v00.mp4")
    source = open_source(str(tmp_path / "a.tar"))
    owner: Any = {"stat": os, "open": io}[call]
    monkeypatch.setattr(owner, call, refusing(getattr(owner, call), "a.tar", number))
    with pytest.raises(ClipError, match="cannot be read") as raised:
        ClipLoader(source.root, tmp_path / "scratch", 1.0).open(source.samples[0])
    assert raised.value.reason == "unreadable"
