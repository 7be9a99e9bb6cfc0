"""Loads transformers classes from a resolved folder: offline, safetensors only, and never half at random."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from openavs.errors import ModelError
from openavs.utils.strict_json import parse_json

if TYPE_CHECKING:
    import torch

    from openavs.models.hub import ResolvedModel

T = TypeVar("T")
_IMPLEMENTATIONS = {f"{start}{kind}_implementation" for start in ("", "_") for kind in ("attn", "experts")}


def load_pretrained(
    cls: type[T], resolved: ResolvedModel, dtype: torch.dtype, device: torch.device | str, **options: Any
) -> T:
    """Loads a transformers model class for inference: offline, safetensors only, without remote code.

    A checkpoint of another class would leave tensors at random values and only log it, so any missing or misfitting
    tensor raises ModelError. Integer buffers are not counted: they are index tables a class makes for itself.
    With accelerate, weights go straight to a GPU; without it they are in the machine's memory first.
    """
    _refuse_kernels(resolved)
    if str(device) != "cpu" and find_spec("accelerate"):
        options["device_map"] = {"": device}
    with _quiet(), _translated(cls, resolved):
        model, report = cls.from_pretrained(  # type: ignore[attr-defined]
            resolved.path,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    absent = [name for name in report["missing_keys"] if name not in tensors or tensors[name].is_floating_point()]
    absent += [str(entry[0]) for entry in report["mismatched_keys"]]
    if absent:
        raise ModelError(
            f"the model '{resolved.ref}' ({_kind(resolved.path)}) is not a whole {cls.__name__} (missing or of another "
            f"shape: {len(absent)} tensors, such as {min(absent)}); give a folder saved by that class"
        )
    loaded: T = model.requires_grad_(False).eval().to(device)
    return loaded


def load_processor(cls: type[T], resolved: ResolvedModel, **options: Any) -> T:
    """Loads a tokenizer, feature extractor or processor class from the model's folder, offline, or ModelError."""
    fix = "give a folder with the files of its processor and tokenizer, too, as save_pretrained or a download leaves it"
    with _quiet(), _translated(cls, resolved, fix):
        loaded: T = cls.from_pretrained(  # type: ignore[attr-defined]
            resolved.path, local_files_only=True, trust_remote_code=False, **options
        )
    return loaded


def _refuse_kernels(resolved: ResolvedModel) -> None:
    """Raise ModelError if config.json names a kernel of the hub, which transformers would download and run."""
    try:
        waiting = [parse_json((resolved.path / "config.json").read_text(encoding="utf-8"))]
    except ValueError:
        return  # transformers says what is wrong with it
    while waiting:
        section = waiting.pop()
        if not isinstance(section, dict):
            continue
        waiting += section.values()
        for key in _IMPLEMENTATIONS & section.keys():
            named = section[key].values() if isinstance(section[key], dict) else [section[key]]
            for kernel in named:
                if "/" in str(kernel):
                    raise ModelError(
                        f"the config.json of the model '{resolved.ref}' names the kernel {kernel!r:.80} ('{key}'), and "
                        "code from the hub is never run; remove the key"
                    )


def _kind(path: Path) -> str:
    """What a folder says it is, for error sentences."""
    try:
        return f"a '{json.loads((path / 'config.json').read_text(encoding='utf-8'))['model_type']}' model"
    except (ValueError, KeyError, TypeError):
        return "of unknown kind"


def _line(error: BaseException) -> str:
    """The first sentence of an error, without its full stop."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return re.split(r"\. ", first)[0].rstrip(".")[:160]


@contextmanager
def _translated(
    cls: type[Any], resolved: ResolvedModel, fix: str = "give a folder saved by that class"
) -> Iterator[None]:
    """Whatever transformers raises on a folder that does not fit becomes one ModelError."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    foreign = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError, ArithmeticError)
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"the weights of the model '{resolved.ref}' are damaged ({_line(error)}); copy or download the folder again"
        ) from error
    except (*foreign, StrictDataclassError) as error:
        raise ModelError(
            f"the model '{resolved.ref}' ({_kind(resolved.path)}) cannot be loaded as {cls.__name__} "
            f"({type(error).__name__}: {_line(error)}); {fix}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back transformers' own bars and load reports: what matters in them is raised here as an error."""
    from transformers.utils import logging as log

    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
