"""Names in data never lead out of the folder that a command was given: tables, manifests, tars, results, links."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from openavs.synthetic.datasets import write_clip, write_layout
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import Outcome

Run = Callable[..., Outcome]
UP = "../../escaped"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("video") / "dog.mp4"
    write_clip(path, plan_scene([Role("dog", (True, True))], scene_rng("test", 40), 2, (96, 128)), fps=4)
    return path


@pytest.fixture(scope="module")
def made(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of that video."""
    from openavs.cli import main

    out = tmp_path_factory.mktemp("made") / "out"
    assert main(["segment", str(video), "--pipeline", "tiny", "--out", str(out), "-q"]) == 0
    return out


@pytest.fixture
def yard(tmp_path: Path) -> Path:
    """A folder deep enough that `..` stays where the test can see it; `outside` watches all of it."""
    folder = tmp_path / "a" / "b" / "c" / "yard"
    folder.mkdir(parents=True)
    return folder


def outside(tmp_path: Path, *allowed: Path) -> list[str]:
    """Every file outside the allowed folders."""
    files = [path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()]
    return [str(path) for path in files if not any(path.is_relative_to(folder) for folder in allowed)]


# ------------------------------------------------------------------------------------------------- what a job reads


@pytest.mark.robustness
def test_a_label_job_on_a_hostile_tar(openavs: Run, video: Path, yard: Path, tmp_path: Path) -> None:
    data = video.read_bytes()
    with tarfile.open(yard / "shard.tar", "w") as archive:
        for name in (f"{UP}.mp4", "/tmp/escaped.mp4", "good.mp4", f"dir/../{UP}2.mp4"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"link{kind.decode()}.mp4")
            link.type, link.linkname = kind, str(video)
            archive.addfile(link)
    done = openavs("label", yard / "shard.tar", "--pipeline", "tiny", "--out", yard / "job", "--json")
    assert done.code == 0, done.err
    assert [path.name for path in (yard / "job" / "clips").iterdir()] == ["good"]
    assert outside(tmp_path, yard) == [] and not Path("/tmp/escaped.mp4").exists()


@pytest.mark.robustness
def test_a_label_job_on_a_hostile_manifest(openavs: Run, video: Path, yard: Path, tmp_path: Path) -> None:
    """An id becomes one folder's name; an address or another kind of file is a failed clip."""
    shutil.copy(video, yard / "v.mp4")
    names = ["http://127.0.0.1:9/v.mp4", "concat:v.mp4|v.mp4", "/etc/passwd", "file:///etc/passwd"]
    rows = [{"id": UP, "path": "v.mp4"}, *({"id": f"x{i}", "path": name} for i, name in enumerate(names))]
    (yard / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = openavs("label", yard / "m.jsonl", "--pipeline", "tiny", "--out", yard / "job", "--json")
    assert done.code == 1 and done.json()["failed"] == len(names), done.err
    assert "root:" not in done.out + done.err
    assert [clip.name for clip in (yard / "job" / "clips").iterdir()] == ["_.._escaped-ddca1cc5"]
    assert outside(tmp_path, yard) == []


def test_a_group_that_is_not_a_folder(openavs: Run, yard: Path) -> None:
    (yard / "m.jsonl").write_text(json.dumps({"path": "v.mp4", "group": UP}))
    refused = openavs("label", yard / "m.jsonl", "--pipeline", "tiny", "--out", yard / "job")
    assert refused.code == 2 and "not the name of a folder" in refused.err


@pytest.mark.parametrize(
    ("layout", "table", "column"),
    [("s4", "s4_meta_data.csv", 0), ("ms3", "ms3_meta_data.csv", 0), ("avss", "metadata.csv", 1)],
)
def test_a_benchmark_with_a_hostile_table(
    openavs: Run, yard: Path, tmp_path: Path, layout: str, table: str, column: int
) -> None:
    write_layout(layout, yard / "data", {"train": 0, "val": 0, "test": 1})
    (path,) = (yard / "data").rglob(table)
    header, row = path.read_text().splitlines()[:2]
    cells = row.split(",")
    cells[column] = UP
    path.write_text(f"{header}\n{','.join(cells)}\n")
    done = openavs("evaluate", layout, "--root", yard / "data", "--pipeline", "tiny", "--out", yard / "run")
    assert done.code == 2 and "not the name of a folder" in done.err
    assert outside(tmp_path, yard) == []


# --------------------------------------------------------------------------------------------- what a command writes


def test_a_result_that_names_another_place(openavs: Run, made: Path, yard: Path, tmp_path: Path) -> None:
    """A result from elsewhere whose clip id is a path: no export writes there."""
    shutil.copytree(made, yard / "out")
    (path,) = (yard / "out").glob("clips/*/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip": UP}))
    for kind in ("coco", "youtube-vis", "yolo-seg", "timeline", "cutout-png", "avsbench-object"):
        done = openavs("export", kind, yard / "out", "--out", yard / f"{kind}.out")
        assert done.code == 2 and "cannot be a file name" in done.err
    assert outside(tmp_path, yard) == []


