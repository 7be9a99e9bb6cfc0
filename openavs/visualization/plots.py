"""Charts by matplotlib, as SVG files that are readable on light and dark backgrounds.

Equal data gives equal bytes for one version of matplotlib. Text stays text, a chart has a title and a description for
screen readers, and points have tooltips. Dark mode is a style sheet inside the file that replaces the colors of the
light one, so a viewer without style sheets shows the light chart.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from openavs.structures.types import ClipResult
from openavs.visualization.colors import palette_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

WIDTH, HEIGHT = 360.0, 250.0  # units of the SVG file: readable at the width of a phone
INK, QUIET, GRID, PAPER = "#1d2129", "#5d6470", "#dfe1e5", "#fffffe"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#777f8c", "#1d212a")
"""Colors of six kinds of series: those of Okabe and Ito, gray, and ink."""
MARKERS = ("o", "s", "^", "D", "P", "o")
MARKER_NAMES = ("circle", "square", "triangle", "diamond", "cross", "large circle")

# A light color is found by its exact value in the style sheet, so no two of them are equal.
_DARK = {
    INK: "#e8eaee",
    QUIET: "#a3abb8",
    GRID: "#333943",
    PAPER: "#0d1117",
    **dict(zip(SERIES, ("#56b4e9", "#e69f00", "#2fc79a", "#dd8fd0", "#a3abb7", "#e8eaed"), strict=True)),
}
_SVG = "http://www.w3.org/2000/svg"
_OFFSETS = ((7, 0), (-7, 0), (7, 11), (-7, -11), (7, -11), (-7, 11), (7, 22), (-7, -22))  # of a label from its point
_MARKER_SIZE = 6.5
_SETTINGS: Any = {
    "svg.hashsalt": "openavs",  # ids without a random part
    "svg.fonttype": "none",  # text, not outlines
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": QUIET,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": QUIET,
    "lines.linewidth": 1.8,
    "lines.markersize": _MARKER_SIZE,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
}


@dataclass(frozen=True)
class Point:
    """A point of a series; `title` is its tooltip, and also written beside it if `labeled`."""

    x: float
    y: float
    title: str = ""
    labeled: bool = False


@dataclass(frozen=True)
class ChartSeries:
    """Points with the color and marker of a `kind` (0 to 5), optionally joined by a line."""

    points: Sequence[Point]
    kind: int
    line: bool = False
    markers: bool = True


@dataclass(frozen=True)
class Axis:
    """Label, limits and ticks of an axis; None leaves the choice to matplotlib."""

    label: str
    limits: tuple[float, float] | None = None
    ticks: Sequence[float] | None = None


def unit_axis(label: str) -> Axis:
    """Create the axis of a share in [0, 1]."""
    return Axis(label, (0.0, 1.0), (0, 0.25, 0.5, 0.75, 1))


@dataclass(frozen=True)
class Chart:
    """An SVG file, with its title and description as text."""

    title: str
    description: str
    svg: str = field(repr=False)

    @property
    def data_uri(self) -> str:
        """The file as the address of an HTML image."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg.encode()).decode('ascii')}"


def series_css() -> str:
    """Return the colors of the series as style sheet classes `k0` to `k5`, which set `--c`, for HTML pages."""
    light = "".join(f".k{kind}{{--c:{color}}}" for kind, color in enumerate(SERIES))
    dark = "".join(f".k{kind}{{--c:{_DARK[color]}}}" for kind, color in enumerate(SERIES))
    return f"{light}\n@media (prefers-color-scheme:dark){{{dark}}}\n"


def plot_series(
    title: str,
    description: str,
    series: Sequence[ChartSeries],
    x: Axis,
    y: Axis,
    legend: Sequence[tuple[int, str]] = (),
) -> Chart:
    """Plot points and lines; `legend` names kinds of series."""

    def draw(figure: Figure) -> None:
        axes = figure.add_axes((0.13, 0.16, 0.84, 0.8))
        for number, group in enumerate(series):
            xs, ys = [point.x for point in group.points], [point.y for point in group.points]
            color, marker, size = _style(group.kind)
            if group.line:
                axes.plot(xs, ys, color=color, solid_joinstyle="round")
            if group.markers:
                axes.plot(
                    xs, ys, marker, color=color, ms=size, mec=PAPER, mew=0.8, clip_on=False, gid=f"points{number}"
                )
        _set_axis(axes, x, y)
        handles: list[Any] = [
            axes.plot([], [], marker, color=color, ms=size, label=text)[0]
            for (color, marker, size), text in ((_style(kind), text) for kind, text in legend)
        ]
        if handles:
            axes.legend(handles=handles, loc="lower right", borderaxespad=0.2, handletextpad=0.2)
        _label_points(axes, series)

    tooltips = {f"points{i}": [point.title for point in group.points] for i, group in enumerate(series)}
    return _render(title, description, draw, tooltips=tooltips)


def plot_histogram(title: str, description: str, counts: Sequence[int], x: Axis, count_label: str) -> Chart:
    """Plot bars of equal width over the limits of an axis."""
    low, high = x.limits or (0.0, 1.0)
    step = (high - low) / max(len(counts), 1)
    edges = [low + i * step for i in range(len(counts))]
    tooltips = {
        f"bar{i}": [f"{edge:g} to {edge + step:g}: {count}"]
        for i, (edge, count) in enumerate(zip(edges, counts, strict=True))
    }

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_axes((0.13, 0.16, 0.84, 0.8))
        bars = axes.bar(edges, counts, width=0.92 * step, align="edge", color=SERIES[0])
        for name, bar in zip(tooltips, bars, strict=True):
            bar.set_gid(name)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        _set_axis(axes, x, Axis(count_label))

    return _render(title, description, draw, tooltips=tooltips)


