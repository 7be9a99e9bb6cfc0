"""Command line: registers the commands; turns errors into a sentence and exit code.

Exit codes: 0 all done, 1 some items failed (each is named), 2 wrong usage or input.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from openavs import __version__
from openavs.cli.output import echo, log_line
from openavs.errors import OpenAVSError
from openavs.utils.text import split_list

# The commands in the order of the help, and their functions below openavs/cli, which import heavy modules inside.
COMMANDS = {
    "demo": "synth:demo",
    "segment": "segment:segment",
    "serve": "serve:serve",
    "label": "label:label",
    "index": "find:index",
    "find": "find:find",
    "export": "export:export",
    "import": "export:import_corrections",
    "review": "correct:review",
    "correct": "correct:correct",
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


# Options that most users do not need; help lists them below the others.
_ADVANCED = frozenset(
    split_list(
        "workers,cache,lock,limit,device,dtype,batch_size,offline,as_json,quiet,verbose,help,executor,shard_range,"
        "shard_size,threads,stall_timeout,schedule,window,verify,max_upload_mb,max_total_mb,max_seconds,queue,"
        "keep_minutes,clips_per_batch,allow_missing,as_labels,numbering,resize,max_steps"
    )
)


def _hide_types(parameters: Iterable[Any]) -> None:
    """Leave the types of parameters out of the help, except for choices and those that a `metavar` names."""
    for parameter in parameters:
        show = getattr(parameter, "display_type_rich", None)
        if show is not None and (not parameter.metavar or isinstance(parameter, typer.core.TyperArgument)):
            vars(parameter).update(display_type_rich=partial(_choices, show), _get_number_range_help_str=lambda: "")


def _choices(show: Callable[..., str | None], ctx: Any) -> str | None:
    """Return the type of a parameter if it is a list of choices, such as `local|ray`."""
    text = show(ctx=ctx)
    return text if text and "|" in text else None


class _Command(typer.core.TyperCommand):
    """Command whose help lists common options first, without their types, and has examples at its foot."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        parameters = self.get_params(ctx)
        _hide_types(parameters)
        for parameter in parameters:
            if isinstance(parameter, typer.core.TyperOption):
                parameter.rich_help_panel = "Advanced options" if parameter.name in _ADVANCED else "Options"
        self.epilog = _examples(self.name or "")
        super().format_help(ctx, formatter)


def _examples(command: str) -> str:
    """Return the examples of a command as rich text, one paragraph each."""
    from rich.markup import escape

    from openavs.utils.serialization import read_yaml

    path = Path(__file__).parents[1] / "assets" / "command_examples.yaml"
    examples = read_yaml(path).get(command, {}).get("examples", {})
    # typer removes an indentation that all lines but the first share: here the markup, not the spaces, begins the line
    lines = [f"[bold]{escape(title)}:[/]\n\n[not bold]  {escape(line.strip())}[/]" for title, line in examples.items()]
    return "\n\n".join(lines)


class _Group(typer.core.TyperGroup):
    """Command group that reports invalid values without pydantic's prefix."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _hide_types(self.get_params(ctx))
        super().format_help(ctx, formatter)

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
    app.command(_command, cls=_Command)(getattr(import_module(f"openavs.cli.{_module}"), _function))


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
