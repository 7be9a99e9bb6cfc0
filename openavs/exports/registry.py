"""Export formats by name, and the function that writes them: `export("coco", items, Path("coco"))`.

A format is one function `(folder, items, options) -> ExportSummary`, named as `module:function` and imported when it is
used. It writes into a temporary folder, which replaces the output when everything is written.
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
"""File in every exported folder with its format and origin. Only folders with this file are overwritten."""


MaskCode = Literal["rle", "counts", "polygons"]
"""Mask encodings of COCO and YouTube-VIS: run lengths, compressed or as counts, or one polygon each (lossy)."""


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        categories: the categories.
        images: write the frames; None for the format's default: YOLO-seg writes them, COCO and YouTube-VIS only name
            them.
        split: name of the split.
        masks: encoding of masks.
        run: `avsbench-training`: the result folder with the labels.
        root: `avsbench-training`: the benchmark's folder.
        benchmark: `avsbench-training`: the benchmark's name.
        styles: `overlay`: styles of supervision's annotators, drawn in this order; none for the usual overlay.
    """

    categories: Categories
    images: bool | None = None
    split: str = "train"
    masks: MaskCode = "rle"
    run: Path | None = None
    root: Path | None = None
    benchmark: str | None = None
    styles: tuple[str, ...] = ()


@dataclass
class ExportSummary:
    """Counts of an export, and sentences about losses; `what` is the noun of `segments`."""

    clips: int = 0
    frames: int = 0
    segments: int = 0
    notes: list[str] = field(default_factory=list)
    what: str = "segment"


Writer = Callable[[Path, "Iterable[ExportItem]", ExportOptions], ExportSummary]


@dataclass(frozen=True)
class ExportFormat:
    """One export format.

    Attributes:
        name: its name.
        says: a description for the command line.
        writer: its function, as `module:function`.
        single: pattern of the one file that an output path with the same suffix stands for; None without one.
        codes: the values of `ExportOptions.masks` that it takes.
        reader: the function that reads corrections of its files, as `module:function`; None without one.
    """

    name: str
    says: str
    writer: str
    single: str | None = None
    codes: tuple[MaskCode, ...] = ("rle",)
    reader: str | None = None

    def load(self) -> Writer:
        """Import its writer."""
        module, _, name = self.writer.partition(":")
        found: Writer = getattr(import_module(module), name)
        return found


