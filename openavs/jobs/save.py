"""Saves a finished result in a result folder, as a job of one clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.jobs.checkpoint import read_completion, reopen
from openavs.jobs.job import REPORT_SINK, Job
from openavs.jobs.manifest import JobRequest
from openavs.jobs.output_dir import open_folder, reopen_changed
from openavs.jobs.progress import JobProgress
from openavs.jobs.run import run_job
from openavs.jobs.sample import Sample, file_size
from openavs.jobs.shard import InlineExecutor
from openavs.models.device import default_threads
from openavs.results.serialization import clip_folder
from openavs.structures.types import Clip, ClipResult


def save_result(
    out: Path,
    result: ClipResult,
    open_clip: Callable[[], Any] = lambda: None,
    *,
    files: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write one result into a result folder that may hold other clips of the same recipe; returns `out/clips/<id>`.

    Args:
        out: The result folder.
        result: The result; its clip is a safe id.
        open_clip: Opens the clip, which `files` need.
        files: Those of `overlay.mp4` and `report.html` that are written.
        overwrite: Replace an earlier result of the clip.

    Raises:
        InputError: `out` holds the results of another recipe, or one of this clip and `overwrite` is false.
    """
    out = out.absolute()
    sample = Sample(result.clip, result.source or "", bytes=file_size(result.source or ""))
    classes = tuple(result.recipe.get("vocabulary") or ())
    request = JobRequest(
        "segment", [sample], result.recipe, classes, command="segment", default_threads=default_threads()
    )
    manifest = open_folder(out, request)
    number = manifest.requested[0]
    reopen_changed(out, manifest.key, [number])
    completion = read_completion(out, number, manifest.key)
    if completion is not None:
        if not overwrite:
            raise InputError(
                f"{out} holds a result of {result.clip!r} already; say overwrite=True or give another folder"
            )
        reopen(out, completion, [result.clip])
    job = Job(
        out,
        manifest.key,
        Path.cwd(),
        result.recipe,
        sink=REPORT_SINK,
        options={"files": list(files)},
        classes=classes,
        threads=manifest.threads,
    )
    executor = InlineExecutor(lambda: (_Finished(result), None), open_clip=lambda sample: open_clip())
    run_job(job, manifest, executor, JobProgress(job, manifest, [number], {}))
    completion = read_completion(out, number, manifest.key)
    row = {} if completion is None else completion["rows"][0]
    if row.get("status") != "ok":
        raise InputError(str(row.get("detail", f"{result.clip} was not written")))
    return clip_folder(out, result.clip)


class _Finished:
    """A pipeline that returns a result that exists already."""

    def __init__(self, result: ClipResult) -> None:
        self.result = result
        self.models = result.models

    def __call__(self, clip: Clip) -> ClipResult:
        return self.result
