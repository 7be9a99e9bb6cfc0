"""Reasoners with a server that answers right, wrong, broken or not at all, and with a tiny model in this process."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest

from openavs.errors import InputError
from openavs.stages.reasoners.base import Reasoner
from openavs.stages.reasoners.vision_reasoner import LocalVisionReasoner
from openavs.structures.types import TrackedFrame
from tests.local_server import completion, refusal
from tests.stages.reasoners.clips import (
    Told,
    decisions,
    kept_tracks,
    picture_of,
    reasoning_server,
    text_of,
    tracked_frames,
)
from tests.tiny_lms import make_vlm

RIGHT = decisions({1: "reject", 2: "accept", 3: "unsure"}, reason="it barks")


def run(*answers: Any, told: Told | None = None, **options: Any) -> tuple[list[TrackedFrame], Told, Any]:
    told = told or Told()
    with reasoning_server(*answers, **options) as (reasoner, server):
        return list(reasoner.reason(iter(tracked_frames()), told.evidence)), told, server


def test_decisions_reach_every_frame_with_one_request() -> None:
    frames, told, server = run(RIGHT)

    assert len(server.requests) == 1 and not told.warnings
    assert kept_tracks(frames) == [{11, 12}] * 4
    for frame in frames:
        assert [segment.verdicts[-1].decision for segment in frame.segments] == ["kept", "unresolved"]
        [gone] = frame.rejected
        assert (gone.phrase, gone.reason, gone.score, gone.verifier) == ("dog", "reasoner", 0.5, "reasoner")
        assert gone.box == (0.0, 20.0, 42.0, 60.0)
    assert [segment.verdicts[0].verifier for segment in frames[0].segments] == ["sync", "sync"]


def test_the_record_holds_question_answer_decisions_and_the_picture_that_was_sent() -> None:
    _, told, server = run(RIGHT)
    [record] = told.records

    assert record.question == text_of(server.requests[0]) and record.answers == (RIGHT,)
    assert [(c.number, c.track, c.decision, c.reason) for c in record.candidates] == [
        (1, 10, "rejected", "it barks"),
        (2, 11, "kept", "it barks"),
        (3, 12, "unresolved", "it barks"),
    ]
    assert (record.candidates[0].start, record.candidates[0].end) == (0.5, 3.5)
    jpeg = base64.b64decode(record.picture or "")
    assert hashlib.sha256(jpeg).hexdigest() == record.digest
    assert record.frames == (0, 1, 2, 3)
    assert picture_of(server.requests[0]).tobytes() == picture_of_bytes(jpeg)

    _, told, _ = run(RIGHT, keep_picture=False)
    assert told.records[0].picture is None and told.records[0].digest == record.digest


def picture_of_bytes(jpeg: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(jpeg)).tobytes()


def test_requests_are_bounded_in_pixels_and_bytes() -> None:
    _, _, server = run(RIGHT, max_pixels=1 << 17)
    [request] = server.requests
    assert picture_of(request).width * picture_of(request).height <= 1 << 17
    assert int(server.headers[0]["content-length"]) < 400_000
    assert request["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ("no", "no JSON"),
        (decisions({7: "reject", 8: "reject"}), "2 numbers that no candidate has"),
        ('{"candidates": [{"number": 1, "decision": "delete everything"}], "none": 3}', "cannot be read"),
        (completion(None, refusal="I will not"), "refused"),
    ],
)
def test_unusable_answers_change_nothing_but_the_warning(broken: Any, problem: str) -> None:
    frames, told, server = run(broken)

    assert len(server.requests) == 2
    assert kept_tracks(frames) == [{10, 11, 12}] * 4
    assert [f.rejected for f in frames] == [()] * 4
    assert {s.verdicts[-1].decision for f in frames for s in f.segments} == {"unresolved"}
    [warning] = told.warnings
    assert warning.startswith("reasoner: 3 of 3 candidates kept without a decision") and problem in warning
    assert {c.decision for c in told.records[0].candidates} == {"unresolved"}


def test_a_second_request_corrects_the_first_answer() -> None:
    frames, told, server = run("hm", RIGHT)

    first, second = server.requests
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert "cannot be used: the answer holds no JSON" in second["messages"][-1]["content"]
    assert kept_tracks(frames) == [{11, 12}] * 4
    assert told.warnings == [
        "reasoner: an answer was unusable or incomplete (the answer holds no JSON object with 'candidates')"
    ]
    assert told.records[0].answers == ("hm", RIGHT)


def test_what_was_decided_is_used_and_the_rest_is_kept() -> None:
    frames, told, _ = run(decisions({1: "reject"}))
    assert kept_tracks(frames) == [{11, 12}] * 4
    assert told.warnings == ["reasoner: 2 of 3 candidates kept without a decision (it leaves out 2 of 3 candidates)"]


def test_none_rejects_every_candidate() -> None:
    frames, told, _ = run('{"candidates": [], "none": true}')
    assert kept_tracks(frames) == [set()] * 4
    assert told.records[0].none and not told.warnings


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (refusal(500), "HTTP 500"),
        (refusal(400, "this model does not support image input"), "the server does not take the picture"),
    ],
)
def test_a_server_that_fails_or_takes_no_pictures_leaves_all_candidates(answer: Any, problem: str) -> None:
    frames, told, server = run(answer, structured="none")
    assert len(server.requests) == 1
    assert kept_tracks(frames) == [{10, 11, 12}] * 4
    assert problem in told.warnings[0]


@pytest.mark.parametrize(("hidden", "kept"), [("keep", {10, 11, 12}), ("reject", {11})])
def test_candidates_beyond_the_limit_are_kept_or_rejected_with_a_warning(hidden: str, kept: set[int]) -> None:
    told = Told()
    with reasoning_server(decisions({1: "accept"}), max_candidates=1, hidden=hidden) as (reasoner, _):
        best = tracked_frames()
        frames = [_louder(frame) for frame in best]
        after = list(reasoner.reason(iter(frames), told.evidence))
    assert kept_tracks(after) == [kept] * 4
    done = "kept as unresolved" if hidden == "keep" else "rejected"
    assert told.warnings == [f"reasoner: 2 of 3 candidates not shown to the model, and {done}"]


def _louder(frame: TrackedFrame) -> TrackedFrame:
    from dataclasses import replace

    segments = tuple(replace(s, score=0.9 if s.track == 11 else 0.5) for s in frame.segments)
    return replace(frame, segments=segments)


def test_nothing_is_sent_without_candidates_or_pixels() -> None:
    told = Told()
    with reasoning_server(RIGHT) as (reasoner, server):
        assert list(reasoner.reason([], told.evidence)) == []
        empty = tracked_frames(things=0)
        assert kept_tracks(list(reasoner.reason(empty, told.evidence))) == [set()] * 4
        assert not told.warnings
        cut = Told(0)  # the file cannot be decoded again
        assert kept_tracks(list(reasoner.reason(tracked_frames(), cut.evidence))) == [{10, 11, 12}] * 4
        assert "could be decoded again" in cut.warnings[0]
    assert not server.requests and not told.records


def test_options_are_validated() -> None:
    for options in ({"max_candidates": 0}, {"max_frames": 13}, {"max_new_tokens": 0}, {"prompt": "default"}):
        with pytest.raises(InputError, match="reasoner: "), reasoning_server(RIGHT, **options):
            pass


SHORT = """name: short
version: 1
variables: sounds, candidates, count, frames
summary: A prompt that fits a small context.
---
[system]
answer in json
[user]
$frames $sounds $count $candidates
"""


def test_a_model_in_this_process_answers(tmp_path: Path) -> None:
    folder = make_vlm(tmp_path / "vlm")
    (tmp_path / "short.txt").write_text(SHORT)
    reasoner = LocalVisionReasoner(
        model=str(folder), prompt=str(tmp_path / "short.txt"), max_frames=1, max_pixels=1 << 16, max_new_tokens=8
    )
    told = Told()
    frames = list(reasoner.reason(iter(tracked_frames(things=1)), told.evidence))

    assert isinstance(reasoner, Reasoner) and list(reasoner.models) == [str(folder)]
    assert kept_tracks(frames) == [{10}] * 4  # random weights answer no JSON
    assert len(told.records[0].answers) == 2 and "without a decision" in told.warnings[0]
