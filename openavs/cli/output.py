"""Output of the commands: results as text or JSON on stdout; messages, logs and progress on stderr.

Progress is a bar on a terminal; elsewhere jobs print plain lines.
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from openavs.utils.text import TerminalFormatter, pluralize, printable

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe
    from openavs.jobs.progress import JobProgress


def echo(text: str = "") -> None:
    """Print a part of the result on stdout, with control characters escaped."""
    print(printable(text), flush=True)


def log_line(text: str, *, quiet: bool = False) -> None:
    """Print a message of one line on stderr, with control characters escaped."""
    if not quiet:
        print(printable(text).replace("\n", "\\n"), file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Print one JSON object on stdout, in ASCII, because names may have any character.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    print(json.dumps(data, indent=2, allow_nan=False))


def print_result(result: Any, show: Callable[[], object], *, as_json: bool, quiet: bool) -> None:
    """Print the result of a command: as JSON, or by calling `show` unless `quiet`."""
    if as_json:
        print_json(result)
    elif not quiet:
        show()


def command_line() -> str:
    """Return the current command line, quoted for a shell."""
    return shlex.join(["openavs", *sys.argv[1:]])


def configure_logging(*, quiet: bool = False, verbose: bool = False) -> None:
    """Log to stderr: warnings, all records with `verbose`, or errors with `quiet`."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TerminalFormatter())
    handler.addFilter(_FirstOfSentence())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("openavs").setLevel(level)


class _FirstOfSentence:
    """Passes a warning of a clip only if no earlier clip had the same; all are in the clips' results."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record."""
        sentence: str | None = getattr(record, "sentence", None)
        is_new = sentence not in self._seen
        if sentence is not None:
            self._seen.add(sentence)
        return is_new


def warn_tiny_models(recipe: Recipe) -> None:
    """Warn on stderr if all models of a recipe were trained on synthetic clips only."""
    from openavs.models.catalog import is_only_synthetic

    models: dict[str, Any] = dict.fromkeys(recipe.models().values())
    if recipe.student is not None:
        from openavs.training.io import read_student

        models[recipe.student.model] = {"facts": read_student(recipe.student.model, recipe.offline).facts}
    if is_only_synthetic(models):
        log_line(
            "openavs: these models were trained on synthetic clips only; for real videos see 'openavs list recipes'"
        )


LINE_INTERVAL = 30.0
"""Seconds between two lines where stderr is not a terminal."""


class ProgressBar:
    """A progress callback that shows one bar: its title, the step, and the items of the step."""

    def __init__(self, title: str, bar: Any) -> None:
        self.title = title
        self._bar = bar
        self._task = bar.add_task(printable(title), total=None)

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show a step; see `pipeline.context.Progress`."""
        text = f"{printable(self.title)}: {step}"
        self._bar.update(self._task, description=text, completed=done, total=max(total, 1))


@contextmanager
def progress_bar(title: str, quiet: bool) -> Iterator[ProgressBar]:
    """Show a bar while inside; nothing where stderr is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    hidden = quiet or not console.is_terminal
    # Lines on stdout are printed above the bar, unless they go elsewhere.
    with Progress(
        *columns, console=console, transient=True, disable=hidden, redirect_stdout=sys.stdout.isatty()
    ) as bar:
        yield ProgressBar(title, bar)


@contextmanager
def job_progress(progress: JobProgress, quiet: bool) -> Iterator[None]:
    """Show the progress of a job while inside."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet:
        yield
    elif console.is_terminal:
        with _job_bar(progress, console):
            yield
    else:
        progress.on_change = _Lines()
        yield


@contextmanager
def _job_bar(progress: JobProgress, console: Any) -> Iterator[None]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(state(progress), total=max(progress.total, 1), completed=progress.total - progress.left)

        def update(progress: JobProgress) -> None:
            bar.update(task, completed=progress.total - progress.left, description=state(progress))

        progress.on_change = update
        yield


class _Lines:
    """Prints a line at the first change and then every `LINE_INTERVAL` seconds."""

    def __init__(self) -> None:
        self._last = float("-inf")

    def __call__(self, progress: JobProgress) -> None:
        if time.monotonic() - self._last > LINE_INTERVAL:
            self._last = time.monotonic()
            done = progress.total - progress.left
            log_line(f"openavs: {done} of {pluralize(progress.total, 'clip')}, {state(progress)}")


def state(progress: JobProgress) -> str:
    """Describe a job: `1.3 clips/s, 0:02:31 left, 3 failed (unreadable 2, no_sound 1)`."""
    if progress.rate is None:
        waiting = "running the first clips" if progress.loaded else "loading the models"
        return waiting if progress.left else "nothing is left to do"
    minutes, seconds = divmod(round(progress.left / progress.rate) if progress.rate else 0, 60)
    shown = f"{progress.rate:.2f} clips/s, {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    failed = sum(progress.failures.values())
    return f"{shown}, {failed} failed ({reasons(progress)})" if failed else shown


def reasons(progress: JobProgress) -> str:
    """Return failures by reason, the most frequent first."""
    return ", ".join(f"{reason} {count}" for reason, count in progress.failures.most_common())
