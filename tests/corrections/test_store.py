"""Changes of finished results on disk: merged, recorded, and never lost."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.corrections import store
from openavs.corrections.store import merge_segments, replace_segments
from openavs.errors import InputError
from openavs.jobs.checkpoint import ShardJournal, completed, read_completion, reopen
from openavs.jobs.manifest import read_manifest
from openavs.jobs.output_dir import reopen_changed
from openavs.jobs.save import save_result
from openavs.results.serialization import read_result, write_result
from openavs.structures.types import Correction
from tests.corrections.conftest import square, three_frames


def drawn(frame: int, track: int = 1, author: str = "Ada") -> Correction:
    return Correction("mask", frame, track, "dog", author=author)


def completion(out: Path) -> dict[str, Any]:
    manifest = read_manifest(out)
    assert manifest is not None
    found = read_completion(out, 0, manifest.key)
    assert found is not None
    return found


def test_a_change_is_in_the_result_the_masks_and_the_record(folder: Path) -> None:
    out = folder.parent.parent
    mine = square(10, author="person")
    result = replace_segments(folder, {1: [mine, square(20, 2, "cat")]}, [drawn(1)])
    assert result == read_result(out, "clip")
    assert result.frames[1].segments[0] == mine and result.corrections == (drawn(1),)
    assert result.frames[0] == three_frames().frames[0]
    assert np.asarray(Image.open(folder / "masks" / "00001.png"))[10, 17] == 1
    assert completion(out)["rows"][0]["segments"] == 6
    assert reopen_changed(out, completion(out)["key"], completed(out), verify=True) == []
    with pytest.raises(InputError, match="holds a result of 'clip' already"):
        save_result(out, three_frames())


def test_two_people_on_one_clip_keep_both_changes_and_the_later_wins_a_track(folder: Path) -> None:
    cat = square(20, 2, "cat")
    replace_segments(folder, {1: [square(10, author="person"), cat]}, [drawn(1)])
    theirs = [square(1), square(18, 2, "cat", author="person")]  # made from the result before the first change
    result = replace_segments(folder, {1: theirs}, [drawn(1, 2, "Bob")])
    assert {s.track: s.box[0] for s in result.frames[1].segments} == {1: 10, 2: 18}
    result = replace_segments(folder, {1: [square(4, author="person")]}, [drawn(1, 1, "Bob")])
    assert {s.track: s.box[0] for s in result.frames[1].segments} == {1: 4, 2: 18}
    assert [c.author for c in result.corrections] == ["Ada", "Bob", "Bob"]


def test_a_model_replaces_no_segment_of_a_person_and_brings_back_none_that_one_removed() -> None:
    result = merge_segments(
        three_frames(), {0: [square(9, author="person")]}, [Correction("reject", None, 2), drawn(0)]
    )
    assert [r.reason for r in result.frames[0].rejected] == ["person"]
    again = merge_segments(result, {0: [square(0), square(21, 2, "cat"), square(20, 3, "bird")]}, [])
    assert [(s.track, s.author) for s in again.frames[0].segments] == [(3, "model"), (1, "person")]
    untracked = merge_segments(result, {0: [square(10, None)]}, [])
    assert [s.author for s in untracked.frames[0].segments] == ["person"], "it covers the person's"
    removed = merge_segments(result, {0: []}, [Correction("reject", 0, 1)])
    assert removed.frames[0].segments == ()


def test_a_kept_candidate_leaves_the_rejections() -> None:
    result = merge_segments(three_frames(), {0: [square(0)]}, [Correction("reject", 0, 2)])
    back = merge_segments(result, {0: [square(0), square(20, 2, "cat", author="person")]}, [Correction("keep", 0, 2)])
    assert back.frames[0].rejected == ()


@pytest.mark.parametrize(
    ("segments", "correction", "sentence"),
    [
        ({7: []}, drawn(0), "clip has no frame 7: its frames are 0 to 2; nothing was changed"),
        ({}, drawn(-1), "clip has no frame -1"),
        ({}, Correction("span", None, 1, value=[1]), r"a span is \[start, end\] in seconds, not \[1\]"),
        ({}, Correction("erase"), "should be one of 'add point'"),  # type: ignore[arg-type]
        ({0: [replace(square(0), mask=replace(square(0).mask, size=(20, 31)))]}, drawn(0), "mask"),
    ],
)
def test_a_bad_change_leaves_everything(segments: Any, correction: Correction, sentence: str, folder: Path) -> None:
    before = (folder / "result.json").read_bytes()
    with pytest.raises(InputError, match=sentence):
        replace_segments(folder, segments, [correction])
    assert (folder / "result.json").read_bytes() == before


def test_a_clip_of_an_unfinished_shard_waits_for_its_run(folder: Path) -> None:
    out = folder.parent.parent
    reopen(out, completion(out), [])
    with pytest.raises(
        InputError, match=r"a run has not finished its part of .* with clip; wait for it or run the same"
    ):
        replace_segments(folder, {}, [drawn(0)])
    with pytest.raises(InputError, match="does not exist; is other a finished clip"):
        replace_segments(folder.with_name("other"), {}, [drawn(0)])
    with pytest.raises(InputError, match="is not the folder of a clip"):
        replace_segments(out, {}, [drawn(0)])


def test_a_kill_after_the_result_is_written_loses_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, write = folder.parent.parent, store.atomic_write

    def killed(path: Path, data: bytes) -> None:
        write(path, data)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "atomic_write", killed)
        replace_segments(folder, {1: [square(10, author="person")]}, [drawn(1)])
    saved = completion(out)
    assert reopen_changed(out, saved["key"], [0], verify=True) == [], "a resumed run leaves the clip alone"
    reopen(out, saved, [])
    journal = ShardJournal.read(out / "work" / "000000.jsonl")
    journal.forget_changed(out)
    assert list(journal.finished) == ["clip"]
    assert read_result(out, "clip").corrections == (drawn(1),)


def test_writers_at_the_same_time_lose_no_change(folder: Path) -> None:
    def correct(frame: int) -> None:
        replace_segments(folder, {frame: [square(10, author="person")]}, [drawn(frame)])

    threads = [threading.Thread(target=correct, args=(frame,)) for frame in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = read_result(folder.parent.parent, "clip")
    assert sorted(c.frame or 0 for c in result.corrections) == [0, 1, 2]
    assert all(frame.segments == (square(10, author="person"),) for frame in result.frames)


def test_a_folder_without_a_job_is_corrected_too(tmp_path: Path) -> None:
    folder = write_result(tmp_path, three_frames())
    replace_segments(folder, {0: []}, [Correction("reject", 0)])
    assert not np.asarray(Image.open(folder / "masks" / "00000.png")).any()
    assert json.loads((folder / "result.json").read_text())["corrections"][0]["action"] == "reject"
