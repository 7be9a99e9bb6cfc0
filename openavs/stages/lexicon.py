"""Sound-event lexicon: text -> the things that make the sound, deterministic and without a model.

Its entries are in two tables, `audioset.tsv` and `words.tsv` in `assets/tables/`; the head of each states its rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

PEOPLE = frozenset({"person", "man", "woman", "child", "boy", "girl", "baby", "singer", "choir", "crowd"})

_MAX_CHARACTERS = 1000  # per caption
_CLAUSE = re.compile(r"[,;.:!?|()]|\b(?:and|while|as|with|then|followed by|when|over|or)\b|\b(?=(?:no|not|without)\b)")
_NEGATIONS = frozenset({"no", "not", "without"})
_ACTIONS = frozenset(  # stems of verbs whose subject is silent and whose object sounds
    {"play", "rid", "driv", "us", "strum", "operat", "beat", "hit", "mow", "cut", "pluck", "blow", "start"}
)
_ENDINGS = {"ies": "y", "sses": "ss", "shes": "sh", "ches": "ch", "uses": "us", "ing": "", "ed": "", "s": ""}
_IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "mice": "mouse", "geese": "goose",
    "wolves": "wolf", "calves": "calf", "hooves": "hoof", "knives": "knife",
}  # fmt: skip


@dataclass
class _Tables:
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)  # AudioSet's display names -> things
    exact: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the same with normalized names
    nouns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sounds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    broader: dict[str, tuple[str, ...]] = field(default_factory=dict)
    categories: dict[str, frozenset[str]] = field(default_factory=dict)  # name -> members
    detector_names: dict[str, str] = field(default_factory=dict)  # thing -> its name for object detectors
    detector_things: dict[str, str] = field(default_factory=dict)  # the inverse
    collective: set[str] = field(default_factory=set)  # normalized labels that name a category
    genres: set[str] = field(default_factory=set)  # normalized labels of kinds of music that name no instrument
    invisible: dict[str, str] = field(default_factory=dict)  # normalized labels -> the sound without a visible source
    longest: int = 1  # number of words of the longest entry


def lexicon(text: str) -> tuple[str, ...]:
    """Return the visible things that make the sounds of a caption, likeliest first; empty if it names none.

    An AudioSet label is looked up as a whole. In any other text, each clause yields the things that it names, longest
    entries first, or else the things that its sound words suggest: "a dog barks while a man is speaking" -> dog, man.
    """
    tables = _tables()
    label = normalize_phrase(text[:_MAX_CHARACTERS])
    if label in tables.exact:
        return tables.exact[label]
    clauses = [words for words in _clauses(text[:_MAX_CHARACTERS]) if not _NEGATIONS.intersection(words)]
    named = [_named(words) for words in clauses]
    found = [thing for things in named for thing in things]
    for words, things in zip(clauses, named, strict=True):
        if not things:
            for suggested in _matches(words, tables.sounds):
                # A second sound of a named thing ("a dog barks, growls and howls") adds nothing.
                found.extend(() if set(suggested) & set(found) else suggested)
    return tuple(dict.fromkeys(found))


def noun_terms(text: str) -> list[tuple[str, tuple[str, ...]]]:
    """Split a text into its nouns, the longest first, each with its things, and its other words, with none.

    >>> noun_terms("puppies in a fire truck")
    [('puppies', ('dog',)), ('in', ()), ('a', ()), ('fire truck', ('fire truck',))]
    """
    words = normalize_phrase(text[:_MAX_CHARACTERS]).split()
    return [(" ".join(own), things or ()) for own, things in _parts(words, _tables().nouns)]


def audioset_labels() -> tuple[str, ...]:
    """Return AudioSet's 527 display names, in AudioSet's order."""
    return tuple(_tables().labels)


def broader(thing: str) -> tuple[str, ...]:
    """Return the broader terms of a thing, nearest first: ambulance -> emergency car, car. Often empty."""
    return _tables().broader.get(normalize_phrase(thing), ())


def narrower(thing: str) -> tuple[str, ...]:
    """Return the things one step below a term, in the order of the table: child -> boy, girl, baby."""
    return tuple(word for word, general in _tables().broader.items() if normalize_phrase(thing) in general)


def members(thing: str) -> frozenset[str]:
    """Return the members of a category: `bird` -> crow, owl, ...; empty for anything else."""
    return _tables().categories.get(normalize_phrase(thing), frozenset())


def category(thing: str) -> frozenset[str]:
    """Return the members of all categories that a thing names or belongs to: `dog` -> every animal."""
    rows = _tables().categories.items()
    return frozenset().union(*(own for name, own in rows if thing == name or thing in own))


def specific(things: Sequence[str]) -> tuple[str, ...]:
    """Return the things without categories that have another one as a member: animal, dog -> dog."""
    return tuple(thing for thing in things if not members(thing).intersection(things))


def is_collective(label: str) -> bool:
    """Return True for a label that names a whole category of things, such as "Domestic animals, pets"."""
    return normalize_phrase(label) in _tables().collective


def names_nothing(label: str) -> bool:
    """Return True for an AudioSet label without a visible thing, such as "Inside, small room"."""
    return _tables().exact.get(normalize_phrase(label)) == ()


def is_genre(label: str) -> bool:
    """Return True for a label of a genre, role or mood of music that names no instrument, such as "Jazz"."""
    return normalize_phrase(label) in _tables().genres


def invisible_sound(label: str) -> str | None:
    """Return the sound without a visible source that a label stands for ("Raindrop" -> rain); None for others."""
    return _tables().invisible.get(normalize_phrase(label))


def detector_name(thing: str) -> str:
    """Return the name of a thing that object detectors understand: mower -> lawn mower; most are unchanged."""
    return _tables().detector_names.get(normalize_phrase(thing), thing)


def source_of(name: str) -> str:
    """Return the thing that a name stands for, the inverse of `detector_name`: lawn mower -> mower."""
    return _tables().detector_things.get(normalize_phrase(name), name)


def normalize_phrase(text: str) -> str:
    """Return lower-case words joined by single spaces; hyphens and underscores separate words."""
    return " ".join(re.findall(r"[^\W_]+", text.casefold().replace("'s ", " ").replace("'", "")))


def stem(word: str) -> str:
    """Return a word without its plural or verb ending, for comparison: barking, barks, barked -> bark."""
    word = _IRREGULAR.get(word, word)
    for ending, replacement in _ENDINGS.items():
        rest = word[: -len(ending)] + replacement
        if word.endswith(ending) and len(rest) >= 3 and re.search("[aeiouy]", rest) and not word.endswith(("ss", "us")):
            word = rest
            break
    word = word[:-1] if len(word) > 3 and word.endswith("e") else word
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _clauses(text: str) -> Iterator[list[str]]:
    words = text.casefold().replace("-", " ").replace("_", " ")
    yield from filter(None, (normalize_phrase(clause).split() for clause in _CLAUSE.split(words)))


def _named(words: list[str]) -> list[str]:
    """The things that a clause names; a person who merely plays, rides or uses one of them is silent."""
    things = [thing for match in _matches(words, _tables().nouns) for thing in match]
    others = [thing for thing in things if thing not in PEOPLE]
    return others if others and _ACTIONS.intersection(map(stem, words)) else things


def _matches(words: Sequence[str], entries: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """The entries found from left to right, the longest at each position, without overlaps."""
    return (things for _, things in _parts(words, entries) if things is not None)


def _parts(
    words: Sequence[str], entries: dict[str, tuple[str, ...]]
) -> Iterator[tuple[Sequence[str], tuple[str, ...] | None]]:
    """The words from left to right: those of an entry together, with its things, others one by one, with None."""
    start = 0
    while start < len(words):
        for length in range(min(_tables().longest, len(words) - start), 0, -1):
            things = _entry(words[start : start + length], entries)
            if things is not None or length == 1:
                yield words[start : start + length], things
                start += length
                break


def _entry(words: Sequence[str], entries: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    # The exact word has priority over its stem: "whistling" is a person, "whistle" a whistle.
    surface = entries.get(" ".join(words))
    return surface if surface is not None else entries.get(_stems(words))


def _stems(words: Sequence[str]) -> str:
    return "~" + " ".join(map(stem, words))  # "~" separates stems from words: the stem of "bus" is "bu"


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
            if kind == "invisible":
                tables.invisible[normalize_phrase(label)] = sound
            if kind == "genre" or sound == "music":
                tables.genres.add(normalize_phrase(label))
    for kind, word, things in _rows("words.tsv"):
        if kind == "broader":
            tables.broader[normalize_phrase(word)] = _things(things)
        elif kind == "general":
            tables.categories[word] = frozenset(_things(things))
        elif kind == "detector":
            tables.detector_names[word], tables.detector_things[normalize_phrase(things)] = things, word
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
    tables.longest = max(len(entry.split()) for entry in (*tables.nouns, *tables.sounds))
    return tables


def _add(entries: dict[str, tuple[str, ...]], word: str, things: tuple[str, ...]) -> None:
    """Add an entry unless the word has one: the tables go from specific to general."""
    entries.setdefault(normalize_phrase(word), things)
    entries.setdefault(_stems(normalize_phrase(word).split()), things)


def _things(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(thing.strip() for thing in cell.split(";"))


def _rows(name: str) -> Iterator[list[str]]:
    text = resources.files("openavs").joinpath("assets", "tables", name).read_text(encoding="utf-8")
    yield from (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
