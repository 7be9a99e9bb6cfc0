"""Captions from label scores: one per thing, categories behind their members, nothing for rain and noise."""

from __future__ import annotations

import numpy as np
import pytest

from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.stages.captioners.label_selection import LabelSelector, Scores, combine_scales
from openavs.stages.captioners.zero_shot import LOGIT_SCALE
from openavs.stages.lexicon import invisible_sound, is_collective, lexicon
from openavs.stages.vocabulary import load_vocabulary
from openavs.structures.types import AudioWindow, Caption, Waveform

THINGS = load_vocabulary("audioset-things")
AUDIOSET = load_vocabulary("audioset")
WINDOW = AudioWindow(Waveform(np.zeros(16, np.float32), 16), 2.0, 3.0)


def selector(**options: object) -> LabelSelector:
    settings = {"top_k": 3, "threshold": 0.1, "min_ratio": 0.35, "combine": "max"} | options
    return LabelSelector(AUDIOSET, **settings)  # type: ignore[arg-type]


def row(**labels: float) -> Scores:
    """Scores over AudioSet: those given by label, 0.01 for all others."""
    scores = np.full(len(AUDIOSET), 0.01, np.float32)
    for label, score in labels.items():
        scores[AUDIOSET.index(label)] = score
    return scores


def strong(captions: list[Caption]) -> list[tuple[str, float]]:
    return [(caption.text, round(caption.score or 0.0, 3)) for caption in captions if not caption.weak]


def test_labels_of_one_thing_make_one_caption() -> None:
    scores = row(Dog=0.3, Bark=0.4, Yip=0.2, Guitar=0.5)
    assert strong(selector().captions(scores, WINDOW, "q")) == [("Guitar", 0.5), ("Bark", 0.4)]
    (_, bark) = selector().captions(scores, WINDOW, "q")
    assert (bark.start, bark.end, bark.question) == (2.0, 3.0, "q")


def test_shares_of_a_softmax_are_summed_over_the_labels_of_a_thing() -> None:
    scores = row(Dog=0.1, Bark=0.12, Yip=0.1, Guitar=0.2)
    scores[scores == np.float32(0.01)] = 0.0
    assert strong(selector(combine="sum").captions(scores, WINDOW, "")) == [("Bark", 0.32), ("Guitar", 0.2)]


@pytest.mark.parametrize(
    ("labels", "kept"),
    [
        ({"Animal": 0.9, "Domestic animals, pets": 0.8, "Dog": 0.5}, ["Dog"]),
        ({"Animal": 0.9}, ["Animal"]),
        ({"Vehicle": 0.76, "Engine": 0.6, "Lawn mower": 0.26}, ["Lawn mower"]),
        ({"Music": 0.95, "Musical instrument": 0.6, "Violin, fiddle": 0.2}, ["Violin, fiddle"]),
        ({"Music": 0.95, "Dog": 0.5}, ["Music", "Dog"]),  # a dog is not an instrument
        ({"Siren": 0.6, "Ambulance (siren)": 0.5}, ["Ambulance (siren)"]),  # one of the siren's alternatives
        ({"Bird": 0.6, "Crow": 0.4}, ["Crow"]),
    ],
)
def test_specific_names_replace_general_ones(labels: dict[str, float], kept: list[str]) -> None:
    assert [text for text, _ in strong(selector().captions(row(**labels), WINDOW, ""))] == kept


def test_a_thing_needs_a_share_of_the_best_specific_one() -> None:
    scores = row(Animal=0.9, Dog=0.6, Guitar=0.22, Piano=0.2)
    assert [text for text, _ in strong(selector().captions(scores, WINDOW, ""))] == ["Dog", "Guitar"]
    assert [text for text, _ in strong(selector(top_k=1).captions(scores, WINDOW, ""))] == ["Dog"]


def test_faint_things_beside_a_loud_category_are_removed() -> None:
    scores = row(**{"Music": 0.8, "Speech": 0.05, "Guitar": 0.05})
    assert strong(selector(threshold=0.03).captions(scores, WINDOW, "")) == [("Music", 0.8)]


def test_rain_is_a_caption_and_competes_under_a_softmax_only() -> None:
    scores = row(Rain=0.6, Dog=0.2)
    assert strong(selector().captions(scores, WINDOW, "")) == [("Rain", 0.6), ("Dog", 0.2)]
    assert [text for text, _ in strong(selector(combine="sum").captions(scores, WINDOW, ""))] == ["Rain"]


def test_the_best_thing_below_the_threshold_is_a_weak_caption() -> None:
    (caption,) = selector().captions(row(Dog=0.08), WINDOW, "")
    assert caption.weak and caption.text == "Dog" and caption.score == pytest.approx(0.08)


def test_rooms_textures_and_genres_name_nothing() -> None:
    scores = row(Jazz=0.9, **{"Inside, small room": 0.8, "Thump, thud": 0.7}, Dog=0.2)
    assert strong(selector().captions(scores, WINDOW, "")) == [("Dog", 0.2)]


def test_labels_outside_of_the_lexicon_are_things_of_their_own() -> None:
    own = LabelSelector(["zorb", "blimp"], top_k=2, threshold=0.1, min_ratio=0.0, combine="sum")
    assert strong(own.captions(np.array([0.4, 0.6], np.float32), WINDOW, "")) == [("blimp", 0.6), ("zorb", 0.4)]


