"""HTML report of an evaluation: one bounded file without network, and no script but the player's."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.evaluation.leaderboard import MEASURES
from openavs.evaluation.report import MAX_EXAMPLES, write_benchmark_report
from openavs.evaluation.report_examples import CORRECT, WRONG, example_frame, paint_masks, play_example
from openavs.structures.masks import RLE, rle_to_mask
from openavs.visualization.html import asset
from tests.evaluation.pages import SIZE, Page, report_of, write_dataset

HOSTILE = "<script>alert('x')</script>\"' onload=\"evil()\" {{ 7*7 }} </style> &amp;"
MADE = {
    "recipe": {"name": "paper-sam2", "detector": {"box_threshold": 0.25}},
    "models": {"hf:org/clap": {"revision": "abc123", "license": "apache-2.0"}},
    "versions": {"openavs": "0.3", "packages": {"torch": "2.13.0"}},
    "timings": {"stages": {"detector": 6.0, "captioner": 1.5}, "seconds": 7.5},
}


def page_of(folder: Path, clips: int = 20, **more: Any) -> Page:
    dataset = write_dataset(folder / "data", clips)
    write_benchmark_report(folder / "report.html", report_of(dataset, **more), dataset, dataset.root / "predictions")
    return Page((folder / "report.html").read_text("utf-8"))


def test_it_names_the_protocol_beside_the_figures(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 6)
    report = report_of(dataset)
    write_benchmark_report(tmp_path / "report.html", report, dataset, tmp_path / "predictions")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert "official, 1 clip per batch" in text
    assert f"{100 * report['metrics']['miou']:.2f}" in text
    assert f"{100 * report['figures']['fixed']['f']:.2f}" in text
    low, high = report["intervals"]["official"]["miou"]
    assert f"{100 * low:.2f} to {100 * high:.2f}" in text


def test_every_class_on_the_page_has_a_style(tmp_path: Path) -> None:
    page = page_of(tmp_path, **MADE)
    style = (tmp_path / "report.html").read_text("utf-8").split("<style>")[1].split("</style>")[0]
    used = {name for _, attributes in page.elements for name in str(attributes.get("class") or "").split()}
    assert {"quiet", "score", "facts", "pairs"} <= used
    unstyled = {name for name in used if not re.search(rf"\.{re.escape(name)}(?![\w-])", style)}
    assert unstyled <= {"class-name", "full", "reset", "opacity"}  # names without a look of their own


def test_it_loads_no_other_file(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    source = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", source)
    assert "@import" not in source
    assert "url(" not in source
    (script,) = re.findall("<script>(.*?)</script>", source, re.DOTALL)
    assert script == asset("report/player.js")
    style = re.search(r"<style>(.*?)</style>", source, re.S)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = page.all("meta")[1]["content"]
    assert policy is not None
    assert f"style-src 'sha256-{digest}'" in policy
    assert not any("style" in attributes for _, attributes in page.elements)  # the policy would drop them


def charts_of(page: Page) -> list[dict[str, str | None]]:
    return [image for image in page.all("img") if image.get("class") == "chart"]


def frames_of(page: Page) -> list[dict[str, str | None]]:
    return [image for image in page.all("img") if image.get("class") != "chart"]


def test_every_image_has_a_description(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert all(image["alt"] and image["width"] for image in page.all("img"))
    assert len(charts_of(page)) == 4  # published results, precision and recall, F, clips
    assert "half of them score above" in (charts_of(page)[3]["alt"] or "")
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_names_are_escaped(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 3)
    clips = tuple(replace(clip, id=f"{clip.id}{HOSTILE}", group=HOSTILE) for clip in dataset.clips)
    hostile = replace(dataset, clips=clips)
    report = report_of(hostile, recipe={"name": HOSTILE}, models={HOSTILE: {"license": HOSTILE}}, command=HOSTILE)
    report |= {"date": HOSTILE, "failed": [{"id": HOSTILE, "reason": HOSTILE}], "versions": {HOSTILE: HOSTILE}}
    report["timings"] = {"stages": {HOSTILE: 1.0}}
    write_benchmark_report(tmp_path / "report.html", report, hostile, tmp_path / "predictions")
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    scripts = re.findall("<script([^>]*)>(.*?)</script>", (tmp_path / "report.html").read_text("utf-8"), re.DOTALL)
    assert [kind for kind, _ in scripts] == [' type="application/json"'] * 3 + [""]
    assert not any("<" in text for kind, text in scripts if kind)
    assert not any("onload" in attributes for _, attributes in page.elements)
    assert page.text.count(HOSTILE) >= 8


def test_published_results_are_grouped_by_kind(tmp_path: Path) -> None:
    text = page_of(tmp_path, recipe={"name": "box-prompt"}).text
    table = text[text.index("this run: box-prompt") :]
    same, unknown, other = (table.index(MEASURES[key]) for key in ("same", "unknown", "other"))
    assert 0 < same < unknown < other, "there is no ranking across protocols"
    kinds = ("training-free", "unsupervised", "weakly-supervised", "supervised")
    places = [table.index(f" {kind}", unknown) for kind in kinds]
    assert unknown < places[0] and places == sorted(places) and places[-1] < other
    assert same < table.index("TPAVI") < unknown
    assert "OpenAVS, Pengi, GPT-4o, Grounding DINO, SAM 2" in table
    assert "Figures that were measured differently do not compare." in text


def test_incomparable_runs_are_shown_without_published_results(tmp_path: Path) -> None:
    page = page_of(tmp_path, incomparable="the clips are synthetic (openavs synth)")
    assert "Not the released benchmark" in page.text
    assert "left out: the clips are synthetic (openavs synth)." in page.text
    assert "this run" not in page.text and "Pengi" not in page.text
    assert len(charts_of(page)) == 3  # precision and recall, F, clips


def test_other_splits_are_shown_without_published_results(tmp_path: Path) -> None:
    dataset = replace(write_dataset(tmp_path, 3), split="val")
    write_benchmark_report(tmp_path / "report.html", report_of(dataset), dataset, tmp_path / "predictions")
    assert "Beside published results" not in (tmp_path / "report.html").read_text("utf-8")


def test_worst_and_best_clips_once_each(tmp_path: Path) -> None:
    page = page_of(tmp_path, clips=18)  # clip 0 is predicted exactly, clip 17 worst
    assert len(frames_of(page)) == 2 * MAX_EXAMPLES
    worst, best = page.text.split("Best clips")
    assert "clip017" in worst.split("Worst clips")[1]
    assert "clip000" in best
    assert "Frame 1 of 2: truth covers 23.1 %" in (frames_of(page)[0]["alt"] or "")
    few = page_of(tmp_path / "few", clips=3)
    assert len(frames_of(few)) == 3


def test_a_clip_is_played_with_truth_and_prediction_side_by_side(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 5)
    player = play_example(dataset, dataset.clips[4], tmp_path / "predictions")["player"]
    assert player["titles"] == ["Truth", "Prediction"]
    data = json.loads(player["data"])
    assert [one["name"] for one in data["objects"]] == ["ground truth", "true positive", "false positive"]
    masks = {}
    for view in data["views"]:
        for index, _, code in view["frames"][1]["segments"]:
            masks[data["objects"][index]["name"]] = rle_to_mask(RLE(tuple(view["size"]), data["codes"][code]))
    assert masks["ground truth"].sum() == 400
    assert masks["true positive"].sum() == 320 and masks["false positive"].sum() == 80
    assert masks["false positive"][8:28, 30:34].all()
    assert [start for start, _ in data["images"]] == [0, 1]
    assert data["views"][0]["frames"][1]["status"].startswith("Frame 2 of 2: truth covers 23.1 %")


def test_the_classes_of_label_maps_have_the_same_colors_on_both_sides(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2, "semantic", "avss")
    data = json.loads(play_example(dataset, dataset.clips[1], tmp_path / "predictions")["player"]["data"])
    assert [one["name"] for one in data["objects"]] == ["dog"]
    assert [len(view["frames"][0]["segments"]) for view in data["views"]] == [1, 1]


def test_long_clips_are_played_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openavs.evaluation.report_examples.MAX_FRAMES", 1)
    dataset = write_dataset(tmp_path, 1)
    second = Image.new("L", SIZE[::-1], 255)
    second.save(tmp_path / "predictions" / dataset.clips[0].predictions[1])  # covers most
    data = json.loads(play_example(dataset, dataset.clips[0], tmp_path / "predictions")["player"]["data"])
    assert [frame["index"] for frame in data["views"][0]["frames"]] == [0, 1]
    assert (data["begin"], data["end"]) == (1, 2)


def test_its_size_is_bounded(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 12)
    report = report_of(dataset)
    write_benchmark_report(tmp_path / "small.html", report, dataset, tmp_path / "predictions")
    report["per_clip"] = [{**row, "id": f"{row['id']}-{i}"} for i in range(400) for row in report["per_clip"]]
    report["per_class"] = [{"name": f"class {i}", "clips": 3, "frames": 6, "j": 0.5, "f": 0.5} for i in range(900)]
    many = tuple(replace(clip, id=f"{clip.id}-{i}") for i in range(400) for clip in dataset.clips)
    write_benchmark_report(tmp_path / "large.html", report, replace(dataset, clips=many), tmp_path / "predictions")
    small, large = ((tmp_path / name).stat().st_size for name in ("small.html", "large.html"))
    assert large < small + 100_000 < 3_000_000
    assert "780 more are in report.json" in (tmp_path / "large.html").read_text("utf-8")


def test_models_timings_and_recipe_are_listed(tmp_path: Path) -> None:
    text = page_of(tmp_path, **MADE).text
    for said in ("hf:org/clap", "abc123", "apache-2.0", "torch", "2.13.0", "detector", "6.00", '"box_threshold": 0.25'):
        assert said in text
    made = MADE | {"versions": {"openavs": "0.3", "commit": None, "packages": {"torch": "2.13.0", "ray": None}}}
    assert page_of(tmp_path / "unknown", **made).text == text, "what is not known is left out"
    assert "Models, timings and recipe" not in page_of(tmp_path / "scored").text, "`score` has none of these"


def test_partial_runs_are_marked(tmp_path: Path) -> None:
    failed = [{"id": "clip001", "reason": "the sound is damaged"}]
    text = page_of(tmp_path, limit=20, failed=failed, missing=1, missing_masks=2).text
    assert "Limited to the first 20 clips of the split" in text
    assert "1 clip without predictions: 2 masks counted as empty" in text
    assert "clip001 (the sound is damaged)" in text


def test_hard_masks_are_named(tmp_path: Path) -> None:
    assert "The predictions are hard masks" in page_of(tmp_path).text


@pytest.mark.parametrize(("task", "benchmark"), [("semantic", "avss"), ("open-vocabulary", "ov")])
def test_label_maps(task: Any, benchmark: str, tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 6, task, benchmark)
    write_benchmark_report(tmp_path / "report.html", report_of(dataset), dataset, tmp_path / "predictions")
    page = Page((tmp_path / "report.html").read_text("utf-8"))
    assert "truth dog; prediction dog" in page.text
    assert "In no clip of this run: accordion, airplane" in page.text
    assert len(charts_of(page)) == 2


def test_a_benchmark_without_published_results(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 3, benchmark="mine")
    write_benchmark_report(tmp_path / "report.html", report_of(dataset), dataset, tmp_path / "predictions")
    assert "mine" in (tmp_path / "report.html").read_text("utf-8")


def test_correct_and_wrong_pixels_have_different_colors() -> None:
    image = np.full((20, 30, 3), 100, dtype=np.uint8)
    truth, predicted = np.zeros((20, 30), dtype=np.int64), np.zeros((20, 30), dtype=np.int64)
    truth[5:15, 5:15], predicted[5:15, 10:20] = 3, 3
    painted = paint_masks(image, truth, predicted).astype(int)
    hit, wrong, missed = painted[10, 12], painted[10, 17], painted[10, 7]
    assert abs(hit - np.array(CORRECT)).sum() < abs(hit - 100).sum()
    assert abs(wrong - np.array(WRONG)).sum() < abs(wrong - 100).sum()
    assert missed.tolist() == [100, 100, 100]
    assert painted[5, 7].tolist() == [255, 255, 255]  # outline, inside
    assert painted[4, 7].tolist() == [0, 0, 0]  # and outside
    other = paint_masks(image, truth, np.where(predicted, 4, 0)).astype(int)
    assert other[10, 12].tolist() == wrong.tolist()  # the right place, another class


def test_an_example_frame_is_small_and_decodes(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 1)
    big = np.full((720, 1280, 3), 90, dtype=np.uint8)
    for path in dataset.clips[0].frames:
        Image.fromarray(big).save(path)
    picture = example_frame(dataset, dataset.clips[0], tmp_path / "predictions")
    assert picture.src is not None
    decoded = Image.open(io.BytesIO(base64.b64decode(picture.src.split(",")[1])))
    assert decoded.size == (picture.width, picture.height) == (320, 180)


def test_a_missing_frame_only_removes_its_example(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    dataset.clips[0].frames[0].unlink()
    picture = example_frame(dataset, dataset.clips[0], tmp_path / "predictions")
    assert picture.src is None
    assert picture.words.startswith("no picture: ")
    report = report_of(dataset)
    write_benchmark_report(tmp_path / "report.html", report, dataset, tmp_path / "predictions")
    assert "no picture: " in (tmp_path / "report.html").read_text("utf-8")


def test_a_missing_prediction_is_shown_as_empty(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    whole, partly = dataset.clips
    for name in (*whole.predictions, partly.predictions[1]):
        (tmp_path / "predictions" / name).unlink()
    assert example_frame(dataset, whole, tmp_path / "predictions").words.endswith("prediction 0.0 % of the frame")
    shown = example_frame(dataset, partly, tmp_path / "predictions").words
    assert shown.startswith("Frame 1 of 2")  # the one that has something to show
    assert not shown.endswith("prediction 0.0 % of the frame")


@pytest.mark.parametrize(
    ("split", "setting"), [("test", "0-shot"), ("1-shot-test", "1-shot"), ("val", None), ("1-shot-train", None)]
)
def test_v3_is_compared_within_its_setting(split: str, setting: str | None, tmp_path: Path) -> None:
    dataset = replace(write_dataset(tmp_path, 3, benchmark="v3"), split=split)
    write_benchmark_report(tmp_path / "report.html", report_of(dataset), dataset, tmp_path / "predictions")
    text = Page((tmp_path / "report.html").read_text("utf-8")).text
    assert ("Beside published results" in text) == (setting is not None)
    for other in ("0-shot", "1-shot", "3-shot"):
        assert (f"GAVS{other}" in "".join(text.split())) == (other == setting)
