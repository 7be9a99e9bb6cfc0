"""Runs adapters and the `tiny` pipeline on the simulated device and prints their operations as JSON.

    python -m tests.gpu.simulated_run GUARD FOLDER DTYPE [NAME ...]

For each: the output on the CPU and on the device in this dtype, and counts of copies and synchronizations by line.
The second of two runs is counted, so that one-time operations are not.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu.simulated import COUNTS, KINDS, simulate_cuda, without_inference_mode

_SECONDS = 5  # of the scene, at one frame a second


def main(guard: Path, folder: Path, dtype: str, names: list[str]) -> None:
    """Print one JSON object: {name: {answer, device_answer, items, counts, lines}}."""
    without_inference_mode()
    from tests.gpu.adapters import ADAPTERS, answers

    chosen = names or [*ADAPTERS, "pipeline"]
    adapters = [name for name in chosen if name in ADAPTERS]
    folders = {name: ADAPTERS[name].make(folder / name) for name in adapters}
    found: dict[str, dict[str, Any]] = {
        name: {"answer": answer, "items": ADAPTERS[name].items}
        for name, answer in answers(adapters, folders, "cpu", "float32").items()
    }
    images = {
        name: _images(ADAPTERS[name].load(folders[name], "cpu", "float32")) for name in adapters if "dino" in name
    }
    clip = _clip() if "pipeline" in chosen else None
    if clip is not None:
        found["pipeline"] = {"answer": _masks(_pipeline("cpu", "float32")(clip())), "items": _SECONDS}
    simulate_cuda(guard)
    for name in adapters:
        started = time.perf_counter()
        backend = ADAPTERS[name].load(folders[name], "cuda", dtype)
        found[name] |= _counted(lambda name=name, backend=backend: ADAPTERS[name].ask(backend))  # type: ignore[misc]
        found[name]["seconds"] = round(time.perf_counter() - started, 2)
        if name in images:
            found[name]["same_images"] = bool((_images(backend) == images[name]).all())
    if clip is not None:
        pipeline = _pipeline("cuda", dtype)
        found["pipeline"]["batch_sizes"] = [pipeline.detector.batch_size, pipeline.segmenter.batch_size]
        found["pipeline"] |= _counted(lambda: _masks(pipeline(clip())))
    print(json.dumps(found))


def _counted(ask: Callable[[], Any]) -> dict[str, Any]:
    ask()
    COUNTS.clear()
    answer = ask()
    totals = {kind: sum(number for (other, _), number in COUNTS.items() if other == kind) for kind in KINDS}
    lines = {f"{kind} {line}": number for (kind, line), number in COUNTS.most_common()}
    return {"device_answer": answer, "counts": totals, "lines": lines}


def _images(detector: Any) -> Any:
    """Return the pixels that a Grounding DINO receives, on the CPU."""
    from tests.gpu.adapters import pictures

    images = pictures()
    return detector._prepare(images, [detector._resize_policy(image) for image in images]).cpu()


def _clip() -> Callable[[], Any]:
    """Return a scene of the synthetic world: two objects that sound at every second."""
    from openavs.synthetic.datasets import scene_to_clip
    from openavs.synthetic.scenes import Role, plan_scene, scene_rng

    sounding = (True,) * _SECONDS
    scene = plan_scene([Role("dog", sounding), Role("bell", sounding)], scene_rng("test", 77, 5), _SECONDS)
    return lambda: scene_to_clip(scene, "simulated")


def _pipeline(device: str, dtype: str) -> Any:
    from openavs.config.recipe import load_recipe
    from openavs.pipeline.pipeline import Pipeline

    return Pipeline.from_recipe(load_recipe("tiny", [f"device={device}", f"dtype={dtype}"]))


def _masks(result: Any) -> list[list[Any]]:
    from openavs.structures.masks import rle_to_mask

    return [
        [segment.phrase, segment.score, float(rle_to_mask(segment.mask).mean())]
        for frame in result.frames
        for segment in frame.segments
    ]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