def plot_training(
    losses: Sequence[tuple[float, float]], scores: Sequence[tuple[float, float]], score_name: str
) -> Chart:
    """Plot the loss of every step with its moving average, and the score of every validation.

    Values are pairs of step and value; scores are in [0, 1].
    """

    def draw(figure: Figure) -> None:
        left, right = figure.add_axes((0.07, 0.16, 0.41, 0.72)), figure.add_axes((0.57, 0.16, 0.41, 0.72))
        stride = len(losses) // 1000 + 1  # bounds the file for any number of steps
        left.plot(*_columns(losses[::stride]), color=SERIES[0], alpha=0.3, lw=0.8)
        left.plot(*_columns(smooth(losses)[::stride]), color=SERIES[0])
        right.plot(*_columns(scores), "-o", color=SERIES[1])
        _set_axis(left, Axis("step"), Axis("", (0.0, _loss_limit([value for _, value in losses]))))
        _set_axis(right, Axis("step"), unit_axis(""))
        left.set_title("loss")
        right.set_title(f"validation: {score_name}")

    best = f"the best validation {score_name} is {max(value for _, value in scores):.3f}" if scores else "no validation"
    last = f"the last loss is {losses[-1][1]:.4g}" if losses else "no step"
    return _render("Training", f"{last}; {best}", draw, width=2 * WIDTH)


def smooth(points: Sequence[tuple[float, float]], weight: float = 0.95) -> list[tuple[float, float]]:
    """Return the exponential moving average of the values, with the bias correction of Adam at the start."""
    mean, mass, averages = 0.0, 0.0, []
    for x, y in points:
        mean, mass = weight * mean + (1 - weight) * y, weight * mass + (1 - weight)
        averages.append((x, mean / mass))
    return averages


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _loss_limit(values: Sequence[float]) -> float:
    """The end of the loss axis; a few large values at the start do not flatten the rest."""
    return 1.1 * max(sorted(values)[int(0.98 * (len(values) - 1))], 1e-6) if values else 1.0


# ------------------------------------------------------------------------------------------------------------ helpers


def _style(kind: int) -> tuple[str, str, float]:
    """Color, marker and marker size of a kind."""
    return SERIES[kind], MARKERS[kind], 10 if MARKER_NAMES[kind] == "large circle" else _MARKER_SIZE


def _set_axis(axes: Axes, x: Axis, y: Axis) -> None:
    for axis, set_limits, dimension in ((x, axes.set_xlim, axes.xaxis), (y, axes.set_ylim, axes.yaxis)):
        dimension.set_label_text(_printable(axis.label))
        if axis.limits is not None:
            set_limits(*axis.limits)
        if axis.ticks is not None:
            dimension.set_ticks(list(axis.ticks))


def _label_points(axes: Axes, series: Sequence[ChartSeries]) -> None:
    """Writes the labels of points, each at the offset that covers the fewest labels and markers."""
    axes.autoscale_view()  # matplotlib sets limits lazily; the transformation needs them now
    markers = axes.transData.transform([(point.x, point.y) for group in series for point in group.points])
    legend = axes.get_legend()
    taken = [legend.get_window_extent()] if legend is not None else []
    for point in (point for group in series for point in group.points if point.labeled):
        label = axes.annotate(point.title, (point.x, point.y), _OFFSETS[0], textcoords="offset points", va="center")

        def covered(offset: tuple[int, int], label: Annotation = label) -> tuple[int, int]:
            label.set_position(offset)
            label.set_horizontalalignment("left" if offset[0] > 0 else "right")
            box = label.get_window_extent()
            right = box.x1 + 0.2 * box.width  # browsers may choose a wider font
            outside = box.x0 < axes.bbox.x0 or right > WIDTH or box.y0 < axes.bbox.y0 or box.y1 > HEIGHT
            return outside + box.count_overlaps(taken), box.padded(2).count_contains(markers)

        covered(min(_OFFSETS, key=covered))  # leaves the label there
        taken.append(label.get_window_extent())


@contextmanager
def _matplotlib_settings() -> Iterator[None]:
    """The defaults of matplotlib with ours, whatever the user's own matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _render(
    title: str,
    description: str,
    draw: Callable[[Figure], None],
    width: float = WIDTH,
    tooltips: dict[str, list[str]] | None = None,
) -> Chart:
    """Draws on a figure of its own and returns the file, with tooltips for the artists of these ids."""
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with _matplotlib_settings():
        figure = Figure((width / 72, HEIGHT / 72), dpi=72)
        draw(figure)
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(buffer.getvalue())
    for name, titles in (tooltips or {}).items():
        group = root.find(f".//*[@id='{name}']")
        marks = [] if group is None else [*group.iter(f"{{{_SVG}}}use")] or [*group.iter(f"{{{_SVG}}}path")]
        for mark, text in zip(marks, titles, strict=False):
            ElementTree.SubElement(mark, f"{{{_SVG}}}title").text = _printable(text)
    root.set("role", "img")
    for tag, text in (("style", _style_sheet()), ("desc", description), ("title", title)):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}")
        element.text = _printable(text)
        root.insert(0, element)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Chart(title, description, ElementTree.tostring(root, encoding="unicode") + "\n")


def _printable(text: str) -> str:
    """The text without control characters, which XML does not allow."""
    return "".join(c if c.isprintable() else " " for c in text)


def _style_sheet() -> str:
    rules = "".join(
        f'[style*="{name}: {light}"]{{{name}:{dark}!important}}'
        for light, dark in _DARK.items()
        for name in ("fill", "stroke")
    )
    font = 'text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}'
    return f"{font}@media (prefers-color-scheme:dark){{{rules}}}"


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
