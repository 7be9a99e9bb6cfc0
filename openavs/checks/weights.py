"""Where the weights of a model reference are, without asking the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from openavs.errors import ModelError

Place = Literal["embedded", "cached", "local", "partial", "missing"]


@dataclass(frozen=True)
class WeightsStatus:
    """One model as this disk has it.

    Attributes:
        model: the reference, as the recipe writes it.
        state: `embedded` in openavs, `cached` by the hub, a `local` folder; `partial` (begun but not whole) or
            `missing`.
        revision: the commit of a cached model.
        converted: whether the weights are those of the hub converter's pull request.
        pinned: whether the reference names a commit, so that it can never mean other weights.
        gated: whether the hub asks for a log-in and the owner's consent.
        permissive: `yes`, `no` or `unknown`: whether the license allows any use.
        size_gb: on this disk, or of the download where it is known; in 10^9 bytes.
        parameters_m: millions of parameters, where known.
        why: for one that cannot be used as it is, the sentence with the fix.
    """

    model: str
    state: Place
    revision: str | None = None
    converted: bool = False
    pinned: bool = False
    gated: bool = False
    license: str | None = None
    permissive: str = "unknown"
    size_gb: float | None = None
    parameters_m: float | None = None
    why: str = ""

    @property
    def here(self) -> bool:
        """Whether it can be loaded without the network."""
        return self.state in ("embedded", "cached", "local")

    @property
    def download(self) -> str:
        """The command that downloads what the loader takes of it."""
        from openavs.models.hub import download_command

        return download_command(self.model)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; `download` is the command that fetches it."""
        return asdict(self) | {"download": self.download if self.model.startswith("hf:") else None}


def find_weights(model: str) -> WeightsStatus:
    """Looks for a model on this disk; `model` is a reference as in a recipe, or an absolute folder."""
    from openavs.models.catalog import find_known_model
    from openavs.models.hub import is_pinned, resolve

    known = find_known_model(model)
    facts: dict[str, Any] = {"pinned": is_pinned(model), "gated": False}
    if known is not None:
        facts |= {"gated": known.gated, "license": known.license, "permissive": known.permissive}
        facts |= {"parameters_m": known.parameters, "size_gb": known.download}
    try:
        found = resolve(model, offline=True)
    except ModelError as problem:
        state: Place = "partial" if _begun(model) else "missing"
        return WeightsStatus(model, state, **facts, why=str(problem))
    place: Place = "embedded" if model.startswith("openavs:") else "cached" if model.startswith("hf:") else "local"
    facts |= {"license": facts.get("license") or found.license, "size_gb": _size_gb([*found.path.iterdir()])}
    return WeightsStatus(model, place, found.revision, found.converted, **facts)


def find_plugin_weights(model: str, stage: str) -> WeightsStatus:
    """Look for the model of a plug-in, which may be any file or folder; a hub reference is looked up as one."""
    path = Path(model).expanduser()
    if model.startswith(("hf:", "openavs:")):
        return find_weights(model)
    if not path.exists():
        why = f"there is no model file {model}; put it beside the recipe, or give its place with {stage}.model=FILE"
        return WeightsStatus(model, "missing", why=why)
    return WeightsStatus(model, "local", size_gb=_size_gb([path] if path.is_file() else [*path.iterdir()]))


def _begun(model: str) -> bool:
    """Whether some of it is here: a download that broke off, or a folder that lacks files."""
    from huggingface_hub import constants

    if not model.startswith("hf:"):
        return Path(model).expanduser().is_dir()
    name = model.removeprefix("hf:").partition("@")[0].replace("/", "--")
    return any((Path(constants.HF_HUB_CACHE).expanduser() / f"models--{name}" / "snapshots").glob("*/*"))


def _size_gb(files: Sequence[Path]) -> float:
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e9, 3)
