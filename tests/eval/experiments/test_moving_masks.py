"""Moving masks on the synthetic world: better than masks that stand still."""

from __future__ import annotations

import numpy as np

from eval.experiments.moving_masks import score, swinging_scene


def test_moving_masks_follow_the_objects_of_the_synthetic_world() -> None:
    scores = [score(swinging_scene(71, index, 3.0)) for index in (1,)]
    means = {how: float(np.mean([iou for own in scores for iou in own[how]])) for how in ("still", "moving")}
    assert means["moving"] > 0.85 > means["still"]
