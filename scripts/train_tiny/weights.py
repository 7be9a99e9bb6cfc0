"""How the tiny models are stored: in half precision, which halves the package and changes no answer that matters."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any


def save_half(model: Any, folder: Path) -> None:
    """Saves a float16 copy; whoever loads it says the precision to compute in (ours is float32 on a CPU)."""
    copy.deepcopy(model).half().save_pretrained(folder)
