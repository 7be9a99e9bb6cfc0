"""The place an export is written to: a hidden folder beside it that takes its place when all is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openavs import __version__
from openavs.errors import InputError
from openavs.exports.registry import MARK, ExportFormat
from openavs.results.serialization import json_bytes

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
