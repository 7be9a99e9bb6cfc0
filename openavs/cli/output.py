"""Output of the commands: results as text or JSON on stdout, messages and logs on stderr."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openavs.utils.logs import TerminalFormatter
from openavs.utils.text import printable

if TYPE_CHECKING:
    from openavs.config.recipe import Recipe


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
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("openavs").setLevel(level)


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
