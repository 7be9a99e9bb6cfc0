"""Measures the gain of corrections: the least certain training clips, and random ones, get the masks of a person.

    python eval/experiments/corrections.py --out runs/corrections --train 600 --share 0.1 --json

Clips of the synthetic world in the layout of S4 are labeled by `tiny`. The person is played by the true masks: for a
share of the training clips the labels are corrected through `openavs.corrections`, either those that `openavs review`
puts first or random ones. A student is trained on each set of labels and scored on the test split (mIoU, official
protocol). `error found` is the share of all label error (1 - IoU, summed over the training clips) in the chosen clips,
which needs no student. `--no-students` stops there. An interrupted run can be repeated: it resumes.
"""

from __future__ import annotations

import os

os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from openavs.config.recipe import load_recipe
from openavs.corrections.review import finished_clips, review_queue
from openavs.corrections.store import replace_segments
from openavs.evaluation.benchmark import load_benchmark, open_dataset
from openavs.evaluation.datasets.base import BenchmarkClip, Dataset
from openavs.evaluation.evaluator import recipe_predictor
from openavs.evaluation.job_io import folder_names
from openavs.results.serialization import read_result
from openavs.structures.masks import mask_iou, mask_to_rle, segments_to_mask
from openavs.structures.types import Correction, Segment
from openavs.synthetic.datasets import write_layout
from openavs.training.config import load_training_recipe
from openavs.training.io import BUILT_IN
from openavs.training.self_training import SelfTrainingConfig, Splits, label, train_and_score
from openavs.utils.text import utc_now

LAYOUT = "s4"


def main() -> None:
    """Label, correct, train and print the gains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="data sets, labels, students and evaluations")
    parser.add_argument("--train", type=int, default=600, help="training clips")
    parser.add_argument("--clips", type=int, default=60, help="test clips")
    parser.add_argument("--share", type=float, nargs="+", default=[0.1], help="shares of the clips that are corrected")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the data, of the choice and the student")
    parser.add_argument("--seconds", type=float, default=20.0, help="a person's seconds per corrected clip")
    parser.add_argument("--student", default="tpavi", choices=list(BUILT_IN), help="trained by its tiny recipe")
    parser.add_argument("--no-students", action="store_true", help="only the share of the label error")
    parser.add_argument("--plot", type=Path, help="write the mIoU over corrections as an image")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the training recipe")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    rows = [row for seed in options.seeds for row in measure(seed, options)]
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(
            ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )


def measure(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for the labels as they are, and one for each choice of clips and share."""
    folder = options.out / f"{LAYOUT}-{seed}"
    root = folder / "data"
    if not root.exists():
        part = folder / "data.part"
        write_layout(LAYOUT, part, {"train": options.train, "val": 4, "test": options.clips}, seed)
        part.rename(root)
    splits = Splits(load_benchmark(LAYOUT), *(open_dataset(LAYOUT, root, split) for split in ("train", "val", "test")))
    teacher = recipe_predictor(load_recipe("tiny"), splits.train, splits.benchmark)
    label(teacher, splits.train, folder / "labels", SelfTrainingConfig(), None)
    names = folder_names(splits.train.clips)
    errors = {names[clip.id]: label_error(splits.train, clip, folder / "labels", names) for clip in splits.train.clips}
    queue = [item.clip for item in review_queue(folder / "labels")]
    shuffled = [str(name) for name in np.random.default_rng(seed).permutation(finished_clips(folder / "labels"))]
    rows: list[dict[str, Any]] = [{"seed": seed, "choice": "none", "corrected": 0, "error found": 0.0}]
    for choice, order in (("least certain", queue), ("random", shuffled)):
        for share in options.share:
            chosen = order[: round(share * len(order))]
            found = sum(errors[name] for name in chosen) / max(sum(errors.values()), 1e-9)
            rows.append({"seed": seed, "choice": choice, "corrected": len(chosen), "error found": found})
            rows[-1]["clips"] = chosen
    rows[0]["labels miou"] = 1 - mean(errors.values())
    for row in rows:
        chosen = row.pop("clips", [])
        if options.no_students:
            continue
        place = folder / options.student / f"{row['choice']}-{row['corrected']}".replace(" ", "-")
        labels = corrected_copy(splits.train, folder / "labels", place / "labels", chosen, names)
        recipe = load_training_recipe(f"{options.student}-tiny", [f"seed={seed}", *options.set])
        figures = train_and_score(recipe, splits, place / "student", place / "test", labels, "cpu", None)
        row["miou"] = figures["miou"]
        if row["choice"] != "none":
            row["gain"] = 100 * (row["miou"] - rows[0]["miou"])
            row["points per minute"] = row["gain"] / max(row["corrected"] * options.seconds / 60, 1e-9)
    return rows


def label_error(dataset: Dataset, clip: BenchmarkClip, labels: Path, names: dict[str, str]) -> float:
    """Return the mean of 1 - IoU of a clip's labels over its annotated frames."""
    result = read_result(labels, names[clip.id])
    truth = dataset.read_truth(clip).astype(bool)
    found = (segments_to_mask(result.frames[i].segments, result.size) for i in clip.annotated)
    return mean(1.0 - mask_iou(own, true) for own, true in zip(found, truth, strict=True))


def corrected_copy(dataset: Dataset, labels: Path, out: Path, chosen: Sequence[str], names: dict[str, str]) -> Path:
    """Return a copy of the labels in which a person drew the true masks of some clips."""
    if out.exists():
        return out
    part = out.with_name("labels.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(labels, part)
    for clip in dataset.clips:
        if names[clip.id] not in chosen:
            continue
        folder, truth = part / "clips" / names[clip.id], dataset.read_truth(clip).astype(bool)
        segments, records = {}, []
        for i, mask in zip(clip.annotated, truth, strict=True):
            code = mask_to_rle(mask)
            drawn = [Segment(code, code.box, "object", 1.0, track=0, author="person")] if mask.any() else []
            segments[i] = drawn
            records.append(Correction("mask" if drawn else "reject", i, 0, "object", at=utc_now()))
        replace_segments(folder, segments, records)
    part.rename(out)
    return out


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the student's mIoU over the number of corrected clips, a line for each choice."""
    from matplotlib.figure import Figure

    axes = (figure := Figure()).subplots()
    for choice in ("least certain", "random"):
        own = [row for row in rows if row["choice"] in ("none", choice)]
        counts = sorted({row["corrected"] for row in own})
        key = "miou" if "miou" in rows[0] else "error found"
        axes.plot(counts, [mean(r[key] for r in own if r["corrected"] == n) for n in counts], "o-", label=choice)
        axes.set(xlabel="corrected clips", ylabel=key)
    axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
