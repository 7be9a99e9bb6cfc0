"""The steps of a training: what `trainer.py` sets up, runs.

Nothing depends on what was computed before a step but the weights and the optimiser's state: the clips of a step, the
learning rate and the random numbers (dropout) are functions of the seed and the step. On one kind of machine, with the
same devices, a run that was interrupted therefore has the same losses as one that was not.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from openavs.errors import InputError, OpenAVSError
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.metrics.functional import Figures
from openavs.evaluation.metrics.metrics import make_metric
from openavs.media.log_mel import Floats
from openavs.pipeline.context import Progress
from openavs.results.provenance import provenance
from openavs.results.serialization import json_bytes
from openavs.training.base import Student, StudentBatch
from openavs.training.checkpoint import TrainingState, check_resumable, keep_metrics, load_last, save_best, save_last
from openavs.training.config import TrainingRecipe
from openavs.training.data.audio_features import FeatureCache
from openavs.training.data.dataset import LabelSource, StepSampler, TrainingDataset, check_split, loader, read_frames
from openavs.training.data.labels import GroundTruthLabels, PseudoLabels
from openavs.training.inference import predict_clip, scored_maps
from openavs.training.models.vggish import VggishExtractor, load_vggish, save_vggish
from openavs.training.registry import student_class
from openavs.utils.fs import atomic_write
from openavs.visualization.plots import plot_training

logger = logging.getLogger(__name__)


class TrainingError(OpenAVSError):
    """A training had to stop; its last checkpoint is there to go on from."""


@dataclass(frozen=True)
class TrainingResult:
    """What became of a training: steps done, and the best validation score with its step (None without a split)."""

    out: Path
    steps: int
    figure: str
    best: float | None
    best_step: int | None


class Trainer:
    """One training: what it is made of, and where it stands."""

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: TrainingRecipe,
        student: Student,
        out: Path,
        clips: int,
        val_set: Dataset | None,
        progress: Progress,  # of `sounds`, `steps` and `validation`
    ) -> None:
        self.accelerator, self.recipe, self.student, self.out = accelerator, recipe, student, out
        self.clips, self.val_set, self.progress = clips, val_set, progress
        self.steps, self.val_every = recipe.steps(clips), recipe.validate_every(clips)
        self.figure = CHOSEN_BY[val_set.task] if val_set else "loss"
        self.state, self.saved = TrainingState(), 0
        self.metrics: IO[str] | None = None
        if recipe.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)

    # ----------------------------------------------------------------------------------------- before the first step

    def begin(self, description: Mapping[str, Any], resume: bool) -> None:
        """Makes the optimiser, and goes back to the last checkpoint if there is one."""
        rules = self.recipe.optimiser
        self.student.to(self.accelerator.device)  # before the optimiser, whose state lies where the weights do
        groups = self.student.parameter_groups()
        self.scales = [group.pop("scale", 1.0) for group in groups]
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[rules.kind]
        optimiser = kind(groups, lr=rules.lr, weight_decay=rules.weight_decay)
        self.out.mkdir(parents=True, exist_ok=True)
        if resume:
            self.state = load_last(self.out, self.student, optimiser)
            self.saved = self.state.step
        self.network, self.optimiser = self.accelerator.prepare(self.student, optimiser)
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(dict(self.state.scaler))
        if self.recipe.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        if self.accelerator.is_main_process:
            atomic_write(self.out / "train.json", json_bytes(dict(description)))
            keep_metrics(self.out / "metrics.jsonl", self.state.step)
            self.metrics = (self.out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def hear(self, clips: list[Any]) -> dict[str, Floats]:
        """The audio features of all clips, computed once and kept; the VGGish is let go afterwards."""
        ears = load_vggish(self.recipe.audio, self.accelerator.device, self.recipe.offline)
        self.student.facts["audio"] = {"model": self.recipe.audio, "fingerprint": ears.fingerprint}
        with self.accelerator.main_process_first():  # the others find what the first has left on the disk
            self._keep(ears)
            cache = FeatureCache(ears, self.out / "features")
            return cache.of_all(clips, lambda done: self.progress("sounds", done, len(clips)))

    def _keep(self, ears: VggishExtractor) -> None:
        if self.accelerator.is_main_process and not (self.out / "vggish" / "config.json").is_file():
            save_vggish(ears.network, self.out / "vggish")

    # -------------------------------------------------------------------------------------------------------- the steps

    def go(self, stream: TrainingDataset, heard: Mapping[str, Floats]) -> TrainingResult:
        """All steps that are left."""
        spread = self.accelerator.process_index, self.accelerator.num_processes
        positions = StepSampler(self.recipe.batch, self.state.step, self.steps, self.recipe.accumulate, *spread)
        batches = iter(loader(stream, positions, self.recipe.workers))
        self.network.train()
        self.progress("steps", self.state.step, self.steps)
        for step in range(self.state.step, self.steps):
            self._record(step + 1, self._step(step, batches))
            self.state = replace(self.state, step=step + 1)
            self._look_after(step + 1, heard)
            self.progress("steps", step + 1, self.steps)
        if self.metrics is not None:  # one process alone writes
            self.metrics.close()
        if self.recipe.tensorboard:
            self.accelerator.end_training()
        return TrainingResult(self.out, self.state.step, self.figure, self.state.best, self.state.best_step)

    def _step(self, step: int, batches: Any) -> dict[str, float]:
        """One step of the optimiser; the mean of the losses over its parts and devices."""
        started = time.monotonic()
        seeds = [self.recipe.seed, 2, step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        rate = self.recipe.optimiser.lr * self.recipe.schedule.rate(step, self.steps)
        for group, scale in zip(self.optimiser.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        totals: dict[str, torch.Tensor] = {}
        parts = self.recipe.accumulate
        for part in range(parts):
            batch = next(batches).to(self.accelerator.device)
            with self._together(part == parts - 1):
                losses = self.student.loss(self.network(batch), batch)
                self._refuse_nan(step, losses["loss"], batch)
                self.accelerator.backward(losses["loss"] / parts)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / parts
        if self.recipe.optimiser.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.optimiser.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        means = self.accelerator.reduce(totals, reduction="mean")
        return {
            **{name: float(value) for name, value in means.items()},
            "lr": rate,
            "seconds": round(time.monotonic() - started, 4),
        }

    def _together(self, last: bool) -> AbstractContextManager[Any]:
        """Devices exchange gradients once a step, with its last part."""
        return nullcontext() if last else self.accelerator.no_sync(self.network)

    def _refuse_nan(self, step: int, loss: torch.Tensor, batch: StudentBatch) -> None:
        if math.isfinite(float(loss.detach())):
            return
        kept = (
            f"the checkpoint of step {self.saved} in {self.out / 'last'} is kept" if self.saved else "none is saved yet"
        )
        raise TrainingError(
            f"the loss is {float(loss.detach())} at step {step + 1} with {', '.join(self._culprits(batch))}; {kept}; "
            "look at these clips or lower optimiser.lr"
        )

    def _culprits(self, batch: StudentBatch) -> list[str]:
        """The clips whose loss alone is not finite; all of the batch if that cannot be told."""
        self.student.eval()
        found = []
        with torch.no_grad():
            for at, name in enumerate(batch.ids):
                one = batch.clip(at)
                if not math.isfinite(float(self.student.loss(self.student(one), one)["loss"])):
                    found.append(name)
        return found or list(batch.ids)

    # --------------------------------------------------------------------------------------------- between the steps

    def _look_after(self, step: int, heard: Mapping[str, Floats]) -> None:
        """Validates and saves when it is time to."""
        last = step == self.steps
        due = last or step % self.val_every == 0
        if not (due or step % self.recipe.save_every == 0):
            return
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if due:
                self._validate(step, heard)
            scaler = self.accelerator.scaler
            self.state = replace(self.state, scaler=scaler.state_dict() if scaler is not None else None)
            self.student.facts["step"] = step
            save_last(self.out, self.student, self.optimiser.optimizer, self.state)
            self.saved = step
            self._plot_metrics()
        self.accelerator.wait_for_everyone()

    def _validate(self, step: int, heard: Mapping[str, Floats]) -> None:
        """Scores the validation split, and keeps the student if it is the best so far."""
        score: float | None = None
        if self.val_set is not None:
            total = len(self.val_set.clips)
            figures = validate(self.student, self.val_set, heard, lambda done: self.progress("validation", done, total))
            score = chosen_figure(self.val_set, figures)
            self._write({"step": step, "epoch": self._epoch(step), "validation": {**figures, self.figure: score}})
        if score is None or self.state.best is None or score > self.state.best:
            self.state = replace(self.state, best=score, best_step=step)
            self.student.facts |= {"step": step, "score": {"figure": self.figure, "value": score}}
            save_best(self.out, self.student)

    def _plot_metrics(self) -> None:
        lines = [json.loads(text) for text in (self.out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        scores = [(line["step"], line["validation"][self.figure]) for line in lines if line.get("validation")]
        atomic_write(self.out / "curve.svg", plot_training(losses, scores, self.figure).svg.encode())

    def _record(self, step: int, losses: Mapping[str, float]) -> None:
        if self.accelerator.is_main_process:
            self._write({"step": step, "epoch": self._epoch(step), **losses})
            if self.recipe.tensorboard:
                self.accelerator.log(dict(losses), step=step)

    def _epoch(self, step: int) -> float:
        return round(step * self.recipe.batch / self.clips, 4)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self.metrics is not None
        self.metrics.write(json.dumps(line) + "\n")


CHOSEN_BY = {"binary": "miou", "semantic": "miou", "open-vocabulary": "harmonic"}
"""The figure that the best checkpoint has the highest of."""


def validate(
    student: Student, dataset: Dataset, features: Mapping[str, Floats], progress: Callable[[int], None]
) -> Figures:
    """The official figures of a student in evaluation mode, left in the mode it was in; `progress` counts clips."""
    classes = None if dataset.task == "binary" else dataset.classes
    metric = make_metric(dataset.task, dataset.classes)
    was_training = student.training
    student.eval()
    for done, clip in enumerate(dataset.clips, start=1):
        images = read_frames(clip, range(len(clip.frames)))
        prediction = predict_clip(student, clip.id, images, features[clip.id], classes)
        truth = dataset.read_truth(clip)
        metric.update(scored_maps(prediction, clip, classes, (truth.shape[1], truth.shape[2])), truth)
        progress(done)
    student.train(was_training)
    return metric.compute("official")


def chosen_figure(dataset: Dataset, figures: Figures) -> float:
    """Return the figure to choose by; the mean IoU of a split that has no base or no novel class."""
    one_sided = dataset.task == "open-vocabulary" and None in (figures["base"], figures["novel"])
    value = figures["miou" if one_sided else CHOSEN_BY[dataset.task]]
    return float(value if value is not None else 0.0)


def train(
    recipe: TrainingRecipe,
    train_set: Dataset,
    val_set: Dataset | None,
    out: Path,
    *,
    labels: Path | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> TrainingResult:
    """Trains a student as a recipe says and leaves it in `out` (see `checkpoint.py`).

    Args:
        train_set, val_set: splits of one benchmark; without a validation split the last student is the best.
        labels: a folder of pseudo-labels in place of the ground truth of `train_set`.
        resume: go on with the training in `out`; if there is none yet, begin.
        device: `auto` or `cpu`; which GPUs are used is accelerate's matter.

    Raises:
        InputError: data, recipe or folder that cannot be used. TrainingError: the loss is not finite.
    """
    check_device(device)
    if recipe.tensorboard and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("'tensorboard: true' needs the package tensorboard: pip install tensorboard")
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        cpu=device == "cpu",
        log_with="tensorboard" if recipe.tensorboard else None,
        project_dir=str(out) if recipe.tensorboard else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # the others wait while one validates
    )
    check_split(recipe.batch, recipe.accumulate, accelerator.num_processes)
    if val_set is not None and recipe.validation.clips:
        val_set = replace(val_set, clips=val_set.clips[: recipe.validation.clips])
    source: LabelSource = GroundTruthLabels(train_set)
    if labels is not None:
        source = PseudoLabels(train_set, labels, recipe.labels.frames, recipe.labels.weighted)
    clips = tuple(clip for clip in train_set.clips if source.has(clip))
    if left := len(train_set.clips) - len(clips):
        logger.warning("%d of %d clips have no label and are left out", left, len(train_set.clips))
    description = _describe(recipe, train_set, val_set, labels, len(clips))
    check_resumable(out, description, resume)
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    student = make_student(recipe, train_set)
    run = Trainer(accelerator, recipe, student, out, len(clips), val_set, progress or (lambda what, done, total: None))
    run.begin(description, resume)
    heard = run.hear([*clips, *(val_set.clips if val_set else ())])
    classes = 2 if train_set.task == "binary" else len(train_set.classes)
    stream = TrainingDataset(clips, source, heard, student.view(training=True), classes, recipe.seed)
    return run.go(stream, heard)


def make_student(recipe: TrainingRecipe, dataset: Dataset) -> Student:
    """The recipe's student for a benchmark, with its random weights drawn from the seed and its parts initialised."""
    cls = student_class(recipe.student)
    torch.manual_seed(recipe.seed)
    student = cls.build(cls.fitted(dict(recipe.model), dataset.task, dataset.classes))
    student.offline = recipe.offline
    student.check(dataset.task, dataset.classes)
    student.prepare(dataset.task)
    for part, ref in recipe.init.items():
        student.initialise(part, ref)
    return student


def check_device(device: str) -> None:
    """Accelerate chooses among GPUs; here it is only whether one may be used."""
    if device not in ("auto", "cpu"):
        raise InputError(f"a training takes --device auto or cpu, not {device!r}; choose GPUs by accelerate launch")


def _describe(
    recipe: TrainingRecipe, train_set: Dataset, val_set: Dataset | None, labels: Path | None, clips: int
) -> dict[str, Any]:
    data = {"benchmark": train_set.benchmark, "split": train_set.split, "clips": clips}
    data |= {"labels": None if labels is None else str(labels.absolute()), "validation": val_set and val_set.split}
    return {"recipe": recipe.to_dict(), "data": data, **provenance()}
