"""The export formats by name, and the function that writes any of them: `export("coco", items, Path("coco"))`.

A format is one function `(folder, items, options) -> Told`, named as `module:function` and imported when it is used. It
writes into a folder that takes its place, whole, when all is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from openavs import __version__
from openavs.errors import InputError

if TYPE_CHECKING:
    from openavs.exports.base import Categories, ExportItem

MARK = "export.json"
"""Written into every exported folder: what it is and where it came from. Only such a folder is ever overwritten."""


MaskCode = Literal["rle", "counts", "polygons"]
"""How COCO and YouTube-VIS write masks: run-lengths, compressed or as lists of counts, or one polygon each (lossy)."""


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export: the categories, whether pictures are written, the split's name, the code of masks.

    `images` None leaves it to the format: YOLO-seg writes pictures, COCO and YouTube-VIS only name them. `run`, `root`
    and `benchmark` are for `avsbench-training`: the folder with the labels, the benchmark's folder and its name.
    """

    categories: Categories
    images: bool | None = None
    split: str = "train"
    masks: MaskCode = "rle"
    run: Path | None = None
    root: Path | None = None
    benchmark: str | None = None


@dataclass
class ExportSummary:
    """What an export wrote, and sentences on what the format could not hold; `what` are counted as segments."""

    clips: int = 0
    frames: int = 0
    segments: int = 0
    notes: list[str] = field(default_factory=list)
    what: str = "segment"


Writer = Callable[[Path, "Iterable[ExportItem]", ExportOptions], ExportSummary]


@dataclass(frozen=True)
class ExportFormat:
    """One export format.

    `single` is a pattern for the one file that an output path with its suffix stands for; `coded` formats take
    `Options.masks`.
    """

    name: str
    says: str
    writer: str
    single: str | None = None
    coded: bool = False

    def load(self) -> Writer:
        """Imports its writer."""
        module, _, name = self.writer.partition(":")
        found: Writer = getattr(import_module(module), name)
        return found


_HERE = "openavs.exports"
TRAINING = "avsbench-training"
FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        form.name: form
        for form in (
            ExportFormat(
                "coco",
                "COCO JSON: run-length masks, boxes, scores, tracks",
                f"{_HERE}.coco:write",
                "annotations/*.json",
                coded=True,
            ),
            ExportFormat(
                "youtube-vis",
                "YouTube-VIS JSON: one mask per frame of every track (without tracks: of every category)",
                f"{_HERE}.youtube_vis:write",
                "youtube_vis.json",
                coded=True,
            ),
            ExportFormat("yolo-seg", "YOLO-seg: pictures, polygons and data.yaml (lossy)", f"{_HERE}.yolo:write"),
            ExportFormat("avsbench-object", "AVSBench's MS3 layout: binary masks", f"{_HERE}.avsbench:write_object"),
            ExportFormat(
                "avsbench-semantic",
                "AVSBench-semantic's layout: masks of class indices",
                f"{_HERE}.avsbench:write_semantic",
            ),
            ExportFormat(
                TRAINING,
                "AVSBench's tree to train any system on a label job's masks, with the benchmark's own for validation",
                f"{_HERE}.training_tree:write",
            ),
            ExportFormat("timeline", "CSV: what was heard and found when", f"{_HERE}.csv:write", "timeline.csv"),
            ExportFormat("overlay", "mp4 with the masks painted on, and the sound", f"{_HERE}.video:write_overlays"),
            ExportFormat(
                "cutout-webm", "what sounds on a transparent background: VP9 + Opus", f"{_HERE}.video:write_webm"
            ),
            ExportFormat("cutout-mov", "the same for editors: ProRes 4444 + PCM", f"{_HERE}.video:write_mov"),
            ExportFormat("cutout-png", "the same as RGBA pictures and a wav", f"{_HERE}.video:write_pngs"),
        )
    }
)


