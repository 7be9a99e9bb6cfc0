"""`openavs export` and `openavs import`: results to the formats of other tools, and corrections back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from openavs.cli import options as opt
from openavs.cli.output import configure_logging, echo, log_line, print_json
from openavs.errors import InputError
from openavs.exports.registry import FORMATS
from openavs.utils.text import pluralize, split_list

if TYPE_CHECKING:
    from openavs.exports.base import Categories

_READABLE = ", ".join(form.name for form in FORMATS.values() if form.reader)
_LIST = "\n\n".join(f"[bold]{form.name}[/]: {form.says}." for form in FORMATS.values())


def export(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=_LIST)],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Output folder of segment, evaluate or label.")],
    out: Annotated[Path, typer.Option(help="New folder; for coco, youtube-vis and timeline also a new file.")],
    clips: Annotated[str | None, typer.Option(metavar="A,B", help="Only these clips.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these categories, in this order, or those of a benchmark (avss)."),
    ] = None,
    images: Annotated[
        bool | None,
        typer.Option(
            "--images/--no-images",
            help="Also write the frames (fiftyone: the videos). Default: only for yolo-seg and label-studio.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Name of the split, for formats with splits.")] = "train",
    as_labels: Annotated[
        bool, typer.Option("--filtered", help="Apply the recipe's label filter, as 'label' does.")
    ] = False,
    masks: Annotated[
        str,
        typer.Option(
            metavar="rle|counts|polygons",
            help="Masks of coco and youtube-vis: compressed run lengths, lists of counts, or polygons (cvat, too).",
        ),
    ] = "rle",
    style: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="For overlay: drawn by supervision instead: halo, blur, trace, heat-map, mask, label and others.",
        ),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder of the videos or the benchmark, if they were moved.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="For avsbench-training: s4, ms3 or avss, if RUN does not name it.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing export.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Export results as COCO, CVAT, Label Studio, FiftyOne, YOLO-seg, AVSBench, CSV or video with transparency."""
    from openavs.exports.base import filtered_by_recipe, run_items
    from openavs.exports.registry import TRAINING, ExportOptions, MaskCode, export as write

    configure_logging(quiet=quiet, verbose=verbose)
    if not split.isidentifier():
        raise typer.BadParameter("a split is a name such as train, val or test", param_hint="--split")
    if form == TRAINING and (clips is not None or classes is not None or images is not None or as_labels):
        raise typer.BadParameter(f"{form} exports all labels unchanged; omit --clips, --classes and --filtered")
    if masks not in get_args(MaskCode):
        raise typer.BadParameter(f"choose one of {', '.join(get_args(MaskCode))}", param_hint="--masks")
    items = run_items(run, None if clips is None else split_list(clips), root)
    categories, explicit = _categories(classes, run)
    if style is not None:
        from openavs.exports.supervision import check_styles

        check_styles(split_list(style))
    styles = tuple(split_list(style or ""))
    options = ExportOptions(categories, images, split, cast(MaskCode, masks), run, root, benchmark, styles)
    summary = write(
        form, filtered_by_recipe(items) if as_labels else items, out, options, origin=str(run), overwrite=overwrite
    )
    summary.notes += categories.not_found() if explicit else []
    if as_json:
        counts = {"clips": summary.clips, "frames": summary.frames, "segments": summary.segments}
        print_json({"format": form, "out": str(out), **counts, "notes": summary.notes})
        return
    for note in summary.notes:
        log_line(f"openavs: {note}", quiet=quiet)
    if not quiet:
        inside = f"{pluralize(summary.frames, 'frame')} of {pluralize(summary.clips, 'clip')}"
        echo(f"{form}: {pluralize(summary.segments, summary.what)} in {inside} -> {out}")


def import_corrections(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {_READABLE}.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The tool's file, a zip of it, or a folder with it.")],
    into: Annotated[Path, typer.Option(metavar="RESULTS", help="The result folder that was exported.")],
    author: Annotated[
        str | None, typer.Option(metavar="NAME", help="The person. Default: the one in the file, else the login name.")
    ] = None,
    on_conflict: Annotated[
        str,
        typer.Option(
            metavar="stop|keep|replace",
            help="If another person corrected the same object differently: refuse all, keep theirs, or replace it.",
        ),
    ] = "stop",
    root: Annotated[Path | None, typer.Option(help="Folder of the videos, if they were moved.")] = None,
    render: Annotated[
        bool,
        typer.Option("--render/--no-render", help="Write overlay.mp4 and report.html again."),
    ] = True,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    verbose: opt.Verbose = False,
) -> None:
    """Bring the masks that a person changed in COCO, CVAT or Label Studio back into the results."""
    from openavs.cli.correct import follow_corrections
    from openavs.exports.importing import OnConflict, import_masks

    configure_logging(quiet=quiet, verbose=verbose)
    if on_conflict not in get_args(OnConflict):
        raise typer.BadParameter(f"choose one of {', '.join(get_args(OnConflict))}", param_hint="--on-conflict")
    summary = import_masks(form, path, into, author, cast(OnConflict, on_conflict))
    if summary.clips:
        follow_corrections(into.absolute(), summary.clips, root, render=render, quiet=quiet)
    if as_json:
        counts = {"read": summary.read, "clips": len(summary.clips), "frames": summary.frames}
        print_json({"format": form, "into": str(into), **counts, "actions": dict(sorted(summary.actions.items()))})
        return
    if not quiet:
        changed = ", ".join(f"{count} {action}" for action, count in sorted(summary.actions.items())) or "no change"
        inside = f"{pluralize(summary.frames, 'frame')} of {pluralize(len(summary.clips), 'clip')}"
        echo(f"{form}: {changed} in {inside}, of {pluralize(summary.read, 'frame')} in the file -> {into}")


def _categories(classes: str | None, run: Path) -> tuple[Categories, bool]:
    """The requested categories, and whether they were listed explicitly.

    Defaults to the closed vocabulary of the run, or else to all phrases that were found.
    """
    from openavs.config import resources
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.exports.base import Categories, run_classes

    if classes is None:
        return Categories.of_vocabulary(run_classes(run)), False
    names = split_list(classes)
    if len(names) == 1 and names[0] in resources.names("eval"):
        card = load_benchmark(names[0])
        if card.vocabulary is None:
            raise InputError(f"the masks of {card.name} have no classes; use --classes avss, or list them: dog,cat")
        return Categories.of_benchmark(card), False
    if not names:
        raise InputError("--classes is empty; list categories, such as dog,cat")
    return Categories(names), True
