"""Sources on an object store: the clips of a local source, with the same ids, names and sizes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openavs.errors import InputError
from openavs.jobs.job import Job
from openavs.jobs.loader import ClipError, ClipLoader, clip_loader
from openavs.jobs.sample import Sample
from openavs.labeling.open import open_source
from openavs.utils.objects import ObjectStore
from tests.jobs.stores import upload
from tests.media_files import gray, make_media, tone

URL = "memory://bucket/clips"


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = make_media(tmp_path_factory.mktemp("video") / "a.mp4", [gray(9)] * 4, fps=4, sound=tone(1))
    return path.read_bytes()


def tar(members: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return whole.getvalue()


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


FOLDER = {
    "b.mp4": b"1",
    "deep/down/a.MKV": b"22",
    "deep/b.webm": b"",
    ".hidden/c.mp4": b"",
    "notes.txt": b"",
    "n.wav": b"",
}
ROWS = [{"path": "x/a.mp4", "id": "one", "audio": "s.wav"}, {"video": "x/b.mp4", "group": "v2"}, {"id": "bad"}]
LISTED = {
    "clips.txt": b"x/a.mp4\nx/b.mp4\nx/absent.mp4\n",
    "clips.jsonl": "\n".join(map(json.dumps, ROWS)).encode(),
    "clips.csv": b"path,audio\nx/a.mp4,s.wav\n",
    "x/a.mp4": b"123",
    "x/b.mp4": b"",
    "s.wav": b"1",
}
TARS = {
    "0.tar": tar({"a.mp4": b"1" * 700, "a.wav": b"22", "a.json": b"{}", "../out.mp4": b"", "only.wav": b""}),
    "1.tar": tar({"deep/a.mp4": b"333"}),
}


@pytest.mark.parametrize(
    ("contents", "name"),
    [
        (FOLDER, ""),
        (FOLDER, "/deep/b.webm"),
        (FOLDER, "/*.mp4"),
        (FOLDER, "/**/*.[mw]*"),
        (LISTED, "/clips.txt"),
        (LISTED, "/clips.jsonl"),
        (LISTED, "/clips.csv"),
        (TARS, ""),
        (TARS, "/0.tar"),
        (TARS, "/?.tar"),
    ],
)
def test_a_source_holds_the_clips_of_the_local_one(contents: dict[str, bytes], name: str, tmp_path: Path) -> None:
    here = open_source(f"{write(tmp_path, contents)}{name}")
    there = open_source(f"{upload(tmp_path, URL)}{name}")
    assert there.samples == here.samples
    assert there.kind == here.kind
    assert (here.url, there.url) == (None, f"{URL}/deep" if name.startswith("/deep") else URL)
    notes = [note.replace("file that", "object that").replace("files that", "objects that") for note in here.notes]
    assert there.notes == tuple(note.replace(str(tmp_path), URL) for note in notes)


def test_addresses_in_a_list_are_names_below_it_and_others_are_rows_that_fail(tmp_path: Path) -> None:
    lines = [f"{URL}/x/a.mp4", "memory://other/b.mp4", "/etc/passwd", "../c.mp4"]
    upload(write(tmp_path, {"x/a.mp4": b"123", "l.txt": "\n".join(lines).encode()}), URL)
    found = {sample.path: sample for sample in open_source(f"{URL}/l.txt").samples}
    assert (found["x/a.mp4"].bytes, found["x/a.mp4"].problem) == (3, None)
    others = [sample for path, sample in found.items() if path != "x/a.mp4"]
    assert len(others) == 3
    assert all("is not below memory://bucket/clips" in str(sample.problem) for sample in others)


@pytest.mark.parametrize(
    ("contents", "name", "sentence"),
    [
        ({}, "", "holds no clips"),
        ({}, "/a.mp4", "a.mp4 does not exist; check the name"),
        ({"s4_meta_data.csv": b""}, "", "a benchmark is read from a folder"),
        ({"a.tar": b"#" * 2000}, "/a.tar", "cannot be read as a tar"),
        ({"a.tar.gz": b""}, "/a.tar.gz", "is compressed"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(
    contents: dict[str, bytes], name: str, sentence: str, tmp_path: Path
) -> None:
    upload(write(tmp_path, contents), URL)
    with pytest.raises(InputError, match=sentence):
        open_source(f"{URL}{name}")


def test_a_benchmark_needs_a_folder() -> None:
    with pytest.raises(InputError, match="download memory://bucket/clips and name the folder"):
        open_source(URL, benchmark="s4")


# ------------------------------------------------------------------------------------------------------------- loader


def loader(tmp_path: Path) -> ClipLoader:
    return clip_loader(Job(tmp_path / "out", "key", Path("/"), {}, source=URL), tmp_path / "scratch", 1.0)


def copies(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "scratch").rglob("*") if path.is_file())


def test_a_clip_is_copied_while_it_is_open(video: bytes, tmp_path: Path) -> None:
    ObjectStore(URL).put({"x/a.mp4": video})
    opens, sample = loader(tmp_path), Sample("a", "x/a.mp4")
    clip = opens.open(sample)
    assert (clip.source, len(list(clip.frames(range(1))))) == ("x/a.mp4", 1)
    assert copies(tmp_path) == ["a.mp4"]
    opens.close(sample)
    assert copies(tmp_path) == []


def test_a_sound_that_clips_share_is_kept_until_the_last_one_is_closed(video: bytes, tmp_path: Path) -> None:
    ObjectStore(URL).put({"a.mp4": video, "b.mp4": video, "s.mp4": video})
    opens = loader(tmp_path)
    first, second = (Sample(name, f"{name}.mp4", audio="s.mp4") for name in "ab")
    opens.open(first)
    opens.open(second)
    opens.close(first)
    assert copies(tmp_path) == ["b.mp4", "s.mp4"]
    opens.close(second)
    assert copies(tmp_path) == []


def test_of_a_tar_the_bytes_of_the_clip_are_copied(video: bytes, tmp_path: Path) -> None:
    ObjectStore(URL).put({"0.tar": tar({"a.mp4": video, "b.mp4": b"#" * 5000})})
    sample, other = open_source(f"{URL}/0.tar").samples
    opens = loader(tmp_path)
    assert opens.open(sample).source == "0.tar::a.mp4"
    assert copies(tmp_path) == ["a.mp4"]
    assert (tmp_path / "scratch/a.mp4").read_bytes() == video
    opens.close(sample)
    assert copies(tmp_path) == []
    with pytest.raises(ClipError, match=r"0\.tar::b.mp4 cannot be read as video") as caught:
        opens.open(other)
    assert caught.value.reason == "unreadable"
    assert sample.video_slice is not None
    cut = replace(sample, video_slice=replace(sample.video_slice, size=10**6))
    with pytest.raises(ClipError, match=r"0\.tar::a.mp4 is cut short: the tar ends within it") as caught:
        opens.open(cut)
    assert caught.value.reason == "unreadable"


@pytest.mark.parametrize(
    "sample", [Sample("a", "a.mp4"), Sample("a", "../a.mp4"), Sample("a", "there.mp4", audio="absent.wav")]
)
def test_a_missing_object_is_a_clip_that_fails_as_a_missing_file_does(
    sample: Sample, video: bytes, tmp_path: Path
) -> None:
    ObjectStore(URL).put({"there.mp4": video})
    (tmp_path / "local").mkdir()
    (tmp_path / "local/there.mp4").write_bytes(video)
    with pytest.raises(ClipError) as local:
        ClipLoader(tmp_path / "local", tmp_path / "s", 1.0).open(sample)
    with pytest.raises(ClipError) as stored:
        loader(tmp_path).open(sample)
    assert (
        (stored.value.reason, str(stored.value))
        == (local.value.reason, str(local.value))
        == ("missing", str(local.value))
    )
