"""Log records as safe text: messages contain file names and captions, which may contain terminal escapes."""

from __future__ import annotations

import logging

from openavs.utils.text import printable


class SafeFormatter(logging.Formatter):
    """Escapes control characters in the formatted record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record without control characters."""
        return printable(super().format(record))


class TerminalFormatter(SafeFormatter):
    """`openavs: message` for warnings and errors of openavs; other records name their logger instead."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message with its prefix."""
        own = record.name.startswith("openavs.") and record.levelno >= logging.WARNING
        return f"{'openavs' if own else record.name}: {record.message}"
