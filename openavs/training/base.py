"""Base class of students: networks that learn masks from clips with audio. A new student is one class.

    class Mine(Student):
        name = "mine"
        Config = MyConfig                      # a frozen dataclass of plain data, saved as config.json

        def __init__(self, config): ...        # builds the layers from the config, without loading anything
        def view(self, training): ...          # its `TransformConfig`
        def forward(self, batch): ...          # StudentBatch -> the input of `loss` and `predict`
        def loss(self, output, batch): ...     # {"loss": the minimized loss, "other": terms to record}
        def predict(self, batch, classes): ... # one StudentPrediction per clip

`openavs train ./mine.py:Mine` trains it, and its folder is evaluated like every other student. A batch has clips of
different lengths: `present` marks frames as opposed to padding, `labeled` frames with a known mask. A frame without a
label has no loss; it is never background. On several devices every trainable parameter must take part in every loss;
freeze the others.
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
from openavs.training.io import StudentFolder, find_installed, read_student, write_student
from openavs.utils.plugins import is_file_reference, load_file_class

logger = logging.getLogger(__name__)

S = TypeVar("S", bound="Student")
AUDIO_SIZE = 128  # of a VGGish feature
Size = tuple[int, int]  # height, width
_TENSORS = ("frames", "audio", "present", "masks", "labeled", "weight")


@dataclass(frozen=True)
class TransformConfig:
    """Transforms of a student's input.

    Attributes:
        sides: side lengths in pixels. In training one is sampled per clip; for prediction the last one is used.
        fit: `stretch` to a square of the side, `crop` (short side to the side, centered square) or `keep` (short side
            to the side, long side at most `longest`).
        longest: limit of the long side for `keep`; None for no limit.
        multiple: frames are padded with zeros to a multiple of this.
        flip: mirror clips at random in training.
        frames: frames per clip: a sample in training, with at least one label; consecutive runs for prediction. None
            for all.
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

    Frames of a shorter clip that are not `present` have zero pixels and features. `masks` are class indices (0:
    background; binary tasks have 0 and 1), zero where not `labeled`. `weight` in [0, 1] is the weight of a labeled
    frame (1 unless pseudo-labels have confidences). `inner` is each clip's frame size within the padding, `sizes` its
    size before scaling, which predictions have.
    """

    ids: tuple[str, ...]
    frames: Tensor  # uint8 [B, T, 3, H, W], RGB
    audio: Tensor  # float32 [B, T, 128]
    present: Tensor  # bool [B, T]
    masks: Tensor  # uint8 [B, T, H, W]
    labeled: Tensor  # bool [B, T]
    weight: Tensor  # float32 [B, T]
    inner: tuple[Size, ...]
    sizes: tuple[Size, ...]

    def to(self, device: torch.device | str) -> StudentBatch:
        """Return the batch with its tensors on a device."""
        return replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS})

    def clip(self, at: int) -> StudentBatch:
        """Return one of its clips as a batch."""
        rows = {name: getattr(self, name)[at : at + 1] for name in (*_TENSORS, "ids", "inner", "sizes")}
        return StudentBatch(**rows)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of frames of each clip."""
        return tuple(int(n) for n in self.present.sum(dim=1))


@dataclass(frozen=True, eq=False)
class InstanceMask:
    """One mask of one frame, with its class name (None for a binary student), score and track (None without one)."""

    mask: BoolMask
    score: float
    label: str | None = None
    track: int | None = None


@dataclass(frozen=True, eq=False)
class StudentPrediction:
    """A student's prediction of one clip, at the clip's size: the masks of every frame.

    In label maps the highest score wins. Binary students also return `probability` `[T, H, W]`, float32 in [0, 1];
    pixels above one half are the mask.
    """

    frames: tuple[tuple[InstanceMask, ...], ...]
    probability: npt.NDArray[np.float32] | None = None


class Student(nn.Module, ModelHubMixin, ABC):
    """A network that learns masks from clips with audio; the module docstring describes subclasses.

    Attributes:
        facts: facts saved beside the configuration: the VGGish of the audio features, the training data.
        offline: load other weights from this disk only.
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.facts: dict[str, Any] = {}
        self.offline = False

    # ------------------------------------------------------------------------------------- required methods

    @abstractmethod
    def view(self, training: bool) -> TransformConfig:
        """Return the transforms of its input."""

    @abstractmethod
    def forward(self, batch: StudentBatch) -> Any:
        """Compute the input of `loss` and `predict`. Absent frames must not change present ones."""

    @abstractmethod
    def loss(self, output: Any, batch: StudentBatch) -> dict[str, Tensor]:
        """Return scalars by name; `loss` is minimized, the others are recorded. Unlabeled frames have no mask loss."""

    @abstractmethod
    def predict(self, batch: StudentBatch, classes: Sequence[str] | None) -> list[StudentPrediction]:
        """Return one prediction per clip. `classes` are the class names, background first; None for binary masks."""

    # --------------------------------------------------------------------------------------- optional methods

    @classmethod
    def adapt_config(cls, settings: dict[str, Any], task: Task, classes: Sequence[str]) -> dict[str, Any]:
        """Return the configuration adapted to a benchmark, such as a head for its classes."""
        return settings

    def check(self, task: Task, classes: Sequence[str]) -> None:
        """Raise InputError if the student cannot learn a task; `classes` are the benchmark's, background first."""

    def prepare(self, task: Task) -> None:
        """Load other weights that it needs before the first step, so that a missing file does not fail hours later."""

    def initialize(self, part: str, ref: str) -> None:
        """Initialize a part from other weights; `part` is a key of a training recipe's `init`.

        Every student has `student`: another student's folder, of which every tensor of the same name and shape is
        copied.
        """
        if part != "student":
            raise InputError(f"the student {self.name!r} has no part {part!r} to start from; remove 'init.{part}'")
        take_matching(self, read_student(ref, self.offline).weights(), ref)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return parameter groups: `params`, and `scale` of the learning rate or `weight_decay` where they differ."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    # ------------------------------------------------------------------------------------------------------- on disk

    @classmethod
    def build(cls, settings: Mapping[str, Any] | None = None, offline: bool = False) -> Self:
        """Build the student from plain data; the InputError for an unknown key suggests the nearest.

        `offline` is for students that load other weights here.
        """
        return cls(make_config(cls, settings or {}))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *, offline: bool = False, **_: Any) -> Self:
        """Load a folder or `hf:org/name` written by `save_pretrained`, for prediction.

        Raises:
            ModelError: pickle weights, another student's folder, or tensors that are missing or do not fit.
        """
        folder = read_student(str(pretrained_model_name_or_path), offline)
        return load_folder(cls, folder, offline)

    def _save_pretrained(self, save_directory: Any) -> None:
        write_student(save_directory, self.name, dataclasses.asdict(self.config), self.facts, self.state_dict())


