"""`openavs export`: a result folder in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from openavs.cli.options import JsonOption, QuietOption, VerboseOption
from openavs.cli.output import configure_logging, echo, log_line, print_json
from openavs.exports.registry import FORMATS

if TYPE_CHECKING:
    from openavs.exports.categories import Categories

_LIST = " ".join(f"[bold]{form.name}[/]: {form.says}." for form in FORMATS.values())


def export(
    form: Annotated[str, typer.Argument(metavar="FORMAT", help=_LIST)],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out folder of segment, evaluate or label.")],
    out: Annotated[Path, typer.Option(help="A new folder; for coco, youtube-vis and timeline also a new file.")],
    clips: Annotated[str | None, typer.Option(metavar="A,B", help="Only these clips.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these categories, in this order, or a benchmark's (avss)."),
    ] = None,
    images: Annotated[
        bool | None, typer.Option("--images/--no-images", help="Write the frames, too; default: yolo-seg does.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split's name, where a format has splits.")] = "train",
    as_labels: Annotated[
        bool, typer.Option("--filtered", help="Only what the recipe's filter takes as labels, as 'label' does.")
    ] = False,
    masks: Annotated[
        str,
        typer.Option(
            metavar="rle|counts|polygons",
            help="How coco and youtube-vis write masks: run-lengths, compressed or as lists of counts, or polygons.",
        ),
    ] = "rle",
    root: Annotated[
        Path | None, typer.Option(help="Where the videos or the benchmark lie, if not where the results say.")
    ] = None,
    benchmark: Annotated[
        str | None, typer.Option(help="For avsbench-training: s4, ms3 or avss, if RUN does not say.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write results as COCO, YouTube-VIS, YOLO-seg, AVSBench, CSV or video with transparency."""
    from openavs.exports.items import filtered_by_recipe, run_items
    from openavs.exports.registry import TRAINING, ExportOptions, MaskCode, export as write
    from openavs.utils.text import pluralize

    configure_logging(quiet=quiet, verbose=verbose)
    if not split.isidentifier():
        raise typer.BadParameter("a split is a plain name such as train, val or test", param_hint="--split")
    if form == TRAINING and (clips is not None or classes is not None or images is not None or as_labels):
        raise typer.BadParameter(f"{form} takes the labels as they are; leave out --clips, --classes and the like")
    if masks not in get_args(MaskCode):
        raise typer.BadParameter(f"give one of {', '.join(get_args(MaskCode))}", param_hint="--masks")
    wanted = None if clips is None else [name.strip() for name in clips.split(",") if name.strip()]
    items = run_items(run, wanted, root)
    categories, typed = _categories(classes, run)
    options = ExportOptions(categories, images, split, cast(MaskCode, masks), run, root, benchmark)
    told = write(
        form, filtered_by_recipe(items) if as_labels else items, out, options, origin=str(run), overwrite=overwrite
    )
    told.notes += categories.not_found() if typed else []
    if as_json:
        counts = {"clips": told.clips, "frames": told.frames, "segments": told.segments}
        print_json({"format": form, "out": str(out), **counts, "notes": told.notes})
        return
    for note in told.notes:
        log_line(f"openavs: {note}", quiet=quiet)
    if not quiet:
        inside = f"{pluralize(told.frames, 'frame')} of {pluralize(told.clips, 'clip')}"
        echo(f"{form}: {pluralize(told.segments, told.what)} in {inside} -> {out}")


def _categories(classes: str | None, run: Path) -> tuple[Categories, bool]:
    """The categories asked for, and whether they were named one by one.

    By default those of the run's closed vocabulary, else whatever was found.
    """
    from openavs.config import resources
    from openavs.errors import InputError
    from openavs.evaluation.benchmark import load_benchmark
    from openavs.exports.categories import Categories
    from openavs.exports.sources import run_classes
    from openavs.utils.text import split_list

    if classes is None:
        return Categories.of_vocabulary(run_classes(run)), False
    names = split_list(classes)
    if len(names) == 1 and names[0] in resources.names("eval"):
        card = load_benchmark(names[0])
        if card.vocabulary is None:
            raise InputError(f"the masks of {card.name} have no classes; use --classes avss, or name them: dog,cat")
        return Categories.of_card(card), False
    if not names:
        raise InputError("--classes names no category; give some, such as dog,cat")
    return Categories(names), True
