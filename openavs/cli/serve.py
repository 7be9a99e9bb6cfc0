"""`openavs serve`: the web page."""

from __future__ import annotations

from typing import Annotated

import typer

from openavs.cli.options import (
    DeviceOption,
    DtypeOption,
    OfflineOption,
    QuietOption,
    VerboseOption,
    default_pipeline,
    recipe_overrides,
    split_overrides,
)
from openavs.cli.output import configure_logging, echo, log_line


def serve(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Overrides of the recipe, such as filtering.box_threshold=0.3.",
            show_default=False,
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            "-p",
            help="The recipe to begin with; others whose models are on this disk are offered, too. Default: openavs "
            "with a GPU, openavs-cpu without.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="127.0.0.1 is this machine only; 0.0.0.0 is everybody.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 7860,
    max_upload_mb: Annotated[int, typer.Option("--max-upload-mb", min=1, help="The largest file, in MB.")] = 200,
    max_total_mb: Annotated[
        int | None,
        typer.Option(
            "--max-total-mb",
            min=1,
            help="Files of all visitors together, in MB; default: ten of the largest uploads.",
            show_default=False,
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=1, help="The longest clip, in seconds.")] = 60.0,
    queue: Annotated[int, typer.Option(min=1, help="Visitors that may wait; further ones are turned away.")] = 8,
    keep_minutes: Annotated[
        float, typer.Option("--keep-minutes", min=1, help="Files of a visit are removed after so long without use.")
    ] = 60.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    offline: OfflineOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Serve a web page: upload or record a clip, see what sounds in it and why."""
    from openavs.errors import InputError
    from openavs.utils.text import pluralize
    from openavs.web.server import serve as run
    from openavs.web.settings import ServerConfig

    configure_logging(quiet=quiet, verbose=verbose)
    named, changes = split_overrides(overrides or ())
    if named:
        raise InputError(
            f"{named[0]!r:.80} is not key=value, such as filtering.box_threshold=0.3; --pipeline names a recipe"
        )
    settings = ServerConfig(
        pipeline=pipeline or default_pipeline(recipe_overrides(changes, device=device), quiet=quiet),
        overrides=tuple(changes),
        host=host,
        port=port,
        max_upload_mb=max_upload_mb,
        max_seconds=max_seconds,
        queue=queue,
        max_total_mb=max_total_mb,
        keep_minutes=keep_minutes,
        device=device,
        dtype=dtype,
        offline=offline,
    )

    def ready(address: str) -> None:
        if not quiet:
            echo(f"openavs: {address} (Ctrl+C ends it)")
        if not settings.is_local:
            log_line("openavs: the page has no authentication; anyone on the network can use it")
        if open_page:
            import webbrowser

            webbrowser.open(address)

    def ended(waiting: int) -> None:
        if not quiet or waiting:
            told = f"; {pluralize(waiting, 'waiting visitor')} told so" if waiting else ""
            log_line(f"openavs: the page is closed{told}")

    run(settings, ready, ended)
