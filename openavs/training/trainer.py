"""Training of students: setup, the training loop, validation and checkpoints.

A step depends only on the weights and the optimizer state: its clips, its learning rate and its random numbers
(dropout) are functions of the seed and the step. On the same hardware an interrupted run therefore has the same losses
as an uninterrupted one.
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

from openavs.corrections.review import combined_digest
from openavs.errors import InputError, OpenAVSError
from openavs.evaluation.datasets.base import Dataset
from openavs.evaluation.metrics.functional import Figures
from openavs.evaluation.metrics.metrics import make_metric
from openavs.media.log_mel import Floats
from openavs.pipeline.context import Progress
from openavs.results.provenance import provenance
from openavs.results.serialization import json_bytes
from openavs.training.audio_features import FeatureCache
from openavs.training.average import WeightAverage
from openavs.training.base import Student, StudentBatch, student_class
from openavs.training.checkpoint import TrainingState, check_resumable, keep_metrics, load_last, save_best, save_last
from openavs.training.config import TrainingRecipe
from openavs.training.dataset import LabelSource, StepSampler, TrainingDataset, check_split, loader, read_frames
from openavs.training.inference import predict_clip, scored_maps
from openavs.training.labels import GroundTruthLabels, PseudoLabels
from openavs.training.models.backbones import VggishExtractor, load_vggish, save_vggish
from openavs.utils.fs import atomic_write
from openavs.utils.text import did_you_mean
from openavs.visualization.plots import plot_training

logger = logging.getLogger(__name__)


SELECTION_FIGURES = {"binary": "miou", "semantic": "miou", "open-vocabulary": "harmonic"}
"""Figure by task that selects the best checkpoint."""


class TrainingError(OpenAVSError):
    """The training had to stop; it can be resumed from its last checkpoint."""


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training."""

    out: Path
    steps: int
    figure: str  # the figure of `best`
    best: float | None  # best validation score; None without a validation split
    best_step: int | None
    person: int = 0  # training clips that a person corrected or reviewed


