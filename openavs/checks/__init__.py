"""What `openavs check` finds out about a machine; nothing here asks the network or loads a model."""

from __future__ import annotations

from openavs.checks.diagnosis import Diagnosis, diagnose
from openavs.checks.finding import Finding, State

__all__ = ["Diagnosis", "Finding", "State", "diagnose"]
