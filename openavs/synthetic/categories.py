"""Categories of the synthetic world, and their names in AVSBench."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Category:
    """One category.

    `name` is an AVSBench-semantic class; `heard` are ways to say its sound, the first of which is canonical;
    `category` is its folder in AVSBench-object S4 (None where S4 has no such category); `novel` follows AVSBench-OV's
    split of the classes.
    """

    name: str
    heard: tuple[str, ...]
    category: str | None = None
    novel: bool = False


KINDS: tuple[Category, ...] = (
    Category("bell", ("bell ringing", "church bell tolling", "chime of a bell")),
    Category("bird", ("bird chirping", "bird singing", "tweeting of a bird"), "mynah_bird_singing"),
    Category("bus", ("bus idling", "bus engine rumbling", "heavy diesel bus"), "driving_buses"),
    Category("car", ("car accelerating", "race car revving", "car engine running"), "race_car"),
    Category("cat", ("cat meowing", "meow of a cat", "cat crying"), "cat_meowing"),
    Category("clock", ("clock ticking", "tick tock of a clock", "ticking clock")),
    Category("dog", ("dog barking", "bark of a dog", "dog yapping"), "dog_barking"),
    Category("drum", ("drum beating", "drum roll", "beat of a drum")),
    Category("flute", ("flute playing", "flute melody", "tune on a flute"), novel=True),
    Category("guitar", ("guitar playing", "guitar strumming", "strings of a guitar"), "playing_acoustic_guitar"),
    Category("harp", ("harp playing", "glissando of a harp", "harp arpeggio"), novel=True),
    Category("helicopter", ("helicopter flying", "rotor of a helicopter", "helicopter hovering"), "helicopter"),
    Category("horse", ("horse trotting", "hooves of a horse", "horse clip-clop"), "horse_clip-clop"),
    Category("mower", ("mower cutting grass", "lawn mower running", "motor of a mower"), "lawn_mowing", novel=True),
    Category("piano", ("piano playing", "piano melody", "keys of a piano"), "playing_piano"),
    Category("saw", ("saw cutting wood", "chainsaw buzzing", "whine of a saw"), "chainsawing_trees", novel=True),
    Category(
        "train",
        ("train passing", "train horn", "wheels of a train"),
    ),
    Category("trumpet", ("trumpet playing", "trumpet fanfare", "blast of a trumpet")),
    Category("violin", ("violin playing", "violin melody", "bow on a violin"), "playing_violin", novel=True),
    Category("wolf", ("wolf howling", "howl of a wolf", "coyote howling"), "coyote_howling", novel=True),
)

BY_NAME: dict[str, Category] = {kind.name: kind for kind in KINDS}
