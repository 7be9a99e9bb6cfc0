"""Errors that a user can cause or fix."""

from __future__ import annotations


class OpenAVSError(Exception):
    """An error that the user can fix: its message is one sentence with the fault and the fix."""


class InputError(OpenAVSError):
    """The given file, folder, recipe or value cannot be used."""


class InvalidOutputError(InputError):
    """A model returned an invalid output, such as NaN."""


class OutOfMemoryError(InputError):
    """A single item does not fit into memory."""


class ModelError(OpenAVSError):
    """A model cannot be downloaded or loaded: absent, incomplete, gated, unsafe or of another kind."""


class StoreError(OpenAVSError):
    """An object store cannot be reached, also after some attempts."""
