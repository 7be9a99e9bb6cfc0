"""Hints for the tiny language model: what its inner states should know on the way to an answer.

Next-token loss alone finds slowly that the n-th list of the answer belongs to the n-th line of the question. So, while
it is trained, small probes are read from its lower layers and trained with it: which line a piece belongs to (of the
question and of the answer alike), which kind a score belongs to, and whether an earlier line has the same kind. The
probes are thrown away afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from openavs.synthetic.categories import KINDS
from scripts.train_tiny.lm_data import MAX_FRAMES

NONE = -100  # no hint at this piece
STRANGE = len(KINDS)
_KIND_OF = {text: index for index, kind in enumerate(KINDS) for text in (*kind.heard, kind.name)}


@dataclass(frozen=True)
class Hints:
    """For every piece the number of its line, the kind of its score, and whether that was heard before (0 or 1)."""

    line: list[int]
    kind: list[int]
    again: list[int]


def hints_of(pieces: Sequence[str], question: int) -> Hints:
    """The hints of a conversation whose first `question` pieces are the question."""
    asked = _hints_of_question(pieces[:question])
    line, number = [], 0
    for piece in pieces[question:]:
        number += piece in ("], ", "[], ")  # from here on the next line's names are sought
        line.append(number)
    rest = [NONE] * len(line)
    return Hints(asked.line + line, asked.kind + rest, asked.again + rest)


def _hints_of_question(pieces: Sequence[str]) -> Hints:
    hints, number, kind = Hints([], [], []), NONE, STRANGE
    before: set[int] = set()
    here: set[int] = set()
    for piece in pieces:
        if re.fullmatch(r"\d+: ", piece):
            number, before, here = int(piece[:-2]), before | here, set()
        if piece in ("\n", " | ") or piece.endswith(": "):
            kind = STRANGE
        kind = _KIND_OF.get(piece.strip(), kind)
        scored = re.fullmatch(r" \d\.\d\d", piece) is not None
        hints.line.append(number)
        hints.kind.append(kind if scored else NONE)
        hints.again.append(int(kind in before) if scored else NONE)
        here.add(kind)
        if piece == "<|im_end|>":
            number = NONE
    return hints


class Probes(nn.Module):
    """Linear readings of the states after two and three layers; `forward` gives their summed cross-entropy."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.line = nn.Linear(width, MAX_FRAMES + 1)
        self.kind = nn.Linear(width, len(KINDS) + 1)
        self.again = nn.Linear(width, 2)

    def forward(self, states: Sequence[torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
        """`states` are the model's hidden states `[N, T, width]`; `labels` one tensor `[N, T]` per probe."""
        readings = {"line": self.line(states[2]), "kind": self.kind(states[2]), "again": self.again(states[3])}
        losses = [
            nn.functional.cross_entropy(reading.flatten(0, 1), labels[name].flatten(), ignore_index=NONE)
            for name, reading in readings.items()
            if (labels[name] != NONE).any()
        ]
        return torch.stack(losses).sum()
