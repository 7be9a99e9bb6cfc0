"""AVSBench's classes: the 71 of AVSBench-semantic in index order, their open-vocabulary split, S4's categories."""

from __future__ import annotations

CLASSES: tuple[str, ...] = (
    *("background", "accordion", "airplane", "axe", "baby", "bassoon", "bell", "bird", "boat", "boy", "bus", "car"),
    *("cat", "cello", "clarinet", "clipper", "clock", "dog", "donkey", "drum", "duck", "elephant", "emergency-car"),
    *("erhu", "flute", "frying-food", "girl", "goose", "guitar", "gun", "guzheng", "hair-dryer", "handpan"),
    *("harmonica", "harp", "helicopter", "hen", "horse", "keyboard", "leopard", "lion", "man", "marimba"),
    *("missile-rocket", "motorcycle", "mower", "parrot", "piano", "pig", "pipa", "saw", "saxophone", "sheep", "sitar"),
    *("sorna", "squirrel", "tabla", "tank", "tiger", "tractor", "train", "trombone", "truck", "trumpet", "tuba"),
    *("ukulele", "utv", "vacuum-cleaner", "violin", "wolf", "woman"),
)
"""The names by index, 0 is the background; 1 to 70 are in alphabetical order."""

NOVEL: tuple[int, ...] = (
    *(1, 3, 5, 13, 14, 15, 22, 23, 24, 25, 30, 32, 33, 34, 39),
    *(42, 45, 49, 50, 51, 53, 54, 56, 57, 61, 64, 65, 66, 68, 69),
)
"""AVSBench-OV's 30 novel classes: those that are rare in LVIS or not among its names."""

BASE: tuple[int, ...] = tuple(index for index in range(1, 71) if index not in NOVEL)
"""AVSBench-OV's 40 base classes."""

S4_CATEGORIES: dict[str, str] = {
    "baby_laughter": "baby",
    "female_singing": "woman",
    "male_speech": "man",
    "dog_barking": "dog",
    "cat_meowing": "cat",
    "lions_roaring": "lion",
    "horse_clip-clop": "horse",
    "coyote_howling": "wolf",
    "mynah_bird_singing": "bird",
    "playing_acoustic_guitar": "guitar",
    "playing_tabla": "tabla",
    "playing_violin": "violin",
    "playing_piano": "piano",
    "playing_ukulele": "ukulele",
    "playing_glockenspiel": "marimba",
    "helicopter": "helicopter",
    "race_car": "car",
    "driving_buses": "bus",
    "ambulance_siren": "emergency-car",
    "typing_on_computer_keyboard": "keyboard",
    "chainsawing_trees": "saw",
    "cap_gun_shooting": "gun",
    "lawn_mowing": "mower",
}
"""S4's 23 categories and the AVSS class that their masks have in AVSBench-semantic."""
