"""The curve of a training as a PNG: the loss of every step, smoothed, and the score of every validation."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from openavs.utils.fs import atomic_write

WIDTH, HEIGHT = 960, 420
INK, QUIET, GRID, PAPER = (30, 30, 30), (110, 110, 110), (225, 225, 225), (255, 255, 255)
BLUE, PALE, ORANGE = (0, 114, 178), (190, 215, 232), (213, 94, 0)  # Okabe and Ito's
_LEFT, _TOP, _BOTTOM, _SIZE = 64, 40, 44, 15
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """Axes at a place of the picture."""

    x: float
    width: float
    low: tuple[float, float]
    high: tuple[float, float]

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        """Where a point lies, in pixels."""
        shares = [
            (v - lo) / (hi - lo) if hi > lo else 0.5 for v, lo, hi in zip(point, self.low, self.high, strict=True)
        ]
        return self.x + shares[0] * self.width, HEIGHT - _BOTTOM - shares[1] * (HEIGHT - _TOP - _BOTTOM)


def write_curve(metrics: Path, target: Path, figure: str) -> None:
    """Draws what metrics.jsonl holds; `figure` is the score that validations are told by."""
    lines = [json.loads(text) for text in metrics.read_text(encoding="utf-8").splitlines()]
    losses = [(float(line["step"]), float(line["loss"])) for line in lines if "loss" in line]
    scores = [(float(line["step"]), float(line["validation"][figure])) for line in lines if line.get("validation")]
    picture = Pillow.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    last = max((x for x, _ in [*losses, *scores]), default=1.0)
    half = WIDTH / 2 - _LEFT - 16
    _panel(draw, Panel(_LEFT, half, (0, 0), (last, _top(losses))), "loss", losses, smoothed(losses), BLUE)
    right = Panel(_LEFT + WIDTH / 2, half, (0, 0), (last, 1.0))
    _panel(draw, right, f"validation: {figure}", (), scores, ORANGE, marks=True)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    atomic_write(target, buffer.getvalue())


def smoothed(points: Points, weight: float = 0.95) -> list[tuple[float, float]]:
    """An exponential mean of the values, corrected for its start."""
    mean, mass, answer = 0.0, 0.0, []
    for x, y in points:
        mean, mass = weight * mean + (1 - weight) * y, weight * mass + (1 - weight)
        answer.append((x, mean / mass))
    return answer


def _top(points: Points) -> float:
    """The end of the loss axis: a few wild steps at the start do not flatten the rest."""
    values = sorted(y for _, y in points)
    return 1.1 * max(values[int(0.98 * (len(values) - 1))], 1e-6) if values else 1.0


def _panel(
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    title: str,
    faint: Points,
    points: Points,
    colour: tuple[int, int, int],
    marks: bool = False,
) -> None:
    font = ImageFont.load_default(_SIZE)
    draw.text((panel.x, 10), title, INK, font)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = panel.low[1] + share * (panel.high[1] - panel.low[1])
        left, y = panel.at((panel.low[0], value))
        draw.line([(left, y), (left + panel.width, y)], GRID)
        draw.text((panel.x - 8, y), f"{value:.3g}", QUIET, font, anchor="rm")
        x, bottom = panel.at((panel.low[0] + share * (panel.high[0] - panel.low[0]), panel.low[1]))
        if share in (0.0, 0.5, 1.0):
            draw.text((x, bottom + 8), f"{share * panel.high[0]:.0f}", QUIET, font, anchor="ma")
    for series, tone, width in ((faint, PALE, 1), (points, colour, 3)):
        if len(series) > 1:
            draw.line([panel.at((x, min(y, panel.high[1]))) for x, y in series], tone, width)
    for point in points if marks else ():
        x, y = panel.at(point)
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
