"""Checks of `openavs check`. Only `downloads` accesses the network and only `trial` loads models."""

from __future__ import annotations

from openavs.checks.diagnosis import Diagnosis, diagnose
from openavs.checks.finding import CheckResult, State

__all__ = ["CheckResult", "Diagnosis", "State", "diagnose"]
