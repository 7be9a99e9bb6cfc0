"""What the `tiny` models get wrong on the simplest scenes: one thing that sounds, alone in the picture.

    python eval/tiny_limits.py --scenes 4

For each of the world's kinds some held-out scenes of two frames, through the recipe `tiny` with every box kept. Prints
in how many frames the first caption is the thing's own sound, the scores of the boxes on what is there, the share of
frames over some thresholds, and the best scores for a thing that is not in the picture and for a word nobody knows.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from openavs.config.recipe import load_recipe
from openavs.pipeline.pipeline import Pipeline
from openavs.synthetic.categories import KINDS
from openavs.synthetic.datasets import scene_to_clip
from openavs.synthetic.scenes import Role, plan_scene, scene_rng

SEED = 77_000
THRESHOLDS = (0.16, 0.2, 0.25, 0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=4, help="scenes of each kind")
    options = parser.parse_args()
    pipe = Pipeline.from_recipe(load_recipe("tiny", ["filtering.box_threshold=0.0"]))
    heard: list[bool] = []
    present: list[float] = []
    absent: list[float] = []
    unknown: list[float] = []
    for number, kind in enumerate(KINDS):
        for index in range(options.scenes):
            rng = scene_rng("test", SEED, number, index)
            scene = plan_scene([Role(kind.name, (True, True))], rng, 2, (224, 224))
            for frame in pipe(scene_to_clip(scene, kind.name)).frames:
                best = max(frame.captions, key=lambda caption: caption.score or 0.0, default=None)
                heard.append(best is not None and best.text == kind.heard[0])
                present.append(max((s.score for s in frame.segments if s.phrase == kind.name), default=0.0))
            other = KINDS[(number + 7) % len(KINDS)].name
            absent.append(best_score(pipe, scene.picture(0.5)[0], other))
            unknown.append(best_score(pipe, scene.picture(0.5)[0], "teapot"))
    figures = {
        "frames": len(heard),
        "heard rightly": float(np.mean(heard)),
        "score of what is there (5th, 50th, 95th percentile)": percentiles(present),
        "found at a threshold of": {str(limit): float(np.mean(np.array(present) >= limit)) for limit in THRESHOLDS},
        "score of what is not there (5th, 50th, 95th)": percentiles(absent),
        "score of an unknown word (5th, 50th, 95th)": percentiles(unknown),
    }
    print(json.dumps(figures, indent=1))


def best_score(pipe: Pipeline, image: np.ndarray, phrase: str) -> float:
    """The score of the best box of a phrase that is asked for alone."""
    assert pipe.detector is not None
    return max((box.score for box in pipe.detector.detect([image], [[phrase]])[0]), default=0.0)


def percentiles(scores: list[float]) -> list[float]:
    return [round(float(score), 3) for score in np.percentile(scores, [5, 50, 95])]


if __name__ == "__main__":
    main()
