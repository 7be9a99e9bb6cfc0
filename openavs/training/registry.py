"""Students by name, and loading them from their folders."""

from __future__ import annotations

from typing import Any

from openavs.errors import InputError
from openavs.training.base import Student, load_folder
from openavs.training.io import find_installed, read_student
from openavs.utils.plugins import is_file_reference, load_file_class


def student_class(name: str) -> type[Student]:
    """Return the class of a student: an installed name, or `./file.py:Class`, which is executed.

    Raises:
        InputError: no such student (the nearest is suggested), or the class is not one.
    """
    return _checked(name, load_file_class(name)) if is_file_reference(name) else installed_class(name)


def installed_class(name: str) -> type[Student]:
    """Return the class of `tpavi`, `ov-avss` or an installed plug-in (entry points `openavs.training`).

    Raises:
        InputError: no such student (the nearest is suggested), or the class is not one.
    """
    return _checked(name, find_installed(name).load())


def load_student(ref: str, offline: bool = False, cls: type[Student] | None = None) -> Student:
    """Load any student from its folder or `hf:org/name`, in evaluation mode.

    Args:
        ref: the folder or hub reference. Its config.json names an installed student and never a file.
        offline: use only files on this disk.
        cls: the class to use, for one that is not installed.

    Raises:
        ModelError, InputError: see `Student.from_pretrained` and `installed_class`.
    """
    folder = read_student(ref, offline)
    return load_folder(cls or installed_class(folder.student), folder, offline)


def _checked(name: str, found: Any) -> type[Student]:
    if not (isinstance(found, type) and issubclass(found, Student)):
        raise InputError(f"{name!r} is not a student: its class must derive from openavs.training.base.Student")
    return found
