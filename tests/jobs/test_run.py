"""Results that are written without the loop over clips: `Result.save` and its result folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.jobs.save import save_result
from openavs.results.serialization import read_result
from openavs.structures.masks import mask_to_rle
from openavs.structures.types import ClipResult, FrameResult, Segment

RECIPE: dict[str, Any] = {"name": "r", "sample": {"fps": 1.0}, "detector": {"use": "box", "threshold": 0.25}}


@pytest.fixture
def result() -> ClipResult:
    """Three frames, a segment in the first two."""
    segment = Segment(mask_to_rle(np.ones((20, 30), dtype=bool)), (0, 0, 30, 20), "dog", 0.5)
    frames = tuple(FrameResult(i, i + 0.5, segments=(segment,) if i < 2 else ()) for i in range(3))
    models = {"hf:a/b": {"revision": "1", "path": "/models/b"}}
    return ClipResult("clip", (20, 30), frames, "clip.mp4", RECIPE, models, {"detect": 0.25})


def index(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]


def test_the_folder_says_what_ran_and_what_became_of_each_clip(tmp_path: Path, result: ClipResult) -> None:
    assert save_result(tmp_path, result) == tmp_path / "clips" / "clip"
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["format"], run["status"], run["recipe"]) == (2, "finished", RECIPE)
    assert run["counts"] == {"ok": 1, "filtered": 0, "failed": 0}
    assert run["models"] == {"hf:a/b": {"revision": "1"}}
    assert run["masks"] == {"values": "instance", "classes": []}
    assert "numpy" in run["packages"]
    [row] = index(tmp_path)
    assert (row["id"], row["status"], row["frames"], row["segments"]) == ("clip", "ok", 3, 2)
    plain = replace(result, models={"hf:a/b": {"revision": "1"}}, timings={})
    assert read_result(tmp_path, "clip") == plain, "without times and paths, which differ from run to run"


def test_clips_of_one_recipe_share_a_folder(tmp_path: Path, result: ClipResult) -> None:
    save_result(tmp_path, result)
    (tmp_path / "index.jsonl").unlink()
    save_result(tmp_path, replace(result, clip="another"))
    assert [row["id"] for row in index(tmp_path)] == ["another", "clip"], "a lost index is written again"
    with pytest.raises(InputError, match="holds a result of 'clip' already; say overwrite=True or give another folder"):
        save_result(tmp_path, result)
    save_result(tmp_path, replace(result, frames=result.frames[:1]), overwrite=True)
    assert [row["frames"] for row in index(tmp_path)] == [3, 1]
    with pytest.raises(InputError, match=r"already holds 'clip' made from clip\.mp4, not b/clip\.mp4"):
        save_result(tmp_path, replace(result, source="b/clip.mp4"), overwrite=True)


def test_another_recipe_is_refused_by_its_keys(tmp_path: Path, result: ClipResult) -> None:
    save_result(tmp_path, result)
    other = {**RECIPE, "detector": {"use": "box", "threshold": 0.3}}
    with pytest.raises(InputError, match=r"of another recipe, which differs in detector\.threshold \(was 0\.25"):
        save_result(tmp_path, replace(result, clip="b", recipe=other))
    with pytest.raises(InputError, match=r"masks\.values"):
        save_result(tmp_path, replace(result, clip="b", recipe={**RECIPE, "vocabulary": ["dog"]}))
    with pytest.raises(InputError, match=r"recipe\.level is -inf"):
        save_result(tmp_path / "new", replace(result, recipe={"level": float("-inf")}))


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path, result: ClipResult) -> None:
    def gone() -> Any:
        raise InputError("clip.mp4 does not exist; check the name")

    with pytest.raises(InputError, match=r"clip\.mp4 does not exist"):
        save_result(tmp_path, result, gone, files=("overlay.mp4",))
    assert not (tmp_path / "clips").exists()
    assert save_result(tmp_path, result).is_dir(), "a clip that failed is not done"


def test_a_lost_file_makes_the_clip_new(tmp_path: Path, result: ClipResult) -> None:
    folder = save_result(tmp_path, result)
    (folder / "masks" / "00001.png").unlink()
    save_result(tmp_path, result)
    assert (folder / "masks" / "00001.png").is_file()
