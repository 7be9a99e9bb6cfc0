"""Layout twins: several of one kind, one of which sounds and moves in time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.motion import envelope
from openavs.synthetic.scenes import Scene, sample_scene

COUNT = 64


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [sample_scene("twins", "test", 2, index).scene for index in range(COUNT)]


def visible_twins(scene: Scene) -> list[tuple[bool, ...]]:
    """The sounding seconds of the visible things of the kind that sounds."""
    [kind] = {actor.kind for actor in scene.actors if any(actor.on)}
    return [actor.on for actor in scene.actors if actor.kind == kind and actor.visible]


def test_two_or_three_of_a_kind_are_in_view_and_at_most_one_sounds(scenes: list[Scene]) -> None:
    counts = [len(visible_twins(scene)) for scene in scenes]
    assert set(counts) == {2, 3}
    assert 0.25 < counts.count(3) / COUNT < 0.55
    assert all(sum(on) <= 1 for scene in scenes for on in zip(*(a.on for a in scene.actors), strict=True))
    assert {scene.seconds for scene in scenes} == {8}


def test_every_eighth_sound_comes_from_outside_the_frame(scenes: list[Scene]) -> None:
    for index, scene in enumerate(scenes):
        [*sounding] = [actor for actor in scene.actors if any(actor.on)]
        assert all(actor.visible for actor in sounding) == (index % 8 != 7)
        assert any(map(any, visible_twins(scene))) == (index % 8 != 7)


def test_a_third_of_the_clips_have_two_that_alternate_after_three_seconds_at_least(scenes: list[Scene]) -> None:
    turns = [[on for on in visible_twins(scene) if any(on)] for scene in scenes]
    assert 0.15 < np.mean([len(sounding) == 2 for sounding in turns]) < 0.45
    assert all(sum(on) >= 3 for sounding in turns for on in sounding)
    assert all(sum(map(sum, sounding)) == 8 for sounding in turns if len(sounding) == 2)


def test_half_of_the_clips_of_either_sort_have_a_shaking_camera(scenes: list[Scene]) -> None:
    shaking = np.array([scene.camera is not None for scene in scenes])
    assert shaking.mean() == shaking[7::8].mean() == 0.5


def test_a_silent_thing_of_another_kind_is_there_at_times(scenes: list[Scene]) -> None:
    assert 0.1 < np.mean([len({actor.kind for actor in scene.actors}) == 2 for scene in scenes]) < 0.4


def test_the_kinds_can_be_chosen() -> None:
    scenes = [sample_scene("twins", "test", 0, index, twins=["bus", "mower"]).scene for index in range(6)]
    assert {actor.kind for scene in scenes for actor in scene.actors if any(actor.on)} == {"bus", "mower"}


@pytest.mark.parametrize("index", [0, 1])
def test_the_background_moves_if_and_only_if_the_camera_shakes(index: int) -> None:
    scene = sample_scene("twins", "test", 2, index).scene
    (one, owners), (two, others) = scene.picture(1.0), scene.picture(1.2)
    ground = (owners == 0) & (others == 0)
    changed = np.abs(one.astype(int) - two)[ground] > 2 * scene.noise + 2
    assert (changed.mean() > 0.02) == (scene.camera is not None)


def test_masks_follow_the_shaking_camera() -> None:
    scene = sample_scene("twins", "test", 2, 1).scene
    still = replace(scene, camera=None)
    assert scene.camera is not None
    time = max(np.arange(0, 8, 0.1), key=lambda time: np.hypot(*scene.camera.pose(time)[:2]))
    x, y, _ = scene.camera.pose(time)
    assert np.hypot(x, y) > 3 / 224
    for number in range(1, len(scene.actors) + 1):
        centers = [np.argwhere(s.picture(time)[1] == number).mean(axis=0) for s in (scene, still)]
        assert centers[0] - centers[1] == pytest.approx([224 * y, 224 * x], abs=2.5)


FPS = 25


def correlation(scene: Scene, instance: int, loudness: np.ndarray) -> float:
    """The largest correlation of a mask's motion with what drives it, within one frame."""
    actor = scene.actors[instance - 1]
    assert actor.moves is not None
    masks = [scene.picture(k / FPS)[1] == instance for k in range(scene.seconds * FPS)]
    motion = np.array([0, *((one != two).sum() for one, two in pairwise(masks))])
    rise = np.gradient(loudness)
    cause = {"shake": loudness, "mouth": np.abs(rise), "beat": np.maximum(rise, 0)}[actor.moves.manner]
    cause = cause[:-1].reshape(len(masks), -1).mean(axis=1)
    sounding = np.any([a.on for a in scene.actors], axis=0) if not any(actor.on) else np.array(actor.on)
    frames = np.flatnonzero(np.repeat(sounding, FPS))[2:-2]
    return max(np.corrcoef(motion[frames + lag], cause[frames])[0, 1] for lag in (-1, 0, 1))


def test_what_sounds_moves_in_time_with_it_and_its_twins_do_not() -> None:
    found: dict[bool, list[float]] = {True: [], False: []}
    for index in range(8, 15):
        scene = sample_scene("twins", "test", 5, index, size=(112, 112)).scene
        scene = replace(scene, camera=None, noise=0)
        loudness = gaussian_filter1d(envelope(sum(scene.signals())), 2)
        for instance, actor in enumerate(scene.actors, start=1):
            if actor.visible:
                found[any(actor.on)].append(correlation(scene, instance, loudness))
    assert min(found[True]) > 0.2
    assert np.median(found[True]) > 0.5
    assert np.median(found[False]) < 0.2
    assert np.mean(np.array(found[False]) < min(found[True])) > 0.7


def test_a_clip_made_in_memory_has_frames_between_the_sampled_ones() -> None:
    scene = sample_scene("twins", "test", 2, 0, size=(80, 96)).scene
    clip = scene_to_clip(scene, "twins", 0.5)
    assert clip.times[:2] == (0.5, 1.5)
    assert clip.dense_frames is not None
    frames = list(clip.dense_frames(2.0, 48))
    assert [frame.time for frame in frames[:2]] == [0.25, 0.75]
    assert len(frames) == 16
    assert frames[0].image.shape == (40, 48, 3)
