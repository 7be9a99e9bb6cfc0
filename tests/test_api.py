"""`openavs.load` and what comes of it; docs/python.md and docs/exports.md, run as they stand."""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import openavs as library
from openavs.config.recipe import load_recipe
from openavs.errors import InputError
from openavs.exports.base import run_items
from openavs.exports.registry import FORMATS
from openavs.media.audio import write_wav
from openavs.pipeline.memory_estimate import estimate_memory
from openavs.pipeline.offload import LazyBackend
from openavs.pipeline.pipeline import Pipeline
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import write_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from tests.conftest import ROOT

Run = Callable[..., Any]
PYTHON = (ROOT / "docs" / "python.md").read_text("utf-8")
EXPORTS = (ROOT / "docs" / "exports.md").read_text("utf-8")


def test_models_that_do_not_fit_together_are_loaded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "openavs.pipeline.memory_estimate.free_memory", lambda place: estimate_memory(load_recipe("tiny"))[1]
    )
    pipe = library.load("tiny")
    assert isinstance(pipe.detector, LazyBackend) and isinstance(pipe.captioner, LazyBackend)
    monkeypatch.setattr("openavs.pipeline.memory_estimate.free_memory", lambda place: 1000)
    with pytest.raises(InputError, match="the recipe tiny needs"):
        library.load("tiny")


def test_without_a_recipe_the_machine_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpu, name in ((False, "openavs-cpu"), (True, "openavs")):
        monkeypatch.setattr("openavs.pipeline.memory_estimate.has_gpu", lambda gpu=gpu: gpu)
        monkeypatch.setattr(library.VideoPipeline, "from_recipe", lambda recipe, held: recipe)
        monkeypatch.setattr("openavs.caching.build.should_offload", lambda recipe: False)
        assert library.load().name == name  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' examples name."""
    folder = tmp_path_factory.mktemp("desk")
    scene = plan_scene([Role("dog", (True, True))], scene_rng("test", 50), 2, (160, 208))
    write_clip(folder / "video.mp4", scene, fps=8)
    write_clip(folder / "second.mp4", scene, fps=8)
    (folder / "pictures").mkdir()
    Image.fromarray(scene.picture(0.5)[0]).save(folder / "pictures" / "1.png")
    write_wav(folder / "sound.wav", scene.soundtrack())
    return folder


@pytest.fixture(scope="module")
def pipe() -> library.VideoPipeline:
    return library.load("tiny")


@pytest.fixture(scope="module")
def result(pipe: library.VideoPipeline, desk: Path) -> library.Result:
    return pipe(desk / "video.mp4")


def blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


# ---------------------------------------------------------------------------------------------------------- the pages


