"""Sources of the clips in a result folder, from its run.json and its manifest or predictions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from openavs.errors import InputError
from openavs.evaluation.datasets.avsbench_semantic import FRAMES
from openavs.structures.types import ClipResult
from openavs.utils.serialization import parse_json


@dataclass(frozen=True)
class ClipSources:
    """Sources of a result folder's clips.

    Attributes:
        root: folder from which relative sources start; None for the working directory.
        sounds: separate audio files by clip id.
        subsets: subset of AVSBench-semantic (v1s, v1m, v2) by uid.
    """

    root: Path | None
    sounds: Mapping[str, str]
    subsets: Mapping[str, str]

    def sound(self, clip: str) -> Path | None:
        """Return the separate audio file of a clip; None without one."""
        return (self.root or Path()) / self.sounds[clip] if clip in self.sounds else None

    def avsbench(self, result: ClipResult) -> tuple[str, str] | None:
        """Return the subset and uid of a clip of AVSBench-semantic or AVSBench-OV; None for other clips."""
        source = PurePath(result.source or "")  # .../<subset>/<uid>/frames or .../JPEGImages/<uid>
        uid = source.parent.name if source.name == "frames" else source.name
        return (self.subsets[uid], uid) if uid in self.subsets else None


def read_sources(run: Path, root: Path | None = None) -> ClipSources:
    """Read the sources of a result folder's clips; `root` replaces the one in run.json.

    Raises:
        InputError: run.json or the manifest is damaged.
    """
    recorded = _run_json(run, "root")
    if root is None and isinstance(recorded, str):
        root = Path(recorded)
    lines_path, predictions = run / "manifest.jsonl", run / "predictions"
    sounds: dict[str, str] = {}
    places = [path.relative_to(predictions).as_posix() for path in predictions.glob("*/*")]
    try:
        with lines_path.open("rb") if lines_path.is_file() else nullcontext(()) as lines:
            for line in map(parse_json, lines):
                places += line.get("places", ())[:1]
                if "audio" in line and "audio_slice" not in line:
                    sounds[line["id"]] = str(line["audio"])
        parts = [PurePath(place).parts for place in places]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise InputError(f"{lines_path} is damaged ({error}); give another result folder") from error
    return ClipSources(root, sounds, {own[1]: own[0] for own in parts if len(own) > 1 and own[0] in FRAMES})


def run_classes(run: Path) -> tuple[str, ...]:
    """Return the closed list of classes of a result folder; empty in open vocabulary or without run.json."""
    masks = _run_json(run, "masks") or {}
    classes = (masks.get("classes") if isinstance(masks, dict) else masks) or ()
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise InputError(f"{run / 'run.json'} has classes that are not texts; give another result folder")
    return tuple(classes)


def run_benchmark(run: Path) -> str | None:
    """Return the benchmark of a label job or an evaluation; None if the folder does not record it."""
    data = _run_json(run, "data")
    name = data.get("benchmark") if isinstance(data, dict) else None
    return name if isinstance(name, str) else None


def _run_json(run: Path, key: str) -> Any:
    return _read_json(run / "run.json", key)


def _read_json(path: Path, key: str) -> Any:
    try:
        return parse_json(path.read_bytes()).get(key) if path.is_file() else None
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} was not written by this openavs ({error}); give another result folder") from error
