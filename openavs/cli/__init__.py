"""Command line: one file per command, with a function of the same name."""

from __future__ import annotations

from openavs.cli.app import app, main

__all__ = ["app", "main"]
