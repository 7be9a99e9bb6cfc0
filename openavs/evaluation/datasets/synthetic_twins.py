"""Layout `twins` of the synthetic world: two or three of one kind in view, one of which sounds.

Clips have one frame a second, taken in the middle of the second, an instance map for each, and the seconds in which
each instance sounds. Frames are numbered from 0, instances from 1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_object import read_prediction
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset, Instances, LazyClips, Masks
from openavs.evaluation.datasets.mask_io import read_index, read_stack
from openavs.evaluation.datasets.tables import (
    TableRow,
    check_present,
    existing_file,
    find_home,
    in_split,
    listing,
    read_clip_table,
)
from openavs.utils.serialization import parse_json

TABLE = "clips.csv"
COLUMNS = {"name": 0, "split": 1, "camera": 2, "off_screen": 3, "kind": 4}
OFF_SCREEN = "off-screen"


def read_twins(root: Path, split: str = "test") -> Dataset:
    """Read a split; `root` or its `twins/` has `clips.csv`, `frames/`, `instances/`, `audio/`, `videos/`, `scenes/`.

    A clip's group is its camera, `static` or `shaking`, or `off-screen` if the source is outside the frame.

    Raises:
        InputError: missing files, tables or names that do not match the layout, or an empty split.
    """
    home = find_home(root, TABLE, ("twins",))
    rows = in_split(home / TABLE, read_clip_table(home / TABLE, COLUMNS, "name"), split)
    check_present(split, home / TABLE, [(home / "instances", row["name"]) for row in rows])
    clips = LazyClips(rows, partial(_clip, home))
    return Dataset("twins", "binary", home, split, clips, read_truth, read_prediction, read_instances=read_instances)


def _clip(home: Path, row: TableRow) -> BenchmarkClip:
    name = row["name"]
    count = sum(file.endswith(".png") for file in listing(home / "instances" / name))
    if not count:
        raise InputError(f"{home / 'instances' / name} has no instance maps (0.png, 1.png, ...)")
    files = [f"{name}/{k}.png" for k in range(count)]
    return BenchmarkClip(
        id=name,
        split=row["split"],
        frames=tuple(home / "frames" / file for file in files),
        audio=home / "audio" / f"{name}.wav",
        truth=tuple(home / "instances" / file for file in files),
        predictions=tuple(files),
        classes=(row["kind"],),
        group=OFF_SCREEN if row["off_screen"] == "yes" else row["camera"],
        video=existing_file(home / "videos" / f"{name}.mp4"),
    )


def read_truth(clip: BenchmarkClip) -> Masks:
    """Return the union of the instances that sound at each frame, bool `[T, H, W]`."""
    held = read_instances(clip)
    numbers = np.arange(1, held.sounding.shape[1] + 1)
    return np.stack([np.isin(m, numbers[on]) for m, on in zip(held.maps, held.sounding, strict=True)])


def read_instances(clip: BenchmarkClip) -> Instances:
    """Read a clip's instance maps, and what its scene file states about them.

    Raises:
        InputError: files that are missing or damaged, or a map with an instance that the scene file lacks.
    """
    paths = [path for path in clip.truth if path is not None]
    scene = _scene_path(paths[0], clip.id)
    listed = _read_scene(scene, clip.classes)
    maps = read_stack(paths, read_index, "map")
    if maps.max() > len(listed):
        raise InputError(f"{paths[0].parent} has the instance {maps.max()}; {scene} lists {len(listed)}")
    sounding = np.array([[k in seconds for _, seconds in listed] for k in clip.annotated], dtype=np.bool_)
    return Instances(maps.astype(np.uint8), np.array([twin for twin, _ in listed], dtype=np.bool_), sounding)


def _scene_path(first_map: Path, name: str) -> Path:
    return first_map.parent.parent.parent / "scenes" / f"{name}.json"


def _read_scene(path: Path, kinds: tuple[str, ...]) -> list[tuple[bool, frozenset[int]]]:
    """Return for each instance whether it is a visible one of `kinds`, and its sounding seconds."""
    try:
        listed = parse_json(path.read_bytes())["instances"]
        numbers = [entry["instance"] for entry in listed]
        found = [(bool(e["visible"]) and e["kind"] in kinds, frozenset(map(int, e["sounding"]))) for e in listed]
    except OSError as error:
        raise InputError(f"cannot read the scene file {path}: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path} is not a scene file of the layout twins ({error!s:.100}); write it again") from error
    if numbers != list(range(1, len(numbers) + 1)):
        raise InputError(f"{path} lists the instances {numbers}; they are numbered from 1 in order")
    return found
