"""What the answers of a stage depend on besides its input: code, options, weights, prompt, machine.

Two stages of one fingerprint give the same answers bit for bit. Where that is uncertain (another release of torch,
another kind of GPU, another number of threads), the fingerprints differ: a stage that runs once too often costs
seconds, an answer of another model costs the result.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from openavs.errors import InputError
from openavs.stages.translators.prompting import PromptTemplate, load_prompt

_PACKAGES = ("openavs", "torch", "transformers", "numpy", "soxr")
# How long to wait and where to look say nothing about the answer; the device counts as what it was resolved to.
_NO_MATTER = {"device", "offline", "api_key_env", "timeout", "total_timeout", "max_retries", "concurrency", "on_error"}
_WHOLE = 1 << 23  # bytes: smaller files are read whole
_SAMPLES, _SAMPLE = 256, 1 << 12  # of larger ones, so many samples of so many bytes
_PACKAGE = Path(__file__).parents[1]


def stage_fingerprint(backend: Any, cls: type, options: Mapping[str, Any]) -> str:
    """SHA-256 in hex for a backend that `cls(**options)` made; call it where and as the backend will run."""
    models = dict(getattr(backend, "models", {}))
    local = {ref: facts for ref, facts in models.items() if facts.get("path")}
    ignored = _NO_MATTER | ({"model"} if local else set())  # a model counts by its weights, whatever it is called
    facts = {
        "class": cls.__qualname__,
        "code": sorted({_code_digest(base, file) for base in cls.__mro__ if (file := _source(base)) is not None}),
        "versions": {name: _version(name) for name in _PACKAGES},
        "options": {name: _option(value) for name, value in options.items() if name not in ignored},
        "models": sorted(_model_digest(found) for found in local.values()),
        "prompts": _prompts(getattr(backend, "template", None)),
        "vocabulary": _option(getattr(backend, "vocabulary", None)),
        "device": _device(str(options.get("device", "auto"))) if local else "",  # a server's is its own
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """SHA-256 over a model's files: small ones whole, large ones by their size, time of change and 256 samples.

    A folder of 16 GB takes a few milliseconds. Weights that were changed in a few places only and carry the old size
    and time of change may go unnoticed.
    """
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if state.st_size <= _WHOLE:
                digest.update(file.read())
                continue
            digest.update(f"{state.st_mtime_ns}\0".encode())
            for i in range(_SAMPLES):
                file.seek(i * (state.st_size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _model_digest(facts: Mapping[str, Any]) -> str:
    return facts.get("revision") or folder_digest(Path(facts["path"]))


def _source(cls: type) -> Path | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _code_digest(cls: type, file: Path) -> str:
    """The file of a plug-in; of a class in a package, all files of its folder, among which are its helpers.

    For a backend of openavs, also what all stages share: the lexicon with its tables, and the optimized modules.
    """
    files = sorted(file.parent.glob("*.py")) if "." in cls.__module__ else [file]
    if cls.__module__.startswith("openavs."):
        shared = ("stages/*.py", "models/ops/*.py", "assets/tables/*.tsv")
        files += [path for pattern in shared for path in sorted(_PACKAGE.glob(pattern))]
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _option(value: Any) -> Any:
    """As JSON; a path, which the registry has made absolute, counts by what is there."""
    if isinstance(value, Mapping):
        return {str(key): _option(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_option(own) for own in value]
    if isinstance(value, str | Path) and os.path.isabs(value) and os.path.exists(value):
        return folder_digest(Path(value))
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _prompts(template: Any) -> list[Any]:
    """The texts of a chat translator's prompt and of the one it takes for closed vocabularies."""
    found = []
    while isinstance(template, PromptTemplate):
        found.append(asdict(template))
        template = load_prompt(template.closed) if template.closed and len(found) < 2 else None
    return found


def _device(name: str) -> str:
    """The kind of device, and on a CPU what rounding depends on: its instructions and the number of threads."""
    import torch

    from openavs.models.device import resolve_device
    from openavs.models.ops.linear import native_bfloat16, prefers_onednn

    try:
        device = resolve_device(name).device
    except InputError:  # a plug-in's own kind
        return name
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        kernels = f"{prefers_onednn():d}{native_bfloat16():d}"
        return f"cpu {torch.backends.cpu.get_cpu_capability()} {kernels} {torch.get_num_threads()}"
    return str(device.type)
