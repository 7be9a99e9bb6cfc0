"""Puts the commands together and turns errors into one sentence and an exit code.

Exit codes: 0 all done, 1 some items failed (each was named), 2 wrong usage or input.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from openavs import __version__
from openavs.cli.output import echo, log_line


class _Commands(typer.core.TyperGroup):
    """Says what is wrong with an option as a sentence of its own, without the name of the error it was found by."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as problem:
            problem.message = problem.message.removeprefix("Value error, ")
            raise


# openavs/cli/<name>.py exposes `<name>`; heavy imports stay inside the function's body.
COMMANDS = (
    "demo",
    "segment",
    "serve",
    "label",
    "export",
    "evaluate",
    "train",
    "self-train",
    "ablate",
    "score",
    "synth",
    "list",
    "show",
    "check",
    "cache",
)

# What a disk or its owner refuses; other errors of the system are faults of this program and show where they come from.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
REFUSALS |= {errno.EIO, errno.ESTALE}

INTERRUPTED = 130  # what typer returns after Ctrl-C

app = typer.Typer(
    name="openavs",
    cls=_Commands,
    help="Finds, names and segments whatever makes the sound in a video: open vocabulary, no training.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"openavs {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    pass


for _command in COMMANDS:
    _name = _command.replace("-", "_")
    app.command(_command)(getattr(import_module(f"openavs.cli.{_name}"), _name))


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line; `args` defaults to `sys.argv[1:]`. Returns the exit code and never raises SystemExit."""
    try:
        return _main(args)
    except KeyboardInterrupt:  # a second Ctrl-C, while the first one is handled
        return INTERRUPTED


def _main(args: Sequence[str] | None) -> int:
    try:
        app(args=None if args is None else list(args), prog_name="openavs")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else 0 if done.code is None else 1
    except _user_errors() as problem:
        log_line(f"openavs: {problem}")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as problem:
        if problem.errno not in REFUSALS:
            raise
        why = f"{problem.filename or 'a file'} cannot be read or written ({problem.strerror})"
        log_line(f"openavs: {why}; make room or change its permissions, then run the same again")
        return 2
    return 0


def _user_errors() -> type[Exception]:
    """The errors a user can mend; imported when something was raised, because it brings numpy along."""
    from openavs.errors import OpenAVSError

    return OpenAVSError
