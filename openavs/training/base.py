"""What a student is: a network that learns masks from clips with their sound. A new one is a single class.

    class Mine(Student):
        name = "mine"
        Config = MyConfig                      # a frozen dataclass of plain data: it becomes config.json

        def __init__(self, config): ...        # builds the layers from the config, without loading anything
        def view(self, training): ...          # how clips are cut and scaled for it
        def forward(self, batch): ...          # Batch -> whatever `loss` and `predict` need
        def loss(self, output, batch): ...     # {"loss": what is minimised, "other": parts worth a curve}
        def predict(self, batch, classes): ... # one Prediction per clip

`openavs train ./mine.py:Mine` trains it, and what it saves is evaluated like every other student. A batch holds clips
of different lengths: `present` tells frames from padding, `labelled` the frames whose mask is known. A frame that is
not labelled says nothing; it is never background. On several devices every trainable parameter must take part in every
loss; freeze those that do not.
"""

from __future__ import annotations

import dataclasses
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor, nn
from torch.nn import functional

from openavs.errors import InputError, ModelError
from openavs.evaluation.datasets.base import Task
from openavs.structures.types import BoolMask
from openavs.training.io import StudentFolder, read_student, write_student

log = logging.getLogger(__name__)

S = TypeVar("S", bound="Student")
AUDIO_SIZE = 128  # of a VGGish feature
Size = tuple[int, int]  # height, width
_TENSORS = ("frames", "audio", "present", "masks", "labelled", "weight")


@dataclass(frozen=True)
class TransformConfig:
    """How a student looks at clips.

    `fit`: `stretch` to a square of the side, `crop` (short side to the side, centred square) or `keep` (short side to
    the side, long side at most `longest`). In training one of `sides` is drawn per clip, and with `flip` whether it is
    mirrored; otherwise the last one holds. Pictures are padded with zeros to `multiple`. `frames` frames of a clip are
    drawn in training, one of them labelled, and consecutive runs of as many are predicted; None takes all.
    """

    sides: tuple[int, ...] = (224,)
    fit: Literal["stretch", "crop", "keep"] = "stretch"
    longest: int = 1333
    multiple: int = 1
    flip: bool = False
    frames: int | None = None


@dataclass(frozen=True, eq=False)
class StudentBatch:
    """B clips of up to T frames, padded to a common size `[H, W]` on the right and below.

    Where a clip has fewer than T frames the rest is not `present`: its pixels and features are zero. `masks` are class
    indices (0 background; binary tasks have 0 and 1), zero where not `labelled`. `weight` in [0, 1] is how much a
    labelled frame counts (1 unless pseudo-labels come with a confidence). `inner` is each clip's picture size within
    the padding, `sizes` its size before scaling, which predictions have.
    """

    ids: tuple[str, ...]
    frames: Tensor  # uint8 [B, T, 3, H, W], RGB
    audio: Tensor  # float32 [B, T, 128]
    present: Tensor  # bool [B, T]
    masks: Tensor  # uint8 [B, T, H, W]
    labelled: Tensor  # bool [B, T]
    weight: Tensor  # float32 [B, T]
    inner: tuple[Size, ...]
    sizes: tuple[Size, ...]

    def to(self, device: torch.device | str) -> StudentBatch:
        """The same batch with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def clip(self, at: int) -> StudentBatch:
        """One of its clips as a batch."""
        rows = {name: getattr(self, name)[at : at + 1] for name in (*_TENSORS, "ids", "inner", "sizes")}
        return StudentBatch(**rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Each clip's number of frames."""
        return tuple(int(n) for n in self.present.sum(dim=1))


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """One mask of one frame: its class name (None for a binary student), its score, and its track if there is one."""

    mask: BoolMask
    score: float
    label: str | None = None
    track: int | None = None


@dataclass(frozen=True, eq=False)
class StudentPrediction:
    """What a student says of one clip, at the clip's own size: the masks of every frame.

    A label map is painted with the highest score on top. Binary students give `probability` `[T, H, W]`, float32 in
    [0, 1], too; its pixels above one half are the mask.
    """

    frames: tuple[tuple[InstanceMask, ...], ...]
    probability: npt.NDArray[np.float32] | None = None


