"""The sound-event lexicon: text -> the things that make the sound. No model, and the same answer always.

Two tables hold what it knows, each headed by its rule: `audioset.tsv` and `words.tsv`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

PEOPLE = frozenset({"person", "man", "woman", "child", "boy", "girl", "baby", "singer", "choir", "crowd"})

_CHARACTERS = 1000  # of a caption that are read
_CLAUSE = re.compile(r"[,;.:!?|()]|\b(?:and|while|as|with|then|followed by|when|over|or)\b|\b(?=(?:no|not|without)\b)")
_NEGATIONS = frozenset({"no", "not", "without"})
_DOING = frozenset(
    {"play", "rid", "driv", "us", "strum", "operat", "beat", "hit", "mow", "cut", "pluck", "blow", "start"}
)  # stems
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "wolves": "wolf", "calves": "calf", "hooves": "hoof", "knives": "knife",
}  # fmt: skip


@dataclass
class _Tables:
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the AudioSet names as they are
    exact: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the same, normalised
    nouns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broader: dict[str, tuple[str, ...]] = field(default_factory=dict)
    categories: dict[str, frozenset[str]] = field(default_factory=dict)  # their name -> what belongs to them
    ask: dict[str, str] = field(default_factory=dict)  # a thing -> the name that detectors know
    asked: dict[str, str] = field(default_factory=dict)  # the inverse: such a name -> the thing
    collective: set[str] = field(default_factory=set)  # normalised labels that name a category
    genres: set[str] = field(default_factory=set)  # normalised labels of kinds of music that name no instrument
    rejected: dict[str, str] = field(default_factory=dict)  # normalised labels -> the sound without a visible source
    longest: int = 1  # words of the longest entry


def lexicon(text: str) -> tuple[str, ...]:
    """The things to look for when `text` is heard, likeliest first; empty where it names nothing that can be seen.

    An AudioSet label is looked up as a whole. In any other text the things named in each clause are taken, the longest
    entries first, and a clause without one gives the thing its sound word hints at: "a dog barks while a man is
    speaking" -> dog, man.
    """
    tables = _tables()
    label = normalize_phrase(text[:_CHARACTERS])
    if label in tables.exact:
        return tables.exact[label]
    clauses = [words for words in _clauses(text[:_CHARACTERS]) if not _NEGATIONS.intersection(words)]
    named = [_named(words) for words in clauses]
    found = [thing for things in named for thing in things]
    for words, things in zip(clauses, named, strict=True):
        if not things:
            for hints in _matches(words, tables.sounds):
                # A second sound of something already named ("a dog barks, growls and howls") names nothing new.
                found.extend(() if set(hints) & set(found) else hints)
    return tuple(dict.fromkeys(found))


def audioset_labels() -> tuple[str, ...]:
    """AudioSet's 527 display names, in AudioSet's order."""
    return tuple(_tables().labels)


def broader(thing: str) -> tuple[str, ...]:
    """What a thing is a kind of, nearest first: an ambulance is an emergency car and a car. Often empty."""
    return _tables().broader.get(normalize_phrase(thing), ())


def narrower(thing: str) -> tuple[str, ...]:
    """The inverse of `broader`, one step down, in the order of the table: child -> boy, girl, baby."""
    return tuple(word for word, general in _tables().broader.items() if normalize_phrase(thing) in general)


def members(thing: str) -> frozenset[str]:
    """The things that belong to a category: `bird` -> crow, owl, ...; empty for what is no category."""
    return _tables().categories.get(normalize_phrase(thing), frozenset())


def category(thing: str) -> frozenset[str]:
    """The things of all categories that a thing names or belongs to: `dog` -> every animal."""
    rows = _tables().categories.items()
    return frozenset().union(*(own for name, own in rows if thing == name or thing in own))


def specific(things: Sequence[str]) -> tuple[str, ...]:
    """The things without the categories of which another one is a member, in their order: animal, dog -> dog."""
    return tuple(thing for thing in things if not members(thing).intersection(things))


def is_collective(label: str) -> bool:
    """True for a label that names a whole category of things, such as "Domestic animals, pets"."""
    return normalize_phrase(label) in _tables().collective


def names_nothing(label: str) -> bool:
    """True for an AudioSet label that stands for nothing visible, such as "Inside, small room"."""
    return _tables().exact.get(normalize_phrase(label)) == ()


def is_genre(label: str) -> bool:
    """True for an AudioSet label of a genre, role or mood of music that names no instrument, such as "Jazz"."""
    return normalize_phrase(label) in _tables().genres


def rejected_sound(label: str) -> str | None:
    """The sound without a visible source that an AudioSet label stands for ("Raindrop" -> rain); None for others."""
    return _tables().rejected.get(normalize_phrase(label))


def detector_name(thing: str) -> str:
    """The name by which object detectors know a thing: mower -> lawn mower; most things keep theirs."""
    return _tables().ask.get(normalize_phrase(thing), thing)


def source_of(name: str) -> str:
    """The thing that a name stands for, the inverse of `detector_name`: lawn mower -> mower."""
    return _tables().asked.get(normalize_phrase(name), name)


def normalize_phrase(text: str) -> str:
    """Lower-case words joined by single spaces; hyphens and underscores part words."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold().replace("'s ", " ").replace("'", "")))


