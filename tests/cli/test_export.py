"""`openavs export`: its words, its exit codes, its help."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.exports.registry import FORMATS
from tests.exports.conftest import run  # noqa: F401 - a fixture

Run = Callable[..., Any]


def test_help_lists_every_format(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    help_text = openavs("export", "--help").out
    assert all(f"{name}:" in help_text for name in FORMATS)


def test_a_run_becomes_coco(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    done = openavs("export", "coco", run, "--out", tmp_path / "coco")
    assert (done.code, done.out) == (0, f"coco: 14 segments in 11 frames of 2 clips -> {tmp_path / 'coco'}\n")
    data = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert len(data["annotations"]) == 14


def test_json_has_counts_and_notes(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ("--clips", "two", "--classes", "dog", "--json", "--no-images")
    summary = openavs("export", "yolo-seg", run, "--out", tmp_path / "yolo", *words).json()
    assert (summary["clips"], summary["frames"], summary["segments"]) == (1, 5, 4)
    assert [note.split(":")[0] for note in summary["notes"]] == [
        "YOLO-seg is lossy",
        "2 segments of other categories left out",
    ]


def test_losses_are_reported_on_stderr(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    assert "lossy" in openavs("export", "yolo-seg", run, "--out", tmp_path / "yolo").err
    assert openavs("export", "yolo-seg", run, "--out", tmp_path / "quiet", "-q").err == ""


def test_classes_of_a_benchmark(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    openavs("export", "coco", run, "--out", tmp_path / "avss.json", "--classes", "avss")
    data = json.loads((tmp_path / "avss.json").read_text())
    assert len(data["categories"]) == 70
    names = {category["id"]: category["name"] for category in data["categories"]}
    assert {names[a["category_id"]] for a in data["annotations"]} == {"dog", "bell"}


def test_classes_without_segments_are_named(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    done = openavs("export", "coco", run, "--out", tmp_path / "one", "--classes", "unicorn,dog")
    assert done.code == 0 and "no segment is of unicorn; the results have bell, dog" in done.err
    none = openavs("export", "coco", run, "--out", tmp_path / "none", "--classes", "unicorn", "--json").json()
    assert none["segments"] == 0 and none["notes"][-1] == "no segment is of unicorn; the results have bell, dog"
    assert "no segment is of" not in openavs("export", "coco", run, "--out", tmp_path / "all", "--classes", "avss").err


def test_labels_that_pass_the_filter(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    assert openavs("export", "coco", run, "--out", tmp_path / "f", "--filtered", "--json").json()["segments"] == 9


def test_an_output_below_a_file_is_refused(openavs: Run, run: Path, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "file").touch()
    for *words, out in (("export", "coco", run, "x.json"), ("synth", "s4", "x"), ("synth", "clip", "x.mp4")):
        refused = openavs(*words, "--out", tmp_path / "file" / out)
        assert refused.code == 2 and "give another --out" in refused.err
        assert len(refused.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("cocoo", "RUN"), "there is no export format 'cocoo'; did you mean 'coco'?"),
        (("coco", "RUN", "--clips", "onne"), "has no finished clip 'onne'; did you mean 'one'?"),
        (("coco", "."), "has no results; give the --out folder"),
        (("coco", "RUN", "--classes", "s4"), "the masks of s4 have no classes"),
        (("coco", "RUN", "--classes", ","), "--classes is empty"),
        (("coco", "RUN", "--masks", "rles"), "choose one of rle, counts, polygons"),
        (("yolo-seg", "RUN", "--masks", "counts"), "--masks counts is for coco, youtube-vis"),
        (("overlay", "RUN", "--style", "helo"), "there is no style 'helo'; did you mean 'halo'"),
        (("overlay", "RUN", "--style", ","), "give at least one style: background, blur"),
        (("coco", "RUN", "--style", "halo"), "--style is for overlay; leave it out for coco"),
        (("avsbench-object", "RUN", "--split", "../up"), "a split is a name"),
    ],
)
def test_wrong_use_is_one_sentence(
    openavs: Run,
    run: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = openavs("export", *(str(run) if word == "RUN" else word for word in words), "--out", "x")
    assert done.code == 2 and sentence in " ".join(done.err.replace("│", " ").split())
    assert not list(tmp_path.iterdir())


def test_an_incomplete_or_damaged_folder(openavs: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "clips" / "a"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    done = openavs("export", "coco", tmp_path / "run", "--out", tmp_path / "x")
    assert done.code == 2 and "not an openavs result" in done.err and not (tmp_path / "x").exists()
