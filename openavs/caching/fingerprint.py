"""Fingerprint of a stage: a hash of everything its outputs depend on besides the input.

It covers code, options, weights, prompts and machine. Stages with equal fingerprints return the same outputs bit for
bit. In case of doubt (another release of torch, another kind of GPU, another number of threads) fingerprints differ: an
unnecessary run of a stage costs seconds, the output of another model would make the result wrong.
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
from openavs.stages.prompting import PromptTemplate, load_prompt

_PACKAGES = ("openavs", "torch", "transformers", "numpy", "soxr")
# Options that do not affect outputs; the device is covered by its resolved kind.
_IGNORED = {"device", "offline", "api_key_env", "timeout", "total_timeout", "max_retries", "concurrency", "on_error"}
_MAX_WHOLE = 1 << 23  # bytes; smaller files are hashed entirely
_SAMPLES, _SAMPLE_BYTES = 256, 1 << 12  # of larger files
_PACKAGE = Path(__file__).parents[1]
_CHAT = (
    "models/generation.py",
    "models/vision_chat.py",
    "media/images.py",
    "visualization/contact_sheet.py",
    "visualization/fonts.py",
)


def stage_fingerprint(backend: Any, cls: type, options: Mapping[str, Any]) -> str:
    """Compute the fingerprint of a backend created by `cls(**options)`: a SHA-256 in hex.

    Call it in the process that runs the backend, after its number of threads is set.
    """
    models = dict(getattr(backend, "models", {}))
    local = {ref: facts for ref, facts in models.items() if facts.get("path")}
    ignored = _IGNORED | ({"model"} if local else set())  # a local model is identified by its weights, not by its name
    facts = {
        "class": cls.__qualname__,
        "code": sorted({_code_digest(base, file) for base in cls.__mro__ if (file := _source(base)) is not None}),
        "versions": {name: _version(name) for name in _PACKAGES},
        "options": {name: _option(value) for name, value in options.items() if name not in ignored},
        "models": sorted(_model_digest(found) for found in local.values()),
        "prompts": _prompts(getattr(backend, "template", None)),
        "vocabulary": _option(getattr(backend, "vocabulary", None)),
        "device": _device(str(options.get("device", "auto"))) if local else "",  # a server's device is unknown
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Hash a model's files: small ones entirely, large ones by size, modification time and 256 samples.

    A folder of 16 GB takes a few milliseconds. Weights that changed in a few places, with the old size and modification
    time, may not be detected.
    """
    digest = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        state = path.stat()
        digest.update(f"{path.relative_to(folder)}\0{state.st_size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            if state.st_size <= _MAX_WHOLE:
                digest.update(file.read())
                continue
            digest.update(f"{state.st_mtime_ns}\0".encode())
            for i in range(_SAMPLES):
                file.seek(i * (state.st_size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _model_digest(facts: Mapping[str, Any]) -> str:
    return facts.get("revision") or folder_digest(Path(facts["path"]))


def _source(cls: type) -> Path | None:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return Path(file) if file and file.endswith(".py") else None


def _code_digest(cls: type, file: Path) -> str:
    """Hash the file of a plug-in, or all files of the folder of a class in a package, which include its helpers.

    For a backend of openavs the hash also covers the code that stages share: lexicon, tables, optimized modules, and
    how language models are run and get pictures.
    """
    files = sorted(file.parent.glob("*.py")) if "." in cls.__module__ else [file]
    if cls.__module__.startswith("openavs."):
        shared = ("stages/*.py", "models/ops/*.py", "assets/tables/*.tsv", *_CHAT)
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
    """Convert an option to JSON data; an existing path (made absolute by the registry) is replaced by its hash."""
    if isinstance(value, Mapping):
        return {str(key): _option(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_option(own) for own in value]
    if isinstance(value, str | Path) and os.path.isabs(value) and os.path.exists(value):
        return folder_digest(Path(value))
    return value if value is None or isinstance(value, bool | int | float | str) else repr(value)


def _prompts(template: Any) -> list[Any]:
    """Return the texts of a chat translator's prompt and of its prompt for closed vocabularies."""
    found = []
    while isinstance(template, PromptTemplate):
        found.append(asdict(template))
        template = load_prompt(template.closed) if template.closed and len(found) < 2 else None
    return found


def _device(name: str) -> str:
    """Return the kind of device, for a CPU with its instructions and number of threads, which affect rounding."""
    import torch

    from openavs.models.device import resolve_device
    from openavs.models.ops.linear import native_bfloat16, prefers_onednn

    try:
        device = resolve_device(name).device
    except InputError:  # a device that only the plug-in knows
        return name
    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    if device.type == "cpu":
        kernels = f"{prefers_onednn():d}{native_bfloat16():d}"
        return f"cpu {torch.backends.cpu.get_cpu_capability()} {kernels} {torch.get_num_threads()}"
    return str(device.type)
