"""Benchmark cards (eval/*.yaml), opening the data set of a card, and the names of its figures for display.

A new benchmark is one card and one reader: a function `(root: Path, split: str) -> Dataset`, named in the card as
`module:function` or `./file.py:function` (relative to the card).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Self, cast

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from openavs.config import resources
from openavs.config.options import first_error
from openavs.config.recipe import Section, Text
from openavs.errors import InputError
from openavs.evaluation.datasets.base import Dataset, Task, is_synthetic
from openavs.evaluation.datasets.tables import MissingDataError
from openavs.utils.plugins import is_file_reference, load_file_function
from openavs.utils.serialization import read_yaml
from openavs.utils.text import did_you_mean

Reader = Callable[[Path, str], Dataset]
Count = Annotated[int, Field(ge=0)]

EXAMPLE = "see eval/s4.yaml for a complete card"
logger = logging.getLogger(__name__)


def _invert_aliases(aliases: Any) -> Any:
    """Converts `saw: [chainsaw, hand saw]` of a card to `chainsaw: saw, hand saw: saw`, which is accepted too."""
    if not isinstance(aliases, dict):
        return aliases
    meant: dict[Any, Any] = {}
    for key, value in aliases.items():
        for alias, phrase in ((other, key) for other in value) if isinstance(value, list) else ((key, value),):
            if meant.setdefault(alias, phrase) != phrase:
                raise ValueError(f"the alias {alias!r} means both {meant[alias]!r} and {phrase!r}; remove one")
    return meant


class SplitConfig(Section):
    """Counts of a released split; None if no source has them."""

    clips: Count | None = None
    frames: Count | None = None
    masks: Count | None = None  # frames with a mask; only these are scored
    note: str = ""


class BenchmarkConfig(Section):
    """A benchmark card.

    Attributes:
        classes: class names in index order; 0 is the background if classes are scored.
        vocabulary: the classes from 1 on as phrases, as in a recipe.
        aliases: further phrases for those of `vocabulary`, as in a recipe.
        reader: the function that opens a split, `module:function` or `./file.py:function`.
        obtain: instructions for missing data.
    """

    name: Text
    title: Text
    task: Task
    reader: Text
    layout: Text
    splits: Annotated[dict[str, SplitConfig], Field(min_length=1)]
    mask_size: str = ""
    classes: list[Text] = Field(default_factory=list)
    metric: Text
    caveats: list[Text] = Field(default_factory=list)
    published: str = ""
    obtain: Text
    vocabulary: list[Text] | None = None
    aliases: Annotated[dict[str, Text], BeforeValidator(_invert_aliases)] = Field(default_factory=dict)

    _base: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        phrases = self.vocabulary or []
        if self.vocabulary is not None and len(phrases) != len(self.classes) - 1:
            raise ValueError(f"'vocabulary' has {len(phrases)} phrases for {len(self.classes) - 1} classes")
        for phrase, meant in self.aliases.items():
            if meant not in phrases:
                raise ValueError(f"'aliases.{phrase}' means {meant!r}, which is not in 'vocabulary'")
        return self

    @property
    def base(self) -> Path | None:
        """The folder of the card's file; None for a card without one."""
        return self._base


def load_benchmark(name_or_path: str | Path) -> BenchmarkConfig:
    """Load a benchmark's card by its short name or its file.

    Raises:
        InputError: an unknown card, a file that is not one, an unknown key (the nearest is named) or a wrong type.
    """
    path = resources.find("eval", name_or_path)
    try:
        card = BenchmarkConfig.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise InputError(f"benchmark card {path}: {first_error(error, BenchmarkConfig, EXAMPLE)}") from None
    card._base = path.parent
    return card


def open_dataset(benchmark: str | Path, root: Path, split: str = "test") -> Dataset:
    """Open a split of a benchmark with its card's reader; `benchmark` is a short name or a card's file.

    Raises:
        InputError: an unknown benchmark or split, or data that does not match the layout.
        MissingDataError: missing data, with instructions for obtaining it.
    """
    card = load_benchmark(benchmark)
    if split not in card.splits:
        raise InputError(f"{card.name} has no split {split!r}; {did_you_mean(split, card.splits)}")
    try:
        dataset = load_reader(card)(Path(root).expanduser(), split)
    except MissingDataError as error:
        raise MissingDataError(f"{error}; {card.obtain}") from error
    if not isinstance(dataset, Dataset):
        raise InputError(f"the reader {card.reader} of {card.name} returns a {type(dataset).__name__}, not a Dataset")
    reason = _incomparable_reason(dataset, card.splits[split].clips)
    if reason is not None:
        logger.warning("%s %s: %s, so figures do not compare with published ones", card.name, split, reason)
    return replace(dataset, benchmark=card.name, incomparable=reason)


