"""What is known of a model without loading it: its title, license and size, from models.tsv or its files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast, get_args

from openavs.errors import ModelError
from openavs.utils.fs import BoundedFile
from openavs.utils.strict_json import parse_json

Permissive = Literal["yes", "no", "unknown"]

_TABLE = Path(__file__).parents[1] / "assets" / "tables" / "models.tsv"
_EMBEDDED = Path(__file__).parents[1] / "assets"


@dataclass(frozen=True)
class KnownModel:
    """Facts of one model.

    Attributes:
        title: what people call it.
        license: of its weights, as its model card states it.
        permissive: whether that license allows any use; non-commercial and gated ones do not.
        parameters: in millions.
        download: approximate, in GB (10^9 bytes); 0 for an embedded model.
    """

    title: str
    license: str
    permissive: Permissive
    parameters: float
    download: float

    @property
    def stored(self) -> str:
        """The dtype that the weights are stored in, judged by the download's bytes for each parameter."""
        return "bfloat16" if 0 < self.download * 1000 < 3 * self.parameters else "float32"

    @property
    def gated(self) -> bool:
        """Whether the hub gives it only to those who logged in and were let in by its owner."""
        return "gated" in self.license

    def memory(self, bytes_each: int) -> float:
        """GB that the weights alone take at this many bytes a parameter."""
        return self.parameters * bytes_each / 1000


def find_known_model(reference: str) -> KnownModel | None:
    """The facts of `hf:org/name@revision` or `openavs:tiny/name`; None for a local folder or a model not listed."""
    if reference.startswith("openavs:"):
        return _embedded(reference.removeprefix("openavs:"))
    return _listed().get(reference.removeprefix("hf:").partition("@")[0])


def is_only_synthetic(models: Mapping[str, Any]) -> bool:
    """Whether one of a result's models (facts by reference) is an embedded one, or a student that was trained with one.

    These know only the synthetic world.
    """
    return any(_is_synthetic(str(reference), facts) for reference, facts in models.items())


def _is_synthetic(reference: str, facts: Any) -> bool:
    student = facts.get("facts") if isinstance(facts, Mapping) else None
    audio = student.get("audio") if isinstance(student, Mapping) else None
    heard = audio.get("model") if isinstance(audio, Mapping) else None
    return any(str(name).startswith("openavs:tiny") for name in (reference, heard))


@cache
def _listed() -> dict[str, KnownModel]:
    found = {}
    for line in _TABLE.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, title, license, permissive, parameters, download = line.split("\t")
        if permissive not in get_args(Permissive):
            raise ValueError(f"{_TABLE}: {name} is permissive 'yes', 'no' or 'unknown', not {permissive!r}")
        found[name] = KnownModel(title, license, cast(Permissive, permissive), float(parameters), float(download))
    return found


def count_parameters(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold, read from their headers.

    Raises:
        ModelError: a header is damaged.
    """
    return sum(_numbers(folder).values())


def stored_dtype(folder: Path) -> str:
    """Return the torch name of the dtype that most weights of a folder are stored in, such as `bfloat16`.

    Raises:
        ModelError: a header is damaged.
    """
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    numbers = _numbers(folder)
    most = max(numbers, key=lambda dtype: numbers[dtype], default="F32")
    return names.get(most, most)


def _numbers(folder: Path) -> Counter[str]:
    """By safetensors' name of the dtype: how many numbers a folder's files hold."""
    found: Counter[str] = Counter()
    for path in folder.glob("*.safetensors"):
        try:
            with BoundedFile(path) as file:
                header = parse_json(file.read(int.from_bytes(file.read(8), "little")))
            for name, tensor in header.items():
                if name != "__metadata__":
                    found[tensor["dtype"]] += math.prod(tensor["shape"])
        except (ValueError, LookupError, TypeError, AttributeError) as problem:
            raise ModelError(
                f"the weights {path} are damaged ({problem!s:.100}); delete the file and download it again"
            ) from problem
    return found


def _embedded(name: str) -> KnownModel | None:
    """An embedded model; its weights are counted and not weighed, since some are stored in 16 bits and some in 32."""
    folder = _EMBEDDED / name
    if not (folder / "model.safetensors").is_file():
        return None
    titles = {
        "clap": "tiny CLAP",
        "clip": "tiny CLIP",
        "grounding-dino": "tiny Grounding DINO",
        "lm": "tiny LM",
        "resnet": "tiny ResNet",
        "sam": "tiny SAM",
        "vggish": "tiny VGGish",
    }
    short = name.rpartition("/")[2]
    millions = count_parameters(folder) / 1e6
    return KnownModel(titles.get(short, f"tiny {short}"), "Apache-2.0", "yes", millions, 0.0)
