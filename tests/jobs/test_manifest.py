"""Manifests: the same request gives the same one, another is refused by what differs, damage is found."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import openavs
from openavs.errors import InputError
from openavs.jobs.job import Job
from openavs.jobs.manifest import (
    SHARD_SIZE,
    JobRequest,
    Manifest,
    check_manifest,
    extend_manifest,
    make_manifest,
    new_samples,
    read_manifest,
    read_samples,
    replaced_files,
    shard_samples,
    update_sizes,
)
from openavs.jobs.sample import ByteRange, Sample, line_to_sample, sample_to_line
from tests.jobs.pool import disk_events

ITEMS = tuple(Sample(f"c{n}", f"videos/c{n}.mp4", bytes=n) for n in range(7))
RECIPE: dict[str, Any] = {"name": "r", "filtering": {"box_threshold": 0.25, "max_boxes": 5}, "detector": {"use": "box"}}
WISH = JobRequest("folder", ITEMS, RECIPE, shard_size=3)


def specs(plan: Manifest, out: Path) -> Any:
    return plan.specs(Job(out, plan.key, out, RECIPE), range(plan.shards))


def test_every_shard_finds_its_own_lines(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, WISH)
    assert (plan.clips, plan.shards) == (7, 3)
    assert [plan.clips_of(shard) for shard in range(3)] == [3, 3, 1]
    made = list(specs(plan, tmp_path))
    assert [spec.number for spec in made] == [0, 1, 2]
    assert [item for spec in made for item in shard_samples(spec)] == [replace(item, bytes=None) for item in ITEMS]
    assert made[0].job.key == plan.key and made[0].only is None


def test_a_plan_is_read_back_and_says_what_it_was_made_of(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, replace(WISH, classes=("dog", "cat"), threads=2, limit=5))
    assert read_manifest(tmp_path) == plan
    assert (plan.data["format"], plan.data["openavs"]) == (3, openavs.__version__)
    assert (plan.data["source"]["kind"], plan.data["source"]["clips"]) == ("folder", 5)
    assert plan.data["masks"] == {"values": "class", "classes": ["dog", "cat"]}
    assert (plan.data["limit"], plan.data["threads"], plan.data["shard_size"]) == (5, 2, 3)
    assert plan.data["recipe"] == RECIPE
    assert len(plan.key) == 16


def test_options_that_are_not_given_have_defaults(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, JobRequest("list", ITEMS, RECIPE))
    assert plan.data["shard_size"] == SHARD_SIZE == 256
    assert (plan.data["threads"], plan.data["limit"], plan.shards) == (1, None, 1)
    assert plan.data["masks"] == {"values": "instance", "classes": []}
    lines = (tmp_path / "manifest.jsonl").read_bytes()
    assert plan.data["source"] == {"kind": "list", "clips": len(ITEMS), "sha256": hashlib.sha256(lines).hexdigest()}


def test_a_recipe_that_json_cannot_hold_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^recipe\.score is nan, which a result file cannot hold"):
        make_manifest(tmp_path, replace(WISH, recipe={"score": float("nan")}))


def test_a_plan_of_no_clips_has_no_shards(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, replace(WISH, samples=()))
    assert (plan.clips, plan.shards) == (0, 0)
    assert read_manifest(tmp_path) == plan


@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
def test_a_plan_takes_its_name_when_its_lines_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = disk_events(tmp_path, monkeypatch)
    make_manifest(tmp_path, WISH)
    files = ((".", "manifest.jsonl"), ("work", "sizes"), ("work", "manifest.json"))
    places = [(Path(folder), name) for folder, name in files]
    assert events == [e for at, name in places for e in (str(at / ".tmp"), f"-> {name}", str(at))]


@pytest.mark.skipif(sys.platform != "linux", reason="finds the names of open files in /proc")
def test_sizes_that_a_retry_takes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = make_manifest(tmp_path, WISH)
    events = disk_events(tmp_path, monkeypatch)
    update_sizes(tmp_path, manifest, WISH)
    assert events == ["work/.tmp", "-> sizes", "work"]


def test_the_key_stands_for_all_that_the_outputs_depend_on(tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {}, {"kind": "list"}, {"samples": ITEMS[:-1]}, {"recipe": {**RECIPE, "name": "s"}}, {"classes": ("dog",)},
        {"classes": ("cat",)}, {"shard_size": 4}, {"threads": 2}, {"limit": 6},
    ]  # fmt: skip
    keys = [make_manifest(tmp_path, replace(WISH, **change)).key for change in changes]
    assert len(set(keys)) == len(changes)
    turned = dict(reversed(RECIPE.items()))
    assert make_manifest(tmp_path, replace(WISH, recipe=turned)).key == keys[0], "the order of keys says nothing"


def test_the_same_request_resumes_with_any_options_left_out(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, replace(WISH, threads=2))
    for wish in (replace(WISH, threads=2), replace(WISH, shard_size=None), replace(WISH, threads=None)):
        check_manifest(tmp_path, plan, wish)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": {**RECIPE, "name": "other"}}, r'differs in name \(was ".*", now "other"\);'),
        (
            {"recipe": {**RECIPE, "filtering": {"box_threshold": 0.3, "max_boxes": 5}}},
            r"differs in filtering.box_threshold \(was 0.25, now 0.3\);",
        ),
        (
            {"classes": ("dog",)},
            r'differs in masks.classes \(was \[\], now \["dog"\]\), masks.values \(was "instance", now "class"\);',
        ),
        ({"shard_size": 4}, r"differs in shard_size \(was \d+, now 4\);"),
        ({"threads": 3}, r"differs in threads \(was \d+, now 3\);"),
        ({"kind": "list"}, r"differs in its source \(it was a folder and is a list\);"),
        ({"limit": 6}, r"differs in its source \(1 clip fewer, such as c6\), limit \(was null, now 6\);"),
        ({"samples": ITEMS[2:]}, r"its source \(2 clips fewer, such as c0\);"),
        ({"samples": (*ITEMS, Sample("x", "x.mp4"))}, r"its source \(1 clip more, such as x\);"),
        ({"samples": (replace(ITEMS[0], path="d.mp4"), *ITEMS[1:])}, r"its source \(1 clip changed, such as c0\);"),
        (
            {"samples": (*ITEMS[1:5], replace(ITEMS[5], path="d.mp4"), Sample("y", "y.mp4"))},
            r"\(1 clip more, such as y, 2 clips fewer, such as c0, 1 clip changed, such as c5\)",
        ),
        (
            {"recipe": {f"k{n}": n for n in range(9)}, "kind": "list"},
            r"its source \(.*\), detector \(was .*, now absent\), k0 \(was absent, now 0\), .* and 7 more; give",
        ),
    ],
)
def test_another_request_is_refused_with_the_differences(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    plan = make_manifest(tmp_path, WISH)
    with pytest.raises(InputError, match=named) as raised:
        check_manifest(tmp_path, plan, replace(WISH, **change))
    assert str(raised.value).startswith(f"{tmp_path} holds results of another job")
    assert str(raised.value).endswith("; give another --out, or use --overwrite")


def test_sizes_are_kept_a_line_for_each_clip(tmp_path: Path) -> None:
    sized = (replace(ITEMS[0], bytes=90), replace(ITEMS[1], bytes=None), replace(ITEMS[2], bytes=0))
    make_manifest(tmp_path, replace(WISH, samples=sized))
    assert (tmp_path / "work/sizes").read_bytes() == b"90\n\n0\n"


def test_files_of_another_size_keep_the_manifest_and_are_reported(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, replace(WISH, limit=5))
    fetched = replace(WISH, limit=5, samples=(replace(ITEMS[0], bytes=90), replace(ITEMS[1], bytes=None), *ITEMS[2:]))
    check_manifest(tmp_path, plan, fetched)
    assert replaced_files(tmp_path, plan, replace(WISH, limit=5)) == []
    assert replaced_files(tmp_path, plan, fetched) == ["c0", "c1"]
    update_sizes(tmp_path, plan, fetched)
    assert replaced_files(tmp_path, plan, fetched) == []
    assert make_manifest(tmp_path, fetched) == plan


@pytest.mark.parametrize("damage", [None, b"", b"0\n1\n2\n"])
def test_sizes_that_are_not_those_of_the_plan_are_damage(tmp_path: Path, damage: bytes | None) -> None:
    plan = make_manifest(tmp_path, WISH)
    path = tmp_path / "work/sizes"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(InputError, match=r"work/sizes is damaged; give another --out or start again"):
        replaced_files(tmp_path, plan, WISH)


def test_a_plan_whose_lines_are_gone_still_says_that_it_is_another(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, WISH)
    (tmp_path / "manifest.jsonl").unlink()
    with pytest.raises(InputError, match=r"6 clips more, such as c0"):
        check_manifest(tmp_path, plan, replace(WISH, samples=ITEMS[:6]))


def test_a_plan_of_another_version_is_another_job(tmp_path: Path) -> None:
    data = {**make_manifest(tmp_path, WISH).data, "openavs": "0.0.1"}
    with pytest.raises(InputError, match=r'differs in openavs \(was "0.0.1", now "'):
        check_manifest(tmp_path, Manifest(data), WISH)


def test_lines_that_are_cut_short_are_found(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, WISH)
    (tmp_path / "manifest.jsonl").write_bytes((tmp_path / "manifest.jsonl").read_bytes()[:-1])
    *whole, last = specs(plan, tmp_path)
    assert [len(shard_samples(spec)) for spec in whole] == [3, 3]
    with pytest.raises(InputError, match=r"was cut short while the job ran; run the same command again"):
        shard_samples(last)


def flipped(data: bytes) -> bytes:
    return data[:70] + bytes([data[70] ^ 1]) + data[71:]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda lines: lines + sample_to_line(ITEMS[0]), lambda lines: lines[:-9], lambda lines: b"", None],
    ids=["bit flip", "appended line", "cut short", "empty", "gone"],
)
def test_lines_that_were_lost_or_changed_are_written_again(
    tmp_path: Path, damage: Callable[[bytes], bytes] | None, caplog: pytest.LogCaptureFixture
) -> None:
    plan, path = make_manifest(tmp_path, WISH), tmp_path / "manifest.jsonl"
    whole = path.read_bytes()
    assert check_manifest(tmp_path, plan, WISH) == plan and not caplog.records
    path.unlink() if damage is None else path.write_bytes(damage(whole))
    assert check_manifest(tmp_path, plan, WISH) == plan
    assert path.read_bytes() == whole
    assert [record.getMessage() for record in caplog.records] == [f"{path} was lost or changed; it is written again"]


@pytest.mark.parametrize("change", [{"key": "another"}, {"shards": [[0, 10, 1]]}])
def test_places_that_were_changed_are_written_again(tmp_path: Path, change: dict[str, Any]) -> None:
    plan = make_manifest(tmp_path, WISH)
    (tmp_path / "work/manifest.json").write_text(json.dumps({**plan.data, **change}))
    damaged = read_manifest(tmp_path)
    assert damaged is not None
    assert check_manifest(tmp_path, damaged, WISH) == plan == read_manifest(tmp_path)


def test_another_source_is_refused_although_the_lines_are_damaged(tmp_path: Path) -> None:
    plan = make_manifest(tmp_path, WISH)
    (tmp_path / "manifest.jsonl").write_bytes(b"{")
    with pytest.raises(InputError, match=r"manifest\.jsonl is damaged, so the clips cannot be compared"):
        check_manifest(tmp_path, plan, replace(WISH, samples=ITEMS[:6]))


def test_without_a_plan_there_is_none(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None


GOOD: dict[str, Any] = {
    **{"format": 3, "key": "k", "command": "label", "threads": 1},
    **{"source": {"clips": 1}, "shards": [[0, 10, 1]]},
}
DAMAGED: list[dict[str, Any]] = [
    {"source": []}, {"source": {}}, {"source": {"clips": "1"}}, {"source": {"clips": -1}}, {"key": 7},
    {"shards": {}}, {"shards": [[0, 10]]}, {"shards": ["abc"]}, {"shards": [[0, 10, "1"]]}, {"shards": [[0, -1, 1]]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", r"is damaged \("),
        ("[]", "was not written by this openavs"),
        (json.dumps({**GOOD, "format": 2}), "was not written by this openavs"),
        *((json.dumps({**GOOD, **change}), "is damaged;") for change in DAMAGED),
    ],
)
def test_an_invalid_manifest_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/manifest.json").write_text(content)
    with pytest.raises(InputError, match=says) as raised:
        read_manifest(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "work/manifest.json"))


def test_a_plan_may_have_no_clip_and_begin_at_the_first_byte(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/manifest.json").write_text(json.dumps({**GOOD, "source": {"clips": 0}, "shards": [[0, 0, 0]]}))
    assert read_manifest(tmp_path) is not None


def test_a_clip_in_a_tar_survives_its_line() -> None:
    video, audio = ByteRange("a/b.mp4", 512, 9, ".mp4"), ByteRange("a/b.wav", 1024, 2, ".wav")
    item = Sample("d", "s.tar", frames=("1.png", "2.png"), classes=("dog",), video_slice=video, audio_slice=audio)
    line = sample_to_line(item)
    assert line_to_sample(line) == item and item.source == "s.tar::a/b.mp4"
    assert line.endswith(b"}\n") and b", " not in line and b"null" not in line, "one line without what is not there"


def test_a_plan_holds_plain_data() -> None:
    with pytest.raises(TypeError, match="a manifest holds no PosixPath"):
        sample_to_line(Sample("a", Path("a.mp4")))  # type: ignore[arg-type]


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"id": "a"}', b'{"id": "a", "path": "b", "video_slice": [1]}'])
def test_a_line_that_is_not_a_clip_is_refused(line: bytes) -> None:
    with pytest.raises(InputError, match=r"an invalid line \(.+\); run the same command again"):
        line_to_sample(line)


# ------------------------------------------------------------------------------------------------------ open manifests

OPEN = JobRequest("segment", ITEMS[:2], RECIPE, command="segment")


def test_samples_are_appended_to_an_open_manifest(tmp_path: Path) -> None:
    first = make_manifest(tmp_path, OPEN)
    assert (first.shards, first.requested) == (2, (0, 1))
    more = replace(OPEN, samples=(ITEMS[4], ITEMS[1], ITEMS[3]))
    assert [sample.id for sample in new_samples(tmp_path, first, more)] == ["c4", "c3"]
    second = extend_manifest(tmp_path, check_manifest(tmp_path, first, more), more)
    assert (second.key, second.shards, second.requested) == (first.key, 4, (2, 1, 3))
    found = list(specs(replace(second), tmp_path))
    assert [sample.id for spec in found for sample in shard_samples(spec)] == ["c0", "c1", "c4", "c3"]
    assert (tmp_path / "work/sizes").read_bytes() == b"0\n1\n4\n3\n"
    assert check_manifest(tmp_path, second, OPEN).requested == (0, 1)
    assert new_samples(tmp_path, second, OPEN) == []


def test_a_clip_of_another_source_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, OPEN)
    other = replace(OPEN, samples=(replace(ITEMS[0], path="else/c0.mp4"),))
    with pytest.raises(InputError, match=r"already holds 'c0' made from videos/c0\.mp4, not else/c0\.mp4; give"):
        new_samples(tmp_path, manifest, other)
    dubbed = replace(OPEN, samples=(replace(ITEMS[0], audio="a.wav"),))
    with pytest.raises(InputError, match=r"with its own sound, not videos/c0\.mp4 with the sound of a\.wav"):
        new_samples(tmp_path, manifest, dubbed)


def test_another_recipe_or_command_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, OPEN)
    with pytest.raises(InputError, match=r"holds results of another recipe, which differs in name \(was"):
        check_manifest(tmp_path, manifest, replace(OPEN, recipe={**RECIPE, "name": "other"}))
    for request in (replace(OPEN, command="evaluate"), replace(WISH, samples=ITEMS[:2])):
        with pytest.raises(InputError, match=r"holds results of 'openavs segment'; give another --out"):
            check_manifest(tmp_path, manifest, request)


def test_a_run_that_was_killed_while_it_appended_leaves_the_manifest_whole(tmp_path: Path) -> None:
    manifest, path = make_manifest(tmp_path, OPEN), tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes() + sample_to_line(ITEMS[5]))
    assert [sample.id for sample in read_samples(tmp_path, manifest)] == ["c0", "c1"]
    more = replace(OPEN, samples=ITEMS[:3])
    assert extend_manifest(tmp_path, manifest, more).shards == 3
    assert len(path.read_bytes().splitlines()) == 3


def test_damaged_lines_of_an_open_manifest_are_refused(tmp_path: Path) -> None:
    manifest, path = make_manifest(tmp_path, OPEN), tmp_path / "manifest.jsonl"
    path.write_bytes(path.read_bytes().replace(b"c1", b"c7"))
    with pytest.raises(InputError, match=r"manifest\.jsonl is damaged; give another --out or start again"):
        check_manifest(tmp_path, manifest, OPEN)


def test_a_damaged_table_of_an_open_manifest_is_written_again(tmp_path: Path) -> None:
    manifest = make_manifest(tmp_path, OPEN)
    damaged = Manifest({**manifest.data, "key": "another"}, manifest.requested)
    assert check_manifest(tmp_path, damaged, OPEN) == manifest == read_manifest(tmp_path)
