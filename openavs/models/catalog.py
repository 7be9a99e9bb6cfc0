"""Catalog of known models (title, license, size), and where the weights of a model are on this disk."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from openavs.errors import ModelError
from openavs.models.hub import EMBEDDED_LICENSE, download_command, is_pinned, resolve, split_reference
from openavs.utils.fs import BoundedFile
from openavs.utils.serialization import parse_json

Permissive = Literal["yes", "no", "unknown"]
Speed = Literal["fast", "medium", "slow"]
WeightsState = Literal["embedded", "cached", "local", "partial", "missing"]

_TABLE = Path(__file__).parents[1] / "assets" / "tables" / "models.tsv"
_EMBEDDED = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class KnownModel:
    """Facts of one model.

    Attributes:
        title: common name.
        license: of the weights, as the model card states it.
        permissive: whether the license allows any use; non-commercial and gated licenses do not.
        parameters: in millions.
        download: approximate size in GB (10^9 bytes); 0 for an embedded model.
        speed: class of the cost of a frame, a sound or an answer: fast (under 0.5 TFLOP), medium (under 1.5) or slow.
    """

    title: str
    license: str
    permissive: Permissive
    parameters: float
    download: float
    speed: Speed = "fast"

    @property
    def stored(self) -> str:
        """Dtype that the weights are stored in, from the bytes per parameter of the download."""
        return "bfloat16" if 0 < self.download * 1000 < 3 * self.parameters else "float32"

    @property
    def gated(self) -> bool:
        """Whether the hub requires a login and the owner's consent."""
        return "gated" in self.license

    def memory(self, bytes_each: int) -> float:
        """Return the GB of the weights alone, at `bytes_each` bytes per parameter."""
        return self.parameters * bytes_each / 1000


def find_known_model(reference: str) -> KnownModel | None:
    """Return the entry of `hf:org/name@revision` or `openavs:tiny/name`; None for local folders and unknown models."""
    if reference.startswith("openavs:"):
        return _embedded(reference.removeprefix("openavs:"))
    return _listed().get(split_reference(reference)[0])


def is_only_synthetic(models: Mapping[str, Any]) -> bool:
    """Return whether a result's models (facts by reference) were trained on synthetic clips.

    True if one of them is an embedded model, or a student that uses one.
    """
    return any(_is_synthetic(str(reference), facts) for reference, facts in models.items())


def _is_synthetic(reference: str, facts: Any) -> bool:
    student = facts.get("facts") if isinstance(facts, Mapping) else None
    audio = student.get("audio") if isinstance(student, Mapping) else None
    audio_model = audio.get("model") if isinstance(audio, Mapping) else None
    return any(str(name).startswith("openavs:tiny") for name in (reference, audio_model))


@cache
def _listed() -> dict[str, KnownModel]:
    found = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, title, license, permissive, parameters, download, *speeds = line.split("\t")
        speed = speeds[0] if speeds else "slow"
        if permissive not in get_args(Permissive):
            raise ValueError(f"{_TABLE}: {name} is permissive 'yes', 'no' or 'unknown', not {permissive!r}")
        if speed not in get_args(Speed):
            raise ValueError(f"{_TABLE}: {name} is {', '.join(get_args(Speed))}, not {speed!r}")
        sizes = float(parameters), float(download)
        found[name] = KnownModel(title, license, cast(Permissive, permissive), *sizes, cast(Speed, speed))
    return found


def count_parameters(folder: Path, prefix: str = "") -> int:
    """Return the number of parameters in the safetensors files of a folder, read from their headers.

    Args:
        folder: the folder.
        prefix: count only tensors with names that begin so.

    Raises:
        ModelError: a header is damaged.
    """
    return sum(_numbers(folder, prefix).values())


def stored_dtype(folder: Path) -> str:
    """Return the torch name of the dtype that most weights of a folder are stored in, such as `bfloat16`.

    Raises:
        ModelError: a header is damaged.
    """
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    numbers = _numbers(folder)
    most = max(numbers, key=lambda dtype: numbers[dtype], default="F32")
    return names.get(most, most)


def _numbers(folder: Path, prefix: str = "") -> Counter[str]:
    """The number of parameters in a folder by safetensors' name of the dtype; tensors whose names begin so."""
    found: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        try:
            with BoundedFile(path) as file:
                header = parse_json(file.read(int.from_bytes(file.read(8), "little")))
            for name, tensor in header.items():
                if name != "__metadata__" and name.startswith(prefix):
                    found[tensor["dtype"]] += math.prod(tensor["shape"])
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the weights {path} are damaged ({error!s:.100}); delete the file and download it again"
            ) from error
    return found


