"""A clip's row: one line of `index.jsonl` and of `index.parquet`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from openavs.labeling.sample import Row, Sample
from openavs.results.filters import FilteredResult
from openavs.structures.types import ClipResult


def finished_row(item: Sample, result: ClipResult, filtered: FilteredResult) -> Row:
    """The row of a clip that was labelled (`ok`), or that a filter dropped as a whole (`filtered`).

    `prompts` are the phrases asked for in the clip; in the same order, of the labels that are left: `labels` the class
    they stand for (null in open vocabulary), `scores` the best box score (null: nothing found), `areas` the largest
    share of the picture, `found` the number of frames. `dropped` counts what the pipeline and the filters rejected.
    """
    frames = filtered.result.frames
    prompts = {prompt.phrase: prompt.label for frame in frames for prompt in frame.prompts}
    pixels = result.size[0] * result.size[1]
    found: dict[str, list[tuple[float, float]]] = {phrase: [] for phrase in prompts}
    seen: Counter[str] = Counter()
    for frame in frames:
        for segment in frame.segments:
            found.setdefault(segment.phrase, []).append((segment.score, segment.mask.area / pixels))
        seen.update({segment.phrase for segment in frame.segments})
    return {
        **_named(item),
        "status": "filtered" if filtered.reason else "ok",
        "reason": filtered.reason,
        "detail": None,
        "frames": len(frames),
        "silent": sum(frame.silent for frame in frames),
        "segments": sum(len(frame.segments) for frame in frames),
        "prompts": list(found),
        "labels": [prompts.get(phrase) for phrase in found],
        "scores": [max((score for score, _ in own), default=None) for own in found.values()],
        "areas": [round(max((area for _, area in own), default=0.0), 6) for own in found.values()],
        "found": [seen[phrase] for phrase in found],
        "rejected": _dropped(result, filtered),
        "warnings": len(result.warnings),
    }


def failed_row(item: Sample, reason: str, detail: str) -> Row:
    """The row of a clip without a result; `reason` is a short word to count by, `detail` the sentence."""
    empty: dict[str, Any] = {"frames": 0, "silent": 0, "segments": 0}
    empty |= {name: [] for name in ("prompts", "labels", "scores", "areas", "found")}
    return {
        **_named(item),
        "status": "failed",
        "reason": reason,
        "detail": detail,
        **empty,
        "rejected": {},
        "warnings": 0,
    }


def _named(item: Sample) -> dict[str, Any]:
    return {"id": item.id, "name": item.name, "source": item.source}


def _dropped(result: ClipResult, filtered: FilteredResult) -> dict[str, int]:
    """By reason; the pipeline's own words have blanks in them, the filters' are keys of the recipe."""
    own = Counter(dropped.reason for frame in result.frames for dropped in frame.rejected)
    rules = Counter({f"label_filter.{rule}": count for rule, count in filtered.rejected.items()})
    if filtered.reason:
        rules[f"label_filter.{filtered.reason}"] += 1
    return dict(sorted((own + rules).items()))
