"""Command line: registers the commands; turns errors into a sentence and exit code.

Exit codes: 0 all done, 1 some items failed (each is named), 2 wrong usage or input.
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
from openavs.errors import OpenAVSError

# The commands in the order of the help, and their functions below openavs/cli, which import heavy modules inside.
COMMANDS = {
    "demo": "synth:demo",
    "segment": "segment:segment",
    "serve": "serve:serve",
    "label": "label:label",
    "export": "export:export",
    "evaluate": "evaluate:evaluate",
    "train": "train:train",
    "self-train": "train:self_train",
    "ablate": "ablate:ablate",
    "score": "evaluate:score",
    "synth": "synth:synth",
    "list": "list:list_parts",
    "show": "list:show",
    "check": "check:check",
    "cache": "cache:cache",
}

# System errors that the user can fix; all others are bugs and keep their traceback.
REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
REFUSALS |= {errno.EIO, errno.ESTALE}

INTERRUPTED = 130  # typer's exit code after Ctrl-C


class _Group(typer.core.TyperGroup):
    """Command group that reports invalid values without pydantic's prefix."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="openavs",
    cls=_Group,
    help="Find, name and segment the sounding objects in videos: open vocabulary, no training.",
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


for _command, _target in COMMANDS.items():
    _module, _function = _target.split(":")
    app.command(_command)(getattr(import_module(f"openavs.cli.{_module}"), _function))


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; `args` defaults to `sys.argv[1:]`."""
    try:
        return _main(args)
    except KeyboardInterrupt:  # a second Ctrl-C during the handling of the first one
        return INTERRUPTED


def _main(args: Sequence[str] | None) -> int:
    try:
        app(args=None if args is None else list(args), prog_name="openavs")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except OpenAVSError as error:
        log_line(f"openavs: {error}")
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        reason = f"{error.filename or 'a file'} cannot be read or written ({error.strerror})"
        log_line(f"openavs: {reason}; free disk space or change its permissions, then run the command again")
        return 2
    return 0