@pytest.mark.parametrize("page", ["python.md", "exports.md"])
def test_the_examples_of_a_page_run_from_top_to_bottom(
    page: str, desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in desk.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in blocks((ROOT / "docs" / page).read_text("utf-8")):
        if "needs supervision" in example and find_spec("supervision") is None:
            continue
        exec(compile(example, page, "exec"), names)


def test_every_public_name_has_an_example() -> None:
    used = set(re.findall(r"openavs\.(\w+)", "\n".join(blocks(PYTHON))))
    assert set(library.__all__) <= used, set(library.__all__) - used


def test_the_export_commands_run(openavs: Run, result: library.Result, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    result.save("out", report=False)
    lines = [line for line in EXPORTS.splitlines() if line.startswith("openavs export")]
    assert len(lines) == 5
    for line in lines:
        assert openavs(*shlex.split(line)[1:]).code == 0, line
    assert (tmp_path / "coco.json").is_file() and (tmp_path / "cutouts" / "video.webm").is_file()


def test_the_page_lists_every_format_and_option(openavs: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    table = EXPORTS[EXPORTS.index("| `coco` |") :].partition("\n\n")[0]
    told = re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)
    assert told == list(FORMATS)
    monkeypatch.setenv("COLUMNS", "200")
    help_text = openavs("export", "--help").out
    assert all(option in help_text for option in re.findall(r"`(--[a-z]+)", EXPORTS) if option != "--audio")


@pytest.mark.parametrize("page", [PYTHON, EXPORTS])
def test_links_lead_somewhere(page: str) -> None:
    for path in re.findall(r"\]\(((?!http)[^)#]+)\)", page):
        assert (ROOT / "docs" / path).exists(), path


# ------------------------------------------------------------------------------------------------------------ loading


def test_load_takes_overrides_vocabulary_and_device() -> None:
    pipe = library.load("tiny", "filtering.box_threshold=0.4", "sample.fps=2", vocabulary=["dog: big"], device="cpu")
    assert (pipe.settings.box_threshold, pipe.fps, pipe.settings.vocabulary) == (0.4, 2.0, ("dog: big",))
    again = library.load(load_recipe("tiny"), "filtering.box_threshold=0.3", offline=True)
    assert again.settings.box_threshold == 0.3 and again.recipe["offline"] is True


def test_a_misspelt_recipe_or_key_is_one_sentence() -> None:
    with pytest.raises(InputError, match="did you mean 'tiny'"):
        library.load("tinny")
    with pytest.raises(InputError, match="box_threshold"):
        library.load("tiny", "filtering.box_treshold=0.4")


# ----------------------------------------------------------------------------------------------------------- segmenting


def test_a_path_and_its_clip_give_the_same(pipe: library.VideoPipeline, result: library.Result, desk: Path) -> None:
    clip = library.open_clip(desk / "video.mp4")
    assert replace(pipe(clip), timings={}) == replace(result, timings={})
    bare = Pipeline.from_recipe(load_recipe("tiny"))(clip)
    assert type(bare) is ClipResult and replace(bare, timings={}) == replace(result, timings={})
    assert tuple(pipe.stream(str(desk / "video.mp4"))) == result.frames


def test_frames_come_at_the_rate_of_the_recipe(desk: Path) -> None:
    assert [frame.time for frame in library.load("tiny", "sample.fps=2").stream(desk / "video.mp4")] == [
        *(0.25, 0.75, 1.25, 1.75)
    ]


def test_a_video_that_is_not_there_is_one_sentence(pipe: library.VideoPipeline, desk: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.mp4"):
        pipe(desk / "nothing.mp4")
    with pytest.raises(InputError, match="sound"):
        pipe(desk / "pictures")


# ----------------------------------------------------------------------------------------------------------- the result


def test_a_result_is_a_segmentation_that_says_the_same(result: library.Result) -> None:
    plain = library.result_from_json(library.result_to_json(result))
    assert type(plain) is ClipResult and plain == result and result == plain
    assert replace(plain, clip="other") != result
    assert repr(result) == "<Result of 'video': 2 segments in 2 frames>"


def stored(result: library.Result) -> ClipResult:
    """The result as a folder holds it: without times and local paths."""
    models = {ref: {k: v for k, v in facts.items() if k != "path"} for ref, facts in result.models.items()}
    return replace(result, timings={}, models=models)


def test_saved_results_are_what_segment_writes(
    openavs: Run, result: library.Result, desk: Path, tmp_path: Path
) -> None:
    folder = result.save(tmp_path / "mine")
    assert openavs("segment", desk / "video.mp4", "-p", "tiny", "--out", tmp_path / "theirs").code == 0
    theirs = tmp_path / "theirs" / "clips" / "video"
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in theirs.iterdir())
    masks = [np.asarray(Image.open(place / "masks" / "00000.png")) for place in (folder, theirs)]
    assert np.array_equal(*masks)
    assert [item.result for item in run_items(tmp_path / "mine")] == [stored(result)]
    assert openavs("segment", desk / "video.mp4", "-p", "tiny", "--out", tmp_path / "mine").code == 0  # resumes it


def test_saving_twice_or_beside_another_recipe_is_refused(
    result: library.Result, pipe: library.VideoPipeline, desk: Path, tmp_path: Path
) -> None:
    result.save(tmp_path, overlay=False, report=False)
    with pytest.raises(InputError, match="overwrite=True"):
        result.save(tmp_path)
    result.save(tmp_path, overlay=False, report=False, overwrite=True)
    with pytest.raises(InputError, match="another recipe"):
        replace(result, recipe={**result.recipe, "device": "cuda:9"}).save(tmp_path)
    odd = replace(result, clip="../a b")
    assert odd.save(tmp_path, overlay=False, report=False).parent == tmp_path / "clips"


def test_show_has_the_video_with_its_sound_inside(result: library.Result, tmp_path: Path) -> None:
    view = result.show(width=96)
    (code,) = re.findall(r'src="data:video/mp4;base64,([^"]+)"', view.html)
    (tmp_path / "inline.mp4").write_bytes(base64.b64decode(code))
    with av.open(str(tmp_path / "inline.mp4")) as container:
        assert max(container.streams.video[0].width, container.streams.video[0].height) == 96
        assert len(list(container.decode(video=0))) == 16 and container.streams.audio
    assert "dog barking" in view.html and not re.search(r'(src|href)="(?!data:)', view.html)
    view.save(tmp_path / "view.html")
    assert view._repr_html_() in (tmp_path / "view.html").read_text("utf-8")


def test_what_is_too_long_or_too_large_for_a_page_is_pictures(result: library.Result) -> None:
    for view, why in ((result.show(max_seconds=1), "lasts 2 s"), (result.show(max_bytes=100), "too much for a page")):
        assert why in view.html and "<video" not in view.html and view.html.count("<img") == 2
        assert 'alt="Frame at 0.5 s: dog"' in view.html


def test_a_notebook_shows_a_result_though_its_file_is_gone(result: library.Result) -> None:
    assert result._repr_html_().count("data:image/jpeg") == 2
    held = replace(result, source="gone.mp4")  # without its clip
    assert "dog barking" in held._repr_html_() and "<img" not in held._repr_html_()
    with pytest.raises(InputError, match=r"gone\.mp4 of video does not exist"):
        held.show()


def test_a_notebook_shows_rejections_with_their_reasons(result: library.Result) -> None:
    rejection = library.Rejection("spaceship", "below threshold", 0.1, (1.0, 2.0, 3.0, 4.0))
    frames = tuple(replace(frame, rejected=(rejection, rejection)) for frame in result.frames)
    html = replace(result, frames=frames)._repr_html_()
    assert "spaceship" in html and "below threshold" in html
    assert "spaceship" not in result._repr_html_()


def test_texts_of_models_are_escaped_in_html(result: library.Result) -> None:
    evil = "<script>alert(1)</script>"
    first = result.frames[0]
    frame = replace(first, captions=(replace(first.captions[0], text=evil),))
    html = replace(result, frames=(frame,), clip=evil, warnings=(evil,))._repr_html_()
    assert evil not in html and "&lt;script&gt;" in html


def test_a_clip_made_in_memory_can_be_saved_and_shown(pipe: library.VideoPipeline, desk: Path, tmp_path: Path) -> None:
    opened = library.open_clip(desk / "video.mp4")
    images = [(frame.index, frame.time, frame.image) for frame in opened.frames(None)]
    clip = Clip(
        "memory",
        opened.times,
        opened.fps,
        opened.size,
        lambda wanted: (library.Frame(*parts) for parts in images if wanted is None or parts[0] in wanted),
        opened.audio,
    )
    result = pipe(clip)
    assert (result.save(tmp_path / "out") / "overlay.mp4").is_file()
    assert "<video" in result.show().html
    assert result.export("cutout-png", tmp_path / "cut") == tmp_path / "cut"
    assert len(list((tmp_path / "cut" / "memory").glob("*.png"))) == 2


def test_importing_costs_less_than_a_twentieth_of_a_second() -> None:
    program = "import time; t = time.process_time(); import openavs; print(time.process_time() - t)"
    costs = [float(subprocess.run([sys.executable, "-c", program], capture_output=True).stdout) for _ in range(3)]
    assert min(costs) < 0.05


@pytest.mark.long
def test_a_type_checker_knows_every_name_and_no_others(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    good = "import openavs\nr = openavs.load('tiny')('video.mp4')\nreveal_type(r)\nreveal_type(openavs.to_coco([r]))\n"
    (tmp_path / "good.py").write_text(good)
    (tmp_path / "bad.py").write_text("import openavs\nopenavs.nonsense\nopenavs.load(3)\n")
    words = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--follow-imports=silent"]
    done = subprocess.run([*words, "good.py", "bad.py"], cwd=tmp_path, capture_output=True, text=True)
    assert '"openavs.results.result.Result"' in done.stdout and "CocoDataset" in done.stdout
    assert 'has no attribute "nonsense"' in done.stdout and "Found 2 errors in 1 file" in done.stdout


def test_a_vocabulary_as_a_text_means_its_words() -> None:
    assert library.load("tiny", vocabulary="dog,bell").settings.vocabulary == ("dog", "bell")
    with pytest.raises(InputError, match="'vocabulary' is empty; name at least one thing"):
        library.load("tiny", vocabulary=[])


def test_an_address_is_refused_as_such(pipe: library.VideoPipeline) -> None:
    with pytest.raises(InputError, match=r"^https://example\.com/v\.mp4 is an address, and openavs reads files only"):
        pipe("https://example.com/v.mp4")
    with pytest.raises(InputError, match="is an address"):
        library.probe("rtsp://camera/1")


def test_a_result_that_is_read_again_can_show_export_and_save_itself(result: library.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "run", overlay=False, report=False)
    again = library.read_result(tmp_path / "run")
    assert isinstance(again, library.Result)
    assert again == stored(result) == library.read_result(str(tmp_path / "run"), result.clip)
    assert again.export("timeline", tmp_path / "one.csv").is_file()
    replace_named(result, "other").save(tmp_path / "run", overlay=False, report=False)
    with pytest.raises(InputError, match=r"has 2 clips; name one: 'other', 'video'"):
        library.read_result(tmp_path / "run")
    with pytest.raises(InputError, match="has no results"):
        library.read_result(tmp_path / "absent")


def replace_named(result: library.Result, clip: str) -> library.Result:
    """The same result under another id."""
    return library.Result.of(replace(result, clip=clip), result.video)
