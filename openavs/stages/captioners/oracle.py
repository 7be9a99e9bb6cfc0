"""What a benchmark's metadata says sounds in the clip, in the place of what a model hears (the paper's OpenAVS*).

It shows what the stages after the captioner can reach; its figures use labels of the test set and are no results of a
system. The labels are the clip's: at every frame that is not silent, all of them are said.
"""

from __future__ import annotations

from collections.abc import Sequence

from openavs.errors import InputError
from openavs.structures.types import AudioWindow, Caption

QUESTION = "the clip's own labels"


class OracleCaptioner:
    """Says the labels of the clip, each as one caption of score 1.

    Raises InputError for a clip without labels: most videos have none, nor have the benchmarks whose metadata does not
    name what sounds.
    """

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """The same captions for every window of a clip, in the order of its labels."""
        return [[Caption(label, 1.0, w.start, w.end, QUESTION) for label in _labels(w)] for w in windows]


def _labels(window: AudioWindow) -> tuple[str, ...]:
    if not window.labels:
        raise InputError(
            "the oracle captioner needs a clip whose metadata names what sounds in it, and this one's does not "
            "(MS3's never does; those of S4, AVSS, OV and V3 do); use another captioner"
        )
    return window.labels