def _embedded(name: str) -> KnownModel | None:
    """An embedded model; its size is the number of its parameters, because some files are 16-bit and some 32-bit."""
    folder = _EMBEDDED / name
    if not (folder / "model.safetensors").is_file():
        return None
    titles = {
        "clap": "tiny CLAP",
        "clip": "tiny CLIP",
        "grounding-dino": "tiny Grounding DINO",
        "lm": "tiny LM",
        "mask2former": "tiny Mask2Former",
        "pe-a-frame": "tiny PE-A-Frame",
        "resnet": "tiny ResNet",
        "sam": "tiny SAM",
        "vggish": "tiny VGGish",
    }
    short = name.rpartition("/")[2]
    millions = count_parameters(folder) / 1e6
    return KnownModel(titles.get(short, f"tiny {short}"), EMBEDDED_LICENSE, "yes", millions, 0.0)


# ------------------------------------------------------------------------------------------------ weights on disk


@dataclass(frozen=True)
class WeightsStatus:
    """State of a model's weights on this disk.

    Attributes:
        model: reference, as in the recipe.
        state: `embedded` in openavs, `cached` by the hub, a `local` folder, `partial` (an incomplete download or
            folder) or `missing`.
        revision: commit of a cached model.
        converted: whether the weights come from the hub converter's pull request.
        pinned: whether the reference names a commit, which cannot change.
        gated: whether the hub requires a login and the owner's consent.
        license: as in the catalog or the model card; None if unknown.
        permissive: whether the license allows any use.
        size_gb: on this disk, or of the download if known, in GB (10^9 bytes).
        parameters_m: number of parameters in millions, if known.
        reason: why the model cannot be loaded as it is, with the fix; empty if it can.
    """

    model: str
    state: WeightsState
    revision: str | None = None
    converted: bool = False
    pinned: bool = False
    gated: bool = False
    license: str | None = None
    permissive: Permissive = "unknown"
    size_gb: float | None = None
    parameters_m: float | None = None
    reason: str = ""

    @property
    def available(self) -> bool:
        """Whether the model can be loaded without the network."""
        return self.state in ("embedded", "cached", "local")

    @property
    def download(self) -> str:
        """Shell command that downloads the files that the loader reads."""
        return download_command(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, with the `download` command of a hub reference."""
        return asdict(self) | {"download": self.download if self.model.startswith("hf:") else None}


def find_weights(model: str) -> WeightsStatus:
    """Look for a model on this disk; `model` is a reference as in a recipe or an absolute folder."""
    known = find_known_model(model)
    facts: dict[str, Any] = {"pinned": is_pinned(model)}
    if known is not None:
        facts |= {"gated": known.gated, "license": known.license, "permissive": known.permissive}
        facts |= {"parameters_m": known.parameters, "size_gb": known.download}
    try:
        found = resolve(model, offline=True)
    except ModelError as error:
        return WeightsStatus(model, "partial" if _is_partial(model) else "missing", **facts, reason=str(error))
    schemes: dict[str, WeightsState] = {"openavs": "embedded", "hf": "cached"}
    facts |= {"license": facts.get("license") or found.license, "size_gb": _size_gb([*found.path.iterdir()])}
    state = schemes.get(model.partition(":")[0], "local")
    return WeightsStatus(model, state, found.revision, found.converted, **facts)


def find_plugin_weights(model: str, stage: str) -> WeightsStatus:
    """Look for the model of a plug-in, which may be any file or folder, or a reference."""
    path = Path(model).expanduser()
    if model.startswith(("hf:", "openavs:")):
        return find_weights(model)
    if not path.exists():
        reason = f"the model file {model} does not exist; put it beside the recipe, or set {stage}.model=FILE"
        return WeightsStatus(model, "missing", reason=reason)
    return WeightsStatus(model, "local", size_gb=_size_gb([path] if path.is_file() else [*path.iterdir()]))


def _is_partial(model: str) -> bool:
    """Whether some files are on this disk: an interrupted download, or an incomplete folder."""
    from huggingface_hub import constants

    if not model.startswith("hf:"):
        return Path(model).expanduser().is_dir()
    name = split_reference(model)[0].replace("/", "--")
    return any((Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name}" / "snapshots").glob("*/*"))


def _size_gb(files: Sequence[Path]) -> float:
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e9, 3)
