"""Readers of label jobs: clips, and messages for entries that are not clips."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.jobs.loader import ClipError, ClipLoader
from openavs.jobs.sample import ByteRange, Sample, line_to_sample, sample_to_line
from openavs.jobs.shard import run_shard
from openavs.labeling.open import open_source
from openavs.synthetic.datasets import write_layout
from tests.jobs.pool import planned, recipe, videos
from tests.jobs.test_shard import chain
from tests.media_files import gray, make_media, tone


def empty(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_an_item_survives_its_line() -> None:
    items = [
        Sample("a", "a.mp4"),
        Sample("b", "x\udc80.mp4", name="b/\0", bytes=3, audio="b.wav", group="v2", classes=("dog", "cat")),
        Sample("c", "f", frames=("f/1.png",), places=("test/dog/c/c_1.png",), like="m.png"),
        Sample(
            "d",
            "s.tar",
            video_slice=ByteRange("d.mp4", 512, 9, ".mp4"),
            audio_slice=ByteRange("d.wav", 1024, 2, ".wav"),
        ),
    ]
    assert [line_to_sample(sample_to_line(item)) for item in items] == [replace(item, bytes=None) for item in items]
    with pytest.raises(InputError, match="invalid line"):
        line_to_sample(b'{"id": "a", "color": "red"}')


def test_a_folder_is_searched_to_the_bottom_and_hidden_things_are_not(tmp_path: Path) -> None:
    for name in ("b.mp4", "deep/down/a.MKV", "deep/b.webm", ".hidden/c.mp4", "._b.mp4", "notes.txt"):
        empty(tmp_path / name)
    source = open_source(str(tmp_path))
    assert sorted(item.path for item in source.samples) == ["b.mp4", "deep/b.webm", "deep/down/a.MKV"]
    assert [item.id for item in source.samples] == sorted(item.id for item in source.samples)
    assert {item.name for item in source.samples} == {None, "b"}  # two are called b
    assert source.root == tmp_path
    assert any("skipped: 1 file that is not a video" in note for note in source.notes)
    assert any("b" in note and "hash" in note for note in source.notes)


def test_pictures_with_a_sound_beside_or_in_them_are_a_clip(tmp_path: Path) -> None:
    for name in ("one/1.png", "one/2.png", "one/sound.wav", "two/1.jpg", "two.flac", "three/1.png"):
        empty(tmp_path / name)
    source = open_source(str(tmp_path))
    assert [(item.id, item.path, item.audio) for item in source.samples] == [
        ("one", "one", "one/sound.wav"),
        ("two", "two", "two.flac"),
    ]


def test_a_glob_and_a_single_video(tmp_path: Path) -> None:
    for name in ("a/x.mp4", "a/b/y.mp4", "a/z.txt"):
        empty(tmp_path / name)
    source = open_source(f"{tmp_path}/**/*.mp4")
    assert {item.path for item in source.samples} == {"a/x.mp4", "a/b/y.mp4"}
    assert [item.path for item in open_source(str(tmp_path / "a/x.mp4")).samples] == ["x.mp4"]


def test_a_glob_of_tars_means_their_samples(tmp_path: Path) -> None:
    for shard in ("0", "1"):
        tar(tmp_path / f"{shard}.tar", {f"s{shard}.mp4": b"video"})
    source = open_source(f"{tmp_path}/*.tar")
    assert (source.kind, [item.id for item in source.samples]) == ("tar", ["s0", "s1"])


def test_a_list_starts_from_its_own_folder(tmp_path: Path) -> None:
    videos(tmp_path / "v", 1)
    (tmp_path / "list.txt").write_text("v/v00.mp4\n\n/else/where.mp4\nv/v00.mp4\n../up.mp4\n")
    source = open_source(str(tmp_path / "list.txt"))
    assert [item.path for item in source.samples] == ["../up.mp4", "v/v00.mp4", "/else/where.mp4"]
    assert [item.bytes is None for item in source.samples] == [True, False, True]
    assert any("skipped: 1 duplicate entry" in note for note in source.notes)


ROWS = [
    {"id": "Cat", "path": "a.mp4", "audio": "a.wav", "group": "v1s", "classes": ["cat"]},
    {"id": "cat", "path": "b.mp4"},
    {"id": "../x", "path": "c.mp4"},
    {"id": 7, "path": "d.mp4"},
]


def manifest(folder: Path, kind: str) -> Path:
    path = folder / f"manifest{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    elif kind == ".parquet":
        import pyarrow as arrow
        from pyarrow import parquet

        rows = [{**row, "id": str(row["id"])} for row in ROWS]
        parquet.write_table(arrow.Table.from_pylist(rows), path)
    else:
        between = "\t" if kind == ".tsv" else ","
        cells = [
            [str(row["id"]), str(row["path"]), str(row.get("audio") or ""), "v1s" if i == 0 else ""]
            for i, row in enumerate(ROWS)
        ]
        lines = [between.join(line) for line in [["id", "path", "audio", "group"], *cells]]
        path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_manifest_in_any_form_says_the_same(kind: str, tmp_path: Path) -> None:
    source = open_source(str(manifest(tmp_path, kind)))
    found = {item.path: item for item in source.samples}
    assert found["d.mp4"].id == "7"
    assert found["a.mp4"].id.casefold() != found["b.mp4"].id.casefold()
    assert (found["a.mp4"].name, found["b.mp4"].name, found["c.mp4"].name) == ("Cat", "cat", "../x")
    assert (found["a.mp4"].audio, found["a.mp4"].group) == ("a.wav", "v1s")
    assert ".." not in found["c.mp4"].id
    assert found["a.mp4"].classes == (("cat",) if kind in (".jsonl", ".parquet") else ())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"id": "a"}', "row 1 has no 'path'"),
        ('{"id": "a"}\n{"id": "b"}', "m.jsonl, row 1 has no 'path'"),
        ('{"path": "a.mp4"}\nnonsense', "row 2 is not valid JSON"),
        ("[1]", "should be an object"),
        ('{"path": 3.5}', "should be text"),
        ('{"path": "a.mp4", "group": "../x"}', "is not the name of a folder"),
        ('{"path": "a.mp4", "classes": [1]}', "should be a list of texts"),
        ("", "holds no clips"),
    ],
)
def test_a_malformed_manifest_is_refused_with_its_row(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(InputError, match=sentence):
        open_source(str(tmp_path / "m.jsonl"))


BAD_ROWS = [
    ({"id": "no path", "path": ""}, "row 2 has no 'path'"),
    ({"path": 3.5}, "row 2: 'path' is 3.5 and should be text"),
    ({"id": ["x"], "path": "b.mp4"}, "row 2: 'id' is"),
    ({"path": "b.mp4", "group": "../x"}, "row 2: the group '../x' is not the name of a folder"),
    ({"path": "b.mp4", "classes": [1]}, "row 2: 'classes' is"),
]


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS)
def test_a_bad_row_of_a_manifest_is_its_clips_own_failure(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    rows = [{"path": "a.mp4"}, row, {"path": "c.mp4"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    source = open_source(str(tmp_path / "m.jsonl"))
    (bad,) = [item for item in source.samples if item.problem is not None]
    assert len(source.samples) == 3 and line_to_sample(sample_to_line(bad)) == replace(bad, bytes=None)
    assert any(note.startswith("1 row of") and sentence in note for note in source.notes)
    with pytest.raises(ClipError, match=sentence) as problem:
        ClipLoader(source.root, tmp_path, 1.0).open(bad)
    assert problem.value.reason == "bad_row"


def test_the_neighbors_of_a_bad_row_are_labeled(tmp_path: Path) -> None:
    videos(tmp_path, 2)
    rows = [{"path": "v00.mp4"}, {"path": "v00.mp4", "id": "x", "group": "a/b"}, {"path": ""}, {"path": "v01.mp4"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = planned(tmp_path / "m.jsonl", recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    found = {row["id"]: row["reason"] for row in mark["rows"]}
    assert found == {"row3": "bad_row", "v00": None, "v01": None, "x": "bad_row"}
    assert mark["rows"][3]["detail"] == "row 2: the group 'a/b' is not the name of a folder"


def test_an_id_of_two_videos_is_made_unique_and_equal_rows_are_one(tmp_path: Path) -> None:
    rows = [{"id": "a", "path": "1.mp4"}, {"id": "a", "path": "2.mp4"}, {"id": "a", "path": "1.mp4"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_source(str(tmp_path / "m.jsonl"))
    assert len(source.samples) == 2
    assert all(item.id.startswith("a-") and item.name == "a" for item in source.samples)


# ------------------------------------------------------------------------------------------------------------ tars


def tar(path: Path, members: dict[str, bytes], **special: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, target in special.items():
            info = tarfile.TarInfo(f"{name}.mp4")
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def test_a_tar_is_read_in_place(tmp_path: Path) -> None:
    video = make_media(tmp_path / "v.mp4", [gray(1)] * 8, fps=4, sound=tone(2)).read_bytes()
    (tmp_path / "tars").mkdir()
    tar(tmp_path / "tars/0.tar", {"a.mp4": video, "a.json": b"{}", "sub/b.mp4": video[:500]})
    source = open_source(str(tmp_path / "tars"))
    media = ClipLoader(source.root, tmp_path / "scratch", 1.0)
    whole, cut = source.samples
    assert (whole.source, cut.id) == ("0.tar::a.mp4", "b")
    clip = media.open(whole)
    assert (clip.id, clip.source, len(clip.times)) == ("a", "0.tar::a.mp4", 2)
    media.close(whole)
    with pytest.raises(ClipError, match=r"sub/b\.mp4") as problem:
        media.open(cut)
    assert problem.value.reason == "unreadable"
    media.close(cut)
    assert not list((tmp_path / "scratch").iterdir())


def test_nothing_leaves_a_tar_by_its_name(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "x.tar",
        {"../../../evil.mp4": b"x", "/etc/evil.mp4": b"x", "ok.mp4": b"x", "code.pyc": b"x", "nl\n.mp4": b"x"},
        link="/etc/passwd",
    )
    source = open_source(str(path))
    assert [item.source for item in source.samples] == ["x.tar::ok.mp4"]
    assert any("5 members" in note for note in source.notes)


def test_a_tar_that_ends_early_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "x.tar", {"a.mp4": b"x" * 5000, "b.mp4": b"y" * 5000})
    path.write_bytes(path.read_bytes()[:6000])  # within the header of b
    with pytest.raises(InputError, match=r"x\.tar cannot be read as a tar"):
        open_source(str(path))
    (tmp_path / "x.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="compressed"):
        open_source(str(tmp_path / "x.tar.gz"))


# ------------------------------------------------------------------------------------------------------ benchmarks


@pytest.fixture(scope="module")
def s4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("s4")
    write_layout("s4", folder, {"train": 2, "val": 0, "test": 2})
    return folder


def test_an_avsbench_root_is_known_by_its_table(s4: Path) -> None:
    source = open_source(str(s4))
    assert (source.kind, len(source.samples), len(source.datasets)) == ("s4", 4, 2)
    item = source.samples[0]
    assert len(item.frames) == len(item.places) == 5
    assert item.places[0].endswith(f"/{item.id}/{item.id}_1.png")
    assert (source.root / item.frames[0]).is_file()
    assert item.like is not None
    assert {item.places[0].split("/")[0] for item in open_source(str(s4), split="test").samples} == {"test"}


@pytest.mark.parametrize("name", ["nothing", "nothing/*.mp4"])
def test_what_is_not_there(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist|holds no clips"):
        open_source(str(tmp_path / name))


def test_a_split_goes_with_a_benchmark(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--benchmark"):
        open_source(str(tmp_path), split="test")


def test_a_tar_with_a_negative_size_is_one_sentence(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("a.mp4").tobuf())
    header[124:136] = b"\xff" * 11 + b"\0"  # -256 as tar writes large and negative numbers
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar cannot be read as a tar \(.+\); fetch it again or leave it out"):
        open_source(str(tmp_path / "a.tar"))