def _incomparable_reason(dataset: Dataset, released: int | None) -> str | None:
    """The reason that figures do not compare with published ones: synthetic clips, or another number of clips."""
    count = len(dataset.clips)
    if count and is_synthetic(dataset.clips[0].id):
        return "the clips are synthetic (openavs synth)"
    if released not in (None, count):
        return f"the split has {count:,} clips here and {released:,} in the release"
    return None


def load_reader(card: BenchmarkConfig) -> Reader:
    """Import the reader of a card.

    Raises:
        InputError: it cannot be imported, or is not a function.
    """
    if is_file_reference(card.reader):
        return load_file_function(card.reader, card.base)
    module, _, name = card.reader.partition(":")
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise InputError(f"the reader {card.reader!r} of {card.name} cannot be imported: {error}") from error
    if not callable(found):
        raise InputError(
            f"the reader {card.reader!r} of {card.name} is not a function; write module:function or ./file.py:function"
        )
    return cast(Reader, found)


TITLES: dict[str, str] = {
    "s4": "AVSBench-object S4",
    "ms3": "AVSBench-object MS3",
    "avss": "AVSBench-semantic (AVSS)",
    "ov": "AVSBench-OV",
    "v3": "AVSBench-V3",
    "avis": "AVIS (AVISeg)",
    "twins": "Synthetic twins",
    "ref-avs": "Ref-AVS Bench",
    "avatar": "AVATAR",
}

_FIGURES: dict[str, str] = {
    "map": "mAP",
    "hota": "HOTA",
    "fsla": "FSLA",
    "fsla_n": "FSLAn, frames without a sounding instance",
    "fsla_s": "FSLAs, frames with one",
    "fsla_m": "FSLAm, frames with more",
    "map_small": "mAP, tracks below 128 x 128 pixels",
    "map_medium": "mAP, up to 256 x 256 pixels",
    "map_large": "mAP, larger ones",
    "ar": "AR",
    "det_a": "DetA",
    "det_re": "DetRe",
    "det_pr": "DetPr",
    "ass_a": "AssA",
    "ass_re": "AssRe",
    "ass_pr": "AssPr",
    "loc_a": "LocA",
    "miou": "mIoU",
    "j": "J",
    "f": "F",
    "jf": "J&F",
    "s": "S of null expressions (lower is better)",
    "ciou": "CIoU",
    "auc": "AUC of CIoU",
    "tn": "true negative rate, off the screen",
    "left_empty": "off-screen frames left empty",
    "miou_sounding": "mIoU, frames with a true mask",
    "decided": "frames in which some but not all twins are marked",
    "right": "of these with the right ones marked",
    "offscreen_marked": "off-screen clips with something marked",
    "miou_nobg": "mIoU without background, as published",
    "f_nobg": "F without background, as published",
    "miou_foreground": "mIoU without background",
    "f_foreground": "F without background",
    "base": "base mIoU",
    "novel": "novel mIoU",
    "harmonic": "harmonic mean",
    "empty_frames": "frames without a true mask",
    "empty_accuracy": "of these left empty",
    "empty_area": "area marked in these",
    "silent_frames": "silent ones (below -60 dBFS)",
    "silent_accuracy": "silent frames left empty",
    "silent_area": "area marked in silent frames",
    "offscreen_frames": "ones with a sound from off the screen",
    "offscreen_accuracy": "off-screen frames left empty",
    "offscreen_area": "area marked in off-screen frames",
    "unheard_frames": "ones without a sound file",
}


def title_of(benchmark: str) -> str:
    """Return the full name of a benchmark; unknown names are unchanged."""
    return TITLES.get(benchmark, benchmark)


def figure_name(figure: str, task: str | None = None) -> str:
    """Return the name of a figure; mIoU of binary masks is also called J."""
    if figure == "miou" and task == "binary":
        return "mIoU (J)"
    if figure == "miou" and task == "open-vocabulary":
        return "mIoU with background"
    if figure == "silent_area" and task == "binary":
        return "area marked of silent twins"
    return _FIGURES.get(figure, figure)


def in_order(figures: Mapping[str, Any]) -> list[str]:
    """Return the keys of figures in reading order: the two published ones first, unknown ones last."""
    return [name for name in _FIGURES if name in figures] + [name for name in figures if name not in _FIGURES]


def protocol_name(report: Mapping[str, Any], protocol: str) -> str:
    """Return the name of a protocol, with the batch if its F depends on it."""
    if protocol == "official" and report.get("task") == "binary":
        batch = int(report.get("clips_per_batch", 1))
        return f"official, {batch} clip{'s' if batch != 1 else ''} per batch"
    return protocol


def percent(share: float | None, digits: int = 2) -> str:
    """Format a share in [0, 1] as a percentage without the sign; a dash for None."""
    return "–" if share is None else f"{100 * share:.{digits}f}"


def figure_value(figure: str, value: float | None) -> str:
    """Format the value of a figure: numbers of frames as they are, shares as percentages."""
    return f"{int(value):,}" if figure.endswith("_frames") and value is not None else percent(value)