class Student(nn.Module, ModelHubMixin, ABC):
    """A network that learns masks from clips with their sound; see the module for what a subclass has to say.

    `facts` is what is saved beside the configuration: which VGGish made the audio features, what it was trained on.
    With `offline` whatever it loads beside its own weights is taken from this disk.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}
        self.offline = False

    # ------------------------------------------------------------------------------------- what a student has to say

    @abstractmethod
    def view(self, training: bool) -> TransformConfig:
        """How clips are cut and scaled for it."""

    @abstractmethod
    def forward(self, batch: StudentBatch) -> Any:
        """Computes what `loss` and `predict` need. Frames that are not present must not change those that are."""

    @abstractmethod
    def loss(self, output: Any, batch: StudentBatch) -> dict[str, Tensor]:
        """Scalars by name; `loss` is minimised, the others are recorded. Only labelled frames may teach masks."""

    @abstractmethod
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """One prediction per clip. `classes` are the names to choose from, background first; None: binary masks."""

    # --------------------------------------------------------------------------------------- what it may say otherwise

    @classmethod
    def fitted(cls, settings: dict[str, Any], task: Task, classes: Sequence[str]) -> dict[str, Any]:
        """The settings of its configuration as a benchmark needs them, such as a head for its classes."""
        return settings

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """InputError if the student cannot learn this task; `classes` are the benchmark's, the background first."""

    def prepare(self, task: Task) -> None:
        """Gets what it needs beside its own weights, before the first step: what is missing is told then, not hours
        later when it is first scored."""

    def initialise(self, part: str, ref: str) -> None:
        """Starts from other weights; `part` is a key of a training recipe's `init`. Every student knows `student`:
        another student's folder, of which every tensor of the same name and shape is taken."""
        if part != "student":
            raise InputError(f"the student {self.name!r} has no part {part!r} to start from; remove 'init.{part}'")
        take_matching(self, read_student(ref, self.offline).weights(), ref)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimiser: `params`, and `scale` of the learning rate or `weight_decay` where they differ."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    # ------------------------------------------------------------------------------------------------------- on disk

    @classmethod
    def build(cls, settings: Mapping[str, Any] | None = None) -> Self:
        """Makes the student from plain data; InputError names an unknown key's nearest, or a wrong type."""
        return cls(make_config(cls, settings or {}))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *, offline: bool = False, **_: Any) -> Self:
        """Loads a folder or `hf:org/name` that `save_pretrained` wrote, ready to predict.

        Raises:
            ModelError: pickle weights, another student's folder, or tensors that are missing or do not fit.
        """
        folder = read_student(str(pretrained_model_name_or_path), offline)
        return load_folder(cls, folder, offline)

    def _save_pretrained(self, save_directory: Any) -> None:
        write_student(save_directory, self.name, dataclasses.asdict(self.config), self.facts, self.state_dict())


def make_config(cls: type[Student], settings: Mapping[str, Any]) -> Any:
    """The student's configuration from plain data, checked against its fields and their types."""
    from openavs.config.options import bind_options

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    bound = bind_options(cls.Config, given, stage="model", name=cls.name)
    return cls.Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in bound.items()})


def load_folder(cls: type[S], folder: StudentFolder, offline: bool = False) -> S:
    """A student of a class from its folder, in evaluation mode; every tensor must be there and fit."""
    from openavs.models.convert import load_state_dict_strict

    if folder.student != cls.name:
        raise ModelError(
            f"the model '{folder.ref}' is a student {folder.student!r}, not {cls.name!r}; give a folder of that kind"
        )
    try:
        student = cls.build(folder.config)
    except InputError as problem:
        raise ModelError(
            f"the config.json of the student '{folder.ref}' does not fit this openavs: {problem}"
        ) from None
    load_state_dict_strict(student, folder.weights(), folder.ref)
    student.facts, student.offline = dict(folder.facts), offline
    return student.eval()


def take_matching(student: nn.Module, weights: Mapping[str, Tensor], ref: str) -> list[str]:
    """Copies every tensor of the same name and shape and returns the names of the student's own that stay as they are.

    ModelError if none matches: the folder is of something else.
    """
    own = student.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise ModelError(f"no tensor of the model '{ref}' fits this student; start from a folder of the same kind")
    student.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    log.info("%d of %d tensors start from %s", len(fitting), len(own), ref)
    return left


# ----------------------------------------------------------------------------------------------- for many students

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def normalize_images(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """uint8 pictures `[..., 3, H, W]` by ImageNet's mean and deviation."""
    mean, std = (torch.tensor(x, device=frames.device, dtype=dtype)[:, None, None] for x in (MEAN, STD))
    return (frames.to(dtype) / 255.0 - mean) / std


def resize_to_original(maps: Tensor, inner: Size, padded: Size, size: Size) -> Tensor:
    """Maps `[N, C, h, w]` of a padded picture as `[N, C, *size]`: the padding cut off, the rest scaled bilinearly."""
    if maps.shape[-2:] != padded and inner != padded:  # only maps of the picture's own size can be cut exactly
        maps = functional.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
    cut = maps[..., : inner[0], : inner[1]] if inner != padded else maps
    if cut.shape[-2:] == size:
        return cut
    return functional.interpolate(cut, size=size, mode="bilinear", align_corners=False)
