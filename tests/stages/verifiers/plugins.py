"""Plug-in verifiers in the file of `plugin_recipe`: one of single frames, one of whole clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.plugin_recipe import STAGES, write_recipe

VERIFIERS = """
from dataclasses import replace

from openavs.structures.types import Rejection, Verdict


class Look:
    def __init__(self, *, score: float = 0.5) -> None:
        self.score = score

    def verify(self, images, segments, phrases):
        return [[Verdict("kept", self.score, verifier="look") for _ in own] for own in segments]


class Motion:
    def __init__(self, *, score: float = 0.5, keep: int = 10**6) -> None:
        self.score, self.keep = score, keep

    def verify_clip(self, frames, evidence):
        assert evidence.clip.audio is not None and len(evidence.prompts) == len(evidence.clip.times)
        for frame in frames:
            verdict = Verdict("kept", self.score, verifier="motion")
            kept = [replace(s, verdicts=(*s.verdicts, verdict)) for s in frame.segments[: self.keep]]
            gone = [Rejection(s.phrase, "silent", self.score, s.box) for s in frame.segments[self.keep :]]
            yield replace(frame, segments=tuple(kept), rejected=(*frame.rejected, *gone))
"""
LOOK, MOTION = {"use": "./stages.py:Look"}, {"use": "./stages.py:Motion"}


def write_verifiers(folder: Path, *verifiers: dict[str, Any], **changes: Any) -> Path:
    """Writes `recipe.yaml` with some verifiers."""
    path = write_recipe(folder, verifier=list(verifiers), **changes)
    (folder / "stages.py").write_text(STAGES + VERIFIERS)
    return path