class Trainer:
    """One training: `setup`, `load_audio_features` and `fit`, in this order.

    Args:
        accelerator: the devices and precision.
        recipe: the training recipe.
        student: the student to train.
        out: the folder of the training.
        clips: number of training clips.
        val_set: the validation split.
        progress: progress callback of `sounds`, `steps` and `validation`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        recipe: TrainingRecipe,
        student: Student,
        out: Path,
        clips: int,
        val_set: Dataset | None,
        progress: Progress,
    ) -> None:
        self.accelerator, self.recipe, self.student, self.out = accelerator, recipe, student, out
        self.clips, self.val_set, self.progress = clips, val_set, progress
        self.steps, self.val_every = recipe.steps(clips), recipe.validate_every(clips)
        self.figure = SELECTION_FIGURES[val_set.task] if val_set else "loss"
        self.state, self.saved = TrainingState(), 0
        self.metrics: IO[str] | None = None
        if recipe.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)

    # ----------------------------------------------------------------------------------------- before the first step

    def setup(self, description: Mapping[str, Any], resume: bool) -> None:
        """Build the optimizer and restore the last checkpoint, if any."""
        settings = self.recipe.optimizer
        self.student.to(self.accelerator.device)  # before the optimizer, whose state is on the device of the weights
        self.frozen = [(epochs, _trained_parameters(self.student, part)) for part, epochs in self.recipe.freeze.items()]
        groups = self.student.parameter_groups()
        self.scales = [group.pop("scale", 1.0) for group in groups]
        optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.kind]
        optimizer = optimizer_class(groups, lr=settings.lr, weight_decay=settings.weight_decay)
        self.out.mkdir(parents=True, exist_ok=True)
        self.average = WeightAverage(self.student, self.recipe.ema) if self.recipe.ema else None
        if resume:
            self.state = load_last(self.out, self.student, optimizer, self.average)
            self.saved = self.state.step
        self.network, self.optimizer = self.accelerator.prepare(self.student, optimizer)
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(dict(self.state.scaler))
        if self.recipe.tensorboard:
            self.accelerator.init_trackers("tensorboard")
        if self.accelerator.is_main_process:
            atomic_write(self.out / "train.json", json_bytes(dict(description)))
            keep_metrics(self.out / "metrics.jsonl", self.state.step)
            self.metrics = (self.out / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)

    def load_audio_features(self, clips: list[Any]) -> dict[str, Floats]:
        """Compute and cache the audio features of all clips; the VGGish is released afterwards."""
        extractor = load_vggish(self.recipe.audio, self.accelerator.device, self.recipe.offline)
        self.student.facts["audio"] = {"model": self.recipe.audio, "fingerprint": extractor.fingerprint}
        with self.accelerator.main_process_first():  # the others read the files that the first one wrote
            self._save_vggish(extractor)
            cache = FeatureCache(extractor, self.out / "features")
            return cache.of_all(clips, lambda done: self.progress("sounds", done, len(clips)))

    def _save_vggish(self, extractor: VggishExtractor) -> None:
        """Write the VGGish beside the student, so that the folder of the training is complete for inference."""
        if self.accelerator.is_main_process and not (self.out / "vggish" / "config.json").is_file():
            save_vggish(extractor.network, self.out / "vggish")

    # -------------------------------------------------------------------------------------------------------- the steps

    def fit(self, train_set: TrainingDataset, features: Mapping[str, Floats]) -> TrainingResult:
        """Run the remaining steps; `features` are those of the validation clips, by id."""
        process = self.accelerator.process_index, self.accelerator.num_processes
        sampler = StepSampler(self.recipe.batch, self.state.step, self.steps, self.recipe.accumulate, *process)
        batches = iter(loader(train_set, sampler, self.recipe.workers))
        self.network.train()
        self.progress("steps", self.state.step, self.steps)
        for step in range(self.state.step, self.steps):
            self._record(step + 1, self._step(step, batches))
            self.state = replace(self.state, step=step + 1)
            self._validate_and_save(step + 1, features)
            self.progress("steps", step + 1, self.steps)
        if self.metrics is not None:  # only one process writes
            self.metrics.close()
        if self.recipe.tensorboard:
            self.accelerator.end_training()
        return TrainingResult(self.out, self.state.step, self.figure, self.state.best, self.state.best_step)

    def _step(self, step: int, batches: Any) -> dict[str, float]:
        """Run one optimizer step; return the mean losses over its micro-batches and devices."""
        started = time.monotonic()
        # Seeded by the step, so that dropout after a resume equals that of an uninterrupted run.
        seeds = [self.recipe.seed, 2, step, self.accelerator.process_index]
        torch.manual_seed(int(np.random.SeedSequence(seeds).generate_state(1)[0]))
        rate = self.recipe.optimizer.lr * self.recipe.schedule.rate(step, self.steps)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        frozen = self._freeze_parts(step)
        totals: dict[str, torch.Tensor] = {}
        count = self.recipe.accumulate
        for number in range(count):
            batch = next(batches).to(self.accelerator.device)
            with self._sync_context(number == count - 1):
                losses = self.student.loss(self.network(batch), batch)
                self._check_finite(step, losses["loss"], batch)
                self.accelerator.backward(losses["loss"] / count)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach().float() / count
        for parameter in frozen:
            parameter.grad = None  # the optimizer leaves it as it is
        if self.recipe.optimizer.clip_norm is not None:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.recipe.optimizer.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.student, step)
        means = self.accelerator.reduce(totals, reduction="mean")
        return {
            **{name: float(value) for name, value in means.items()},
            "lr": rate,
            "seconds": round(time.monotonic() - started, 4),
        }

    def _freeze_parts(self, step: int) -> list[torch.nn.Parameter]:
        """Return the parameters that are not trained at a step. On one device they have no gradients at all."""
        frozen = []
        for epochs, parameters in self.frozen:
            trained = step * self.recipe.batch >= epochs * self.clips
            frozen += [] if trained else parameters
            if self.accelerator.num_processes == 1:  # several devices exchange the gradients of a fixed set
                for parameter in parameters:
                    parameter.requires_grad_(trained)
        return frozen

    def _sync_context(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which devices exchange gradients only with the last micro-batch of a step."""
        return nullcontext() if last else self.accelerator.no_sync(self.network)

    def _check_finite(self, step: int, loss: torch.Tensor, batch: StudentBatch) -> None:
        """Raise TrainingError, with the clips at fault, if the loss is not finite."""
        if math.isfinite(float(loss.detach())):
            return
        last = f"the checkpoint of step {self.saved} in {self.out / 'last'} is kept"
        kept = last if self.saved else "there is no checkpoint yet"
        raise TrainingError(
            f"the loss is {float(loss.detach())} at step {step + 1} with {', '.join(self._find_nan_samples(batch))}; "
            f"{kept}; check these clips or lower optimizer.lr"
        )

    def _find_nan_samples(self, batch: StudentBatch) -> list[str]:
        """Return the clips whose own loss is not finite; all clips of the batch if none can be identified."""
        self.student.eval()
        faulty = []
        with torch.no_grad():
            for index, name in enumerate(batch.ids):
                clip = batch.clip(index)
                if not math.isfinite(float(self.student.loss(self.student(clip), clip)["loss"])):
                    faulty.append(name)
        return faulty or list(batch.ids)

    # --------------------------------------------------------------------------------------------- between the steps

    def _validate_and_save(self, step: int, features: Mapping[str, Floats]) -> None:
        """Validate and save at their intervals."""
        due = step == self.steps or step % self.val_every == 0
        if not (due or step % self.recipe.save_every == 0):
            return
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if due:
                with self.average.applied(self.student) if self.average else nullcontext():
                    self._validate(step, features)
            scaler = self.accelerator.scaler
            self.state = replace(self.state, scaler=scaler.state_dict() if scaler is not None else None)
            self.student.facts["step"] = step
            save_last(self.out, self.student, self.optimizer.optimizer, self.state, self.average)
            self.saved = step
            self._plot_metrics()
        self.accelerator.wait_for_everyone()

    def _validate(self, step: int, features: Mapping[str, Floats]) -> None:
        """Score the validation split and save the student if it is the best so far."""
        score: float | None = None
        if self.val_set is not None:
            total = len(self.val_set.clips)
            figures = validate(
                self.student, self.val_set, features, lambda done: self.progress("validation", done, total)
            )
            score = selection_figure(self.val_set, figures)
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


