"""Charts: equal bytes for equal data, text for screen readers, and colors for light and dark backgrounds."""

from __future__ import annotations

import base64
import subprocess
import sys
from xml.etree import ElementTree

import matplotlib
import pytest

from openavs.visualization.plots import (
    _DARK,
    INK,
    SERIES,
    Axis,
    Chart,
    ChartSeries,
    Point,
    plot_histogram,
    plot_series,
    plot_training,
    series_css,
    smooth,
    unit_axis,
)

SVG = "{http://www.w3.org/2000/svg}"


def scatter(*titles: str) -> Chart:
    points = [Point(1 + 0.01 * i, 2, title, labeled=True) for i, title in enumerate(titles)]
    return plot_series("Points", "Two kinds.", [ChartSeries(points, 0)], Axis("x"), Axis("y"), [(0, "a kind")])


def test_equal_data_gives_equal_bytes_whatever_the_settings() -> None:
    first = scatter("a", "b")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": False}):
        assert scatter("a", "b") == first
        assert matplotlib.rcParams["font.size"] == 30, "the settings of the user stay"
    code = "from tests.visualization.test_plots import scatter; print(scatter('a', 'b').svg, end='')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == first.svg
    assert "date" not in first.svg.lower()


def test_a_chart_has_a_title_a_description_and_tooltips() -> None:
    root = ElementTree.fromstring(scatter("<b>$1 & $2", "other").svg)
    ElementTree.fromstring(plot_series("\x01", "\x02", [], Axis("\x03"), Axis("y")).svg)
    assert [root.findtext(f"{SVG}title"), root.findtext(f"{SVG}desc")] == ["Points", "Two kinds."]
    assert [use.findtext(f"{SVG}title") for use in root.iter(f"{SVG}use") if len(use)] == ["<b>$1 & $2", "other"]
    written = [element.text for element in root.iter(f"{SVG}text")]
    assert {"x", "y", "a kind", "<b>$1 & $2", "other"} <= set(written)


def test_every_color_has_another_on_dark_backgrounds() -> None:
    assert len(set(_DARK)) == len(_DARK) == 4 + len(SERIES)
    svg = scatter("a").svg
    for color in (INK, SERIES[0]):
        assert f"fill: {color}" in svg.split("</style>", 1)[1]
        assert f'[style*="fill: {color}"]{{fill:{_DARK[color]}!important}}' in svg
    assert series_css().count("--c:") == 2 * len(SERIES)


def test_labels_of_close_points_do_not_overlap() -> None:
    root = ElementTree.fromstring(scatter("first", "second", "third").svg)
    labels = {text.text: text.attrib for text in root.iter(f"{SVG}text") if text.text in ("first", "second", "third")}
    places = [(round(float(label["x"])), round(float(label["y"]))) for label in labels.values()]
    assert len(set(places)) == 3


def test_a_histogram_has_one_bar_per_count() -> None:
    root = ElementTree.fromstring(plot_histogram("Scores", "", [3, 0, 5, 1], unit_axis("score"), "clips").svg)
    titles = [path.findtext(f"{SVG}title") for path in root.iter(f"{SVG}path") if len(path)]
    assert titles == ["0 to 0.25: 3", "0.25 to 0.5: 0", "0.5 to 0.75: 5", "0.75 to 1: 1"]


def test_a_chart_is_an_image_of_its_own() -> None:
    chart = scatter("a")
    kind, _, data = chart.data_uri.partition(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(data).decode() == chart.svg


def test_a_training_is_plotted_with_and_without_validation() -> None:
    losses = [(float(step), 5 / (step + 1)) for step in range(5000)]
    chart = plot_training(losses, [(2500.0, 0.25), (5000.0, 0.5)], "miou")
    assert "validation: miou" in chart.svg and chart.description.endswith("validation miou is 0.500")
    assert len(chart.svg) < 100_000
    assert plot_training([], [], "loss").description == "no step; no validation"


def test_a_smoothed_curve_begins_at_the_first_value() -> None:
    assert [y for _, y in smooth([(0, 4.0), (1, 4.0), (2, 4.0)])] == pytest.approx([4.0, 4.0, 4.0])
    assert 1.0 < smooth([(0, 1.0), (1, 2.0)])[1][1] < 2.0
