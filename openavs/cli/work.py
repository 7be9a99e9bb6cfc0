"""What `segment` and `demo` share: one clip through the pipeline into the result folder, with a progress bar."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.utils.text import printable

if TYPE_CHECKING:
    from openavs.caching.stagewise import StagedSchedule
    from openavs.pipeline.pipeline import Pipeline, Progress
    from openavs.results.run_folder import RunWriter
    from openavs.structures.types import Clip, ClipResult


EXTRAS = ("overlay.mp4", "report.html")


def segment_clip(
    pipe: Pipeline | StagedSchedule, clip: Clip, run: RunWriter, progress: Progress
) -> tuple[ClipResult, float]:
    """Segments a clip and writes its folder: masks, overlay, report, result. Returns the result and the seconds taken.

    Raises:
        OpenAVSError: the clip cannot be worked on; nothing of it is left behind.
    """
    from openavs.media import write_overlay
    from openavs.visualization.overlay import OverlayPainter
    from openavs.visualization.report import report_frames, write_report

    started = time.monotonic()
    result = pipe(clip, progress)

    def extras(folder: Path) -> None:
        progress("write", 0, 1)
        overlay, report = EXTRAS
        write_overlay(folder / overlay, clip, OverlayPainter(result))
        write_report(folder / report, result, clip.frames(report_frames(result)), clip.audio, clip.duration)
        progress("write", 1, 1)

    run.write(result, seconds=time.monotonic() - started, extras=extras)
    return result, time.monotonic() - started


def summary(result: ClipResult) -> dict[str, Any]:
    """What was heard and found in a clip: the best score of every text and phrase, best first."""
    heard: dict[str, float | None] = {}
    found: dict[str, float] = {}
    for frame in result.frames:
        for caption in frame.captions:
            heard[caption.text] = max(heard.get(caption.text) or 0.0, caption.score or 0.0) or None
        for segment in frame.segments:
            found[segment.phrase] = max(found.get(segment.phrase, 0.0), segment.score)
    return {"captions": _ranked(heard), "found": _ranked(found)}


def _ranked(scores: dict[str, Any]) -> list[dict[str, Any]]:
    order = sorted(scores, key=lambda text: -(scores[text] or 0.0))
    return [{"text": text, "score": None if scores[text] is None else round(scores[text], 3)} for text in order]


def sentence(items: list[dict[str, Any]]) -> str:
    """`dog barking (0.81), bell ringing (0.40)`, or `nothing`."""
    shown = [f"{i['text']} ({i['score']:.2f})" if i["score"] is not None else str(i["text"]) for i in items]
    return ", ".join(shown) or "nothing"


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[Progress]:
    """A bar on stderr, one line, that shows the stage at work; nothing off a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(printable(title), total=None)

        def update(stage: str, done: int, total: int) -> None:
            bar.update(task, description=f"{printable(title)}: {stage}", completed=done, total=max(total, 1))

        yield update
