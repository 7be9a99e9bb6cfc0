"""`openavs score`: scores predicted masks of any system on a benchmark, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from openavs.cli.options import (
    AllowMissingOption,
    ClipsPerBatchOption,
    JsonOption,
    LimitOption,
    ProtocolName,
    ProtocolOption,
    QuietOption,
    SplitOption,
    VerboseOption,
)
from openavs.cli.output import configure_logging, log_line, print_json


def score(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCHMARK", help="s4, ms3, avss, ov, v3, or a card's YAML file.")
    ],
    root: Annotated[Path, typer.Option(help="The folder that holds the benchmark's table of clips.")],
    predictions: Annotated[
        Path, typer.Option(help="The predicted masks (PNG), in the layout of the ground truth or of published scripts.")
    ],
    split: SplitOption = "test",
    protocol: ProtocolOption = ProtocolName.official,
    clips_per_batch: ClipsPerBatchOption = 1,
    allow_missing: AllowMissingOption = False,
    numbering: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="The number of a clip's first mask in file names, if it differs from the benchmark's.",
            show_default=False,
        ),
    ] = None,
    resize: Annotated[
        bool, typer.Option("--resize", help="Resize masks of another size (nearest pixel) instead of failing.")
    ] = False,
    limit: LimitOption = None,
    out: Annotated[Path | None, typer.Option(help="Write report.json and per_clip.csv to this folder.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score predicted masks of any system on S4, MS3, AVSS, AVSBench-OV or V3."""
    from openavs import __version__
    from openavs.cli.progress import progress_bar
    from openavs.cli.tables import print_scores
    from openavs.evaluation.benchmark import open_dataset
    from openavs.evaluation.scorer import score as score_masks, write_scores

    configure_logging(quiet=quiet, verbose=verbose)
    dataset = open_dataset(benchmark, root, split)
    with progress_bar(benchmark, quiet) as progress:
        scores = score_masks(
            dataset,
            predictions,
            protocol=protocol.value,
            clips_per_batch=clips_per_batch,
            allow_missing=allow_missing,
            limit=limit,
            numbering=numbering,
            resize=resize,
            progress=progress,
        )
    read = {"predictions": str(predictions), "numbering": numbering, "resize": resize}
    origin = {"root": str(root), **read, "versions": {"openavs": __version__}}
    report: dict[str, Any] = scores.to_dict() | {"missing_clips": list(scores.missing)} | origin
    if out is not None:
        write_scores(out, report)
        log_line(f"wrote {out / 'report.json'} and {out / 'per_clip.csv'}", quiet=quiet)
    if as_json:
        print_json({key: value for key, value in report.items() if key not in ("per_clip", "curve")})  # --out has them
    elif not quiet:
        print_scores(report)
