"""YouTube-VIS annotations: run lengths, plain counts and polygons give equal masks; broken files are named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_ov import read_annotations
from openavs.structures.masks import mask_to_rle

MASK = np.zeros((6, 8), dtype=bool)
MASK[1:4, 2:7] = True
DOG, CAT = 17, 12


def compressed(mask: np.ndarray) -> dict[str, Any]:
    rle = mask_to_rle(mask)
    return {"size": list(rle.size), "counts": rle.counts}


def plain(mask: np.ndarray) -> dict[str, Any]:
    """Lengths of runs down the columns, background first."""
    flat = [False, *mask.T.ravel().tolist()]
    edges = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    return {"size": [*mask.shape], "counts": np.diff([1, *edges, len(flat)]).tolist()}


def annotations(*masks: Any, **changed: Any) -> dict[str, Any]:
    """One clip of as many frames, with a dog."""
    return {
        "videos": [
            {
                "id": 7,
                "width": 8,
                "height": 6,
                "length": len(masks),
                "file_names": [f"clip/{k}.jpg" for k in range(len(masks))],
            }
        ],
        "annotations": [{"id": 1, "video_id": 7, "category_id": 3, "segmentations": list(masks)}],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "cat"}],
        **changed,
    }


def written(tmp_path: Path, data: Any) -> Path:
    path = tmp_path / "ov.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(compressed(MASK), id="compressed"),
        pytest.param(plain(MASK), id="plain counts"),
        pytest.param([[2, 1, 7, 1, 7, 4, 2, 4]], id="polygon"),
        pytest.param([[2, 1, 5, 1, 5, 4, 2, 4], [5, 1, 7, 1, 7, 4, 5, 4]], id="two polygons"),
    ],
)
def test_masks_in_all_encodings(tmp_path: Path, code: Any) -> None:
    video = read_annotations(written(tmp_path, annotations(code, None)))["clip"]
    assert (video.size, video.length) == ((6, 8), 2)
    assert np.array_equal(video.label_map(0), MASK * DOG)
    assert not video.label_map(1).any()  # absent


def test_later_objects_cover_earlier_ones(tmp_path: Path) -> None:
    data = annotations(compressed(MASK))
    corner = np.zeros_like(MASK)
    corner[:2, :3] = True
    data["annotations"].append({"id": 2, "video_id": 7, "category_id": 4, "segmentations": [compressed(corner)]})
    labels = read_annotations(written(tmp_path, data))["clip"].label_map(0)
    assert np.array_equal(labels, np.where(corner, CAT, MASK * DOG))


def test_no_polygons_are_an_empty_mask(tmp_path: Path) -> None:
    assert not read_annotations(written(tmp_path, annotations([])))["clip"].label_map(0).any()


@pytest.mark.parametrize(
    "code",
    [
        {"size": [8, 6], "counts": compressed(MASK)["counts"]},
        {"size": [6, 8], "counts": mask_to_rle(np.ones((60, 80), bool)).counts},
        {"size": [6, 8], "counts": [3, 4]},
        {"size": [6, 8], "counts": [-1, 49]},
        [[0, 0, 1, 1]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [["a", 0, 1, 0, 1, 1]],
        "a text",
    ],
)
def test_a_broken_mask_is_named(tmp_path: Path, code: Any) -> None:
    video = read_annotations(written(tmp_path, annotations(None, code)))["clip"]
    with pytest.raises(InputError, match=r"ov\.json: the mask of 'clip' at frame 1 is neither"):
        video.label_map(1)


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(data: dict[str, Any]) -> None:
        *above, last = path.split(".")
        place: Any = data
        for key in above:
            place = place[int(key) if key.isdigit() else key]
        place[last] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (change("videos", None), "is not in the layout of YouTube-VIS"),
        (lambda data: data.pop("categories"), "is not in the layout of YouTube-VIS .*categories"),
        (change("annotations.0.category_id", 99), "is not in the layout of YouTube-VIS"),
        (change("annotations.0.video_id", 99), "is not in the layout of YouTube-VIS"),
        (change("annotations.0.segmentations", []), "'clip' has 1 frames but an annotation with 0"),
        (change("categories.1.name", "catt"), "'catt' is not a class of AVSBench-semantic; did you mean 'cat'"),
        (change("videos.0.file_names", ["../0.jpg"]), "are not in one folder named after their clip"),
        (change("videos.0.file_names", ["a/0.jpg", "b/1.jpg"]), "are not in one folder"),
        (change("videos.0.width", 10**8), "gives the clip 'clip' 100000000 x 6 pixels"),
        (lambda data: data["videos"].append(copy.copy(data["videos"][0]) | {"id": 8}), "lists the clip 'clip' twice"),
    ],
)
def test_a_file_in_another_layout_raises(tmp_path: Path, edit: Callable[[dict[str, Any]], None], says: str) -> None:
    data = annotations(compressed(MASK))
    edit(data)
    with pytest.raises(InputError, match=says):
        read_annotations(written(tmp_path, data))


def test_a_file_without_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "ov.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot read .*ov\.json as JSON"):
        read_annotations(tmp_path / "ov.json")