def stem(word: str) -> str:
    """The word without its plural or verb ending, good enough to compare: barking, barks, barked -> bark."""
    word = _IRREGULAR.get(word, word)
    for ending, put in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("ches", "ch"), ("uses", "us"), ("ing", ""),
                        ("ed", ""), ("s", "")):  # fmt: skip
        rest = word[: -len(ending)] + put
        if word.endswith(ending) and len(rest) >= 3 and re.search("[aeiouy]", rest) and not word.endswith(("ss", "us")):
            word = rest
            break
    word = word[:-1] if len(word) > 3 and word.endswith("e") else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _clauses(text: str) -> Iterator[list[str]]:
    plain = text.casefold().replace("-", " ").replace("_", " ")
    yield from filter(None, (normalize_phrase(clause).split() for clause in _CLAUSE.split(plain)))


def _named(words: list[str]) -> list[str]:
    """The things a clause names; whoever merely plays, rides or uses one of them is silent."""
    things = [thing for match in _matches(words, _tables().nouns) for thing in match]
    others = [thing for thing in things if thing not in PEOPLE]
    return others if others and _DOING.intersection(map(stem, words)) else things


def _matches(words: Sequence[str], entries: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The entries met from left to right, the longest at each place, none overlapping."""
    start = 0
    while start < len(words):
        for length in range(min(_tables().longest, len(words) - start), 0, -1):
            things = _entry(words[start : start + length], entries)
            if things is not None:
                yield things
                start += length
                break
        else:
            start += 1


def _entry(words: Sequence[str], entries: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    # The word as it stands comes first: "whistling" is a person, "whistle" a whistle.
    surface = entries.get(" ".join(words))
    return surface if surface is not None else entries.get(_stems(words))


def _stems(words: Sequence[str]) -> str:
    return "~" + " ".join(map(stem, words))  # the mark keeps stems apart from words: "bus" is no stem of "bu"


@cache
def _tables() -> _Tables:
    tables = _Tables()
    for label, things, *marks in _rows("audioset.tsv"):
        tables.labels[label] = _things(things)
        tables.exact[normalize_phrase(label)] = _things(things)
        for mark in marks:
            kind, _, sound = mark.partition(" ")
            if kind == "general":
                tables.collective.add(normalize_phrase(label))
            if kind == "reject":
                tables.rejected[normalize_phrase(label)] = sound
            if kind == "genre" or sound == "music":
                tables.genres.add(normalize_phrase(label))
    words = list(_rows("words.tsv"))
    for kind, word, things in words:
        if kind == "broader":
            tables.broader[normalize_phrase(word)] = _things(things)
        elif kind == "general":
            tables.categories[word] = frozenset(_things(things))
        elif kind == "ask":
            tables.ask[word], tables.asked[normalize_phrase(things)] = things, word
        else:
            _add({"noun": tables.nouns, "sound": tables.sounds}[kind], word, _things(things))
    for things_of_label in tables.labels.values():
        for thing in things_of_label:
            if thing not in tables.sounds:
                _add(tables.nouns, thing, (thing,))
    for label, things_of_label in tables.labels.items():
        for part in re.sub(r"\(.*?\)", "", label).split(","):
            if part.strip() != "etc.":
                _add(tables.sounds, part, things_of_label)
    entries = [*tables.nouns, *tables.sounds]
    tables.longest = max(len(entry.split()) for entry in entries)
    return tables


def _add(entries: dict[str, tuple[str, ...]], word: str, things: tuple[str, ...]) -> None:
    """The first entry of a word stays: the tables are read from the particular to the general."""
    entries.setdefault(normalize_phrase(word), things)
    entries.setdefault(_stems(normalize_phrase(word).split()), things)


def _things(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(thing.strip() for thing in cell.split(";"))


def _rows(name: str) -> Iterator[list[str]]:
    text = resources.files("openavs").joinpath("assets", "tables", name).read_text(encoding="utf-8")
    yield from (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
