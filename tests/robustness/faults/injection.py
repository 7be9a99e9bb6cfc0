"""Stages that bring a fault about in the process they run in, when the environment variable `FAULT` says which.

They are otherwise like those of `tests/plugin_recipe.py`. The recipe, and with it the plan of a job, is the same with
and without the fault.
"""

from __future__ import annotations

from pathlib import Path

from tests.plugin_recipe import STAGES, write_recipe

FAULTS = '''

import math
import os
import time
from dataclasses import replace

SEEN = 0


def bring_about(fault):
    """`replace:5` has os.replace fail with errno 5; `clock:-3600` sets the clock back by an hour."""
    what, number = fault.split(":")
    if what == "clock":
        true = time.time
        time.time = lambda: true() + float(number)
        time.time_ns = lambda: int(time.time() * 1e9)
    else:
        def fail(*args, **options):
            raise OSError(int(number), os.strerror(int(number)))

        setattr(os, what, fail)


class SickEye(Eye):
    """Its machine falls ill when it has seen four pictures."""

    def detect(self, images, phrases):
        global SEEN
        SEEN += len(images)
        if SEEN > 4 and "FAULT" in os.environ:
            bring_about(os.environ.pop("FAULT"))
        time.sleep(float(os.environ.get("PACE", "0")))
        return super().detect(images, phrases)


class NarrowEar(Ear):
    """Has room for as many windows at once as `ROOM` says."""

    def caption(self, windows):
        if len(windows) > int(os.environ.get("ROOM", "99")):
            raise MemoryError
        return super().caption(windows)


class BadEar(Ear):
    """Answers with NaN, or with nothing, as `ANSWER` says."""

    def caption(self, windows):
        heard = super().caption(windows)
        answer = os.environ.get("ANSWER")
        if answer == "nan":
            return [[replace(caption, score=math.nan) for caption in own] for own in heard]
        return [[] for own in heard] if answer == "nothing" else heard
'''


def faulty_recipe(folder: Path, *, ear: str = "Ear") -> Path:
    """A recipe whose detector is `SickEye`, and whose captioner is one of those above."""
    folder.mkdir(parents=True, exist_ok=True)
    made = write_recipe(
        folder, detector={"use": "./stages.py:SickEye"}, captioner={"use": f"./stages.py:{ear}"}, sample={"fps": 2}
    )
    (folder / "stages.py").write_text(STAGES + FAULTS)
    return made
