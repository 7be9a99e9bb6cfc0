"""Display names of metrics, benchmarks and protocols, for terminal, report and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES: dict[str, str] = {
    "s4": "AVSBench-object S4",
    "ms3": "AVSBench-object MS3",
    "avss": "AVSBench-semantic (AVSS)",
    "ov": "AVSBench-OV",
    "v3": "AVSBench-V3",
}

_FIGURES: dict[str, str] = {
    "miou": "mIoU",
    "f": "F",
    "miou_sounding": "mIoU, frames with a true mask",
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
