"""Batching, and conversion of scored boxes to detections, clipped and best first."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, strategies as st

from openavs.errors import InputError
from openavs.stages.detectors.processing import (
    CLS,
    DOT,
    QUESTION,
    SEP,
    best_first,
    boxes_to_detections,
    check_inputs,
    clean_phrase,
    image_batches,
    plan_captions,
)
from openavs.structures.types import Detection
from tests.tiny_detectors import bert_tokenizer

BOX = (0.0, 0.0, 1.0, 1.0)


def test_only_equal_keys_share_a_batch() -> None:
    assert list(image_batches(["a", "b", "a", "a", "b"], 2)) == [[0, 2], [3], [1, 4]]
    assert list(image_batches([], 2)) == []


def test_boxes_become_pixels_inside_the_image() -> None:
    boxes = np.array([[0.5, 0.5, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5], [0.5, 0.95, 0.1, 0.1], [0.5, 0.5, 1, 1]], np.float32)
    scores = np.array([0.9, 0.8, 0.7, 0.1], np.float32)
    winners = np.array([1, 0, 0, 0])
    # the model saw 200 x 100 pixels of which the image is the upper half
    found = boxes_to_detections(boxes, scores, winners, ["cat", "dog"], (200.0, 100.0), (100, 100), floor=0.5)
    assert [(d.box, d.phrase) for d in found] == [((25, 50, 75, 100), "dog"), ((0, 0, 25, 50), "cat")]
    assert [d.score for d in found] == pytest.approx([0.9, 0.8])


def test_the_best_are_kept_and_each_phrases_best() -> None:
    scored = [("dog", 0.9), ("dog", 0.5), ("cat", 0.1), ("dog", 0.8), ("cat", 0.2)]
    kept = best_first([Detection(BOX, phrase, score) for phrase, score in scored], limit=2)
    assert [(d.phrase, d.score) for d in kept] == [("dog", 0.9), ("dog", 0.8), ("cat", 0.2)]


def test_malformed_images_are_refused() -> None:
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(InputError, match="uint8 RGB"):
            check_inputs([wrong], [["dog"]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="1 images but 2 lists"):
        check_inputs([np.zeros((4, 4, 3), np.uint8)], [["dog"], ["cat"]])


TOKENIZER = bert_tokenizer()


def encode(texts: list[str]) -> list[list[int]]:
    return TOKENIZER(texts, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "phrases",
    [["dog"], ["red car", "Dog", "an electric guitar"], ["four-wheel car", "it's 9", "café"], ["犬", "dog"]],
)
def test_a_caption_has_the_ids_of_its_text(phrases: list[str]) -> None:
    (caption,) = plan_captions(phrases, encode, max_tokens=256)
    assert list(caption.ids) == TOKENIZER(" . ".join(p.lower() for p in phrases) + " .")["input_ids"]


def test_each_span_holds_its_phrase_and_nothing_else() -> None:
    phrases = ["dog", "red car", "an antenna"]
    (caption,) = plan_captions(phrases, encode, max_tokens=256)
    assert caption.phrases == tuple(phrases)
    for phrase, (start, end) in zip(phrases, caption.spans, strict=True):
        assert TOKENIZER.decode(list(caption.ids[start:end])) == phrase


def test_separators_are_removed_from_phrases() -> None:
    assert clean_phrase("U.S. flag?\n\x00Red\u200b \ud800car ") == "u s flag red car"
    assert clean_phrase("SAX") == "sax"
    (caption,) = plan_captions(["u.s. car", "[SEP] dog", "what? a car"], encode, max_tokens=256)
    assert caption.ids.count(DOT) == 3 and caption.ids.count(SEP) == 1 and QUESTION not in caption.ids
    assert caption.phrases == ("u.s. car", "[SEP] dog", "what? a car"), "phrases are answered as they were given"


def test_phrases_with_equal_tokens_are_included_once() -> None:
    (caption,) = plan_captions(["Dog", "dog", "dog.", "car"], encode, max_tokens=256)
    assert caption.phrases == ("Dog", "car")


def test_phrases_without_tokens_are_dropped() -> None:
    assert plan_captions([], encode, max_tokens=256) == []
    assert plan_captions(["...", "", " \n"], encode, max_tokens=256) == []


def test_one_by_one() -> None:
    captions = plan_captions(["dog", "red car"], encode, max_tokens=256, max_phrases=1)
    assert [c.phrases for c in captions] == [("dog",), ("red car",)]


def test_a_phrase_longer_than_a_caption_is_truncated_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        captions = plan_captions(["dog " * 40, "car"], encode, max_tokens=16)
    assert [len(c.ids) for c in captions] == [16, 4]
    (record,) = caplog.records
    assert record.getMessage().startswith("a phrase of 40 tokens was truncated to 13: 'dog dog dog ")


def test_a_phrase_that_just_fits_is_complete_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        (caption,) = plan_captions(["dog " * 13], encode, max_tokens=16)
    assert len(caption.ids) == 16 and not caplog.records


def test_captions_are_as_few_as_their_length_allows() -> None:
    phrases = ["dog", "car", "red", "red dog", "red car"]
    captions = plan_captions(phrases, encode, max_tokens=8)
    assert [caption.phrases for caption in captions] == [("dog", "car", "red"), ("red dog", "red car")]
    assert [len(caption.ids) for caption in captions] == [8, 8]


def test_a_tokenizer_that_drops_a_phrase_is_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        plan_captions(["dog", "car"], lambda texts: encode(texts)[:1], max_tokens=256)


@given(st.lists(st.text(max_size=12), max_size=60), st.integers(8, 40), st.none() | st.integers(1, 9))
def test_any_list_is_split_into_whole_captions(phrases: list[str], limit: int, most: int | None) -> None:
    captions = plan_captions(phrases, encode, limit, most)
    asked = [phrase for caption in captions for phrase in caption.phrases]
    places = [phrases.index(phrase) for phrase in asked]
    assert places == sorted(places) and len(set(places)) == len(places), "in order, none twice"
    for caption in captions:
        assert most is None or len(caption.phrases) <= most
        assert len(caption.ids) <= limit and caption.ids[0] == CLS and caption.ids[-1] == SEP
        ends = [end for _, end in caption.spans]
        assert [i for i, token in enumerate(caption.ids) if token == DOT] == ends
        assert [start for start, _ in caption.spans] == [1, *(end + 1 for end in ends[:-1])]


def test_the_tokenizer_is_lower_casing_as_the_checkpoints_are() -> None:
    assert encode(["DOG"]) == encode(["dog"])
