"""Timeline of a clip as a matplotlib plot: when each phrase was prompted, and whether it was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openavs.structures.types import ClipResult
from openavs.visualization.colors import palette_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LOST = "0.8"  # gray of a prompt without a segment
_SILENT = "0.93"


def plot_timeline(result: ClipResult, axes: Axes | None = None) -> Axes:
    """Draw one row per phrase over time, and return the axes.

    A bar is in the phrase's color of the overlay where it was found, gray where it was only prompted; its opacity is
    the best score. Silent frames are shaded. Events of the captioner are lines above their phrase's bars.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        rows = {prompt.phrase for frame in result.frames for prompt in frame.prompts}
        axes = plt.subplots(figsize=(8.0, 1.2 + 0.35 * max(len(rows), 1)), layout="constrained")[1]
    gaps = [after.time - before.time for before, after in zip(result.frames, result.frames[1:], strict=False)]
    width = min(gaps, default=1.0)
    palette = palette_of(result.frames)
    shown = [palette.shown(frame) for frame in result.frames]
    order: dict[str, int] = {}
    for frame in shown:
        span = (frame.time - width / 2, width)
        if frame.silent:
            axes.axvspan(span[0], span[0] + width, color=_SILENT, lw=0)
        for phrase in dict.fromkeys([*(p.phrase for p in frame.prompts), *(s.phrase for s in frame.segments)]):
            row = order.setdefault(phrase, len(order))
            score = max((s.score for s in frame.segments if s.phrase == phrase), default=None)
            color = _LOST if score is None else tuple(value / 255 for value in palette[phrase])
            axes.broken_barh(
                [span], (row - 0.3, 0.6), facecolors=color, alpha=None if score is None else 0.4 + 0.6 * score
            )
    for event in result.events:
        row = order.setdefault(event.phrase, len(order))
        axes.plot([event.onset, event.offset], [row - 0.42] * 2, color="0.2", lw=1.5, solid_capstyle="butt")
    axes.set_yticks(range(len(order)), list(order))
    axes.set_ylim(max(len(order), 1) - 0.5, -0.6)
    axes.set_xlabel("time (s)")
    axes.set_title(result.clip)
    return axes
