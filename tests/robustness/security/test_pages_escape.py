"""Captions, prompts, file names and other foreign texts are escaped on every page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.evaluation.report import write_benchmark_report
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import Caption, ClipResult, Frame, FrameResult, Prompt, Rejection, Segment
from openavs.visualization.notebook import summary
from openavs.visualization.report import write_report
from tests.evaluation.pages import report_of, write_dataset
from tests.robustness.security.hostile import ALL, MARK, TEXTS, Page

SIZE = (48, 64)


def hostile_result(text: str = ALL) -> ClipResult:
    """A result in which every text is hostile."""
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[8:30, 8:40] = True
    segment = Segment(mask_to_rle(mask), (8.0, 8.0, 40.0, 30.0), text, 0.7, label=text, label_how=text)
    frame = FrameResult(
        0,
        0.5,
        captions=(Caption(text, 0.8, 0.0, 1.0, text),),
        prompts=(Prompt(text, label=text, origin=text, captions=(Caption(text, None, 0.0, 1.0),)),),
        segments=(segment,),
        rejected=(Rejection(text, text, 0.1),),
    )
    models = {text: {"revision": text, "license": text, "path": text}}
    return ClipResult(
        text, SIZE, (frame,), f"/x/{text}.mp4", {"name": text, text: [text]}, models, {text: 1.0}, (text,)
    )


def pictures() -> list[Frame]:
    return [Frame(0, 0.5, np.full((*SIZE, 3), 90, dtype=np.uint8))]


@pytest.mark.parametrize("text", [*TEXTS, ALL])
def test_the_report_of_a_clip(text: str, tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", hostile_result(text), pictures())
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.harm == []
    assert page.text.count(MARK) >= 8  # captions, prompts, segments, rejections, recipe, models, warnings


@pytest.mark.parametrize("text", [*TEXTS, ALL])
def test_the_view_of_a_notebook(text: str) -> None:
    page = Page(summary(hostile_result(text), None))
    assert page.harm == [] and page.text.count(MARK) >= 4


def test_the_page_of_an_evaluation(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", 3)
    clips = tuple(replace(clip, group=f"{ALL} {i}", classes=(ALL,)) for i, clip in enumerate(dataset.clips))
    dataset = replace(dataset, clips=clips)
    made = {
        "recipe": {"name": ALL, ALL: ALL},
        "models": {ALL: {"revision": ALL, "license": ALL}},
        "versions": {"openavs": ALL, "packages": {ALL: ALL}},
        "timings": {"stages": {ALL: 1.0}, "seconds": 2.0},
    }
    write_benchmark_report(tmp_path / "report.html", report_of(dataset, **made), dataset, dataset.root / "predictions")
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert page.harm == [] and MARK in page.text


@pytest.mark.parametrize(
    "source",
    [
        "<p onclick='x'>",
        "<script>x</script>",
        "<a href='javascript:x'>",
        "<img src='http://evil.example/x.png'>",
        "<img src='data:text/html,x'>",
        "<img src='data:image/svg+xml,x'>",
        f"<style>{MARK}</style>",
        f"<p style='{MARK}'>",
        "<iframe srcdoc='x'>",
        "<base href='//evil.example'>",
    ],
)
def test_the_reader_sees_harm(source: str) -> None:
    assert Page(source).harm


def test_a_harmless_page_has_none() -> None:
    source: Any = "<style>a{}</style><a href='#x'>x</a><img src='data:image/png;base64,AA=='><p>javascript:x</p>"
    assert Page(source).harm == []
