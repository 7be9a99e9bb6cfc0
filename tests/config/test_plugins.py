"""Plug-in files as they come: also through links."""

from __future__ import annotations

from pathlib import Path

import pytest

from openavs.errors import InputError
from openavs.utils.plugins import load_file_class


def test_a_link_to_another_kind_of_file_is_one_sentence(tmp_path: Path) -> None:
    """Content-addressed stores make such links; Python looks at the name of the target."""
    (tmp_path / "0a1b2c").write_text("class Ear: ...\n")
    (tmp_path / "stages.py").symlink_to(tmp_path / "0a1b2c")
    with pytest.raises(InputError, match=r"0a1b2c is not a Python file that can be loaded$"):
        load_file_class("./stages.py:Ear", tmp_path)
