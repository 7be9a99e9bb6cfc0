"""The `compile` option of stages whose network takes most of the time; it is the same for all of them.

    segmenter: {use: sam2, model: ..., compile: true}

The network's largest modules are compiled in place (`Module.compile`), so that adapters are not involved. A module is
compiled at its first call, for the shape of its input. A second shape compiles it once more, for any shape; with CUDA
graphs (`reduce-overhead`), which do not support this, each shape is compiled separately: frames are batched by shape.
"""

from __future__ import annotations

import logging
from typing import Any

from openavs.errors import InputError

logger = logging.getLogger(__name__)

OPTION = "compile"
CHOICES = ("default", "reduce-overhead", "max-autotune", "aot_eager")
"""`default` (or true); with CUDA graphs; with CUDA graphs and autotuned kernels; captured, but not compiled: for a
machine without a compiler, to test whether a network can be captured at all."""

_MAX_SHAPES = 64  # compiled separately before torch runs the network uncompiled
_MODULES = {
    "clap": ("model.audio_model",),
    "audio-tagger": ("model",),
    "grounding-dino": ("model.model.backbone",),  # its encoder takes minutes to compile on a CPU
    "owlv2": ("model.owlv2.vision_model",),
    "omdet-turbo": ("model.vision_backbone",),
    "sam": ("model.vision_encoder",),
    "sam-hq": ("model.vision_encoder",),
    "sam2": ("model.vision_encoder",),
    "edgetam": ("model.vision_encoder",),
    "sam3": ("model.vision_encoder",),
    "sam3-lite-text": ("model.vision_encoder",),
}
"""By backend, the modules with nearly all of its time. Language models are not included: they take many short steps."""


def can_compile(use: str) -> bool:
    """Return whether a backend accepts the option."""
    return use in _MODULES


def check_compile(use: str, value: Any) -> str | None:
    """Return the option's value as one of `CHOICES`; None for `false` and for a missing value.

    Raises:
        InputError: the value is invalid, or the backend does not accept the option.
    """
    if value is None or value is False:
        return None
    mode = "default" if value is True else value
    if mode not in CHOICES:
        raise InputError(f"compile must be true, false or one of {', '.join(CHOICES)}, not {value!r}")
    if not can_compile(use):
        raise InputError(f"{use!r} cannot be compiled; remove its option 'compile' (these can: {', '.join(_MODULES)})")
    return str(mode)


def compile_backend(backend: Any, use: str, mode: str) -> None:
    """Compile a backend's network at its first use.

    Raises:
        InputError: this machine has no compiler.
    """
    modules = [_find(backend, path) for path in _MODULES[use]]
    device = next(modules[0].parameters()).device
    if mode != "aot_eager":
        _check_compiler(device)
    import torch

    from openavs.models.ops.linear import Int8Linear

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MAX_SHAPES)
    torch._dynamo.config.capture_scalar_outputs = True  # the networks compare their shapes as numbers
    arguments: dict[str, Any] = {"backend": mode} if mode == "aot_eager" else {"mode": mode}
    cuda_graphs = mode in ("reduce-overhead", "max-autotune") and device.type == "cuda"
    for layer in (layer for module in modules for layer in module.modules() if isinstance(layer, Int8Linear)):
        layer.forward = torch.compiler.disable(layer.forward)  # type: ignore[method-assign, no-untyped-call]
    for module in modules:
        module.compile(**arguments, dynamic=False if cuda_graphs else None)
    logger.info("%s is compiled (%s) at its first use", use, mode)


def _find(backend: Any, path: str) -> Any:
    found = backend
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _check_compiler(device: Any) -> None:
    """Raise InputError unless kernels can be compiled: C++ for a CPU, Triton for a GPU."""
    if device.type == "cuda":
        from importlib.util import find_spec

        if find_spec("triton") is None:
            raise InputError("compile needs the package triton on a GPU: pip install triton, or set compile=false")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        raise InputError(
            f"compile needs a C++ compiler on the {device.type}, such as g++: install one, set the environment "
            "variable CXX, or set compile=false"
        ) from error
