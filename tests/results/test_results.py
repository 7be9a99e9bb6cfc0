"""Results on disk: the JSON round trip, a clip's folder, names and whole runs."""

from __future__ import annotations

import json
import os
import re
import string
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st
from PIL import Image

from openavs.errors import InputError
from openavs.results.provenance import describe_differences, differing_keys, git_commit
from openavs.results.serialization import (
    is_done,
    mask_values,
    read_result,
    result_from_json,
    result_to_json,
    write_result,
)
from openavs.structures.masks import RLE, mask_to_rle, rle_to_mask, voc_palette
from openavs.structures.types import Caption, ClipResult, Event, FrameResult, Prompt, Rejection, Segment, Verdict
from openavs.utils.fs import atomic_write, safe_id, safe_ids


def box_mask(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = (20, 30)) -> RLE:
    mask = np.zeros(size, dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask_to_rle(mask)


def segment(phrase: str, box: tuple[int, int, int, int], score: float, **more: Any) -> Segment:
    return Segment(box_mask(*box), tuple(map(float, box)), phrase, score, **more)  # type: ignore[arg-type]


@pytest.fixture
def clip() -> ClipResult:
    bark = Caption("a dog barking", 0.81, 0.0, 1.0, "what is heard?")
    dog = segment("dog", (2, 3, 10, 12), 0.6, mask_score=0.9, label="dog", label_how="exact")
    bell = segment("church bell", (8, 8, 20, 18), 0.4, label="bell", label_how="alias")
    frames = (
        FrameResult(0, 0.5, captions=(bark,), prompts=(Prompt("dog", captions=(bark,)),), segments=(dog, bell)),
        FrameResult(
            1, 1.5, captions=(bark,), rejected=(Rejection("dog", "below threshold", 0.12, (1.0, 2.0, 3.0, 4.0)),)
        ),
        FrameResult(2, 2.5, silent=True),
    )
    recipe = {"name": "tiny", "detector": {"name": "grounding-dino", "threshold": 0.25}, "fps": 1}
    models = {"openavs:tiny/clap": {"revision": None, "license": "Apache-2.0"}}
    return ClipResult("clip", (20, 30), frames, "a/clip.mp4", recipe, models, {"detect": 0.25}, ("a warning",))


# ------------------------------------------------------------------------------------------------- JSON

texts = st.text(st.characters(), max_size=12)  # every code point, lone surrogates of odd file names too
numbers = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
captions = st.builds(Caption, texts, st.none() | numbers, numbers, numbers, texts)
decisions = st.sampled_from(["kept", "rejected", "unresolved"])
verdicts = st.builds(Verdict, decisions, numbers, st.none() | numbers, st.none() | texts, texts)
curves = st.lists(numbers, max_size=3).map(tuple)
boxes = st.tuples(numbers, numbers, numbers, numbers)
masks = st.integers(0, 2**32).map(lambda seed: mask_to_rle(np.random.default_rng(seed).random((6, 7)) < seed % 3 / 2))
frames = st.builds(
    FrameResult,
    index=st.integers(0),
    time=numbers,
    silent=st.booleans(),
    captions=st.lists(captions, max_size=2).map(tuple),
    prompts=st.lists(
        st.builds(Prompt, texts, st.none() | texts, texts, st.lists(captions, max_size=1).map(tuple)), max_size=2
    ).map(tuple),
    segments=st.lists(
        st.builds(
            *(Segment, masks, boxes, texts, numbers, st.none() | numbers),
            *(st.none() | texts, st.none() | texts, st.none() | st.integers()),
            st.lists(verdicts, max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    rejected=st.lists(
        st.builds(
            *(Rejection, texts, texts, st.none() | numbers, st.none() | boxes),
            *(st.none() | numbers, st.none() | texts),
        ),
        max_size=2,
    ).map(tuple),
)
results = st.builds(
    ClipResult,
    clip=texts,
    size=st.just((6, 7)),
    frames=st.lists(frames, max_size=3).map(tuple),
    source=st.none() | texts,
    recipe=st.dictionaries(texts, plain, max_size=3),
    models=st.dictionaries(texts, plain, max_size=3),
    timings=st.dictionaries(texts, numbers, max_size=3),
    warnings=st.lists(texts, max_size=2).map(tuple),
    events=st.lists(st.builds(Event, texts, numbers, numbers, numbers, numbers, curves), max_size=2).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(results)
def test_any_result_survives_json(made: ClipResult) -> None:
    written = json.dumps(result_to_json(made), allow_nan=False)
    assert result_from_json(json.loads(written)) == made


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_not_are_refused_by_name(clip: ClipResult, bad: float) -> None:
    with pytest.raises(InputError, match=r"result\.recipe\.gate\.level is"):
        result_to_json(replace(clip, recipe={"gate": {"level": bad}}))
    frame = replace(clip.frames[0], captions=(Caption("x", bad, 0, 1),))
    with pytest.raises(InputError, match=r"frames\[0\]\.captions\[0\]\.score"):
        result_to_json(replace(clip, frames=(frame,)))
    data = result_to_json(clip)
    data["timings"]["detect"] = bad
    with pytest.raises(InputError, match=r"timings\.detect"):
        result_from_json(data)


def test_scores_of_an_array_library_become_plain_numbers(clip: ClipResult) -> None:
    frame = replace(clip.frames[0], time=np.float32(0.1), index=np.int64(4), segments=())  # type: ignore[arg-type]
    data = json.loads(json.dumps(result_to_json(replace(clip, frames=(frame,)))))
    assert data["frames"][0]["time"] == float(np.float32(0.1))
    assert data["frames"][0]["index"] == 4


def edit(data: dict[str, Any], path: str, value: Any = None) -> dict[str, Any]:
    """Sets (or, for None, deletes) one key of nested data: 'frames/0/time'."""
    *steps, last = [int(step) if step.isdigit() else step for step in path.split("/")]
    at: Any = data
    for step in steps:
        at = at[step]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return data


def test_a_result_of_before_verdicts_were_kept_is_read(clip: ClipResult) -> None:
    earlier = result_to_json(clip)
    for found in earlier["frames"][0]["segments"]:
        del found["verdicts"]
    assert result_from_json(earlier) == clip


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("format", None, "no 'format' key"),
        ("format", 99, "format 99"),
        ("frames", None, "lacks the key 'frames'"),
        ("color", "red", "unknown key 'color'"),
        ("frames/0/segments/0/mask/counts", None, "lacks the key 'counts'"),
        ("frames/0/segments/0/box", [1.0, 2.0], "2 values and should have 4"),
        ("frames/0/segments/0/score", "high", "should be a finite number"),
        ("frames/0/index", True, "whole number"),
        ("frames/1", "gone", "should be of type dict"),
        ("warnings", "oops", "should be of type list"),
        ("frames/0/segments/0/mask/counts", "zzzz", "run-length code"),
        ("frames/0/segments/0/mask/size", [2000, 3000], "does not fill"),
        ("frames/0/segments/0/mask/counts", "P", "run-length code"),  # a continuation without an end
    ],
)
def test_broken_json_is_named(clip: ClipResult, path: str, value: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        result_from_json(edit(result_to_json(clip), path, value))


def test_a_mask_of_another_size_than_the_clips_is_named(clip: ClipResult) -> None:
    taller = edit(result_to_json(clip), "size", [21, 30])
    with pytest.raises(InputError, match=r"a mask of frame \d+ is 20 x 30 pixels in a clip of 21 x 30"):
        result_from_json(taller)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ({"filtering": {1: 0.5}}, "result.recipe.filtering has a key that is not text"),
        ({"words": {"dog", "cat"}}, "result.recipe.words is a set, which a result file cannot hold"),
    ],
)
def test_what_json_cannot_hold_is_refused_by_name(clip: ClipResult, recipe: Any, says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)):
        result_to_json(replace(clip, recipe=recipe))


def test_other_json_is_not_a_result() -> None:
    for data in ([], None, "x", {"frames": []}):
        with pytest.raises(InputError):
            result_from_json(data)


# ----------------------------------------------------------------------------------------- a clip's folder


def test_masks_are_palette_pictures_of_instance_numbers(tmp_path: Path, clip: ClipResult) -> None:
    folder = write_result(tmp_path, clip)
    assert folder == tmp_path / "clips" / "clip"
    assert sorted(p.name for p in (folder / "masks").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    with Image.open(folder / "masks" / "00000.png") as picture:
        assert (picture.mode, picture.size) == ("P", (30, 20))
        values = np.asarray(picture)
        colors = np.asarray(picture.convert("RGB"))
    dog = rle_to_mask(clip.frames[0].segments[0].mask)
    bell = rle_to_mask(clip.frames[0].segments[1].mask)
    assert (values[dog] == 1).all()  # the better score is on top
    assert (values[bell & ~dog] == 2).all()
    assert (values[~(dog | bell)] == 0).all()
    assert (colors == voc_palette()[values]).all()
    assert read_result(tmp_path, "clip") == clip


def test_masks_of_classes_hold_the_class_index(tmp_path: Path, clip: ClipResult) -> None:
    assert mask_values(clip, "class", ["bell", "cat", "dog"]) == [[3, 1], [], []]
    assert mask_values(clip, "class", ["background", "bell", "cat", "dog"]) == [[3, 1], [], []]
    assert mask_values(clip, "class", ["cat"]) == [[0, 0], [], []]
    folder = write_result(tmp_path, clip, values="class", classes=["bell", "cat", "dog"])
    with Image.open(folder / "masks" / "00000.png") as picture:
        assert set(np.unique(np.asarray(picture))) == {0, 1, 3}
    with pytest.raises(InputError, match="vocabulary"):
        mask_values(clip, "class")


def test_tracks_keep_their_number_through_the_clip(clip: ClipResult) -> None:
    one, two = (segment("dog", (0, 0, 4, 4), 0.5, track=t) for t in (70, 7))
    frames = (FrameResult(0, 0.0, segments=(one, two)), FrameResult(1, 1.0, segments=(two,)))
    assert mask_values(replace(clip, frames=frames), "instance") == [[1, 2], [2]]


def test_a_mask_holds_at_most_255_instances(clip: ClipResult) -> None:
    crowd = FrameResult(0, 0.0, segments=(segment("bee", (0, 0, 1, 1), 0.5),) * 256)
    with pytest.raises(InputError, match="255"):
        mask_values(replace(clip, frames=(crowd,)), "instance")


def test_the_folder_takes_its_place_after_the_extras(tmp_path: Path, clip: ClipResult) -> None:
    seen: list[set[str]] = []

    def extras(folder: Path) -> None:
        seen.append({path.name for path in folder.iterdir()})
        (folder / "overlay.mp4").write_bytes(b"film")
        assert not is_done(tmp_path, "clip")

    folder = write_result(tmp_path, clip, extras=extras)
    assert seen == [{"masks", "result.json"}]
    assert {p.name for p in folder.iterdir()} == {"masks", "overlay.mp4", "result.json"}
    assert is_done(tmp_path, "clip")


def test_a_failure_leaves_nothing_behind(tmp_path: Path, clip: ClipResult) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        write_result(tmp_path, clip, extras=fail)
    assert list((tmp_path / "clips").iterdir()) == []
    write_result(tmp_path, clip)
    with pytest.raises(RuntimeError):  # an earlier result stays whole
        write_result(tmp_path, clip, extras=fail)
    assert read_result(tmp_path, "clip") == clip


def test_an_atomic_write_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")

    def broken(source: str, target: str) -> None:
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        with pytest.raises(OSError, match="no"):
            atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("hostile", ["../up", "a/b", "..", "", "a\0b", ".hidden", "x" * 200])
def test_a_result_never_leaves_its_folder(tmp_path: Path, clip: ClipResult, hostile: str) -> None:
    with pytest.raises(InputError, match="safe_id"):
        write_result(tmp_path, replace(clip, clip=hostile))
    assert list(tmp_path.iterdir()) == []


def test_a_linked_clips_folder_is_refused(tmp_path: Path, clip: ClipResult) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "clips").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        write_result(tmp_path / "out", clip)


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_result(tmp_path, "clip")
    (tmp_path / "clips" / "clip").mkdir(parents=True)
    (tmp_path / "clips" / "clip" / "result.json").write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        read_result(tmp_path, "clip")


# -------------------------------------------------------------------------------------------------- names


@settings(deadline=None)
@given(st.text(st.characters(), max_size=300))
@example("-.x")
@example("\xa0")
@example("a\u2028b")
@example("犬" * 100)
def test_every_name_becomes_one_safe_folder_name(name: str) -> None:
    made = safe_id(name)
    assert 1 <= len(made) <= 120
    assert len(os.fsencode(made)) <= 200
    assert not set(made) & set('/\\\0\n\r\t:*?"<>|')
    assert made.isprintable()
    assert not made.startswith((".", "-", " "))
    assert safe_id(made) == made


def test_good_names_stay_and_others_never_collide() -> None:
    assert safe_id("dog_01-a b.c") == "dog_01-a b.c"
    assert safe_id("犬の声") == "犬の声"
    assert len({safe_id("a/b"), safe_id("a_b"), safe_id("a\\b"), safe_id("a:b")}) == 4
    assert safe_id("x" * 300) != safe_id("x" * 301)


def test_equal_stems_get_the_hash_of_their_path_in_any_order() -> None:
    one, other = safe_ids(["a/dog.mp4", "b/dog.mp4"])
    assert one != other
    assert one.startswith("dog-")
    assert safe_ids(["b/dog.mp4", "a/cat.mp4", "a/dog.mp4"]) == [other, "cat", one]
    assert len(set(safe_ids(["Dog.mp4", "dog.avi", "x/DOG.mkv"]))) == 3


@settings(deadline=None)
@given(st.lists(st.text(string.ascii_letters + "./- ", min_size=1, max_size=4), max_size=8))
def test_ids_of_a_list_are_all_different(paths: list[str]) -> None:
    ids = [made.casefold() for made in safe_ids(paths)]
    assert len(set(ids)) == len(ids)


# ------------------------------------------------------------------------------------------------------- provenance


def test_the_commit_of_a_checkout(tmp_path: Path) -> None:
    git_commit.cache_clear()
    assert git_commit(tmp_path) is None
    command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run([*command, "init", "-q"], check=True)
    git_commit.cache_clear()
    assert git_commit(tmp_path) is None, "it has no commit yet"
    subprocess.run([*command, "commit", "-q", "--allow-empty", "-m", "First"], check=True)
    head = subprocess.run([*command, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / "deep" / "inside").mkdir(parents=True)
    git_commit.cache_clear()
    assert git_commit(tmp_path / "deep" / "inside") == head and len(head) == 40
    git_commit.cache_clear()


def test_differences_name_keys_and_values() -> None:
    found = differing_keys({"recipe": {"a": {"b": 1}, "c": 2}, "x": 1}, {"recipe": {"a": {"b": 2}}, "x": 1.0})
    assert describe_differences(found) == "a.b (was 1, now 2), c (was 2, now absent), x (was 1, now 1.0)"
