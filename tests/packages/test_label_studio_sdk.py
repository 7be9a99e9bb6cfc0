"""Brush masks of Label Studio, decoded and encoded by its own package."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("label_studio_sdk")

from label_studio_sdk.converter import brush

from openavs.exports.base import run_items
from openavs.exports.label_studio import decode_brush
from openavs.exports.registry import export
from openavs.results.serialization import read_result
from openavs.structures.masks import rle_to_mask
from tests.exports.conftest import run  # noqa: F401 - a fixture


def test_every_exported_mask_is_decoded_exactly(run: Path, tmp_path: Path) -> None:  # noqa: F811
    export("label-studio", run_items(run), tmp_path / "studio")
    for task in json.loads((tmp_path / "studio" / "tasks.json").read_text()):
        regions = [own for own in task["predictions"][0]["result"] if own["type"] == "brushlabels"]
        layers = brush.decode_from_annotation(
            "frames-labels", [{**own, **own["value"], "type": "BrushLabels"} for own in regions]
        )
        frames = read_result(run, task["data"]["clip"]).frames
        segments = [segment for frame in frames for segment in frame.segments]
        assert len(layers) == len(segments) == len(regions)
        seen: dict[str, int] = {}
        for segment in segments:
            number = seen[segment.phrase] = seen.get(segment.phrase, -1) + 1
            alpha = layers[f"frames-labels-{segment.phrase}-{number}"]
            assert np.array_equal(alpha, 255 * rle_to_mask(segment.mask).astype(np.uint8))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_its_codes_are_read(share: float) -> None:
    mask = np.random.default_rng(0).random((37, 53)) < share
    code = brush.mask2rle(255 * mask.astype(np.uint8))
    assert np.array_equal(decode_brush(code, mask.shape, "it"), mask)
