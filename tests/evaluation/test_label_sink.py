"""The labels that a shard writes: where a benchmark wants them, in its size, and none for what a filter dropped."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openavs.config.recipe import load_recipe
from openavs.jobs.job import Job, ShardSpec
from openavs.jobs.manifest import JobRequest
from openavs.jobs.output_dir import open_folder
from openavs.jobs.shard import run_shard
from openavs.labeling.open import open_source
from openavs.results.serialization import read_result
from openavs.structures.types import Clip, ClipResult
from openavs.utils.fs import stamp
from tests.jobs.pool import LABELS, planned, recipe, videos
from tests.jobs.test_shard import chain

PLACES = ("test/dog/a_0.png", "test/dog/a_1.png")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One clip of two frames, and a mask of another size beside it."""
    folder = videos(tmp_path_factory.mktemp("pool") / "videos", 1)
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(folder / "truth.png")
    return folder


def of_a_benchmark(pool: Path, recipe_file: Path, out: Path, **changes: Any) -> ShardSpec:
    """The clip as a benchmark's reader would list it."""
    made, found = load_recipe(recipe_file), open_source(str(pool))
    items = tuple(replace(item, **changes) for item in found.samples if item.path.endswith(".mp4"))
    plan = open_folder(out, JobRequest(found.kind, items, made.to_dict()))
    job = Job(out, plan.key, found.root, made.to_dict(), base=made.base, sink=LABELS)
    (spec,) = plan.specs(job, range(plan.shards))
    return spec


def test_labels_have_the_paths_and_the_mask_size_of_the_benchmark(pool: Path, tmp_path: Path) -> None:
    spec = of_a_benchmark(pool, recipe(tmp_path / "r"), tmp_path / "out", places=PLACES, like="truth.png")
    mark = run_shard(spec, chain(spec))
    assert mark is not None and mark["counts"] == {"ok": 1}
    for place in PLACES:
        label = np.asarray(Image.open(tmp_path / "out/labels" / place))
        assert label.shape == (12, 20)
        assert (label[:6, :10] == 255).all() and label.mean() == 255 / 4
    mask = Image.open(tmp_path / "out/clips/v00/masks/00000.png")
    assert mask.size == (64, 48), "what `segment` would write keeps the picture's"


@pytest.mark.parametrize("like", [None, "truth_of_another_split.png"])
def test_where_there_is_no_mask_labels_have_the_size_of_the_picture(
    pool: Path, tmp_path: Path, like: str | None
) -> None:
    spec = of_a_benchmark(pool, recipe(tmp_path / "r"), tmp_path / "out", places=PLACES, like=like)
    run_shard(spec, chain(spec))
    assert Image.open(tmp_path / "out/labels" / PLACES[1]).size == (64, 48)


def test_a_benchmarks_clip_with_another_number_of_frames_has_no_labels(pool: Path, tmp_path: Path) -> None:
    spec = of_a_benchmark(pool, recipe(tmp_path / "r"), tmp_path / "out", places=PLACES[:1])
    for stray in (tmp_path / "out/labels" / PLACES[0], tmp_path / "out/clips/v00/result.json"):
        stray.parent.mkdir(parents=True)
        stray.write_bytes(b"of a killed run")
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    (row,) = mark["rows"]
    assert (row["status"], row["reason"]) == ("failed", "failed")
    assert row["detail"] == "v00 has 1 frame and its result 2; run it again"
    assert mark["files"] == {"v00": {}}
    assert not (tmp_path / "out/labels").exists() and not (tmp_path / "out/clips").exists()


def test_a_clip_that_a_filter_drops_keeps_its_result_and_has_no_labels(pool: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path / "r", label_filter={"min_area": 0.5, "drop_empty": True})
    spec = planned(pool / "v00.mp4", made, tmp_path / "out")[2][0]
    stray = tmp_path / "out/labels/clips/v00/labels_semantic/0.png"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of a killed run")
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    (row,) = mark["rows"]
    assert (row["status"], row["reason"], row["rejected"]) == (
        "filtered", "drop_empty", {"label_filter.drop_empty": 1, "label_filter.min_area": 2}
    )  # fmt: skip
    assert set(mark["files"]["v00"]) == {
        f"clips/v00/{n}" for n in ("masks/00000.png", "masks/00001.png", "result.json")
    }
    assert not (tmp_path / "out/labels").exists()
    assert len(read_result(tmp_path / "out", "v00").frames[0].segments) == 1, "filters are for labels alone"


def test_files_are_listed_by_name(pool: Path, tmp_path: Path) -> None:
    spec = planned(pool / "v00.mp4", recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    mark = run_shard(spec, chain(spec))
    assert mark is not None
    names = list(mark["files"]["v00"])
    assert names == sorted(names)
    assert {name: stamp((tmp_path / "out" / name).read_bytes()) for name in names} == mark["files"]["v00"]


def test_a_result_does_not_contain_folders_of_this_machine(pool: Path, tmp_path: Path) -> None:
    spec = planned(pool / "v00.mp4", recipe(tmp_path / "r"), tmp_path / "out")[2][0]
    good = chain(spec)
    models = {"a/model": {"revision": "1", "path": "/home/somebody/models"}}

    def segment(clip: Clip) -> ClipResult:
        warnings = (f"{clip.source} of {spec.job.root}/v00.mp4 is dark",)
        return replace(good(clip), warnings=warnings, models=models, source=str(spec.job.root / "v00.mp4"))

    run_shard(spec, segment)
    written = read_result(tmp_path / "out", "v00")
    assert written.warnings == ("v00.mp4 of v00.mp4 is dark",)
    assert written.models == {"a/model": {"revision": "1"}}
    assert (written.source, written.timings) == ("v00.mp4", {})