def validate(
    student: Student, dataset: Dataset, features: Mapping[str, Floats], progress: Callable[[int], None]
) -> Figures:
    """Return the official figures of a student; its mode is restored. `progress` counts clips."""
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


def selection_figure(dataset: Dataset, figures: Figures) -> float:
    """Return the figure that selects checkpoints; the mean IoU for a split without base or novel classes."""
    one_sided = dataset.task == "open-vocabulary" and None in (figures["base"], figures["novel"])
    value = figures["miou" if one_sided else SELECTION_FIGURES[dataset.task]]
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
    """Train a student by a recipe and write it to `out` (see `checkpoint.py`).

    Args:
        recipe: the training recipe.
        train_set: the training split.
        val_set: the validation split of the same benchmark; without one the last student is the best.
        out: the folder of the training.
        labels: a folder of pseudo-labels in place of the ground truth of `train_set`.
        resume: continue the training in `out`; without one, start.
        device: `auto` or `cpu`; accelerate chooses the GPUs.
        progress: progress callback.

    Raises:
        InputError: data, recipe or folder that cannot be used.
        TrainingError: the loss is not finite.
    """
    check_device(device)
    if recipe.tensorboard and not any(map(find_spec, ("tensorboard", "tensorboardX"))):
        raise InputError("'tensorboard: true' needs the package tensorboard: pip install tensorboard")
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        cpu=device == "cpu",
        log_with="tensorboard" if recipe.tensorboard else None,
        project_dir=str(out) if recipe.tensorboard else None,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],  # other processes wait during validation
    )
    check_split(recipe.batch, recipe.accumulate, accelerator.num_processes)
    if val_set is not None and recipe.validation.clips:
        val_set = replace(val_set, clips=val_set.clips[: recipe.validation.clips])
    source: LabelSource = GroundTruthLabels(train_set)
    if labels is not None:
        source = PseudoLabels(
            train_set, labels, recipe.labels.frames, recipe.labels.weighted, recipe.labels.person_weight
        )
    clips = tuple(clip for clip in train_set.clips if source.has(clip))
    if left := len(train_set.clips) - len(clips):
        logger.warning("%d of %d clips have no label and are left out", left, len(train_set.clips))
    person = source.person if isinstance(source, PseudoLabels) else {}
    description = _describe(recipe, train_set, val_set, labels, len(clips), person)
    check_resumable(out, description, resume)
    accelerator.wait_for_everyone()  # all processes have checked the folder before the first one writes
    student = make_student(recipe, train_set)
    trainer = Trainer(
        accelerator, recipe, student, out, len(clips), val_set, progress or (lambda stage, done, total: None)
    )
    trainer.setup(description, resume)
    features = trainer.load_audio_features([*clips, *(val_set.clips if val_set else ())])
    classes = 2 if train_set.task == "binary" else len(train_set.classes)
    examples = TrainingDataset(clips, source, features, student.view(training=True), classes, recipe.seed)
    return replace(trainer.fit(examples, features), person=len(person))


def make_student(recipe: TrainingRecipe, dataset: Dataset) -> Student:
    """Build the recipe's student for a benchmark, with seeded random weights and initialized parts."""
    cls = student_class(recipe.student)
    torch.manual_seed(recipe.seed)
    student = cls.build(cls.adapt_config(dict(recipe.model), dataset.task, dataset.classes), recipe.offline)
    student.offline = recipe.offline
    student.check(dataset.task, dataset.classes)
    student.prepare(dataset.task)
    for part, ref in recipe.init.items():
        student.initialize(part, ref)
    return student


def _trained_parameters(student: Student, part: str) -> list[torch.nn.Parameter]:
    """Return the trained parameters of a part of a student; the InputError suggests the nearest part."""
    parts = dict(student.named_children())
    if part not in parts:
        raise InputError(f"'freeze.{part}': the student {student.name!r} has no such part; {did_you_mean(part, parts)}")
    return [parameter for parameter in parts[part].parameters() if parameter.requires_grad]


def check_device(device: str) -> None:
    """Raise InputError for a device other than `auto` and `cpu`: accelerate chooses among GPUs."""
    if device not in ("auto", "cpu"):
        raise InputError(f"a training takes --device auto or cpu, not {device!r}; choose GPUs by accelerate launch")


def _describe(
    recipe: TrainingRecipe,
    train_set: Dataset,
    val_set: Dataset | None,
    labels: Path | None,
    clips: int,
    person: Mapping[str, str],
) -> dict[str, Any]:
    data = {"benchmark": train_set.benchmark, "split": train_set.split, "clips": clips}
    data |= {"labels": None if labels is None else str(labels.absolute()), "validation": val_set and val_set.split}
    data |= {"person": len(person), "corrections": combined_digest(person) if person else None}
    return {"recipe": recipe.to_dict(), "data": data, **provenance()}