def make_config(cls: type[Student], settings: Mapping[str, Any]) -> Any:
    """Return the student's configuration from plain data, validated against its fields and types."""
    from openavs.config.options import bind_options

    given = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    bound = bind_options(cls.Config, given, stage="model", name=cls.name)
    return cls.Config(**{key: tuple(value) if isinstance(value, list) else value for key, value in bound.items()})


def load_folder(cls: type[S], folder: StudentFolder, offline: bool = False) -> S:
    """Load a student of a class from its folder, in evaluation mode; every tensor must exist and fit."""
    from openavs.models.convert import load_state_dict_strict

    if folder.student != cls.name:
        raise ModelError(
            f"the model '{folder.ref}' is a student {folder.student!r}, not {cls.name!r}; give a folder of that kind"
        )
    try:
        student = cls.build(folder.config, offline)
    except InputError as error:
        raise ModelError(f"the config.json of the student '{folder.ref}' does not fit this openavs: {error}") from None
    load_state_dict_strict(student, folder.weights(), folder.ref)
    student.facts, student.offline = dict(folder.facts), offline
    return student.eval()


def take_matching(student: nn.Module, weights: Mapping[str, Tensor], ref: str) -> list[str]:
    """Copy every tensor of the same name and shape; return the names of the student's tensors that were not copied.

    Raises:
        ModelError: none matches: the folder is of another model.
    """
    own = student.state_dict()
    fitting = {name: tensor for name, tensor in weights.items() if name in own and own[name].shape == tensor.shape}
    if not fitting:
        raise ModelError(f"no tensor of the model '{ref}' fits this student; start from a folder of the same kind")
    student.load_state_dict(fitting, strict=False)
    left = sorted(set(own) - set(fitting))
    logger.info("%d of %d tensors start from %s", len(fitting), len(own), ref)
    return left


# ----------------------------------------------------------------------------------------------- helpers

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def normalize_images(frames: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalize uint8 images `[..., 3, H, W]` by ImageNet's mean and standard deviation."""
    mean, std = (torch.tensor(x, device=frames.device, dtype=dtype)[:, None, None] for x in (MEAN, STD))
    return (frames.to(dtype) / 255.0 - mean) / std


def resize_to_original(maps: Tensor, inner: Size, padded: Size, size: Size) -> Tensor:
    """Remove the padding of maps `[N, C, h, w]` and scale them bilinearly to `[N, C, *size]`."""
    if maps.shape[-2:] != padded and inner != padded:  # only maps of the padded frame's size can be cut exactly
        maps = functional.interpolate(maps, size=padded, mode="bilinear", align_corners=False)
    cut = maps[..., : inner[0], : inner[1]] if inner != padded else maps
    if cut.shape[-2:] == size:
        return cut
    return functional.interpolate(cut, size=size, mode="bilinear", align_corners=False)


def student_class(name: str) -> type[Student]:
    """Return the class of a student: an installed name, or `./file.py:Class`, which is executed.

    Raises:
        InputError: no such student (the nearest is suggested), or the class is not one.
    """
    return _checked(name, load_file_class(name)) if is_file_reference(name) else installed_class(name)


def installed_class(name: str) -> type[Student]:
    """Return the class of `tpavi`, `ov-avss` or an installed plug-in (entry points `openavs.training`).

    Raises:
        InputError: no such student (the nearest is suggested), or the class is not one.
    """
    return _checked(name, find_installed(name).load())


def load_student(ref: str, offline: bool = False, cls: type[Student] | None = None) -> Student:
    """Load any student from its folder or `hf:org/name`, in evaluation mode.

    Args:
        ref: the folder or hub reference. Its config.json names an installed student and never a file.
        offline: use only files on this disk.
        cls: the class to use, for one that is not installed.

    Raises:
        ModelError, InputError: see `Student.from_pretrained` and `installed_class`.
    """
    folder = read_student(ref, offline)
    return load_folder(cls or installed_class(folder.student), folder, offline)


def _checked(name: str, found: Any) -> type[Student]:
    if not (isinstance(found, type) and issubclass(found, Student)):
        raise InputError(f"{name!r} is not a student: its class must derive from openavs.training.base.Student")
    return found
