"""Where the time of a job went, by stage: read from the side logs of all its workers, in all its runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from openavs.labeling.event_log import clip_events


@dataclass(frozen=True)
class StageTimes:
    """Seconds over all `clips` that were finished: by stage, and in all. What is in no stage is opening and writing."""

    clips: int
    seconds: float
    stages: dict[str, float]


def stage_times(out: Path) -> StageTimes:
    """Adds up the side logs of a result folder."""
    clips, seconds = 0, 0.0
    stages: Counter[str] = Counter()
    for event in clip_events(out):
        clips, seconds = clips + 1, seconds + event["seconds"]
        stages.update(event["timings"])
    return StageTimes(clips, round(seconds, 3), {stage: round(spent, 3) for stage, spent in stages.most_common()})
