"""Compares students with their teacher on synthetic data sets, over several seeds: mean and standard deviation.

    python eval/experiments/self_training.py --out runs/self-training --json
    python eval/experiments/self_training.py --out runs/self-training --layouts s4 --seeds 1

For each seed a data set is written (scenes of different seeds and splits are disjoint), `tiny` labels the training
clips without their masks, a student is trained on these labels, and the same student with the same seed on the ground
truth. Teacher and students are scored on the test split (official protocol).

- `s4`: one mask per clip, that of the first frame, as in the release.
- `ms3`: the student starts from that of the same seed on `s4` with the same kind of labels, as the published ones do.
  Without `s4` it starts as its recipe specifies. `constant masks` is an upper bound for predictions of the same objects
  in all frames of a clip.
- `ov`: OV-AVSS is trained on the ground truth of base classes and classifies with `--clip` (`openavs:tiny/clip`). It is
  scored on all classes, beside itself with the vocabulary of base classes (closed set) and beside `tiny` without
  training.

An interrupted run can be repeated: it resumes.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import logging
import sys
import time
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import numpy.typing as npt

from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.tables import BASE, CLASSES
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.predictor import Predictor
from openavs.pipeline.context import Progress
from openavs.synthetic.datasets import FRAME_TIME, write_layout
from openavs.synthetic.scenes import sample_scene
from openavs.training.config import TrainingRecipe, load_training_recipe
from openavs.training.inference import StudentPipeline
from openavs.training.self_training import SelfTrainingConfig, Splits, self_train, train_and_score


def main() -> None:
    """Run all layouts and seeds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data sets, labels, students and evaluations")
    parser.add_argument("--layouts", nargs="+", default=["s4", "ms3"], choices=["s4", "ms3", "ov"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--student", default="tpavi", choices=["tpavi", "ov-avss"], help="of s4 and ms3")
    parser.add_argument("--train", type=int, help="training clips; default 600 of s4, 200 of ms3, 150 of ov")
    parser.add_argument("--clips", type=int, default=60, help="test clips")
    parser.add_argument("--clip", metavar="REF", default="openavs:tiny/clip", help="the classifier of ov")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the training recipe")
    parser.add_argument("--no-truth", action="store_true", help="skip the student trained on the ground truth")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    figures: dict[str, dict[int, dict[str, Any]]] = {}
    for layout in options.layouts:
        for seed in options.seeds:
            run = open_vocabulary if layout == "ov" else with_pseudo_labels
            figures.setdefault(layout, {})[seed] = run(layout, seed, options)
    means = {layout: mean_and_deviation(seeds) for layout, seeds in figures.items()}
    if options.json:
        print(json.dumps({"seeds": options.seeds, "figures": figures, "means": means}, indent=2))
    else:
        for layout, table in means.items():
            print(layout, *(f"{name}: {text}" for name, text in table.items()), sep="\n  ")


def open_splits(layout: str, seed: int, options: argparse.Namespace) -> tuple[Path, Splits]:
    """Return the folder and the data set of a seed, which is written if it is missing."""
    folder: Path = options.out / f"{layout}-{seed}"
    root = folder / "data"
    if not root.exists():
        count = options.train or {"s4": 600, "ms3": 200, "ov": 150}[layout]
        part = folder / "data.part"
        write_layout(layout, part, {"train": count, "val": 30, "test": options.clips}, seed)
        part.rename(root)
    return folder, Splits(
        load_benchmark(layout), *(open_dataset(layout, root, split) for split in ("train", "val", "test"))
    )


def training_recipe(student: str, seed: int, options: argparse.Namespace, *more: str) -> TrainingRecipe:
    """Load the training recipe of a student with the overrides of the command line."""
    return load_training_recipe(f"{student}-tiny", [f"seed={seed}", *more, *options.set])


def with_pseudo_labels(layout: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Score the teacher, the student on its labels, and the student on the ground truth."""
    folder, splits = open_splits(layout, seed, options)
    folder /= options.student
    before = options.out / f"s4-{seed}" / options.student
    starts: dict[str, list[str]] = {"labels": [], "truth": []}
    if layout == "ms3" and before.exists():
        starts = {
            "labels": [f"init={{student: {before / 'round-1' / 'student'}}}"],
            "truth": [f"init={{student: {before / 'truth'}}}"],
        }
    started, tiny = time.process_time(), load_recipe("tiny")
    recipe = training_recipe(options.student, seed, options, *starts["labels"])
    report = self_train(
        recipe, tiny, splits, folder, SelfTrainingConfig(), device="cpu", progress=progress_printer(layout, seed)
    )
    figures = {"teacher": report["figures"]["teacher"], "student": report["figures"]["round 1"]}
    if not options.no_truth:
        recipe = training_recipe(options.student, seed, options, *starts["truth"])
        places = folder / "truth", folder / "truth-test"
        figures["on truth"] = train_and_score(recipe, splits, *places, None, "cpu", progress_printer(layout, seed))
    if layout == "ms3":
        figures["constant masks"] = {"miou": constant_masks_miou(seed, options.clips)}
    return figures | {"cpu_s": round(time.process_time() - started)}


def constant_masks_miou(seed: int, clips: int) -> float:
    """Return the mIoU of the true masks of the same objects in all frames, for the best choice of objects per clip."""
    best = []
    for index in range(clips):
        scene = sample_scene("ms3", "test", seed, index).scene
        times = [second + FRAME_TIME for second in range(scene.seconds)]
        owners = np.stack([scene.picture(at)[1] for at in times])
        empty = np.zeros(scene.size, dtype=bool)
        true = np.stack([np.logical_or.reduce([empty, *scene.truth(at).values()]) for at in times])
        visible = [i for i, actor in enumerate(scene.actors, start=1) if actor.visible]
        choices = [chosen for count in range(len(visible) + 1) for chosen in combinations(visible, count)]
        best.append(max(mean_iou(np.isin(owners, chosen), true) for chosen in choices))
    return float(np.mean(best))


def mean_iou(predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float:
    """Return the mean IoU of masks `[T, H, W]`; 1 for two empty ones."""
    intersection, union = (predicted & true).sum(axis=(1, 2)), (predicted | true).sum(axis=(1, 2))
    return float(np.where(union > 0, intersection / np.maximum(union, 1), 1.0).mean())


def open_vocabulary(layout: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Score OV-AVSS trained on base classes, open and closed, and the training-free pipeline."""
    folder, splits = open_splits(layout, seed, options)
    started = time.process_time()
    recipe = training_recipe("ov-avss", seed, options, f"model.clip={options.clip}")
    student, progress = folder / "student", progress_printer(layout, seed)
    figures = {"student": train_and_score(recipe, splits, student, folder / "test", None, "cpu", progress)}
    own = load_recipe(f"student:{student}", ["device=cpu"])
    closed = recipe_from_dict({**own.to_dict(), "vocabulary": [CLASSES[index] for index in BASE]})
    predictor = Predictor(closed.to_dict(), lambda: StudentPipeline.from_recipe(closed), splits.test.classes)
    figures["closed set"] = score(predictor, splits, folder / "closed")
    tiny = recipe_predictor(load_recipe("tiny"), splits.test, splits.benchmark)
    figures["zero-shot tiny"] = score(tiny, splits, folder / "tiny")
    return figures | {"cpu_s": round(time.process_time() - started)}


def score(predictor: Predictor, splits: Splits, out: Path) -> dict[str, Any]:
    """Evaluate a predictor on the test split.

    Raises:
        SystemExit: a clip failed.
    """
    evaluation = evaluate(predictor, splits.test, out)
    if evaluation.report is None:
        raise SystemExit(f"{len(evaluation.failed)} clips failed: {evaluation.failed}")
    return dict(evaluation.report["figures"]["official"])


def progress_printer(layout: str, seed: int) -> Progress:
    """Return a callback that prints progress on stderr, at most every 30 seconds per stage."""
    last: dict[str, float] = {}

    def update(stage: str, done: int, total: int) -> None:
        if time.monotonic() - last.get(stage, 0.0) > 30 or done == total:
            last[stage] = time.monotonic()
            print(f"{layout} {seed}: {stage} {done} of {total}", file=sys.stderr, flush=True)

    return update


def mean_and_deviation(seeds: dict[int, dict[str, Any]]) -> dict[str, str]:
    """Format mean and standard deviation over the seeds, in percent."""
    table = {}
    for name in next(iter(seeds.values())):
        if name == "cpu_s":
            continue
        for figure in next(iter(seeds.values()))[name]:
            values = [100 * own[name][figure] for own in seeds.values() if own[name][figure] is not None]
            if values:
                deviation = f" +- {stdev(values):.1f}" if len(values) > 1 else ""
                table[f"{name} {figure}"] = f"{mean(values):.1f}{deviation}"
    return table


if __name__ == "__main__":
    main()
