"""Student folders: config.json with the student's name and configuration, and model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openavs.errors import InputError, ModelError
from openavs.models.hub import ResolvedModel, resolve
from openavs.utils.fs import atomic_write
from openavs.utils.plugins import is_file_reference
from openavs.utils.serialization import parse_json
from openavs.utils.text import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

GROUP = "openavs.training"
BUILT_IN = {
    "tpavi": EntryPoint("tpavi", "openavs.training.models.tpavi:Tpavi", GROUP),
    "avsegformer": EntryPoint("avsegformer", "openavs.training.models.avsegformer:AvSegFormer", GROUP),
    "sama-avs": EntryPoint("sama-avs", "openavs.training.models.sama_avs:SamaAvs", GROUP),
    "ov-avss": EntryPoint("ov-avss", "openavs.training.models.ov_avss.model:OvAvss", GROUP),
}
KIND = "openavs-student"
FORMAT = 1  # increased when an older version would misread the folder


@dataclass(frozen=True)
class StudentFolder:
    """A student's folder and its config.json; tensors are read on demand."""

    found: ResolvedModel
    student: str
    config: dict[str, Any]
    facts: dict[str, Any]

    @property
    def ref(self) -> str:
        """The reference of the folder."""
        return self.found.ref

    def weights(self) -> dict[str, Tensor]:
        """Read all tensors by name, on the CPU.

        Raises:
            ModelError: the file is damaged.
        """
        from openavs.models.convert import read_weights

        return read_weights(self.found)


def find_installed(name: str) -> EntryPoint:
    """Return the entry point of a student that is built in or installed as a plug-in, without importing it.

    Raises:
        InputError: no such student; the nearest is suggested.
    """
    installed = {point.name: point for point in entry_points(group=GROUP)} | BUILT_IN
    if name not in installed:
        raise InputError(f"there is no student {name!r:.80}; {did_you_mean(name, installed)}")
    return installed[name]


def read_student(ref: str, offline: bool = False) -> StudentFolder:
    """Find a student's folder (a path or `hf:org/name`) and read its config.json.

    Raises:
        ModelError: no such folder, no safetensors, a model that is not a student, or a config.json that names a file.
    """
    found = resolve(ref, offline)
    try:
        data = parse_json((found.path / "config.json").read_text(encoding="utf-8"))
        kind = data.get("model_type")
    except (ValueError, AttributeError) as error:
        raise ModelError(f"the config.json of the model '{ref}' is not a JSON object; copy the folder again") from error
    if kind != KIND:
        what = f"is of the kind {kind!r:.80}, not a student"
        raise ModelError(f"the model '{ref}' {what}; give a folder that 'train' wrote")
    if data.get("format") != FORMAT or not isinstance(data.get("config"), dict) or "student" not in data:
        raise ModelError(
            f"the student '{ref}' was saved by another version of openavs; update openavs or train it again"
        )
    name = str(data["student"])
    if is_file_reference(name):
        raise ModelError(
            f"the config.json of the student '{ref}' names the Python file {name!r:.80} as its code, and a model "
            "folder may only name an installed student; do not use this folder"
        )
    return StudentFolder(found, name, data["config"], dict(data.get("facts") or {}))


def write_student(
    folder: Path, student: str, config: Mapping[str, Any], facts: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Write config.json and model.safetensors atomically."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    atomic_write(folder / "model.safetensors", save(tensors))
    data = {"model_type": KIND, "format": FORMAT, "student": student, "config": dict(config), "facts": dict(facts)}
    atomic_write(folder / "config.json", (json.dumps(data, indent=2) + "\n").encode())
