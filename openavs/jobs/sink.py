"""Sinks: what a finished clip writes besides its masks and `result.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from openavs.jobs.job import Job
from openavs.jobs.sample import Sample
from openavs.results.filters import FilteredResult
from openavs.results.serialization import clip_folder
from openavs.structures.types import Clip, ClipResult, ImageArray
from openavs.utils.fs import stamp_file


@dataclass(frozen=True, eq=False)
class ProbabilisticResult:
    """A result with the probability of every pixel times 255, uint8 `[T, H, W]`, in the clip's size."""

    result: ClipResult
    probability: ImageArray


VIDEO_SIDE = 960  # pixels of the longest side of the report's video

PredictorOutput = ClipResult | ProbabilisticResult
"""The output of a pipeline for a clip."""


class Sink:
    """The base of all sinks, which writes nothing further.

    A job names its sink as `module:Class`. Files are written before `result.json`, and their stamps are recorded with
    the clip. The same clip and result give the same bytes: no file may depend on the time or the machine.
    """

    pictures = True
    """Whether results keep the picture that a reasoner was shown."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def filter(self, result: ClipResult) -> FilteredResult:
        """Return what is left of a result; a clip that is dropped as a whole has the status `filtered`."""
        return FilteredResult(result, None, {})

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> Mapping[str, str]:
        """Write the files of a clip and return their stamps by path below the result folder.

        Raises:
            InputError: the clip cannot be written; it is recorded as failed.
        """
        return {}

    def remove(self, sample: Sample) -> None:
        """Remove the files that an interrupted run left outside of the clip's folder."""


class ReportSink(Sink):
    """`overlay.mp4` and `report.html` in the clip's folder; the option `files` may name only one of them.

    The report plays `video.mp4`, a small copy of the clip without masks, which is written with it.
    """

    def write(self, sample: Sample, clip: Clip, output: PredictorOutput, filtered: FilteredResult) -> Mapping[str, str]:
        """Write the video with the masks painted on it, and the report with its video."""
        from openavs.media import write_overlay
        from openavs.visualization.colors import palette_of
        from openavs.visualization.overlay import OverlayPainter
        from openavs.visualization.player import MotionRecorder, record_motion
        from openavs.visualization.report import report_frames, write_report

        result = filtered.result
        folder = clip_folder(self.job.out, sample.id)
        wanted = set(self.job.options.get("files", ("overlay.mp4", "report.html")))
        if wanted:
            folder.mkdir(parents=True, exist_ok=True)
        palette, moving = palette_of(result.frames), MotionRecorder()
        if "overlay.mp4" in wanted:
            write_overlay(folder / "overlay.mp4", clip, OverlayPainter(result, palette, clip, moving))
        if "report.html" in wanted:
            if "overlay.mp4" not in wanted:
                moving = record_motion(result, palette, clip)
            write_overlay(folder / "video.mp4", clip, lambda time, image: image, size_limit=VIDEO_SIDE)
            wanted.add("video.mp4")
            frames = clip.frames(report_frames(result))
            write_report(folder / "report.html", result, frames, clip.audio, clip.duration, "video.mp4", moving)
        return {f"clips/{sample.id}/{name}": stamp_file(folder / name) for name in sorted(wanted)}
