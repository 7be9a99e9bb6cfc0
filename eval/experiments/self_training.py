"""Compares students with their teacher on synthetic data sets, over several seeds: mean and standard deviation.

    python eval/experiments/self_training.py --out runs/self-training --json
    python eval/experiments/self_training.py --out runs/self-training --layouts s4 --seeds 1 --students avsegformer

For each seed a data set is written (scenes of different seeds and splits are disjoint), `tiny` labels the training
clips without their masks, students are trained on these labels, and the same students with the same seed on the ground
truth. Teacher and students are scored on the test split (official protocol). With `--train-seed` the training clips of
one seed, which are labeled once, are those of all seeds: the seeds differ in their test clips, and in the students'
weights and order of clips.

`--choices` trains each student with choices that the paper does not make, one at a time, on the same labels: frames
weighted by confidence, clips left out whose captioner and detector disagree, the moving average of the weights, a
second round on the labels of the first student, and the tenth of the clips that `openavs review` puts first corrected
by a person, who is played by the true masks:

    python eval/experiments/self_training.py --out runs/choices --layouts s4 --students avsegformer --no-truth \
        --choices paper weighted agreement average rounds corrected

`difference` is student minus teacher: by seed with its interval over clips, and the mean over seeds with a t interval,
both of 95 %.

- `s4`: one mask per clip, that of the first frame, as in the release.
- `ms3`: the student starts from that of the same seed on `s4` with the same kind of labels, as the published ones do.
  Without `s4` it starts as its recipe specifies. `constant masks` is an upper bound for predictions of the same objects
  in all frames of a clip.
- `avss`: masks of 71 classes. OV-AVSS classifies them with its CLIP.
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
from corrections import corrected_copy
from scipy.stats import t as student_t

from openavs.config.recipe import load_recipe, recipe_from_dict
from openavs.corrections.review import review_queue
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.compare import compare, read_report
from openavs.evaluation.datasets.tables import BASE, CLASSES
from openavs.evaluation.evaluator import evaluate, recipe_predictor
from openavs.evaluation.job_io import folder_names
from openavs.evaluation.predictor import Predictor
from openavs.pipeline.context import Progress
from openavs.synthetic.datasets import FRAME_TIME, write_layout
from openavs.synthetic.scenes import sample_scene
from openavs.training.config import TrainingRecipe, load_training_recipe
from openavs.training.inference import StudentPipeline, student_predictor
from openavs.training.io import BUILT_IN
from openavs.training.self_training import SelfTrainingConfig, Splits, label, train_and_score

CHOICES: dict[str, tuple[SelfTrainingConfig, list[str]]] = {
    "paper": (SelfTrainingConfig(), []),
    "weighted": (SelfTrainingConfig(), ["labels.weighted=true"]),
    "agreement": (SelfTrainingConfig(min_agreement=0.5), []),
    "average": (SelfTrainingConfig(), ["ema=0.99"]),
    "rounds": (SelfTrainingConfig(), []),
    "corrected": (SelfTrainingConfig(), []),
}
"""The options of each choice, and its overrides of the training recipe."""
TRAIN = {"s4": 600, "ms3": 200, "avss": 300, "ov": 150}
"""Training clips by layout."""
CORRECTED = 0.1  # share of the training clips


def main() -> None:
    """Run all layouts and seeds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data sets, labels, students and evaluations")
    parser.add_argument("--layouts", nargs="+", default=["s4", "ms3"], choices=list(TRAIN))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--students", nargs="+", default=["tpavi"], choices=list(BUILT_IN), help="of s4, ms3 and avss")
    parser.add_argument("--choices", nargs="+", default=["paper"], choices=CHOICES, help="of s4, ms3 and avss")
    parser.add_argument("--train-seed", type=int, metavar="SEED", help="the training clips of all seeds are its")
    parser.add_argument("--train", type=int, help=f"training clips; default by layout: {TRAIN}")
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
    """Return the folder and the data set of a seed; what is missing is written."""
    roots = {own: options.out / f"{layout}-{own}" / "data" for own in (seed, train_seed(seed, options))}
    for own, root in roots.items():
        if not root.exists():
            count = options.train or TRAIN[layout]
            part = root.with_name("data.part")
            training = count if own == train_seed(own, options) else 1  # a layout has all splits
            write_layout(layout, part, {"train": training, "val": 30, "test": options.clips}, own)
            part.rename(root)
    train = open_dataset(layout, roots[train_seed(seed, options)], "train")
    others = (open_dataset(layout, roots[seed], split) for split in ("val", "test"))
    return roots[seed].parent, Splits(load_benchmark(layout), train, *others)


