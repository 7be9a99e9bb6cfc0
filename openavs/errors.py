"""The errors that a user can cause or repair."""

from __future__ import annotations


class OpenAVSError(Exception):
    """Something the user can mend: its message is one sentence that says what is wrong and how to fix it."""


class InputError(OpenAVSError):
    """The given file, folder, recipe or value cannot be used."""


class InvalidOutputError(InputError):
    """A model answered with something that is no answer, such as NaN."""


class OutOfMemoryError(InputError):
    """Memory does not even hold the smallest batch."""


class ModelError(OpenAVSError):
    """A model cannot be had or loaded: absent, incomplete, gated, unsafe or of another kind."""
