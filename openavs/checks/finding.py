"""One thing that was looked at: how it stands, in a sentence, and what to do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["ok", "absent", "warning", "problem"]


@dataclass(frozen=True)
class CheckResult:
    """How one thing stands.

    Attributes:
        topic: what was looked at, such as `torch` or `disk`.
        state: `ok`; `absent` (not here, and nothing is wrong with that); `warning` (works, but less well than it
            could, or is broken and not needed for what was asked); `problem` (what was asked for cannot run).
        says: one sentence.
        fix: a command or a sentence that mends it; empty where there is nothing to mend.
        facts: what the sentence is made from, as plain data.
    """

    topic: str
    state: State
    says: str
    fix: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: the four fields and the facts beside them."""
        return {"topic": self.topic, "state": self.state, "says": self.says, "fix": self.fix, **self.facts}

    def unasked(self) -> CheckResult:
        """The same of something nobody asked for: it cannot be a problem."""
        return replace(self, state="absent") if self.state == "problem" else self
