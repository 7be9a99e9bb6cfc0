"""Do students learn more from a teacher than it knows? The synthetic world, several seeds, mean and spread.

    python eval/experiments/self_training.py --out runs/self-training --json
    python eval/experiments/self_training.py --out runs/self-training --layouts s4 --seeds 1

Per seed a data set of its own is written (scenes of different seeds and splits never meet), `tiny` labels the training
clips, whose masks nothing looks at, a student learns from the labels, and the same student with the same seed from the
ground truth; teacher and students are scored on the test split (official protocol).

- `s4`: one mask a clip, that of the first frame, as in the release.
- `ms3`: the student starts from the one of the seed's `s4`, as the published ones do; pseudo-labelled from
  pseudo-labelled, ground truth from ground truth. Without `s4` it starts as its recipe says.
- `ov`: OV-AVSS learns from the ground truth of base kinds and names by `--clip`, which is `openavs:tiny/clip`; scored
  on all kinds, beside itself with the base names alone to choose from (closed set) and beside `tiny` without any
  training.

Running the same again goes on where it stopped.
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

from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.classes import BASE, CLASSES
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.predictor import Predictor
from openavs.synthetic.datasets import FRAME_TIME, write_layout
from openavs.synthetic.scene_sampling import sample_scene
from openavs.training.config import TrainingRecipe, load_training_recipe
from openavs.training.inference import StudentPipeline
from openavs.training.self_training import SelfTrainingConfig, Splits, self_train, train_and_score


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data sets, labels, students and evaluations")
    parser.add_argument("--layouts", nargs="+", default=["s4", "ms3"], choices=["s4", "ms3", "ov"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--student", default="tpavi", choices=["tpavi", "ov-avss"], help="of s4 and ms3")
    parser.add_argument("--train", type=int, help="training clips; default 600 of s4, 200 of ms3, 150 of ov")
    parser.add_argument("--clips", type=int, default=60, help="test clips")
    parser.add_argument("--clip", metavar="REF", default="openavs:tiny/clip", help="what names the masks of ov")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the training recipe")
    parser.add_argument("--no-truth", action="store_true", help="leave out the student on the ground truth")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    figures: dict[str, dict[int, dict[str, Any]]] = {}
    for layout in options.layouts:
        for seed in options.seeds:
            run = open_vocabulary if layout == "ov" else with_pseudo_labels
            figures.setdefault(layout, {})[seed] = run(layout, seed, options)
    answer = {"seeds": options.seeds, "figures": figures, "means": {name: spread(all) for name, all in figures.items()}}
    if options.json:
        print(json.dumps(answer, indent=2))
    else:
        for layout, table in answer["means"].items():
            print(layout, *(f"{name}: {text}" for name, text in table.items()), sep="\n  ")
    return 0


def splits_of(layout: str, seed: int, options: argparse.Namespace) -> tuple[Path, Splits]:
    """The seed's data set, written if it is not there, and the folder for what is made from it."""
    folder: Path = options.out / f"{layout}-{seed}"
    root = folder / "data"
    if not root.exists():
        count = options.train or {"s4": 600, "ms3": 200, "ov": 150}[layout]
        part = folder / "data.part"
        write_layout(layout, part, {"train": count, "val": 30, "test": options.clips}, seed)
        part.rename(root)
    card = load_benchmark(layout)
    return folder, Splits(card, *(open_dataset(layout, root, split) for split in ("train", "val", "test")))


def recipe_of(student: str, seed: int, options: argparse.Namespace, *more: str) -> TrainingRecipe:
    return load_training_recipe(f"{student}-tiny", [f"seed={seed}", *more, *options.set])


