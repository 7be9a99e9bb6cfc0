"""The HTML report: one file without network access and scripts, with all values escaped."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openavs.media.clip import open_clip, probe
from openavs.media.encode import write_video
from openavs.results.result import Result
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import (
    Caption,
    ClipResult,
    Event,
    Frame,
    FrameResult,
    Prompt,
    Rejection,
    Segment,
    Verdict,
    Waveform,
)
from openavs.visualization.html import asset
from openavs.visualization.report import MAX_IMAGES, report_frames, write_report

SIZE = (90, 160)
HOSTILE = "<script>alert('x')</script>\"' onload=\"evil()\" {{ 7*7 }} </style> &amp;"


class Page(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def pictures(count: int) -> Iterator[Frame]:
    for i in range(count):
        yield Frame(i, i + 0.5, np.full((*SIZE, 3), 90, dtype=np.uint8))


def sound(seconds: float) -> Waveform:
    t = np.arange(int(seconds * 8000)) / 8000
    return Waveform((0.3 * np.sin(2 * np.pi * 440 * t)).astype(np.float32), 8000)


def segmentation(count: int = 4, word: str = "dog") -> ClipResult:
    mask = np.zeros(SIZE, dtype=np.bool_)
    mask[20:60, 30:90] = True
    segment = Segment(mask_to_rle(mask), (30.0, 20.0, 90.0, 60.0), word, 0.66, label=f"{word}s", label_how="alias")
    frames = [
        FrameResult(
            i,
            i + 0.5,
            captions=(Caption(f"{word} barking", 0.81, i, i + 1.0), Caption(f"{word} without score", None, i, i + 1.0)),
            prompts=(Prompt(word), Prompt("person", origin="lexicon")),
            segments=(segment,),
            rejected=(Rejection("person", "below threshold", 0.12),),
        )
        for i in range(count - 1)
    ]
    frames.append(FrameResult(count - 1, count - 0.5, silent=True))
    models = {"hf:org/clap": {"revision": "abc123", "license": "apache-2.0", "path": "/home/me/cache"}, "other": {}}
    recipe = {"name": "openavs", "detector": {"threshold": 0.25, "note": word}}
    timings = {"caption": 1.25, "detect": 2.5}
    return ClipResult("clip", SIZE, tuple(frames), "/home/me/clip.mp4", recipe, models, timings, (f"{word} warns",))


def report(tmp_path: Path, made: ClipResult, frames: Iterator[Frame], audio: Waveform | None) -> tuple[str, Page]:
    path = tmp_path / "report.html"
    write_report(path, made, frames, audio)
    source = path.read_text("utf-8")
    return source, Page(source)


def test_captions_prompts_segments_and_rejections_are_listed(tmp_path: Path) -> None:
    _, page = report(tmp_path, segmentation(), pictures(4), sound(4))
    for said in ("dog barking", "0.81", "person", "lexicon", "0.66", "below threshold", "0.12", "as dogs (alias)"):
        assert said in page.text
    for said in ("clip.mp4", "openavs", "160 × 90", "hf:org/clap", "abc123", "apache-2.0", "not stated", "dog warns"):
        assert said in page.text
    assert "in 3 of 4 frames, best 0.66" in page.text
    assert "silent: no captions" in page.text
    assert '"threshold": 0.25' in page.text
    assert "/home/me" not in page.text  # no local paths


def test_images_are_small_and_have_their_masks_on_top(tmp_path: Path) -> None:
    made = replace(segmentation(1), frames=segmentation().frames[:1])
    big = np.full((900, 1600, 3), 90, dtype=np.uint8)
    _, page = report(tmp_path, made, iter([Frame(0, 0.5, big)]), None)
    image, masks = page.all("img")
    assert (image["alt"], masks["alt"]) == ("Frame at 0.5 s: dog 0.66", "")
    clean, layer = (Image.open(io.BytesIO(base64.b64decode(str(one["src"]).split(",")[1]))) for one in (image, masks))
    assert (clean.format, clean.size, layer.format, layer.size) == ("JPEG", (480, 270), "PNG", (480, 270))
    assert abs(np.asarray(clean).astype(int) - 90).max() < 4
    painted = np.asarray(Image.alpha_composite(clean.convert("RGBA"), layer)).astype(int)
    assert painted[120, 180, 0] > painted[120, 180, 2] + 30  # the first color is orange
    assert abs(painted[5, 470, :3] - 90).max() < 12


def test_a_page_without_a_video_plays_its_images_without_network_access(tmp_path: Path) -> None:
    source, page = report(tmp_path, segmentation(), pictures(4), sound(4))
    names = {name for name, _ in page.elements}
    assert not names & {"video", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.elements:
        assert "style" not in attributes
        assert not [key for key in attributes if key.startswith("on")]
        assert str(attributes.get("href", "#")).startswith("#")
        assert str(attributes.get("src", "data:image/")).startswith("data:image/")
    assert not re.search(r"url\(|@import|https?://", source)
    assert len(page.all("figure")) == 4 and len(page.all("canvas")) == 1


def test_the_policy_allows_the_style_of_the_page_and_nothing_else(tmp_path: Path) -> None:
    source, page = report(tmp_path, ClipResult("clip", SIZE, ()), iter([]), None)
    policy = next(m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    style = source.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def test_a_video_brings_the_script_of_the_player_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, segmentation(word=HOSTILE), pictures(4), sound(4), video="video.mp4")
    source = path.read_text("utf-8")
    page = Page(source)
    policy = next(str(m["content"]) for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    (script,) = re.findall("<script>(.*?)</script>", source, re.DOTALL)
    assert len(page.all("script")) == 2  # with the data of the player, which does not run
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; media-src 'self' file:;" in policy
    assert script == asset("report/player.js")
    assert [video["src"] for video in page.all("video")] == ["video.mp4"]
    times = [str(link["data-time"]) for link in page.all("a") if "data-time" in link]
    assert times == [f"{t}.500" for t in range(4)] * 2  # images and rows
    figures = [(figure["data-start"], figure["data-stop"]) for figure in page.all("figure")]
    assert figures == [(f"{t}.000", f"{t + 1}.000") for t in range(4)]


def test_hostile_texts_are_escaped(tmp_path: Path) -> None:
    tame = report(tmp_path, segmentation(), pictures(4), sound(4))[1]
    made = replace(segmentation(word=HOSTILE), clip=HOSTILE, source=f"dir/{HOSTILE}", models={HOSTILE: {HOSTILE: 1}})
    made = replace(made, timings={HOSTILE: 1.0})
    source, page = report(tmp_path, made, pictures(4), sound(4))
    assert "<script>alert" not in source
    assert {name for name, _ in page.elements} == {name for name, _ in tame.elements}
    keys = {key for _, attributes in page.elements for key in attributes}
    assert keys == {key for _, attributes in tame.elements for key in attributes}
    assert page.text.count(HOSTILE) >= 10
    assert any(HOSTILE in str(image["alt"]) for image in page.all("img"))


def test_the_timeline_has_text_for_screen_readers(tmp_path: Path) -> None:
    _, page = report(tmp_path, segmentation(), pictures(4), sound(4))
    charts = [svg for svg in page.all("svg") if svg.get("role") == "img"]
    labels = " | ".join(str(svg.get("aria-label")) for svg in charts)
    assert "Caption dog barking: 0.0 to 1.0 s (0.81), 1.0 to 2.0 s (0.81), 2.0 to 3.0 s (0.81)" in labels
    assert "Caption dog without score: 0.0 to 1.0 s, " in labels
    assert "Found dog: 0.0 to 1.0 s (0.66)" in labels
    assert "1 of 4 frames are silent" in page.text
    ids = [str(attributes["id"]) for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for key in ("aria-labelledby", "href"):
            for target in str(attributes.get(key) or "").split():
                assert target.removeprefix("#") in ids
    assert {"lang": "en"} in page.all("html")


def overlapping() -> ClipResult:
    """Ten frames with windows of 5 s: "engine" in all of them, "guitar" in one frame."""
    frames = []
    for i in range(10):
        start, end = max(0.0, i - 2.0), min(10.0, i + 3.0)
        captions = (
            Caption("engine", 0.2 + 0.05 * i, start, end),
            Caption("engine", 0.1, start, end, "another question"),
        )
        captions += (Caption("guitar", 0.9, start, end),) if i == 4 else ()
        frames.append(FrameResult(i, i + 0.5, captions=captions))
    return ClipResult("clip", SIZE, tuple(frames))


def test_a_moment_of_a_lane_shows_one_score(tmp_path: Path) -> None:
    source, page = report(tmp_path, overlapping(), iter([]), None)
    bars = [rect for rect in page.all("rect") if str(rect["class"]).startswith("span")]
    assert not [rect for rect in bars if "fill-opacity" in rect]  # translucent bars would add up
    shown = sorted((float(str(rect["x"])), float(str(rect["width"])), str(rect["class"])) for rect in bars)
    guitar = (400.0, 100.0, "span v18")
    assert guitar in shown
    shown.remove(guitar)
    assert [(x, width) for x, width, _ in shown] == [(100.0 * i, 100.0) for i in range(10)]
    assert [kind for _, _, kind in shown] == [f"span v{round(20 * (0.2 + 0.05 * i))}" for i in range(10)]
    assert ":is(.lane,.legend) .v18{fill:color-mix(in srgb,var(--c,var(--caption)) 93.5%,var(--rail))}" in source


def test_the_best_score_is_on_top_if_frames_share_a_pixel(tmp_path: Path) -> None:
    frames = [FrameResult(i, i + 0.5, captions=(Caption("hum", i % 7 / 7, i, i + 1.0),)) for i in range(3000)]
    _, page = report(tmp_path, ClipResult("clip", SIZE, tuple(frames)), iter([]), None)
    levels = [int(str(rect["class"]).split(" v")[1]) for rect in page.all("rect") if "span" in str(rect["class"])]
    assert levels == sorted(levels)  # later elements are on top
    assert len(set(levels)) == 7


def with_events() -> ClipResult:
    """Four frames with a bark at exact times, a kept and an unresolved dog, and a sound of nothing in the picture."""
    made = segmentation()
    dog = made.frames[0].segments[0]
    kept = replace(dog, verdicts=(Verdict("kept", 0.9, 0.4, None, "sync"),))
    unsure = replace(dog, verdicts=(Verdict("unresolved", 0.5, 0.03, None, "sync"),))
    lost = (Rejection("dog", "silent", 0.12, None, 0.4, "sync"), Rejection("radio", "off-screen", 0.07))
    lost += (Rejection("radio", "off-screen", 0.03),)
    barks = (Event("bark", 0.24, 1.88, 0.91, 2.5, (0.5, 0.91, 0.5, 0.6)), Event("bark", 2.5, 2.75, 0.4, 2.5))
    own = (Caption("bark", 0.91, 0.24, 1.88),)
    frames = (
        replace(made.frames[0], captions=own, segments=(kept,), rejected=lost),
        replace(made.frames[1], captions=own, segments=(unsure, unsure), rejected=()),
        *made.frames[2:],
    )
    return replace(made, frames=frames, events=barks)


def test_events_are_drawn_at_their_exact_times_with_their_curves(tmp_path: Path) -> None:
    _, page = report(tmp_path, with_events(), pictures(4), sound(4))
    labels = [str(svg.get("aria-label")) for svg in page.all("svg")]
    assert "Sound bark: 0.24 to 1.88 s (0.91), 2.50 to 2.75 s (0.40)" in labels
    assert not [label for label in labels if label.startswith("Caption")]
    assert "bark 0.24 to 1.88 s, 0.91" in page.text  # the tooltip
    assert "bark 0.91, 0.24 to 1.88 s" in page.text  # the table
    bars = [rect for rect in page.all("rect") if rect.get("class") == "span v0"]
    assert [(float(str(bar["x"])), float(str(bar["width"]))) for bar in bars] == [(625.0, 62.5), (60.0, 410.0)]
    (curve,) = [str(path["d"]) for path in page.all("path") if path["class"] == "curve"]
    assert curve == "M60.00 10L60.00 5.0L111.25 5.0L213.75 0.9L316.25 5.0L418.75 4.0L470.00 4.0V10Z"


def test_a_long_curve_keeps_its_peaks_in_few_points(tmp_path: Path) -> None:
    values = [0.1] * 25 * 3600
    values[1234] = 0.9
    made = replace(segmentation(), events=(Event("hum", 0.0, 3600.0, 0.9, 25.0, tuple(values)),))
    path = tmp_path / "report.html"
    write_report(path, made, pictures(4), None, 3600.0)
    curve = next(str(p["d"]) for p in Page(path.read_text("utf-8")).all("path") if p["class"] == "curve")
    heights = [float(pair.split()[1]) for pair in re.findall(r"L([\d.]+ [\d.]+)", curve)]
    assert len(heights) <= 502 and min(heights) == 1.0 and heights.count(1.0) == 1


def test_verdicts_and_reasons_are_sentences(tmp_path: Path) -> None:
    _, page = report(tmp_path, with_events(), pictures(4), sound(4))
    for text in (
        "sync: sounds (0.90, margin 0.40)",
        "sync: unresolved: kept, the margin is small (0.50, margin 0.03)",
        "silent: another dog moves in time with the sound (0.12, margin 0.40)",
        "off-screen: nothing in the picture fits the sound; best candidate 0.07",
        "dog unresolved in 1 of 4 frames",
        "radio off-screen in 1 of 4 frames",
        "dog unresolved, dog unresolved",
    ):
        assert text in page.text, text
    assert page.text.count("off-screen: nothing in the picture") == 1  # of two candidates the best
    assert page.all("img")[2]["alt"] == "Frame at 1.5 s: dog 0.66 unresolved, dog 0.66 unresolved"


def test_prompts_and_captions_refer_to_each_other(tmp_path: Path) -> None:
    dog, shuffle, horse = (Caption(*said, 0, 1.0) for said in (("barking", 1.0), ("Shuffle", 0.15), ("hooves", 0.3)))
    prompts = (Prompt("dog", captions=(dog,)), Prompt("person", captions=(shuffle,)))
    frames = (
        FrameResult(0, 0.5, captions=(dog, shuffle, horse), prompts=prompts),
        FrameResult(1, 1.5, captions=(horse,)),
    )
    _, page = report(tmp_path, ClipResult("clip", SIZE, frames), iter([]), None)
    text = " ".join(page.text.split())
    assert "dog ←from barking 1.00" in text
    assert "person ←from Shuffle 0.15" in text
    assert "Prompts come from the language model." in text
    assert text.count("hooves 0.30 no prompt from the language model") == 2
    assert "barking 1.00 not" not in text
    lexicon = replace(frames[0], prompts=tuple(replace(prompt, origin="lexicon") for prompt in prompts))
    _, page = report(tmp_path, ClipResult("clip", SIZE, (lexicon,)), iter([]), None)
    assert "hooves 0.30 no prompt from the lexicon" in " ".join(page.text.split())
    mixed = (frames[0], replace(lexicon, index=1), replace(frames[1], index=2))
    _, page = report(tmp_path, ClipResult("clip", SIZE, mixed), iter([]), None)
    text = " ".join(page.text.split())
    assert text.count("hooves 0.30 no prompt from the language model") == 1
    assert text.count("hooves 0.30 no prompt from the lexicon") == 1
    assert text.count("hooves 0.30 no prompt from") == 2  # the last frame may be either


def test_weak_captions_and_less_likely_phrases_are_shown_with_their_scores(tmp_path: Path) -> None:
    engine, weak = Caption("engine", 0.11, 0, 1.0), Caption("hooves", 0.02, 1, 2.0, weak=True)
    drops = (
        Rejection("car", "less likely", 0.38),
        Rejection("dog", "less likely", 0.25),
        Rejection("bus", "duplicate", 0.5),
    )
    prompts = (Prompt("car", captions=(engine,)), Prompt("bus", captions=(engine,)))
    frames = (
        FrameResult(0, 0.5, captions=(engine,), prompts=prompts, rejected=drops),
        FrameResult(1, 1.5, weak=(weak,)),
    )
    _, page = report(tmp_path, ClipResult("clip", SIZE, frames), iter([]), None)
    text = " ".join(page.text.split())
    assert "car less likely: another phrase fits sound and picture better (audio 0.11 × box 0.38)" in text
    assert (
        "dog less likely: another phrase fits sound and picture better (0.25)" in text
    )  # a result of another program may have no prompts
    assert "bus duplicate: a better box covers it (0.50)" in text
    assert "hooves 0.02 below the threshold" in text


def test_the_length_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, [np.full((*SIZE, 3), 90, dtype=np.uint8)] * 16, 10, sound(1.6))
    clip = open_clip(path, fps=1.0)
    assert clip.duration == probe(path).duration == pytest.approx(1.6)
    made = Result.of(ClipResult("clip", SIZE, tuple(FrameResult(i, i + 0.5) for i in range(2))), clip)
    made.save(tmp_path / "out", overlay=False)
    assert "length 1.6 s" in Page((tmp_path / "out" / "clips" / "clip" / "report.html").read_text("utf-8")).text


def test_a_license_that_the_recipe_alone_states_is_shown(tmp_path: Path) -> None:
    made = segmentation()
    made = replace(made, recipe={**made.recipe, "license": "MIT (tagger), Apache-2.0 (detector)"})
    _, page = report(tmp_path, made, pictures(4), None)
    assert "in the recipe: MIT (tagger), Apache-2.0 (detector)" in page.text
    assert "not stated" not in page.text


def test_the_waveform_follows_the_sound(tmp_path: Path) -> None:
    samples = np.zeros(8000, dtype=np.float32)
    samples[4000:] = np.tile([0.5, -0.25], 2000)
    _, page = report(tmp_path, replace(segmentation(), frames=()), iter([]), Waveform(samples, 8000))
    (path,) = page.all("path")
    bars = re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", str(path["d"]))
    left = [(float(top), float(bottom)) for x, top, bottom in bars if float(x) < 495]
    right = [(float(top), float(bottom)) for x, top, bottom in bars if float(x) > 505]
    assert set(left) == {(50.0, 50.4)}
    assert set(right) == {(2.0, 74.4)}  # up to the top at its loudest, half as far down


def test_a_long_clip_shows_frames_at_equal_distances(tmp_path: Path) -> None:
    made = segmentation(650)
    chosen = sorted(report_frames(made))
    assert (len(chosen), chosen[0], chosen[-1]) == (MAX_IMAGES, 0, 649)
    assert max(np.diff(chosen)) - min(np.diff(chosen)) <= 1
    _, page = report(tmp_path, made, pictures(650), None)
    assert len(page.all("figure")) == MAX_IMAGES
    assert "48 of 650 frames, at equal distances" in page.text
    assert "The first 600 of 650 frames" in page.text
    assert page.text.count("person") < 2000


def test_a_clip_without_audio_frames_or_segments_has_a_report(tmp_path: Path) -> None:
    _, page = report(tmp_path, ClipResult("clip", SIZE, ()), iter([]), None)
    assert "The clip has no audio" in page.text
    assert "No sounding object was found" in page.text
    _, page = report(tmp_path, segmentation(), pictures(2), Waveform(np.zeros(0, dtype=np.float32), 8000))
    assert len(page.all("figure")) == 2  # the rest of the file was cut off
    assert "2 of 4 frames; the others could not be decoded again." in page.text


@pytest.mark.parametrize(("model", "said"), [("openavs:tiny/clap", True), ("hf:org/clap", False)])
def test_tiny_models_are_named_as_such(tmp_path: Path, model: str, said: bool) -> None:
    _, page = report(tmp_path, replace(segmentation(), models={model: {}}), pictures(4), None)
    assert ("trained on synthetic clips only" in page.text) is said
