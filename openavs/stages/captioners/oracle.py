"""Oracle captioner: the labels of a benchmark's metadata instead of a model's captions (the paper's OpenAVS*).

It measures the upper bound of the later stages; its scores use labels of the test set and are not results of a system.
The labels belong to the clip: every frame that is not silent has all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from openavs.errors import InputError
from openavs.structures.types import AudioWindow, Caption

QUESTION = "the clip's own labels"


class OracleCaptioner:
    """Captions every window with the labels of its clip, each with score 1."""

    def caption(self, windows: Sequence[AudioWindow]) -> list[list[Caption]]:
        """Return the same captions for every window of a clip, in the order of its labels.

        Raises:
            InputError: the clip has no labels, like most videos and the benchmarks whose metadata does not name sounds.
        """
        return [[Caption(label, 1.0, w.start, w.end, QUESTION) for label in _labels(w)] for w in windows]


def _labels(window: AudioWindow) -> tuple[str, ...]:
    if not window.labels:
        raise InputError(
            "the oracle captioner needs a clip whose metadata names its sounds, and this one's does not (MS3's never "
            "does; that of S4, AVSS, OV and V3 does); use another captioner"
        )
    return window.labels
