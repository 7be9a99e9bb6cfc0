"""`openavs serve`: the web demo."""

from __future__ import annotations

from typing import Annotated

import typer

from openavs.cli import options as opt
from openavs.cli.options import default_pipeline, recipe_overrides, split_overrides
from openavs.cli.output import configure_logging, echo, log_line
from openavs.errors import InputError
from openavs.utils.optional_deps import import_optional
from openavs.utils.text import pluralize


def serve(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Recipe overrides, such as filtering.box_threshold=0.3.",
            show_default=False,
        ),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            "-p",
            help="Initial recipe; others whose models are on this disk can be selected on the page. "
            "Default: the one for this machine.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on: 127.0.0.1 for this machine only, 0.0.0.0 for all.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 selects a free one.")] = 7860,
    max_upload_mb: Annotated[int, typer.Option("--max-upload-mb", min=1, help="Maximum upload size in MB.")] = 200,
    max_total_mb: Annotated[
        int | None,
        typer.Option(
            "--max-total-mb",
            min=1,
            help="Maximum size of all users' files in MB. Default: ten times --max-upload-mb.",
            show_default=False,
        ),
    ] = None,
    max_seconds: Annotated[float, typer.Option("--max-seconds", min=1, help="Maximum clip length in seconds.")] = 60.0,
    queue: Annotated[int, typer.Option(min=1, help="Maximum number of waiting requests; others are refused.")] = 8,
    keep_minutes: Annotated[
        float,
        typer.Option("--keep-minutes", min=1, help="Minutes without use until the files of a session are deleted."),
    ] = 60.0,
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    device: opt.Device = None,
    dtype: opt.Dtype = None,
    offline: opt.Offline = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Serve a web page that segments uploaded or recorded clips."""
    from openavs.web import ServerConfig

    configure_logging(quiet=quiet, verbose=verbose)
    inputs, changes = split_overrides(overrides or ())
    if inputs:
        raise InputError(
            f"{inputs[0]!r:.80} is not key=value, such as filtering.box_threshold=0.3; --pipeline names a recipe"
        )
    import_optional("gradio", "web")
    from openavs.cli.jobs import missing_listed, print_plan
    from openavs.config.recipe import load_recipe
    from openavs.web.server import serve as run

    shared = recipe_overrides(changes, device=device, dtype=dtype, offline=offline)
    recipe = load_recipe(pipeline or default_pipeline(shared, quiet=quiet), shared)
    if recipe.student is None:  # which the page refuses
        print_plan(recipe, quiet=quiet)
    config = ServerConfig(
        pipeline=pipeline or recipe.name,
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

    def on_ready(address: str) -> None:
        if not quiet:
            echo(f"openavs: {address} (stop with Ctrl+C)")
        if not config.is_local:
            log_line("openavs: the page has no authentication; anyone on the network can use it")
        if open_page:
            import webbrowser

            webbrowser.open(address)

    def on_closed(canceled: int) -> None:
        if not quiet or canceled:
            suffix = f"; {pluralize(canceled, 'pending request')} canceled" if canceled else ""
            log_line(f"openavs: the page is closed{suffix}")

    with missing_listed(recipe):
        run(config, on_ready, on_closed)
