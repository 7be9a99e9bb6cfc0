"""Sentences for system errors that end a label job."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from openavs.cli.app import REFUSALS
from openavs.errors import InputError
from openavs.utils.durable import FATAL_ERRNOS

# What the system answers when another process has removed or replaced a file.
TAKEN = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}


def system_error(problem: OSError, out: Path) -> str:
    """The sentence for a system error that ended the job.

    Raises:
        InputError: the result folder is no longer there.
        OSError: `problem`, if its cause is not known.
    """
    if problem.errno in TAKEN and not (out / "plan.json").is_file():
        raise InputError(
            f"{out} was removed while the job ran, and its results are lost; remove what is left of it and run again"
        ) from problem
    path = str(problem.filename or "")
    name = path if os.path.isabs(path) else f"a file of {out}"
    own = name != path or Path(path).is_relative_to(out)
    if problem.errno in TAKEN and own:
        return (
            f"{name} was removed or replaced while the job ran ({problem.strerror}), by hand or by another job that "
            "the file system's locks did not keep out; run the same again to make it anew"
        )
    if problem.errno not in REFUSALS | FATAL_ERRNOS:
        raise problem
    verb = "read or written" if own else "read"
    return f"{name} cannot be {verb} ({problem.strerror}); make room or change its permissions, then run it again"
