"""Checks of `openavs check`, and their result. Only `downloads` accesses the network, only `trial` loads models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["ok", "absent", "warning", "problem"]


@dataclass(frozen=True)
class CheckResult:
    """Result of one check.

    Attributes:
        topic: the thing that was checked, such as `torch` or `disk`.
        state: `ok`; `absent` (not installed or not downloaded, which is not an error); `warning` (works, but not as
            well as it could, or is broken but not required); `problem` (the recipe cannot run).
        message: one sentence.
        fix: a command or a sentence; empty if there is nothing to fix.
        facts: the data behind the message, JSON-serializable.
    """

    topic: str
    state: State
    message: str
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the four fields and the facts in one dictionary."""
        return {"topic": self.topic, "state": self.state, "message": self.message, "fix": self.fix, **self.facts}

    def as_optional(self) -> CheckResult:
        """Return the result for something that is not required: a problem becomes `absent`."""
        return replace(self, state="absent") if self.state == "problem" else self
