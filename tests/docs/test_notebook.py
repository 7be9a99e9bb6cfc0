"""The notebook runs from top to bottom, offline, and is kept without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

PATH = ROOT / "docs" / "notebooks" / "first-steps.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(PATH.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_kept_without_outputs() -> None:
    assert cells("code")
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))


def test_its_links_lead_somewhere() -> None:
    text = "".join(line for cell in cells("markdown") for line in cell["source"])
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert targets and all((PATH.parent / target).exists() for target in targets)


@pytest.mark.slow  # part of `make docs`
def test_it_runs_in_a_kernel(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: make docs brings it")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: make docs brings it")
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert "segments: dog" in text and "below threshold" in text and "bytes of COCO" in text
    assert any("<video" in page for page in pages)
    assert (tmp_path / "first-steps" / "out" / "clips" / "scene" / "result.json").is_file()
