"""The command line: one file per command, each exposing a function of the command's name."""

from __future__ import annotations

from openavs.cli.app import app, main

__all__ = ["app", "main"]
