"""The synthetic world has exact ground truth, and is deterministic."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.synthetic.categories import BY_NAME, KINDS
from openavs.synthetic.scenes import LAYOUTS, Role, plan_scene, sample_scene, scene_rng
from openavs.synthetic.shapes import LOOKS, shape_of


def test_every_kind_has_a_look_inside_its_square() -> None:
    assert set(LOOKS) == set(BY_NAME)
    for kind in KINDS:
        points = np.vstack([part.points for part in shape_of(kind.name, scene_rng("train", 5))])
        assert np.abs(points).max() <= 1.06, kind.name
        assert np.ptp(points, axis=0).min() >= 0.3, kind.name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_scene_follows_from_its_seed_alone(layout: str) -> None:
    one, two = (sample_scene(layout, "test", 3, 8).scene for _ in range(2))
    assert np.array_equal(one.picture(1.5)[0], two.picture(1.5)[0])
    assert np.array_equal(one.soundtrack().samples, two.soundtrack().samples)


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(InputError, match="there is no layout 'v3'; there are clip, s4, "):
        sample_scene("v3", "test", 0, 0)


@pytest.mark.parametrize("other", [("train", 3, 8), ("test", 4, 8), ("test", 3, 9)])
def test_another_split_seed_or_index_is_another_scene(other: tuple[str, int, int]) -> None:
    one, two = sample_scene("ms3", "test", 3, 8).scene, sample_scene("ms3", *other).scene
    assert not np.array_equal(one.picture(1.5)[0], two.picture(1.5)[0])


def test_masks_cover_what_changes_when_a_thing_is_taken_away() -> None:
    rng = scene_rng("test", 1)
    scene = plan_scene([Role("dog", (True,) * 5)], rng, 5)
    image, owners = scene.picture(2.0)
    empty, _ = type(scene)(scene.seconds, scene.size, (), scene.backdrop, scene.noise, scene.sound_seed).picture(2.0)
    changed = (image != empty).any(axis=2)
    assert (changed & (owners == 0)).mean() < 0.02  # the anti-aliased rim
    assert changed[owners == 1].mean() > 0.97


def test_more_things_than_there_is_room_for_are_shown_all_the_same() -> None:
    kinds = [kind.name for kind in KINDS[:12]]
    scene = plan_scene([Role(kind, (True,)) for kind in kinds], scene_rng("test", 3), 1)
    assert [actor.kind for actor in scene.actors] == kinds
    assert len(set(np.unique(scene.picture(0.5)[1])) - {0}) >= 10, "some may be covered by others"


def test_truth_holds_only_what_sounds_and_is_seen() -> None:
    parts = [
        Role("dog", (True, False)),
        Role("bell", (False, True)),
        Role("car", (True, True), visible=False),
        Role("cat", (False, False)),
    ]
    scene = plan_scene(parts, scene_rng("test", 2), 2)
    assert set(scene.truth(0.5)) == {"dog"}
    assert set(scene.truth(1.5)) == {"bell"}
    assert scene.sounding(0) == ("dog", "car")


def test_each_second_is_loud_exactly_when_something_sounds() -> None:
    for index in range(12):
        scene = sample_scene("ms3", "test", 1, index).scene
        sound = scene.soundtrack()
        for second in range(scene.seconds):
            loud = sound.cut(second + 0.02, second + 0.98).dbfs > -60
            assert loud == bool(scene.sounding(second)), (index, second)


def test_s4_scenes_have_one_source_throughout_and_its_category() -> None:
    for index in range(30):
        cast = sample_scene("s4", "test", 0, index)
        sounding = [actor for actor in cast.scene.actors if any(actor.on)]
        assert len(sounding) == 1
        assert all(sounding[0].on)
        assert cast.category == BY_NAME[sounding[0].kind].category
        assert sounding[0].kind not in cast.distractors


def test_the_world_contains_what_benchmarks_test() -> None:
    scenes = [sample_scene("ms3", "test", 0, index) for index in range(80)]
    assert any(cast.distractors for cast in scenes), "silent things beside the sources"
    assert any(len(c.scene.sounding(s)) == 2 for c in scenes for s in range(5)), "two sources at once"
    assert any(not c.scene.sounding(s) for c in scenes for s in range(5)), "silence"
    assert any(not a.visible and any(a.on) for c in scenes for a in c.scene.actors), "off-screen sounds"
    assert any(any(a.on) and not all(a.on) for c in scenes for a in c.scene.actors), "sources that stop and start"
    assert np.mean([len(c.scene.sounding(s)) > 2 for c in scenes for s in range(5)]) < 0.02, "three are rare"


def test_training_for_the_open_vocabulary_holds_no_novel_kind() -> None:
    for index in range(40):
        cast = sample_scene("v2", "train", 0, index, base_only=True)
        assert not any(BY_NAME[actor.kind].novel for actor in cast.scene.actors)
