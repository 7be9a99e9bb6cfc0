"""The sync verifier on small films: it keeps what moves with the sound, and decides nothing without evidence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.registry import Registry, check_backends
from openavs.stages.verifiers.base import TemporalVerifier
from openavs.stages.verifiers.sync import SyncVerifier
from openavs.structures.types import Caption, Clip, ClipEvidence, Event, Prompt, TrackedFrame, Waveform
from tests.stages.verifiers.films import Film, beats, hum, jumps, knocks, prompts, shaking

OWN, OTHER, THIRD = beats(1, 6), beats(2, 6), beats(3, 6)
SOUND = knocks(OWN, 6)


def still(time: float) -> float:
    return 0.0


def decide(
    film: Film,
    audio: Waveform | None = SOUND,
    verifier: SyncVerifier | None = None,
    *,
    fps: float = 2.0,
    **options: Any,
) -> tuple[list[TrackedFrame], list[str]]:
    """Verify a film with true masks; return its frames and the sentences about it."""
    clip = film.clip(audio, fps)
    said: list[str] = []
    evidence = ClipEvidence(clip, prompts(clip, "drum"), warn=said.append)
    return list((verifier or SyncVerifier()).verify_clip(film.frames(clip, **options), evidence)), said


def kept(frame: TrackedFrame) -> list[int]:
    """The discs that are kept, from 1, by the column of their box."""
    return sorted(1 if s.box[0] < 40 else 2 for s in frame.segments)


def all_unresolved(frames: Sequence[TrackedFrame]) -> bool:
    return all(
        len(frame.segments) == 2 and all(s.verdicts[-1].decision == "unresolved" for s in frame.segments)
        for frame in frames
    )


def test_the_candidate_that_moves_with_the_sound_is_kept() -> None:
    frames, said = decide(Film([jumps(OWN), jumps(OTHER)]))
    assert [kept(frame) for frame in frames] == [[1]] * 12 and not said
    for frame in frames:
        (segment,), (rejection,) = frame.segments, frame.rejected
        verdict = segment.verdicts[-1]
        assert (verdict.decision, verdict.verifier) == ("kept", "sync") and 0 < verdict.score <= 1
        assert (rejection.phrase, rejection.reason, rejection.verifier) == ("drum", "silent", "sync")
        assert verdict.margin == pytest.approx(-(rejection.margin or 0)) and verdict.margin >= 0.03


def test_it_is_a_backend_without_a_model() -> None:
    verifier = Registry("verifier").build("sync", {"window": 3.0})
    assert isinstance(verifier, TemporalVerifier) and isinstance(verifier, SyncVerifier) and verifier.window == 3.0
    check_backends(load_recipe("openavs-cpu", ["verifier={use: sync}"]))


@pytest.mark.parametrize("tracks", [True, False])
def test_two_that_alternate_are_kept_one_after_the_other(tracks: bool) -> None:
    first, second = beats(1, 6), beats(2, 12, 6.0)
    film = Film([jumps([*first, *beats(5, 12, 6.0)]), jumps([*beats(4, 6), *second])], seconds=12)
    frames, _ = decide(film, knocks([*first, *second], 12), tracks=tracks)
    found = [kept(frame) for frame in frames]
    assert found[:10] == [[1]] * 10 and found[-10:] == [[2]] * 10


def test_a_shaking_camera_changes_nothing() -> None:
    frames, _ = decide(Film([jumps(OTHER), jumps(OWN)], camera=shaking(0)))
    assert [kept(frame) for frame in frames].count([2]) >= 11


def test_a_thing_that_does_not_move_is_silent_beside_one_that_does() -> None:
    frames, _ = decide(Film([still, jumps(OWN)]))
    assert [kept(frame) for frame in frames] == [[2]] * 12


def test_three_candidates() -> None:
    frames, _ = decide(Film([jumps(OTHER), jumps(THIRD), jumps(OWN)]))
    assert all([s.track for s in frame.segments] == [3] for frame in frames)


def test_a_lower_frame_rate_of_the_video_suffices() -> None:
    frames, _ = decide(Film([jumps(OWN), jumps(OTHER)], rate=12.5))
    assert [kept(frame) for frame in frames].count([1]) >= 10


def test_the_curve_of_its_own_phrase_separates_two_kinds() -> None:
    film = Film([jumps(OWN), jumps(OTHER)])
    both = Waveform((SOUND.samples + 2 * knocks(OTHER, 6).samples).clip(-1, 1), SOUND.rate)  # a louder thing off-screen
    clip = film.clip(both)
    curve = np.zeros(600)  # 100 a second: on for 0.12 s at each of its own beats
    for time in OWN:
        curve[round(time * 100) : round(time * 100) + 12] = 1.0
    events = (Event("drumming", 0.0, 6.0, 1.0, 100.0, tuple(curve.tolist())),)
    asked = [(Prompt("drum", captions=(Caption("drumming", 1.0, 0.0, 6.0),)),)] * len(clip.times)
    alone = list(SyncVerifier().verify_clip(film.frames(clip), ClipEvidence(clip, asked)))
    gated = list(SyncVerifier().verify_clip(film.frames(clip), ClipEvidence(clip, asked, events)))
    assert [kept(frame) for frame in gated] == [[1]] * 12
    assert [kept(frame) for frame in alone].count([1]) < 6


def test_two_in_step_are_both_kept() -> None:
    frames, said = decide(Film([jumps(OWN), jumps(OWN)]))
    assert all(kept(frame) == [1, 2] for frame in frames) and not said


BAD = {
    "a still": (Film([jumps(OWN), jumps(OTHER)], end=0.0), SOUND, "less than 8 times a second"),
    "one frame a second": (Film([jumps(OWN), jumps(OTHER)], rate=1.0), SOUND, "less than 8 times a second"),
    "a hum": (Film([jumps(OWN), jumps(OTHER)]), hum(6), "no onsets or pauses"),
    "no sound": (Film([jumps(OWN), jumps(OTHER)]), None, "no frames between"),
    "digital silence": (Film([jumps(OWN), jumps(OTHER)]), Waveform(np.zeros(96000, np.float32), 16000), "no onsets"),
    "less than a second": (Film([jumps(OWN), jumps(OTHER)], seconds=0.6), SOUND, "too little of the same scene"),
}


@pytest.mark.parametrize("case", BAD)
def test_without_evidence_all_are_kept_as_unresolved(case: str) -> None:
    film, audio, reason = BAD[case]
    frames, said = decide(film, audio)
    assert all_unresolved(frames)
    (sentence,) = said
    assert reason in sentence


def test_without_frames_between_the_sampled_ones_all_are_kept() -> None:
    film = Film([jumps(OWN), jumps(OTHER)])
    clip = replace(film.clip(SOUND), dense_frames=None)
    said: list[str] = []
    frames = list(SyncVerifier().verify_clip(film.frames(clip), ClipEvidence(clip, [], warn=said.append)))
    assert all_unresolved(frames)
    assert len(said) == 1 and said[0].endswith("all are kept; there are no frames between the sampled ones")


def test_what_moves_before_the_picture_freezes_decides() -> None:
    frames, _ = decide(Film([jumps(OWN), jumps(OTHER)], end=3.0))
    assert kept(frames[0]) == [1] and all_unresolved(frames[-3:])


def test_a_cut_is_not_motion() -> None:
    uncut, _ = decide(Film([jumps(OWN), jumps(OTHER)]))
    cut, _ = decide(Film([jumps(OWN), jumps(OTHER)], cut=3.0))
    assert [kept(frame) for frame in cut if abs(frame.frame.time - 3) > 1] == [[1]] * 8
    assert all(1 in kept(frame) for frame in cut)
    assert cut[0].segments[0].verdicts == uncut[0].segments[0].verdicts  # its window ends before the cut


def test_a_lone_candidate_is_never_rejected_by_default() -> None:
    film = Film([jumps(OTHER)])
    frames, said = decide(film)
    assert all(len(frame.segments) == 1 for frame in frames) and not said and not film.decoded


def test_a_recipe_can_drop_lone_candidates_that_do_not_fit() -> None:
    frames, _ = decide(Film([jumps(OTHER)]), verifier=SyncVerifier(drop_lone=True))
    gone = [rejection for frame in frames for rejection in frame.rejected]
    assert len(gone) >= 6 and {r.reason for r in gone} == {"off-screen"}
    fitting, _ = decide(Film([jumps(OWN)]), verifier=SyncVerifier(drop_lone=True))
    assert all(len(frame.segments) == 1 for frame in fitting)


def test_off_screen_rejects_all_candidates_that_move_out_of_time() -> None:
    film = Film([jumps(OTHER), jumps(THIRD)])
    strict, _ = decide(film, verifier=SyncVerifier(off_screen=True))
    default, _ = decide(film)
    assert all(frame.segments for frame in default)
    empty = [frame for frame in strict if not frame.segments]
    assert len(empty) >= 4
    for frame in empty:
        assert [r.reason for r in frame.rejected] == ["off-screen"] * 2
        assert (frame.rejected[0].score or 0) >= (frame.rejected[1].score or 0)
    assert all(frame.segments for frame in decide(Film([still, still]), verifier=SyncVerifier(off_screen=True))[0])


def test_frames_are_consumed_lazily_and_decoding_keeps_step() -> None:
    film = Film([jumps(OWN), jumps(OTHER)], seconds=20)
    clip = film.clip(knocks(beats(1, 20), 20), fps=4.0)
    ahead = []
    taken = 0

    def source() -> Iterator[TrackedFrame]:
        nonlocal taken
        for frame in film.frames(clip):
            taken += 1
            yield frame

    for done, frame in enumerate(SyncVerifier().verify_clip(source(), ClipEvidence(clip, [])), start=1):
        ahead.append(taken - done)
        assert max(film.decoded) <= (frame.frame.time + 6) * 25 + 1
    assert max(ahead) <= 25  # half a window and the 4 s after it that decide, too, at 4 frames a second
    assert film.decoded == list(range(500))  # once


def test_a_verdict_depends_on_its_surroundings_alone() -> None:
    film = Film([jumps(OWN), jumps(OTHER)])
    clip = film.clip(SOUND, fps=4.0)
    frames = film.frames(clip)
    whole = list(SyncVerifier().verify_clip(frames, ClipEvidence(clip, [])))
    part = list(SyncVerifier().verify_clip(frames[12:], ClipEvidence(clip, [])))
    for one, other in zip(whole[12:], part, strict=True):
        assert kept(one) == kept(other)
        assert one.segments[0].verdicts[-1].score == pytest.approx(other.segments[0].verdicts[-1].score, abs=0.1)


def test_masks_of_neighboring_frames_are_linked_without_tracks() -> None:
    film = Film([jumps(OWN), jumps(OTHER)])
    clip = film.clip(SOUND)
    frames = [
        replace(frame, segments=frame.segments[::-1] if i % 2 else frame.segments)
        for i, frame in enumerate(film.frames(clip, tracks=False))
    ]
    frames[5] = replace(frames[5], segments=frames[5].segments[:1])  # the one that sounds is missed once
    found = list(SyncVerifier().verify_clip(frames, ClipEvidence(clip, [])))
    assert [kept(frame) for frame in found] == [[1]] * 5 + [[]] + [[1]] * 6
    (rejection,) = found[5].rejected
    assert rejection.reason == "silent" and (rejection.margin or 0) < -0.03


def test_an_object_that_is_seen_once_does_not_compete_with_a_lone_one() -> None:
    film = Film([jumps(OTHER), jumps(OWN)])
    clip = film.clip(SOUND, 1.0)
    lone = [replace(frame, segments=frame.segments[:1]) for frame in film.frames(clip, tracks=False)]
    lone[3] = film.frames(clip, tracks=False)[3]
    found = list(SyncVerifier().verify_clip(lone, ClipEvidence(clip, [])))
    assert [kept(frame) for i, frame in enumerate(found) if i != 3] == [[1]] * 5


def test_things_that_are_found_only_while_they_sound_stay() -> None:
    film = Film([jumps(beats(1, 4)), jumps(beats(2, 8, 4.0))], seconds=8)
    clip = film.clip(knocks([*beats(1, 4), *beats(2, 8, 4.0)], 8), 1.0)
    frames = film.frames(clip)
    lone = [replace(f, segments=f.segments[:1] if f.frame.time < 4 else f.segments[1:]) for f in frames]
    found = list(SyncVerifier().verify_clip(lone, ClipEvidence(clip, [])))
    assert [kept(frame) for frame in found] == [[1]] * 4 + [[2]] * 4


def test_moments_without_a_clear_margin_follow_the_seconds_around() -> None:
    first, last = [t for t in OWN if t < 2.5], [t for t in OWN if t > 3.5]
    film = Film([jumps([*first, *last]), jumps([*beats(2, 2.5), *beats(4, 6, 3.6)])])
    clip = film.clip(SOUND, 2.0)
    found = list(SyncVerifier(window=2.0).verify_clip(film.frames(clip), ClipEvidence(clip, [])))
    assert [kept(frame) for frame in found] == [[1]] * 12  # also at 3 s, where neither moves


@pytest.mark.parametrize(
    "options",
    [{"fps": 5}, {"longest_side": 8}, {"window": 0.5}, {"max_lag": 1.0}, {"min_score": -0.1}, {"min_margin": 0.0}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"sync: .*{next(iter(options))}"):
        SyncVerifier(**options)


def test_an_empty_clip_has_no_frames() -> None:
    clip = Clip("none", (), 1.0, (8, 8), lambda _: iter(()), SOUND)
    assert list(SyncVerifier().verify_clip([], ClipEvidence(clip, []))) == []
