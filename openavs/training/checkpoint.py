"""Checkpoints: the files of a training, and resuming it.

    OUT/config.json, model.safetensors    the best student so far on the validation split
    OUT/vggish/                           the VGGish of its audio features
    OUT/last/                             the last student; training/ has the state for resuming
    OUT/features/                         the cached VGGish features
    OUT/metrics.jsonl, curve.svg          the losses of every step and the scores of every validation
    OUT/train.json                        the resolved recipe, the data and the versions

All files are safetensors and JSON. `last` is replaced atomically: a killed run leaves the old or the new one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from openavs.errors import InputError, ModelError
from openavs.models.convert import load_state_dict_strict, read_weights
from openavs.models.hub import resolve
from openavs.training.average import WeightAverage
from openavs.training.base import Student
from openavs.utils.fs import atomic_write, sync_folder

LAST, OLD, PART = "last", ".last.old", ".last.part"
STATE, OPTIMIZER, AVERAGE = "training/state.json", "training/optimizer.safetensors", "training/average.safetensors"
MAY_CHANGE = {"max_steps", "save_every", "workers", "offline", "tensorboard", "validation", "summary"}


@dataclass(frozen=True)
class TrainingState:
    """State of a training: steps done, the best score so far and its step, the gradient scaler's numbers."""

    step: int = 0
    best: float | None = None
    best_step: int | None = None
    scaler: Mapping[str, Any] | None = None


def save_last(
    out: Path,
    student: Student,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    average: WeightAverage | None = None,
) -> None:
    """Write OUT/last atomically."""
    part = out / PART
    shutil.rmtree(part, ignore_errors=True)
    student._save_pretrained(part)
    (part / "training").mkdir()
    tensors, numbers = _flat(optimizer.state_dict())
    (part / OPTIMIZER).write_bytes(save(tensors))
    if average is not None:
        (part / AVERAGE).write_bytes(save({name: tensor.cpu() for name, tensor in average.weights.items()}))
    scaler = dict(state.scaler) if state.scaler else None
    data = {
        "step": state.step,
        "best": state.best,
        "best_step": state.best_step,
        "scaler": scaler,
        "optimizer": numbers,
    }
    atomic_write(part / STATE, (json.dumps(data, indent=1) + "\n").encode())
    shutil.rmtree(out / OLD, ignore_errors=True)
    if (out / LAST).exists():
        (out / LAST).rename(out / OLD)
    part.rename(out / LAST)
    sync_folder(out)
    shutil.rmtree(out / OLD, ignore_errors=True)


def load_last(
    out: Path, student: Student, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> TrainingState:
    """Restore student, optimizer and average and return the state; that of the start without a checkpoint.

    Raises:
        ModelError: the checkpoint is damaged or of another student.
    """
    folder = next((out / name for name in (LAST, OLD) if (out / name / STATE).is_file()), None)
    if folder is None:
        return TrainingState()
    load_state_dict_strict(student, read_weights(resolve(str(folder))), str(folder))
    try:
        data = json.loads((folder / STATE).read_bytes())
        tensors = load_file(folder / OPTIMIZER)
        optimizer.load_state_dict(_unflat(tensors, data["optimizer"]))
        if average is not None:
            average.load(load_file(folder / AVERAGE))
        return TrainingState(data["step"], data["best"], data["best_step"], data["scaler"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"the checkpoint {folder} is damaged or of another optimizer ({error}); choose another --out"
        ) from error


def save_best(out: Path, student: Student) -> None:
    """Write the student as OUT's best one."""
    student._save_pretrained(out)


def check_resumable(out: Path, new: Mapping[str, Any], resume: bool) -> None:
    """Return whether a training resumes in a folder; the InputError names the differences."""
    path = out / "train.json"
    if not path.is_file():
        if (out / LAST).exists() or (out / "config.json").exists():
            raise InputError(f"{out} already holds a model; choose another --out")
        return
    if not resume:
        raise InputError(f"{out} holds a training; continue it with --resume or choose another --out")
    try:
        saved = json.loads(path.read_bytes())
        differing = sorted(_differing(saved["recipe"], new["recipe"]))
        differing += [key for key in ("data",) if saved[key] != new[key]]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} was not written by this openavs; choose another --out") from error
    if differing:
        raise InputError(f"{out} holds a training that differs in {', '.join(differing)}; choose another --out")


def _differing(saved: Mapping[str, Any], new: Mapping[str, Any]) -> set[str]:
    return {key for key in saved.keys() | new.keys() if key not in MAY_CHANGE and saved.get(key) != new.get(key)}


def keep_metrics(path: Path, step: int) -> None:
    """Drop the metrics of steps after a checkpoint, and a truncated line."""
    if not path.is_file():
        return
    kept = []
    for text in path.read_text("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["step"] <= step:
            kept.append(text + "\n")
    atomic_write(path, "".join(kept).encode())


# ------------------------------------------------------------------------------ optimizer state without pickle


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return Adam's tensors by `parameter.name`, and its groups as JSON data."""
    tensors = {
        f"{parameter}.{name}": value.detach().cpu().contiguous()
        for parameter, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, {"groups": state["param_groups"]}


def _unflat(tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": data["groups"]}
