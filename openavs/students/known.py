"""Which students there are, by name; and any of them from its folder."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from openavs.plugins import is_file_reference, load_file_class
from openavs.spelling import nearest
from openavs.students.base import Student, load_folder
from openavs.students.folders import read_student
from openavs.types import InputError

BUILT_IN = {
    "tpavi": "openavs.students.tpavi:Tpavi",
    "ov-avss": "openavs.students.ov_avss:OvAvss",
}


def student_class(name: str) -> type[Student]:
    """The class behind `tpavi`, `ov-avss`, an installed plug-in (entry points `openavs.students`) or `./file.py:Class`.

    Raises:
        InputError: there is no such student (the nearest is named), or the class is none.
    """
    plugins = {point.name: point for point in entry_points(group="openavs.students")}
    if is_file_reference(name):
        found: Any = load_file_class(name)
    elif name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif name in plugins:
        found = plugins[name].load()
    else:
        raise InputError(f"there is no student {name!r}; {nearest(name, [*BUILT_IN, *plugins])}")
    if not (isinstance(found, type) and issubclass(found, Student)):
        raise InputError(f"{name!r} is no student: its class must derive from openavs.students.base.Student")
    return found


def load_student(ref: str, offline: bool = False, cls: type[Student] | None = None) -> Student:
    """Any student from its folder or `hf:org/name`, in evaluation mode.

    `cls` is for a class of your own that is not installed as a plug-in: a folder never says which code to run.

    Raises:
        ModelError, InputError: see `Student.from_pretrained` and `student_class`.
    """
    folder = read_student(ref, offline)
    return load_folder(cls or student_class(folder.student), folder, offline)