def with_pseudo_labels(layout: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Teacher, student on its labels, student on the ground truth."""
    folder, splits = splits_of(layout, seed, options)
    folder /= options.student
    before = options.out / f"s4-{seed}" / options.student
    starts: dict[str, list[str]] = {"labels": [], "truth": []}
    if layout == "ms3" and before.exists():
        starts = {
            "labels": [f"init={{student: {before / 'round-1' / 'student'}}}"],
            "truth": [f"init={{student: {before / 'truth'}}}"],
        }
    started, tiny = time.process_time(), load_recipe("tiny")
    recipe = recipe_of(options.student, seed, options, *starts["labels"])
    report = self_train(recipe, tiny, splits, folder, SelfTrainingConfig(), device="cpu", progress=told(layout, seed))
    figures = {"teacher": report["figures"]["teacher"], "student": report["figures"]["round 1"]}
    if not options.no_truth:
        recipe = recipe_of(options.student, seed, options, *starts["truth"])
        places = folder / "truth", folder / "truth-test"
        figures["on truth"] = train_and_score(recipe, splits, *places, None, "cpu", told(layout, seed))
    if layout == "ms3":
        figures["one answer a clip"] = {"miou": one_answer(seed, options.clips)}
    return figures | {"cpu_s": round(time.process_time() - started)}


def one_answer(seed: int, clips: int) -> float:
    """The mIoU of true masks of the same things in all frames of a clip; of all such choices the best."""
    best = []
    for index in range(clips):
        scene = sample_scene("ms3", "test", seed, index).scene
        times = [second + FRAME_TIME for second in range(scene.seconds)]
        owners = np.stack([scene.picture(at)[1] for at in times])
        nobody = np.zeros(scene.size, dtype=bool)
        true = np.stack([np.logical_or.reduce([nobody, *scene.truth(at).values()]) for at in times])
        seen = [i for i, actor in enumerate(scene.actors, start=1) if actor.visible]
        choices = [chosen for count in range(len(seen) + 1) for chosen in combinations(seen, count)]
        best.append(max(mean_iou(np.isin(owners, chosen), true) for chosen in choices))
    return float(np.mean(best))


def mean_iou(said: Any, true: Any) -> float:
    """Of masks `[T, H, W]`; two empty ones agree."""
    both, either = (said & true).sum(axis=(1, 2)), (said | true).sum(axis=(1, 2))
    return float(np.where(either > 0, both / np.maximum(either, 1), 1.0).mean())


def open_vocabulary(layout: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """OV-AVSS on base kinds, open and closed, and the training-free pipeline."""
    folder, splits = splits_of(layout, seed, options)
    started = time.process_time()
    recipe = recipe_of("ov-avss", seed, options, f"model.clip={options.clip}")
    student = folder / "student"
    tell = told(layout, seed)
    figures = {"student": train_and_score(recipe, splits, student, folder / "test", None, "cpu", tell)}
    own = load_recipe(f"student:{student}", ["device=cpu"])
    closed = recipe_from_dict({**own.to_dict(), "vocabulary": [CLASSES[index] for index in BASE]})
    system = Predictor(closed.to_dict(), lambda: StudentPipeline.from_recipe(closed), splits.test.classes)
    figures["closed set"] = scored(system, splits, folder / "closed")
    tiny = recipe_predictor(load_recipe("tiny"), splits.test, splits.card)
    figures["zero-shot tiny"] = scored(tiny, splits, folder / "tiny")
    return figures | {"cpu_s": round(time.process_time() - started)}


def scored(system: Predictor, splits: Splits, out: Path) -> dict[str, Any]:
    done = evaluate(system, splits.test, out)
    if done.report is None:
        raise SystemExit(f"{len(done.failed)} clips failed: {done.failed}")
    return dict(done.report["figures"]["official"])


def told(layout: str, seed: int) -> Any:
    """Progress on stderr, now and then."""
    last: dict[str, float] = {}

    def tell(what: str, done: int, total: int) -> None:
        if time.monotonic() - last.get(what, 0.0) > 30 or done == total:
            last[what] = time.monotonic()
            print(f"{layout} {seed}: {what} {done} of {total}", file=sys.stderr, flush=True)

    return tell


def spread(seeds: dict[int, dict[str, Any]]) -> dict[str, str]:
    """Mean and standard deviation over the seeds, in per cent."""
    table = {}
    for name in next(iter(seeds.values())):
        if name == "cpu_s":
            continue
        for figure in next(iter(seeds.values()))[name]:
            values = [100 * own[name][figure] for own in seeds.values() if own[name][figure] is not None]
            if values:
                off = f" +- {stdev(values):.1f}" if len(values) > 1 else ""
                table[f"{name} {figure}"] = f"{mean(values):.1f}{off}"
    return table


if __name__ == "__main__":
    raise SystemExit(main())
