"""A reasoner as the last stage of a pipeline: tracks, result, report, cache, schedules and label jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from openavs.caching.build import build_pipeline
from openavs.checks.trial import try_stages
from openavs.config.recipe import Recipe, load_recipe, recipe_from_dict
from openavs.errors import InputError
from openavs.jobs.shard import run_shard
from openavs.pipeline.memory_estimate import measure_footprints
from openavs.pipeline.pipeline import Pipeline
from openavs.registry import build_backends
from openavs.results.serialization import read_result, result_from_json, result_to_json
from openavs.structures.types import Clip, ClipResult
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng
from openavs.visualization.report import write_report
from tests.jobs.pool import planned, videos
from tests.local_server import Answer, LocalServer, completion, serving
from tests.stages.reasoners.clips import decisions
from tests.stages.verifiers.plugins import MOTION, write_verifiers
from tests.tiny_lms import make_vlm


@pytest.fixture(scope="module")
def clip() -> Clip:
    return scene_to_clip(plan_scene([Role("dog", (True, True))], scene_rng("test", 77, 5), 2, (64, 80)), "dog")


@contextmanager
def recipe_with_server(folder: Path, answer: str, **changes: Any) -> Iterator[tuple[Recipe, LocalServer]]:
    def script(fields: Any, number: int) -> Answer:
        return completion(answer)

    with serving(script) as server:
        section = {"use": "openai", "model": "small", "base_url": server.url}
        yield load_recipe(write_verifiers(folder, MOTION, reasoner=section, **changes)), server


def outcomes(result: ClipResult) -> tuple[int, set[str]]:
    kept = sum(len(frame.segments) for frame in result.frames)
    return kept, {rejection.reason for frame in result.frames for rejection in frame.rejected}


@pytest.mark.parametrize("tracker", [None, {"use": "iou"}])
def test_a_rejected_candidate_leaves_all_frames_of_the_result(clip: Clip, tracker: Any, tmp_path: Path) -> None:
    with recipe_with_server(tmp_path, decisions({1: "reject"}), tracker=tracker) as (recipe, server):
        result = Pipeline.from_recipe(recipe)(clip)

    assert len(server.requests) == 1
    assert outcomes(result) == (0, {"reasoner"})
    assert result.reasoning is not None and result.reasoning.candidates[0].decision == "rejected"
    assert "reason" in result.timings and list(result.models) == ["small"]
    assert result_from_json(json.loads(json.dumps(result_to_json(result)))) == result


def test_accepted_candidates_have_the_tracks_of_iou_without_a_tracker(clip: Clip, tmp_path: Path) -> None:
    with recipe_with_server(tmp_path, decisions({1: "accept"})) as (recipe, _):
        result = Pipeline.from_recipe(recipe)(clip)
    segments = [segment for frame in result.frames for segment in frame.segments]
    assert {segment.track for segment in segments} == {0}
    assert {tuple(v.verifier for v in segment.verdicts) for segment in segments} == {("motion", "reasoner")}


def test_the_report_shows_the_decisions_and_the_picture(clip: Clip, tmp_path: Path) -> None:
    answer = decisions({1: "accept"}, reason="<script>alert(1)</script> its mouth opens")
    with recipe_with_server(tmp_path, answer) as (recipe, _):
        result = Pipeline.from_recipe(recipe)(clip)
    write_report(tmp_path / "report.html", result, clip.frames(None), clip.audio)
    page = (tmp_path / "report.html").read_text()
    assert "its mouth opens" in page and "<script>alert" not in page
    assert result.reasoning is not None and (result.reasoning.picture or "-")[:40] in page


@pytest.mark.parametrize("schedule", ["per-clip", "per-stage"])
def test_a_clip_that_runs_again_sends_nothing(clip: Clip, schedule: str, tmp_path: Path) -> None:
    results = []
    with recipe_with_server(tmp_path, decisions({1: "accept", 9: "reject"})) as (recipe, server):
        for _ in range(2):
            pipeline, _ = build_pipeline(recipe, schedule=schedule, cache=tmp_path / "cache", scratch=tmp_path / "s")
            results.append(pipeline(clip))
        assert len(server.requests) == 2  # of the first run: the answer names a number that no candidate has
    first, second = results
    assert first.frames == second.frames and first.reasoning == second.reasoning
    assert first.warnings == second.warnings != ()


def test_answers_of_a_failing_server_are_not_cached(clip: Clip, tmp_path: Path) -> None:
    def script(fields: Any, number: int) -> Answer:
        return completion(decisions({1: "reject"})) if number > 1 else Answer(b"", 503)

    with serving(script) as server:
        section = {"use": "openai", "model": "small", "base_url": server.url, "max_retries": 0, "structured": "none"}
        recipe = load_recipe(write_verifiers(tmp_path, MOTION, reasoner=section))
        runs = [build_pipeline(recipe, cache=tmp_path / "cache")[0](clip) for _ in range(2)]
    assert [outcomes(run)[0] for run in runs] == [2, 0]


def test_a_killed_label_job_sends_nothing_twice_and_keeps_no_picture(tmp_path: Path) -> None:
    pool = videos(tmp_path / "videos", 2)
    with recipe_with_server(tmp_path, decisions({1: "accept"})) as (_, server):
        spec = planned(pool, tmp_path / "recipe.yaml", tmp_path / "out")[2][0]
        recipe = recipe_from_dict(dict(spec.job.recipe), base=spec.job.base)

        def killed(clip: Clip) -> ClipResult:
            build_pipeline(recipe, cache=tmp_path / "cache")[0](clip)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_shard(spec, killed)
        mark = run_shard(spec, build_pipeline(recipe, cache=tmp_path / "cache")[0])
        assert len(server.requests) == 2  # one for each clip
    assert mark is not None and mark["counts"] == {"ok": 2}
    found = read_result(tmp_path / "out", "v00").reasoning
    assert found is not None and found.picture is None and len(found.digest) == 64
    assert [candidate.decision for candidate in found.candidates] == ["kept"]


def test_check_tries_the_reasoner_last(clip: Clip, tmp_path: Path) -> None:
    with recipe_with_server(tmp_path, decisions({1: "accept"})) as (recipe, server):
        results = list(try_stages(recipe, clip))
    stages = [found for found in results if found.facts.get("stage")]
    assert stages[-1].facts["stage"] == "reasoner" and stages[-1].state == "ok", stages[-1].message
    assert len(server.requests) == 1 and "kept" in stages[-1].message


def test_memory_of_a_model_in_this_process_is_counted(tmp_path: Path) -> None:
    folder = make_vlm(tmp_path / "vlm")
    recipe = load_recipe("tiny", ["device=cpu", f"reasoner={{use: reasoner, model: {folder}}}"])
    footprint = measure_footprints(recipe)["reasoner"]
    assert footprint.weights > 0 and footprint.working > 0


def test_a_class_without_the_method_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write_verifiers(tmp_path, reasoner={"use": "./stages.py:Look"}))
    with pytest.raises(InputError, match=r"the reasoner './stages.py:Look' has no method reason\(frames, evidence\)"):
        build_backends(recipe)
