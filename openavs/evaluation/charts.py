"""Small charts as inline SVG: axes, lines, points and bars, without a library and without a script.

Colours, sizes of text and dark mode are the page's (`CHART_STYLE` is what the classes mean); a chart is 360 units wide,
so that it can be read at the width of a phone. Every chart has a title and a description for who cannot see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

WIDTH, HEIGHT = 360.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 12.0, 10.0, 40.0
_LETTER = 6.0  # about the width of a letter at 11 units, to keep names apart
_OFFSETS = ((8, 4), (-8, -4), (8, 16), (-8, -17), (8, -8), (-8, -30), (8, 28), (-8, 16))  # of a name from its point
_Box = tuple[float, float, float, float]  # x0, y0, x1, y1
MARKS = ("circle", "square", "triangle", "diamond", "cross", "ring")

CHART_STYLE = """
.chart{display:block;width:100%;height:auto;font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
.chart text{fill:var(--quiet)}
.chart .name{fill:var(--ink)}
.chart .grid{stroke:var(--line);stroke-width:1}
.chart .line{fill:none;stroke:var(--c);stroke-width:2;stroke-linejoin:round}
.chart .mark{fill:var(--c);stroke:var(--card);stroke-width:.8}
.chart .column{fill:var(--c)}
.k0{--c:#0072b2}.k1{--c:#d55e00}.k2{--c:#009e73}.k3{--c:#aa4499}.k4{--c:#777f8c}.k5{--c:var(--ink)}
@media (prefers-color-scheme:dark){.k0{--c:#56b4e9}.k1{--c:#e69f00}.k2{--c:#2fc79a}.k3{--c:#dd8fd0}.k4{--c:#a3abb8}}
"""
"""Six kinds of lines and marks (Okabe and Ito's colours, lighter on dark); needs --ink, --quiet, --line and --card."""


@dataclass(frozen=True)
class Axis:
    """What an axis counts and from where to where; `ticks` are the values that are written on it."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]
    text: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """How far along the axis a value lies, held to [0, 1]."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


@dataclass(frozen=True)
class Point:
    """A mark: what it is goes into its tooltip, and beside it where `named`."""

    x: float
    y: float
    title: str = ""
    named: bool = False


@dataclass(frozen=True)
class ChartSeries:
    """Points of one kind, joined by a line or not; `kind` is the colour and the shape of the marks."""

    name: str
    kind: int
    points: tuple[Point, ...]
    line: bool = False
    marks: bool = True


def shares(label: str) -> Axis:
    """An axis of shares from 0 to 1."""
    return Axis(label, 0.0, 1.0, (0, 0.25, 0.5, 0.75, 1))


def spanning(label: str, values: Sequence[float], step: float = 10) -> Axis:
    """An axis with ticks a `step` apart that holds all values."""
    low = step * (min(values) // step)
    high = -step * (-max(values) // step)
    high = high if high > low else low + step
    count = round((high - low) / step)
    return Axis(label, low, high, tuple(low + i * step for i in range(count + 1)))


def plot(
    name: str,
    title: str,
    description: str,
    x: Axis,
    y: Axis,
    series: Sequence[ChartSeries],
    key: Sequence[tuple[int, str]] = (),
) -> Markup:
    """Lines and points over two axes; `name` makes the ids of the page unique, `key` explains marks at lower right."""
    body = [_axes(x, y)]
    for group in series:
        if group.line and len(group.points) > 1:
            body.append(_line(group, x, y))
        if group.marks:
            body += [_mark(group.kind, point, x, y) for point in group.points]
    body += [_names(series, x, y), _key(key)]
    return _svg(name, title, description, Markup("").join(body))


def histogram(name: str, title: str, description: str, x: Axis, counts: Sequence[int], count_label: str) -> Markup:
    """Columns of equal width over the whole of the axis."""
    y = _counting(count_label, max([*counts, 1]))
    width = (WIDTH - _LEFT - _RIGHT) / max(len(counts), 1)
    step = (x.high - x.low) / max(len(counts), 1)
    columns = []
    for i, count in enumerate(counts):
        top = _y(y, count)
        told = f"{x.text(x.low + i * step)} to {x.text(x.low + (i + 1) * step)}: {count}"
        columns.append(
            Markup('<rect class="column k0" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
                _n(_LEFT + i * width + 0.5), _n(top), _n(width - 1), _n(HEIGHT - _BOTTOM - top), told
            )
        )
    return _svg(name, title, description, _axes(x, y) + Markup("").join(columns))


def bar(value: float, kind: int = 0) -> Markup:
    """A share as a bar for a line of text; the text beside it says the number."""
    rail = Markup('<rect class="rail" x="0" y="0" width="100" height="6"/>')
    column = Markup('<rect class="column" x="0" y="0" width="{}" height="6"/>').format(_n(100 * value))
    frame = Markup('<svg class="bar k{}" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">{}</svg>')
    return frame.format(kind, rail + column)


def mark_key(kind: int) -> Markup:
    """The mark of a kind alone, for a legend."""
    shape = _shape(kind, 7.0, 7.0)
    return Markup('<svg class="key k{}" viewBox="0 0 14 14" aria-hidden="true">{}</svg>').format(kind, shape)


def as_file(chart: Markup, style: str) -> str:
    """A chart as an SVG file of its own, with the style that it needs inside."""
    head, rest = chart.split(">", 1)
    return f"{head}><style>{style}</style>{rest}\n"


# ------------------------------------------------------------------------------------------------------------- pieces


def _svg(name: str, title: str, description: str, body: Markup) -> Markup:
    return Markup(
        '<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {} {}" role="img" '
        'aria-labelledby="{}-title {}-desc"><title id="{}-title">{}</title><desc id="{}-desc">{}</desc>{}</svg>'
    ).format(_n(WIDTH), _n(HEIGHT), name, name, name, title, name, description, body)


def _axes(x: Axis, y: Axis) -> Markup:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for value in y.ticks:
        at = _n(_y(y, value))
        parts.append(Markup('<path class="grid" d="M{} {}H{}"/>').format(_n(_LEFT), at, _n(right)))
        parts.append(_text(_LEFT - 5, _y(y, value) + 3.5, y.text(value), "end"))
    for value in x.ticks:
        parts.append(Markup('<path class="grid" d="M{} {}v4"/>').format(_n(_x(x, value)), _n(bottom)))
        parts.append(_text(_x(x, value), bottom + 15, x.text(value), "middle"))
    parts.append(_text((_LEFT + right) / 2, HEIGHT - 7, x.label, "middle"))
    middle = (_TOP + bottom) / 2
    turned = Markup('<text text-anchor="middle" transform="translate(12 {}) rotate(-90)">{}</text>')
    return Markup("").join([*parts, turned.format(_n(middle), y.label)])


def _line(group: ChartSeries, x: Axis, y: Axis) -> Markup:
    places = [f"{_n(_x(x, p.x))} {_n(_y(y, p.y))}" for p in group.points]
    # Curves of 255 thresholds stand still for most of them: a point that moves nothing is left out.
    kept = places[:1] + [place for before, place in pairwise(places) if place != before]
    path = Markup('<path class="line k{}" d="M{}"><title>{}</title></path>')
    return path.format(group.kind, "L".join(kept), group.name)


def _mark(kind: int, point: Point, x: Axis, y: Axis) -> Markup:
    shape = _shape(kind, _x(x, point.x), _y(y, point.y), title=point.title)
    return Markup('<g class="k{}">{}</g>').format(kind, shape)


def _names(series: Sequence[ChartSeries], x: Axis, y: Axis) -> Markup:
    """The named points' names, each where it covers no other name and the fewest marks."""
    marks = [(_x(x, p.x), _y(y, p.y)) for group in series for p in group.points]
    taken: list[_Box] = []
    parts = []
    for point in (p for group in series for p in group.points if p.named):
        at, length = (_x(x, point.x), _y(y, point.y)), _LETTER * len(point.title)
        places = [_name_place(at, length, offset) for offset in _OFFSETS]
        place = min(places, key=lambda box: (_clashes(box, taken), _covered(box, marks)))
        taken.append(place)
        parts.append(_text(place[0], place[3] - 2, point.title, "start", "name"))
    return Markup("").join(parts)


def _name_place(at: tuple[float, float], length: float, offset: tuple[float, float]) -> _Box:
    """The box of a name to the right of a point, or to its left where the offset is negative."""
    left = at[0] + offset[0] - (length if offset[0] < 0 else 0)
    return left, at[1] + offset[1] - 9, left + length, at[1] + offset[1] + 2


def _clashes(box: _Box, taken: Sequence[_Box]) -> int:
    outside = box[0] < _LEFT or box[1] < 0 or box[2] > WIDTH or box[3] > HEIGHT - _BOTTOM
    return outside + sum(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )


def _covered(box: _Box, marks: Sequence[tuple[float, float]]) -> int:
    return sum(box[0] - 4 < x < box[2] + 4 and box[1] - 4 < y < box[3] + 4 for x, y in marks)


def _key(entries: Sequence[tuple[int, str]]) -> Markup:
    left = WIDTH - _RIGHT - max((_LETTER * len(text) for _, text in entries), default=0.0)
    parts = []
    for row, (kind, text) in enumerate(reversed(entries)):
        at = HEIGHT - _BOTTOM - 10 - 15 * row
        parts.append(Markup('<g class="k{}">{}</g>').format(kind, _shape(kind, left - 10, at)))
        parts.append(_text(left, at + 3.5, text, "start"))
    return Markup("").join(parts)


def _shape(kind: int, x: float, y: float, size: float = 4.0, title: str = "") -> Markup:
    told = Markup("<title>{}</title>").format(title) if title else Markup("")
    outlines = {
        "circle": f"M{_n(x - size)} {_n(y)}a{_n(size)} {_n(size)} 0 1 0 {_n(2 * size)} 0"
        f"a{_n(size)} {_n(size)} 0 1 0 {_n(-2 * size)} 0",
        "square": f"M{_n(x - 3.5)} {_n(y - 3.5)}h7v7h-7z",
        "triangle": f"M{_n(x)} {_n(y - 5)}l5 9h-10z",
        "diamond": f"M{_n(x)} {_n(y - 5)}l5 5l-5 5l-5-5z",
        "ring": f"M{_n(x - 6)} {_n(y)}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0M{_n(x - 3)} {_n(y)}a3 3 0 1 1 6 0a3 3 0 1 1 -6 0",
        "cross": f"M{_n(x - 4)} {_n(y - 1.3)}h2.7v-2.7h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7z",
    }
    return Markup('<path class="mark" d="{}">{}</path>').format(outlines[MARKS[kind % len(MARKS)]], told)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> Markup:
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(kind, _n(x), _n(y), anchor, text)


def _counting(label: str, most: int) -> Axis:
    """An axis from 0 with at most five whole ticks."""
    step = next(s * 10**e for e in range(12) for s in (1, 2, 5) if s * 10**e * 4 >= most)
    count = -(-most // step)
    return Axis(label, 0, count * step, tuple(i * step for i in range(count + 1)), "{:,.0f}".format)


def _x(axis: Axis, value: float) -> float:
    return _LEFT + axis.share(value) * (WIDTH - _LEFT - _RIGHT)


def _y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - axis.share(value) * (HEIGHT - _TOP - _BOTTOM)


def _n(value: float) -> str:
    """A coordinate to a tenth of a unit, without a dangling zero."""
    return f"{value:.1f}".removesuffix(".0")