def export(
    name: str,
    items: Iterable[ExportItem],
    out: Path,
    options: ExportOptions | None = None,
    *,
    origin: str = "",
    overwrite: bool = False,
) -> ExportSummary:
    """Writes results in a format. `out` is a new folder or, for a format that is one file, may be that file.

    Items are taken one at a time, so memory does not grow with their number. What is there stays as it was until all
    is written. `origin` is recorded in `export.json`.

    Raises:
        InputError: no such format, options that it has no place for, nothing to export, `out` exists already (with
            `overwrite`: and is not an export).
    """
    from openavs.errors import InputError
    from openavs.exports.base import Categories, filtered
    from openavs.exports.registry import atomic_export, is_single_file
    from openavs.utils.text import did_you_mean

    if name not in FORMATS:
        raise InputError(f"there is no export format {name!r}; {did_you_mean(name, FORMATS)}")
    form, chosen = FORMATS[name], options or ExportOptions(Categories())
    if chosen.images and is_single_file(out, form):
        raise InputError(f"--images writes a folder, and {out} names a file; give --out a name without {out.suffix}")
    if chosen.masks != "rle" and not form.coded:
        coded = " and ".join(other.name for other in FORMATS.values() if other.coded)
        raise InputError(f"--masks {chosen.masks} is for {coded}; leave it out for {name}")
    with atomic_export(out, form, overwrite) as target:
        told = form.load()(target.folder, filtered(items, chosen.categories), chosen)
        if not told.clips:
            raise InputError(f"there is no result to export as {name}; is {origin or 'the folder'} finished?")
        told.notes += chosen.categories.notes()
        target.finish({"origin": origin, "clips": told.clips, "frames": told.frames, "notes": told.notes})
    return told


KIND = "openavs export"


@dataclass
class ExportDir:
    """`folder` is where the files are made."""

    folder: Path
    form: ExportFormat
    _about: dict[str, Any] | None = None

    def finish(self, about: Mapping[str, Any]) -> None:
        """Says that all is written; without it nothing takes the place of what was there."""
        self._about = {"kind": KIND, "format": self.form.name, "openavs": __version__, **about}

    @property
    def about(self) -> dict[str, Any] | None:
        """What `export.json` says, None before all is written."""
        return self._about


@contextmanager
def atomic_export(out: Path, form: ExportFormat, overwrite: bool) -> Iterator[ExportDir]:
    """Gives a `Target`; its files take the place of `out` when all is finished, and are removed after an error.

    Raises:
        InputError: `out` exists, unless `overwrite` is given and it is an earlier export (or, for one file, a file).
    """
    from openavs.results.serialization import json_bytes  # here, since the command line imports this module early

    one_file = is_single_file(out, form)
    _refuse(out, one_file, overwrite)
    making = out.with_name(f".{out.name}.part")
    shutil.rmtree(making, ignore_errors=True)  # what a killed export left
    try:
        making.mkdir(parents=True)
    except OSError as problem:
        raise InputError(f"cannot make {out} ({problem.strerror}); give another --out") from problem
    try:
        target = ExportDir(making, form)
        yield target
        assert target.about is not None, "finish comes last"
        if one_file:
            os.replace(next(making.glob(str(form.single))), out)
        else:
            (making / MARK).write_bytes(json_bytes(target.about))
            _swap(making, out)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def is_single_file(out: Path, form: ExportFormat) -> bool:
    """Whether an output path stands for the one file of a format and not for a folder."""
    return form.single is not None and bool(out.suffix) and out.suffix == Path(form.single).suffix


def _refuse(out: Path, one_file: bool, overwrite: bool) -> None:
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not one_file and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{out} is there already; give another --out, or --overwrite to replace it")
    if one_file and out.is_file():
        return
    if out.is_symlink() or not (out / MARK).is_file():
        raise InputError(f"{out} is no earlier export (it has no {MARK}), so it is not replaced; give another --out")


def _swap(making: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(making, out)
    shutil.rmtree(old, ignore_errors=True)
