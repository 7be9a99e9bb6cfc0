"""Things move in time with a sound, each kind in its manner."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.synthetic.audio import RATE, sound_of
from openavs.synthetic.motion import MANNERS, STEADY, STEPS, Pose, SoundMotion, deformed, envelope, move_with, onsets
from openavs.synthetic.scenes import TWIN_KINDS
from openavs.synthetic.shapes import LOOKS, shape_of


def strikes(*times: float, seconds: float = 2.0) -> np.ndarray:
    sound = np.zeros(round(seconds * RATE))
    for time in times:
        start = round(time * RATE)
        sound[start : start + 1600] += np.exp(-np.arange(1600) / 400) * np.sin(np.arange(1600))
    return sound


def silence(seconds: float = 2.0) -> np.ndarray:
    return np.zeros(round(seconds * RATE))


def moving(kind: str, own: np.ndarray, other: np.ndarray | None = None, seed: int = 0) -> SoundMotion:
    return move_with(kind, own, np.zeros_like(own) if other is None else other, np.random.default_rng(seed))


def test_every_kind_has_a_manner_and_the_default_twins_have_onsets_or_pauses() -> None:
    assert set(MANNERS) == set(LOOKS)
    assert set(TWIN_KINDS) == set(LOOKS) - set(STEADY)


def test_onsets_are_within_a_hundredth_of_a_second_of_the_strikes() -> None:
    found = [time for time, _ in onsets(envelope(strikes(0.3, 0.52, 1.4)))]
    assert found == pytest.approx([0.3, 0.52, 1.4], abs=0.011)
    assert onsets(envelope(silence())) == []


def test_a_beat_is_at_its_peak_just_after_the_onset_and_gone_after_a_fifth_of_a_second() -> None:
    motion = moving("drum", strikes(0.5))
    assert motion.drive.argmax() / STEPS == pytest.approx(0.52, abs=0.015)
    assert motion.drive.max() == pytest.approx(1.0, abs=0.05)
    assert motion.drive[round(0.72 * STEPS) :].max() < 0.05
    assert motion.pose(0.2) == Pose()


@pytest.mark.parametrize("kind", ["dog", "violin"])
def test_a_mouth_stretches_with_the_loudness(kind: str) -> None:
    sound = np.sin(np.arange(2 * RATE)) * np.repeat([0.0, 1.0, 0.0, 0.5], RATE // 2)
    poses = [moving(kind, sound).pose(time) for time in (0.25, 0.75, 1.75)]
    stretch = [pose.lift + pose.grow[1] for pose in poses]
    assert stretch[0] == 0.0
    assert stretch[1] == pytest.approx(2 * stretch[2], rel=0.05)
    assert stretch[1] >= 0.06


def test_a_shake_is_wider_where_it_is_louder() -> None:
    sound = np.random.default_rng(1).standard_normal(2 * RATE) * np.repeat([0.2, 1.0], RATE)
    motion = moving("train", sound)
    reach = [
        np.std([motion.pose(time).shift for time in np.arange(start, start + 0.9, 0.01)]) for start in (0.05, 1.05)
    ]
    assert reach[1] > 2 * reach[0] > 0


def test_a_thing_moves_after_another_sound_while_its_own_is_silent() -> None:
    motion = moving("bell", strikes(0.3), strikes(1.2))
    peaks = [time for time in np.arange(0, 2, 0.01) if motion.drive[round(time * 100)] > 0.9]
    assert min(peaks) < 0.4
    assert max(peaks) > 1.2


def test_stretching_keeps_the_bottom_in_place() -> None:
    points = np.array([[-1.0, 1.0], [0.5, -1.0]])
    assert Pose(grow=(0.0, 0.5)).warp(points).tolist() == [[-1.0, 1.0], [0.5, -2.0]]
    assert Pose(lift=0.5).warp(points).tolist() == [[-1.0, 1.0], [0.5, -1.5]]


@pytest.mark.parametrize("kind", TWIN_KINDS)
def test_the_motion_is_six_to_fifteen_percent_of_the_thing(kind: str) -> None:
    rng = np.random.default_rng(3)
    motion = moving(kind, sound_of(kind, 4.0, rng))
    points = np.concatenate([part.points for part in shape_of(kind, rng)])
    far = 0.0
    for time in np.arange(0, 4, 0.02):
        pose = motion.pose(time)
        moved = pose.warp(points) + pose.shift + pose.turn * np.stack([points[:, 1], -points[:, 0]], axis=1)
        far = max(far, float(np.linalg.norm(moved - points, axis=1).max()))
    assert 0.06 < far / 2 < 0.35


@pytest.mark.parametrize("kind", ["drum", "dog", "mower"])
def test_single_images_show_one_of_the_poses_of_a_motion(kind: str) -> None:
    poses = [deformed(kind, np.random.default_rng(seed)) for seed in range(4)]
    assert all(motion.pose(0.0) == motion.pose(7.3) for motion in poses)
    assert len({motion.pose(0.0).shift for motion in poses}) > 1 or len({motion.pose(0.0).lift for motion in poses}) > 1