def test_without_things_every_label_is_scored_for_itself() -> None:
    plain = selector(things=False, top_k=2, threshold=0.0)
    scores = row(Animal=0.9, Dog=0.5, Bark=0.4)
    assert strong(plain.captions(scores, WINDOW, "")) == [("Animal", 0.9), ("Dog", 0.5)]


@pytest.mark.parametrize("options", [{"top_k": 0}, {"threshold": 1.2}, {"min_ratio": -0.1}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        selector(**options)


def test_two_scales_are_combined_by_their_geometric_mean() -> None:
    audio = WINDOW.audio
    windows = [WINDOW, AudioWindow(audio, 0.0, 1.0, context=audio), AudioWindow(audio, 1.0, 2.0, context=audio)]
    given = iter([[0.5, 0.5], [0.9, 0.1], None, [0.1, 0.9], [0.4, 0.6]])
    rows = combine_scales(
        windows,
        lambda audios: [None if (own := next(given)) is None else np.array(own, np.float32) for _ in audios],
        softmax=True,
    )
    assert rows[2] is None
    assert rows[0] is not None and rows[0].tolist() == [0.5, 0.5]
    assert rows[1] is not None and rows[1] == pytest.approx([0.5, 0.5])


def test_sounds_without_a_common_label_have_zero_scores() -> None:
    window = AudioWindow(WINDOW.audio, 2.0, 3.0, context=WINDOW.audio)
    given = iter([np.array([1, 0], np.float32), np.array([0, 1], np.float32)])
    (row,) = combine_scales([window], lambda audios: [next(given) for _ in audios], softmax=True)
    assert row is not None and row.tolist() == [0.0, 0.0]


# -------------------------------------------------------------------------------- CLAP's rule on simulated similarities
#
# Published similarities of CLAP (LAION-630K with fusion): 0.56 for a clap and "applause", 0.54 and 0.41 for near
# synonyms, 0.23 for a bell, 0.03 for speech, -0.02 for a dog. So: labels without a part in the sound have a mean of
# 0.05 and a deviation of 0.08, near synonyms lie 0.02 to 0.15 below the best one.

FRAMES = 1000


def cosines(rng: np.random.Generator, sources: list[tuple[str, float]]) -> Scores:
    """Simulated similarities to every label of the vocabulary.

    A source is a label and its similarity. Eight labels are near synonyms of it: first those of the same thing, then
    labels drawn at random, which stand for things that sound alike.
    """
    values = rng.normal(0.05, 0.08, len(THINGS))
    for label, best in sources:
        same = [i for i, other in enumerate(THINGS) if lexicon(other) == lexicon(label) and other != label][:5]
        alike = rng.choice(len(THINGS), 8 - len(same), replace=False).tolist()
        for i in [*same, *alike]:
            values[i] = max(values[i], best - rng.uniform(0.02, 0.15))
        values[THINGS.index(label)] = best
    return np.asarray(values, np.float32)


def things_at(clap: LabelSelector, values: Scores) -> set[str]:
    """The things that are looked for with these similarities."""
    logits = values * LOGIT_SCALE
    shares = np.exp(logits - logits.max())
    captions = clap.captions((shares / shares.sum()).astype(np.float32), WINDOW, "")
    return {thing for caption in captions if not caption.weak for thing in lexicon(caption.text)}


@pytest.fixture(scope="module")
def clap() -> LabelSelector:
    """The rule of the recipes `openavs` and `openavs-cpu`."""
    options = load_recipe("openavs").captioner.options
    rule = {name: options[name] for name in ("top_k", "threshold", "min_ratio")}
    return LabelSelector(load_vocabulary(options["vocabulary"]), combine="sum", **rule)


NAMING = [label for label in THINGS if not (invisible_sound(label) or is_collective(label))]
INVISIBLE = [label for label in THINGS if invisible_sound(label)]


def test_simulated_sources_are_kept(clap: LabelSelector) -> None:
    rng = np.random.default_rng(0)
    kept = both = pairs = 0
    for _ in range(FRAMES):
        one, two = rng.choice(NAMING, 2, replace=False).tolist()
        sources = [(one, rng.uniform(0.35, 0.55))]
        if rng.random() < 0.5:
            sources.append((two, sources[0][1] - rng.uniform(0.0, 0.1)))
        found = things_at(clap, cosines(rng, sources))
        hits = [bool(set(lexicon(label)) & found) for label, _ in sources]
        kept += hits[0]
        pairs += len(hits) == 2
        both += len(hits) == 2 and all(hits)
    assert kept / FRAMES >= 0.95
    assert both / pairs >= 0.80


def test_simulated_silence_rain_and_noise_keep_nothing(clap: LabelSelector) -> None:
    rng = np.random.default_rng(1)
    empty = 0
    for _ in range(FRAMES):
        values = rng.normal(0.05, 0.08, len(THINGS)).astype(np.float32)
        values[THINGS.index(str(rng.choice(INVISIBLE)))] = rng.uniform(0.35, 0.55)
        empty += not things_at(clap, values)
    assert empty / FRAMES >= 0.95