def train_seed(seed: int, options: argparse.Namespace) -> int:
    """Return the seed of the training clips of a seed."""
    return seed if options.train_seed is None else int(options.train_seed)


def training_recipe(student: str, seed: int, options: argparse.Namespace, *more: str) -> TrainingRecipe:
    """Load the training recipe of a student with the overrides of the command line."""
    return load_training_recipe(f"{student}-tiny", [f"seed={seed}", *more, *options.set])


def with_pseudo_labels(layout: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Score the teacher, the students on its labels, and the students on the ground truth."""
    folder, splits = open_splits(layout, seed, options)
    started, tiny, progress = time.process_time(), load_recipe("tiny"), progress_printer(layout, seed)
    labels = folder.with_name(f"{layout}-{train_seed(seed, options)}") / "labels"
    teacher = recipe_predictor(tiny, splits.test, splits.benchmark)
    figures: dict[str, Any] = {"teacher": score(teacher, splits, folder / "teacher")}
    for student in options.students:
        for choice in [*options.choices, *["truth"] * (not options.no_truth)]:
            source = None if choice == "truth" else labels_for(choice, splits, labels, folder / student, progress)
            before = options.out / f"s4-{seed}" / student / choice / "student"
            start = [f"init={{student: {before}}}"] if layout == "ms3" and before.exists() else []
            more = [] if choice == "truth" else CHOICES[choice][1]
            recipe, own = training_recipe(student, seed, options, *start, *more), folder / student / choice
            places = own / "student", own / "test"
            report = train_and_score(recipe, splits, *places, source, "cpu", progress)
            name = {"paper": student, "truth": f"{student} on truth"}.get(choice, f"{student}, {choice}")
            figures[name] = report | {"difference": difference(folder / "teacher", own / "test")}
    if layout == "ms3":
        figures["constant masks"] = {"miou": constant_masks_miou(seed, options.clips)}
    return figures | {"cpu_s": round(time.process_time() - started)}


def labels_for(choice: str, splits: Splits, labels: Path, folder: Path, progress: Progress) -> Path:
    """Make the labels of a choice and return their folder.

    Args:
        choice: its name.
        splits: the data set.
        labels: the folder of the teacher's labels, made here if they are missing.
        folder: the folder of the student's choices, of which `paper` labels the second round.
        progress: progress callback.

    Raises:
        SystemExit: the student of the first round is missing.
    """
    teacher = recipe_predictor(load_recipe("tiny"), splits.train, splits.benchmark)
    label(teacher, splits.train, labels, CHOICES[choice][0], progress)  # writes again which clips are left out
    if choice == "corrected":
        queue = [item.clip for item in review_queue(labels)]
        chosen = queue[: round(CORRECTED * len(queue))]
        names = folder_names(splits.train.clips)
        return corrected_copy(splits.train, labels, labels.with_name("labels-corrected"), chosen, names)
    if choice == "rounds":
        first = folder / "paper" / "student"
        if not (first / "config.json").is_file():
            raise SystemExit("the choice 'rounds' needs the student of 'paper' before it: --choices paper rounds")
        student = student_predictor(load_recipe(f"student:{first}", ["device=cpu"]), splits.train)
        labels = folder / "rounds" / "labels"
        label(student, splits.train, labels, SelfTrainingConfig(), progress)
    return labels


def difference(teacher: Path, student: Path) -> dict[str, Any]:
    """Return the mean over test clips of student minus teacher, with its interval."""
    both = compare(read_report(teacher), read_report(student))["score"]
    return {"mean": both["difference"], "interval": both["interval"]}


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
    """Format mean and standard deviation over the seeds, and the interval of mean differences, in percent."""
    table = {}
    for name, first in next(iter(seeds.values())).items():
        for figure in () if name == "cpu_s" else first:
            values = [own[name][figure] for own in seeds.values() if own[name][figure] is not None]
            if figure == "difference":
                values = [value["mean"] for value in values]
            if values:
                table[f"{name} {figure}"] = _spread([100 * value for value in values], figure == "difference")
    return table


def _spread(values: list[float], interval: bool) -> str:
    """Return the mean and deviation of values; of differences with the t interval of 95 % of the mean."""
    text = f"{mean(values):.1f}"
    if len(values) < 2:
        return text
    text += f" +- {stdev(values):.1f}"
    if interval:
        half = float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
        text += f" ({mean(values) - half:.1f} to {mean(values) + half:.1f})"
    return text


if __name__ == "__main__":
    main()
