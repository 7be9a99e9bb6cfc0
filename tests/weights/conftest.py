"""Finds checkpoints and input files, or skips with a reason.

A checkpoint is looked for in the folder that `OPENAVS_WEIGHTS` names (`<folder>/<repository name>`), then in the hub's
cache; nothing is downloaded. `OPENAVS_WEIGHTS_DEVICE` is the device (default cpu). Input files are named by one
environment variable each, which the reason of a skip states.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openavs.models.catalog import find_weights
from openavs.models.hub import split_reference

Find = Callable[[str], dict[str, Any]]
Given = Callable[[str, str], Path]


def find_checkpoint(reference: str, folder: str | None) -> str | None:
    """The reference, or the local folder of the same model, if it can be loaded offline; None otherwise."""
    if folder:
        local = Path(folder).expanduser() / split_reference(reference)[0].rpartition("/")[2]
        if local.is_dir():
            return str(local)
    return reference if find_weights(reference).available else None


@pytest.fixture(scope="session")
def checkpoint() -> Find:
    """The arguments `model`, `device`, `dtype` and `offline` of an adapter for a reference; skips without weights."""

    def find(reference: str) -> dict[str, Any]:
        found = find_checkpoint(reference, os.environ.get("OPENAVS_WEIGHTS"))
        if found is None:
            pytest.skip(f"{reference} is neither in the hub's cache nor in the folder OPENAVS_WEIGHTS")
        device = os.environ.get("OPENAVS_WEIGHTS_DEVICE", "cpu")
        return {"model": found, "device": device, "dtype": "float32", "offline": True}

    return find


@pytest.fixture(scope="session")
def given() -> Given:
    """The path in an environment variable; skips if it is not set."""

    def path(variable: str, what: str) -> Path:
        value = os.environ.get(variable)
        if not value:
            pytest.skip(f"set {variable} to {what}")
        return Path(value)

    return path