_HERE = "openavs.exports"
TRAINING = "avsbench-training"
OVERLAY = "overlay"
FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        form.name: form
        for form in (
            ExportFormat(
                "coco",
                "COCO JSON: run-length masks, boxes, scores, tracks",
                f"{_HERE}.coco:write",
                "annotations/*.json",
                ("rle", "counts", "polygons"),
                f"{_HERE}.coco:read",
            ),
            ExportFormat(
                "youtube-vis",
                "YouTube-VIS JSON: one mask per frame of every track (without tracks: of every category)",
                f"{_HERE}.youtube_vis:write",
                "youtube_vis.json",
                ("rle", "counts", "polygons"),
            ),
            ExportFormat(
                "cvat",
                "CVAT for video 1.1: per clip an XML file of masks, or tracks of polygons, on its sampled frames",
                f"{_HERE}.cvat:write",
                codes=("rle", "polygons"),
                reader=f"{_HERE}.cvat:read",
            ),
            ExportFormat(
                "label-studio",
                "Label Studio: brush masks and the times of sounds as predictions, with the labeling configuration",
                f"{_HERE}.label_studio:write",
                reader=f"{_HERE}.label_studio:read",
            ),
            ExportFormat(
                "fiftyone",
                "FiftyOne's dataset: videos, instance masks of frames, sounds as temporal detections",
                f"{_HERE}.fiftyone:write",
            ),
            ExportFormat("yolo-seg", "YOLO-seg: images, polygons and data.yaml (lossy)", f"{_HERE}.yolo:write"),
            ExportFormat("avsbench-object", "AVSBench's MS3 layout: binary masks", f"{_HERE}.avsbench:write_object"),
            ExportFormat(
                "avsbench-semantic",
                "AVSBench-semantic's layout: masks of class indices",
                f"{_HERE}.avsbench:write_semantic",
            ),
            ExportFormat(
                TRAINING,
                "AVSBench's tree for training on the masks of a label job, with the benchmark's masks for validation",
                f"{_HERE}.training_tree:write",
            ),
            ExportFormat(
                "timeline", "CSV: captions, prompts and segments over time", f"{_HERE}.csv:write", "timeline.csv"
            ),
            ExportFormat(OVERLAY, "mp4 with painted masks and the audio", f"{_HERE}.video:write_overlays"),
            ExportFormat(
                "cutout-webm", "sounding objects on a transparent background: VP9 + Opus", f"{_HERE}.video:write_webm"
            ),
            ExportFormat("cutout-mov", "the same for editors: ProRes 4444 + PCM", f"{_HERE}.video:write_mov"),
            ExportFormat("cutout-png", "the same as RGBA images and a wav", f"{_HERE}.video:write_pngs"),
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
    """Write results in a format. Items are read one at a time, so memory does not grow with their number.

    Args:
        name: the format.
        items: the results.
        out: a new folder; for a format of one file it may be that file. It is replaced when everything is written.
        options: the options.
        origin: recorded in `export.json`.
        overwrite: replace an earlier export.

    Raises:
        InputError: no such format, options that it lacks, nothing to export, or `out` names a file of another kind or
            exists (with `overwrite`: and is not an export).
    """
    from openavs.exports.base import Categories, filtered
    from openavs.utils.text import did_you_mean

    if name not in FORMATS:
        raise InputError(f"there is no export format {name!r}; {did_you_mean(name, FORMATS)}")
    form, chosen = FORMATS[name], options or ExportOptions(Categories())
    _refuse_other_suffix(out, form)
    if chosen.images and is_single_file(out, form):
        raise InputError(f"--images writes a folder, and {out} names a file; give --out a name without {out.suffix}")
    if chosen.masks not in form.codes:
        coded = ", ".join(other.name for other in FORMATS.values() if chosen.masks in other.codes)
        raise InputError(f"--masks {chosen.masks} is for {coded}; leave it out for {name}")
    if chosen.styles and name != OVERLAY:
        raise InputError(f"--style is for {OVERLAY}; leave it out for {name}")
    with atomic_export(out, form, overwrite) as target:
        summary = form.load()(target.folder, filtered(items, chosen.categories), chosen)
        if not summary.clips:
            raise InputError(f"there is no result to export as {name}; is {origin or 'the folder'} finished?")
        summary.notes += chosen.categories.notes()
        target.finish({"origin": origin, "clips": summary.clips, "frames": summary.frames, "notes": summary.notes})
    return summary


KIND = "openavs export"


@dataclass
class ExportDir:
    """The temporary folder of an export."""

    folder: Path
    form: ExportFormat
    _about: dict[str, Any] | None = None

    def finish(self, about: Mapping[str, Any]) -> None:
        """Mark the export as complete; without this call the output is not replaced."""
        self._about = {"kind": KIND, "format": self.form.name, "openavs": __version__, **about}

    @property
    def about(self) -> dict[str, Any] | None:
        """Content of `export.json`; None before the export is complete."""
        return self._about


@contextmanager
def atomic_export(out: Path, form: ExportFormat, overwrite: bool) -> Iterator[ExportDir]:
    """Yield a temporary folder that replaces `out` when the export is finished; after an error it is removed.

    Raises:
        InputError: `out` exists, unless `overwrite` is given and it is an earlier export (or, for one file, a file).
    """
    from openavs.results.serialization import json_bytes  # here, since the command line imports this module early

    one_file = is_single_file(out, form)
    _refuse(out, one_file, overwrite)
    making = out.with_name(f".{out.name}.part")
    shutil.rmtree(making, ignore_errors=True)  # leftovers of a killed export
    try:
        making.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"cannot make {out} ({error.strerror}); give another --out") from error
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
    """Return whether an output path stands for the single file of a format."""
    return form.single is not None and bool(out.suffix) and out.suffix == Path(form.single).suffix


_FILE_SUFFIXES = (".csv", ".json", ".mov", ".mp4", ".png", ".webm")


def _refuse_other_suffix(out: Path, form: ExportFormat) -> None:
    """Raise InputError for a name such as `x.json` where the format does not write that kind of file."""
    if out.suffix.lower() not in _FILE_SUFFIXES or is_single_file(out, form) or out.is_dir():
        return
    writes, fix = "a folder", f"{out.with_suffix('')}"
    if form.single is not None:
        suffix = Path(form.single).suffix
        writes, fix = f"a folder or one {suffix} file", f"{fix} or {out.with_suffix(suffix)}"
    raise InputError(f"{form.name} writes {writes}, and {out} names another file; give --out {fix}")


def _refuse(out: Path, one_file: bool, overwrite: bool) -> None:
    if not (out.exists() or out.is_symlink()) or (out.is_dir() and not one_file and not any(out.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{out} already exists; give another --out, or --overwrite to replace it")
    if one_file and out.is_file():
        return
    if out.is_symlink() or not (out / MARK).is_file():
        raise InputError(
            f"{out} is not an earlier export (it has no {MARK}), so it is not replaced; give another --out"
        )


def _swap(making: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(making, out)
    shutil.rmtree(old, ignore_errors=True)
