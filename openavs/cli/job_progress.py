"""What a job shows of itself: one bar on a terminal, plain lines off one, and a summary at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from openavs.cli.output import log_line
from openavs.utils.text import pluralize

if TYPE_CHECKING:
    from openavs.labeling.progress import JobProgress
    from openavs.labeling.stage_timings import StageTimes

EVERY = 30.0  # seconds between two lines off a terminal


@contextmanager
def showing(board: JobProgress, quiet: bool) -> Iterator[None]:
    """Shows what a board tells while inside."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield
    elif console.is_terminal:
        with _bar(board, console):
            yield
    else:
        board.told = _lines()
        yield


@contextmanager
def _bar(board: JobProgress, console: object) -> Iterator[None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True) as bar:  # type: ignore[arg-type]
        task = bar.add_task(state(board), total=max(board.total, 1), completed=board.total - board.left)

        def update(board: JobProgress) -> None:
            bar.update(task, completed=board.total - board.left, description=state(board))

        board.told = update
        yield


def _lines() -> _Lines:
    return _Lines()


class _Lines:
    """A line at the first news and then every `EVERY` seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, board: JobProgress) -> None:
        if time.monotonic() - self._last > EVERY:
            self._last = time.monotonic()
            log_line(f"openavs: {board.total - board.left} of {pluralize(board.total, 'clip')}, {state(board)}")


def state(board: JobProgress) -> str:
    """`1.3 clips/s, 0:02:31 left, 3 failed (unreadable 2, no_sound 1)`."""
    if board.rate is None:
        return "loading the models" if board.left else "nothing is left to do"
    minutes, seconds = divmod(round(board.left / board.rate) if board.rate else 0, 60)
    shown = f"{board.rate:.2f} clips/s, {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    failed = sum(board.failures.values())
    return f"{shown}, {failed} failed ({reasons(board)})" if failed else shown


def reasons(board: JobProgress) -> str:
    """Failures by reason, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in board.failures.most_common())


def result_line(board: JobProgress) -> str:
    """What became of the job in a line or two."""
    counts = board.status
    segments, clips = _dropped(board)
    line = f"{counts['ok']} of {pluralize(board.plan.clips, 'clip')} labelled"
    line += f", {counts['filtered']} filtered ({clips})" if counts["filtered"] else ""
    line += f", {counts['failed']} failed" if counts["failed"] else ""
    left = board.plan.clips - counts.total()
    line += f", {left} not done yet" if left else ""
    line += f"\ndropped in frames: {segments}" if segments else ""
    return f"{line}\n-> {board.job.out}"


def _dropped(board: JobProgress) -> tuple[str, str]:
    """What was asked for and is not in the labels, by reason; and the clips that a filter dropped, by filter."""
    from openavs.results.filters import CLIP_RULES

    whole = {f"label_filter.{rule}" for rule in CLIP_RULES}
    parts = [
        ", ".join(
            f"{reason} {count}" for reason, count in board.rejected.most_common() if (reason in whole) is of_clips
        )
        for of_clips in (False, True)
    ]
    return parts[0], parts[1]


def failed_clips(board: JobProgress, most: int) -> list[tuple[str, str, str]]:
    """The first clips that failed: id, reason, sentence."""
    from openavs.labeling.completion import read_mark

    found: list[tuple[str, str, str]] = []
    if not board.reasons:
        return found
    for shard in sorted(board.shards):
        mark = read_mark(board.job.out, shard, board.plan.key)
        rows = mark["rows"] if mark is not None and mark["reasons"] else []
        found += [(row["id"], row["reason"], row["detail"]) for row in rows if row["status"] == "failed"]
        if len(found) >= most:
            break
    return found[:most]


def print_stages(times: StageTimes) -> None:
    """The stage time table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "seconds", "s/clip", "share")
    rest = times.seconds - sum(times.stages.values())
    for stage, spent in [*times.stages.items(), ("read and write", max(0.0, rest))]:
        clips, seconds = max(times.clips, 1), times.seconds or 1.0
        table.add_row(stage, f"{spent:.1f}", f"{spent / clips:.3f}", f"{spent / seconds:.0%}")
    Console().print(table)
