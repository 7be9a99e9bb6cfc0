"""Which category a segment belongs to: one of a closed list, or whatever it is called, by first appearance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from openavs.pipeline.class_mapping import ClassMapper
from openavs.structures.types import ClipResult, Segment
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.evaluation.benchmark import BenchmarkConfig


class Categories:
    """Category ids from 1, as COCO tools expect them (0 is the background in masks).

    Without `names` every label (else phrase) is a category, in the order of first appearance. With them the ids are
    their positions; a segment's label or phrase is mapped to them as the pipeline maps phrases to a vocabulary (exact
    name, alias, lexicon), and one that is none of them has no id and is counted. A leading `background` is left out.
    """

    def __init__(self, names: Sequence[str] = (), aliases: Mapping[str, str] | None = None) -> None:
        given = list(names[1:] if names and names[0] == "background" else names)
        self.closed = bool(given)
        self._ids: dict[str, int] = {name: place for place, name in enumerate(given, start=1)}
        self._labeller = ClassMapper(given, aliases) if given else None
        self._left_out: Counter[str] = Counter()
        self._written: tuple[str, ...] = ()
        self._found: set[int] = set()

    @classmethod
    def of_card(cls, card: BenchmarkConfig) -> Categories:
        """A benchmark's classes: segments are matched by the card's phrases, names are the published ones."""
        made = cls(card.vocabulary or (), card.aliases)
        made._written = tuple(card.classes[1:])
        return made

    @classmethod
    def of_vocabulary(cls, names: Sequence[str]) -> Categories:
        """The categories of a recipe's vocabulary; a benchmark's own vocabulary has the benchmark's class names."""
        from openavs.config import resources
        from openavs.evaluation.benchmark import load_benchmark

        given = list(names[1:] if names and names[0] == "background" else names)
        cards = map(load_benchmark, resources.names("eval")) if given else iter(())
        card = next((card for card in cards if card.vocabulary == given), None)
        return cls(given) if card is None else cls.of_card(card)

    @classmethod
    def of_clip(cls, segmentation: ClipResult) -> Categories:
        """Those of a whole clip, so that a frame's ids do not depend on which frame is asked for first."""
        known = cls()
        for frame in segmentation.frames:
            for segment in frame.segments:
                known.id(segment)
        return known

    def id(self, segment: Segment) -> int | None:
        """The category's id; None for a segment of no category of the closed list."""
        name = segment.label or segment.phrase
        if self._labeller is None:
            return self._ids.setdefault(name, len(self._ids) + 1)
        label = name if name in self._ids else self._labeller(name)[0]
        if label is None:
            return None
        self._found.add(self._ids[label])
        return self._ids[label]

    def leave_out(self, segment: Segment) -> None:
        """Counts a segment that no category holds."""
        self._left_out[segment.label or segment.phrase] += 1

    @property
    def names(self) -> tuple[str, ...]:
        """The categories so far, in the order of their ids."""
        return self._written or tuple(self._ids)

    def not_found(self) -> list[str]:
        """A sentence on the categories of a closed list that no segment has, if there are any."""
        found = [name for place, name in enumerate(self.names, start=1) if place in self._found]
        missing = [name for name in self.names if name not in found]
        there = ", ".join(sorted({*found, *self._left_out})) or "no segments at all"
        return [f"no segment is of {', '.join(missing)}; the results hold {there}"] if missing else []

    def notes(self) -> list[str]:
        """A sentence on what was left out, if anything was."""
        if not self._left_out:
            return []
        named = ", ".join(f"{name} ({count})" for name, count in self._left_out.most_common(5))
        return [f"{pluralize(self._left_out.total(), 'segment')} of other categories left out: {named}"]
