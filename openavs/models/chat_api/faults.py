"""Faults of a chat model: unusable answers, and temporary faults of a server."""

from __future__ import annotations

# A model reads these reasons when it is requested to correct its answer, so a change of words can change its answers.
EMPTY = "the answer is empty"
REFUSED = "the model refused to answer"
TOO_LONG = "the question is longer than the model's context"
NO_PICTURES = "the server does not take the picture"


class ParseError(Exception):
    """An unusable answer; `reason` is a short clause such as "the answer is empty".

    `final` means that a repetition would fail, too; `transient` that the cause is temporary, such as a server outage.
    """

    def __init__(self, reason: str, *, final: bool = False, transient: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final, self.transient = reason, final, transient


class TransientError(Exception):
    """A temporary fault; `wait` is the number of seconds that the server requests to wait, None if unspecified."""

    def __init__(self, reason: str, wait: float | None = None, *, retry: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.retry = reason, wait, retry