@pytest.mark.parametrize("place", ["clips", "clips/dog", "clips/.dog.part", "run.json", "index.jsonl"])
def test_a_link_in_the_output_folder(openavs: Run, video: Path, yard: Path, tmp_path: Path, place: str) -> None:
    """A link that was planted in advance: its target is neither written nor removed."""
    treasure = tmp_path / "treasure"
    (treasure / "masks").mkdir(parents=True)
    (treasure / "keep.txt").write_text("kept")
    out = yard / "out"
    (out / place).parent.mkdir(parents=True, exist_ok=True)
    (out / place).symlink_to(treasure if place.startswith("clips") else treasure / "keep.txt")
    for more in ([], ["--overwrite"]):
        done = openavs("segment", video, "--pipeline", "tiny", "--out", out, *more)
        assert "Traceback" not in done.err and (done.code == 0 or "is a link" in done.err)
    assert (treasure / "keep.txt").read_text() == "kept"
    assert sorted(path.name for path in treasure.rglob("*")) == ["keep.txt", "masks"]


@pytest.mark.parametrize(
    "place", ["clips", "labels", "log", "work", "work/shards", "work/manifest.json", "index.jsonl"]
)
def test_a_link_in_the_folder_of_a_job(openavs: Run, video: Path, yard: Path, place: str) -> None:
    (yard / "treasure").mkdir()
    (yard / "job" / place).parent.mkdir(parents=True)
    (yard / "job" / place).symlink_to(yard / "treasure")
    for more in ([], ["--overwrite"]):
        done = openavs("label", video, "--pipeline", "tiny", "--out", yard / "job", *more)
        assert done.code == 2 and "is a link" in done.err
    assert list((yard / "treasure").iterdir()) == []


def test_hostile_words_are_not_used_as_file_names(openavs: Run, video: Path, yard: Path, tmp_path: Path) -> None:
    """Labels and phrases that look like paths stay inside of files."""
    words = ["--vocab", f"dog,{UP}", "aliases={dog: '../../escaped'}"]
    done = openavs("segment", video, "--pipeline", "tiny", "--out", yard / "out", *words)
    assert done.code in (0, 1, 2) and "Traceback" not in done.err
    for kind in ("yolo-seg", "avsbench-object", "cutout-png"):
        assert openavs("export", kind, yard / "out", "--out", yard / kind).code in (0, 2)
    assert outside(tmp_path, yard) == []


def test_a_video_with_a_hostile_name(openavs: Run, video: Path, yard: Path, tmp_path: Path) -> None:
    name = "..\\..\\-rf $(touch pwned);`id`\x1b[2J.mp4"
    shutil.copy(video, yard / name)
    done = openavs("segment", yard / name, "--pipeline", "tiny", "--out", yard / "out")
    assert done.code == 0, done.err
    (clip,) = (yard / "out" / "clips").iterdir()
    assert clip.name.isprintable() and not clip.name.startswith((".", "-"))
    assert "\x1b" not in done.out + done.err  # no name commands the terminal
    assert outside(tmp_path, yard) == [] and not Path("pwned").exists()
