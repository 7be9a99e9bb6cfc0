"""Ids: safe, all different, and the same whatever the order."""

from __future__ import annotations

import random

from hypothesis import given, settings, strategies as st

from openavs.jobs.sample import unique_ids
from openavs.utils.fs import safe_id


def test_a_plain_name_stays_and_shared_ones_get_a_hash_each() -> None:
    ids = unique_ids([("dog", "a/dog.mp4"), ("cat", "a/cat.mp4"), ("dog", "b/dog.mp4")])
    assert ids[1] == "cat"
    assert ids[0] != ids[2]
    assert all(id.startswith("dog-") for id in (ids[0], ids[2]))


def test_names_that_differ_in_case_alone_do_not_share_a_folder_anywhere() -> None:
    ids = unique_ids([("Dog", "Dog.mp4"), ("dog", "dog.mp4")])
    assert ids[0].casefold() != ids[1].casefold()


def test_hostile_names_become_folder_names() -> None:
    names = ["..", "a/b", "../../etc", "nul\0byte", "x" * 300, "", ".hidden", "-rf", "con?", "tab\t", "\udc80"]
    ids = unique_ids([(name, f"{i}") for i, name in enumerate(names)])
    assert len(set(ids)) == len(names)
    for id in ids:
        assert safe_id(id) == id


def test_a_clip_keeps_its_id_when_its_namesakes_are_moved_about() -> None:
    clips = [("dog", f"{folder}/dog.mp4") for folder in "abcd"]
    before = dict(zip(clips, unique_ids(clips), strict=True))
    random.Random(0).shuffle(clips)
    assert dict(zip(clips, unique_ids(clips), strict=True)) == before


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text("aAbBß./-", max_size=4), st.uuids().map(str)), max_size=12))
def test_any_names_get_different_safe_ids(named: list[tuple[str, str]]) -> None:
    ids = unique_ids(named)
    assert len({id.casefold() for id in ids}) == len(named)
    assert all(safe_id(id) == id for id in ids)
