"""Training recipes: the schema of pipelines/students/*.yaml, loading and `key=value` overrides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from openavs.config import resources
from openavs.config.options import apply_override, first_error
from openavs.config.recipe import Number
from openavs.errors import InputError
from openavs.utils.serialization import read_yaml
from openavs.utils.text import did_you_mean

EXAMPLE = "see pipelines/students/tpavi-tiny.yaml for a complete one"
FOLDER = "students"
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[Number, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[Number, Field(gt=0, le=1)]
Text = Annotated[str, Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OptimizerConfig(_Section):
    """The optimizer; `clip_norm` bounds the norm of all gradients together."""

    kind: Literal["adam", "adamw"] = "adam"
    lr: Positive = 1e-4
    weight_decay: NotNegative = 0.0
    clip_norm: Positive | None = None


class LearningRateSchedule(_Section):
    """Learning rate schedule: linear warm-up from 0 over `warmup` steps, then steps or a cosine.

    The rate is multiplied by `factor` at each of `milestones` (shares of all steps), or with `cosine` follows half a
    period to 0 at the end.
    """

    warmup: Annotated[int, Field(ge=0)] = 0
    cosine: bool = False
    milestones: list[Share] = []
    factor: Positive = 0.1

    def rate(self, step: int, steps: int) -> float:
        """Return the factor of the learning rate at a step (from 0)."""
        passed = sum(step >= share * steps for share in self.milestones)
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        wave = (1 + math.cos(math.pi * step / steps)) / 2 if self.cosine else 1.0
        return float(rising * wave * self.factor**passed)


class ValidationConfig(_Section):
    """Validation: its interval in epochs; `clips` limits the split to its first clips."""

    every: Positive = 1.0
    split: Text = "val"
    clips: Count | None = None


class LabelsConfig(_Section):
    """Use of pseudo-labels, see `labels.PseudoLabels`. The defaults are the paper's where no person corrected any."""

    frames: Literal["annotated", "all"] = "annotated"
    weighted: bool = False
    person_weight: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 4.0


class TrainingRecipe(_Section):
    """A whole training as plain data.

    `model` has the student's options, `audio` the VGGish, `init` the initial weights of its parts, `freeze` the number
    of epochs at the start in which a part is not trained. `ema` is the decay of a moving average of the weights, which
    is validated and saved in their place (see `average.py`); null, as in the papers, for the weights themselves.
    `batch` is the number of clips per step over all devices; `accumulate` is its number of micro-batches. A run has
    `epochs`, but at most `max_steps`.
    """

    name: Text
    summary: str = ""
    student: Text
    model: dict[str, Any] = {}
    audio: Text
    init: dict[str, Text] = {}
    freeze: dict[str, Positive] = {}
    labels: LabelsConfig = LabelsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: LearningRateSchedule = LearningRateSchedule()
    validation: ValidationConfig = ValidationConfig()
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = None
    epochs: Positive = 15.0
    max_steps: Count | None = None
    batch: Count = 4
    accumulate: Count = 1
    precision: Literal["no", "bf16", "fp16"] = "no"
    save_every: Count = 500  # steps
    seed: Annotated[int, Field(ge=0)] = 123
    workers: Annotated[int, Field(ge=0)] = 2
    deterministic: bool = False
    tensorboard: bool = False
    offline: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _plain_no(cls, value: Any) -> Any:
        return "no" if value is False else value  # YAML reads a bare `no` as false

    def steps(self, clips: int) -> int:
        """Return the number of steps for a number of training clips."""
        whole = max(1, round(self.epochs * clips / self.batch))
        return whole if self.max_steps is None else min(whole, self.max_steps)

    def validate_every(self, clips: int) -> int:
        """Return the number of steps between validations."""
        return max(1, round(self.validation.every * clips / self.batch))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data with every default; the inverse of `training_recipe`."""
        return self.model_dump(mode="python")

    def to_yaml(self) -> str:
        """Return a complete recipe as YAML."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=110)


def load_training_recipe(name_or_path: str | Path, overrides: Sequence[str] = ()) -> TrainingRecipe:
    """Load a training recipe by its short name or its file, with overrides such as `optimizer.lr=3e-4`.

    Raises:
        InputError: no such recipe, an unknown key (the nearest is suggested) or a wrong type.
    """
    path = _find(str(name_or_path))
    data = {"name": path.stem, **read_yaml(path)}
    for override in overrides:
        apply_override(data, override)
    return training_recipe(data)


def training_recipe(data: Mapping[str, Any]) -> TrainingRecipe:
    """Validate plain data as a training recipe."""
    try:
        return TrainingRecipe.model_validate(dict(data))
    except ValidationError as error:
        sentence = first_error(error, TrainingRecipe, EXAMPLE)
        raise InputError(f"training recipe {data.get('name', '?')!r}: {sentence}") from None


def training_recipe_names() -> list[str]:
    """Return the names of the packaged training recipes, sorted."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.yaml")})


def _find(name: str) -> Path:
    given = Path(name).expanduser()
    if given.suffix in (".yaml", ".yml") or "/" in name:
        if given.is_file():
            return given.resolve()
        raise InputError(f"the training recipe {name!r} does not exist")
    for folder in _folders():
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise InputError(f"there is no training recipe {name!r}; {did_you_mean(name, training_recipe_names())}")


def _folders() -> list[Path]:
    return [folder / FOLDER for folder in resources.folders("pipelines") if (folder / FOLDER).is_dir()]
