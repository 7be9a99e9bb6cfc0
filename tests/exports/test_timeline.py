"""CSV, read back by the standard library."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from openavs.exports.base import ExportItem, run_items
from openavs.exports.csv import EVENT_COLUMNS, FRAME_COLUMNS, to_events, to_timeline
from openavs.exports.registry import export
from openavs.structures.types import Caption, ClipResult, FrameResult


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_row_has_captions_prompts_segments_and_rejections_of_a_frame(run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "csv")
    rows = read(tmp_path / "csv" / "timeline.csv")
    assert tuple(rows[0]) == FRAME_COLUMNS and len(rows) == 11
    first, second, last = rows[0], rows[1], rows[5]
    assert (first["clip"], first["frame"], first["time"]) == ("one", "0", "0.5")
    assert (first["captions"], first["caption_scores"]) == ("dog barking | =SUM(A1)", "0.800 | ")
    assert (first["prompts"], first["found"], first["found_scores"]) == ("dog | bell", "dog | bell", "0.750 | 0.400")
    assert (first["tracks"], rows[6]["tracks"]) == ("7 | 3", " | ")
    assert (second["rejected"], second["reasons"]) == ("bell", "below threshold")
    assert (last["silent"], last["captions"], last["found"]) == ("True", "", "")


def test_events_hold_every_number_in_full(results: list[ClipResult], run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "csv")
    rows = read(tmp_path / "csv" / "events.csv")
    assert tuple(rows[0]) == EVENT_COLUMNS
    found = [row for row in rows if row["event"] == "segment"]
    truth = [s for result in results for frame in result.frames for s in frame.segments]
    for row, segment in zip(found, truth, strict=True):
        assert (row["text"], float(row["score"]), int(row["area"])) == (
            segment.phrase,
            segment.score,
            segment.mask.area,
        )
        assert tuple(float(row[key]) for key in ("x0", "y0", "x1", "y1")) == segment.box
    (dropped, *_) = [row for row in rows if row["event"] == "rejection"]
    assert (dropped["reason"], dropped["score"], dropped["x1"]) == ("below threshold", "0.1", "3.0")
    assert sum(row["event"] == "silent" for row in rows) == 2


def test_sounds_have_exact_times_and_no_frame(run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "csv")
    bark, other, *rest = read(tmp_path / "csv" / "events.csv")
    assert (bark["event"], bark["text"], bark["start"], bark["end"]) == ("sound", "dog barking", "0.24", "1.88")
    assert (bark["clip"], bark["frame"], bark["time"], bark["score"]) == ("one", "", "", "0.91")
    assert other["text"] == "'=SUM(A1)" and "sound" not in {row["event"] for row in rest}


def test_verdicts_are_in_the_rows_of_segments_and_rejections(run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "csv")
    rows = read(tmp_path / "csv" / "events.csv")
    found = [
        (row["text"], row["verifier"], row["decision"], row["margin"]) for row in rows if row["event"] == "segment"
    ]
    assert found[:2] == [
        ("dog", "sync", "kept", "0.125"),
        ("bell", "clip | sync", "kept | unresolved", " | 0.010"),
    ]
    assert found[-1][1:] == ("", "", "")  # the other clip has no verifier
    (silent,) = [row for row in rows if row["reason"] == "silent"]
    assert (silent["event"], silent["verifier"], silent["margin"], silent["score"]) == (
        *("rejection", "sync", "0.125", "0.2"),
    )


def test_weak_captions_are_events_of_their_own() -> None:
    frame = FrameResult(
        0, 0.5, captions=(Caption("rain", 0.4, 0.0, 1.0),), weak=(Caption("dog", 0.1, 0.0, 1.0, "", True),)
    )
    events = list(to_events(ClipResult("clip", (4, 4), (frame,))))
    assert [(e["event"], e["text"], e["score"]) for e in events] == [("caption", "rain", 0.4), ("weak", "dog", 0.1)]


def test_no_text_is_taken_for_a_formula(run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "csv")
    texts = {row["text"] for row in read(tmp_path / "csv" / "events.csv")}
    assert "'=SUM(A1)" in texts and not any(text.startswith("=") for text in texts)


@pytest.mark.parametrize("text", [" =1+1", "\n=1+1", "\t@SUM(1)", "\x1b]0;owned\x07", "-\r2"])
def test_formulas_behind_spaces_and_control_characters_are_made_harmless(text: str, tmp_path: Path) -> None:
    frames = (FrameResult(0, 0.5, captions=(Caption(text, 0.5, 0.0, 1.0),)),)
    item = ExportItem(ClipResult("clip", (4, 4), frames), lambda: pytest.fail("nothing is decoded"))
    export("timeline", [item], tmp_path / "csv")
    for table, column in (("timeline", "captions"), ("events", "text")):
        (row,) = read(tmp_path / "csv" / f"{table}.csv")
        assert row[column].lstrip()[:1] not in {*"=+-@"}
        assert not {*row[column]} & {*"\x1b\x07\r"}


def test_in_python_the_texts_are_as_they_are(results: list[ClipResult]) -> None:
    assert "=SUM(A1)" in {event.get("text") for event in to_events(results[0])}
    assert [row["frame"] for row in to_timeline(results[0])] == list(range(6))


def test_one_file_is_the_table_of_frames(run: Path, tmp_path: Path) -> None:
    export("timeline", run_items(run), tmp_path / "one.csv")
    assert len(read(tmp_path / "one.csv")) == 11 and [p.name for p in tmp_path.iterdir()] == ["one.csv"]
