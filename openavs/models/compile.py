"""`compile`: an option of the stages with a network that takes most of the time, the same for all of them.

    segmenter: {use: sam2, model: ..., compile: true}

It is settled here, outside of the adapters: the network's largest modules are compiled in place (`Module.compile`), so
an adapter that calls them need not know. A module is compiled when it is first called, for the shape it is given then.
A second shape makes it compile once more, for any shape; with CUDA graphs (`reduce-overhead`), which cannot, each shape
is compiled on its own: frames already go through a model in groups of exactly one shape.
"""

from __future__ import annotations

import logging
from typing import Any

from openavs.errors import InputError

log = logging.getLogger(__name__)

OPTION = "compile"
CHOICES = ("default", "reduce-overhead", "max-autotune", "aot_eager")
"""`default` (or true); with CUDA graphs; with CUDA graphs and kernels chosen by trial; captured, but not compiled: for
a machine without a compiler, to see whether a network can be captured at all."""

_SHAPES = 64  # that are compiled one by one before torch gives up and runs the network as it is
_MODULES = {
    "clap": ("model.audio_model",),
    "audio-tagger": ("model",),
    "grounding-dino": ("model.model.backbone",),  # its encoder takes minutes to compile on a CPU
    "owlv2": ("model.owlv2.vision_model",),
    "sam": ("model.vision_encoder",),
    "sam2": ("model.vision_encoder",),
    "sam3": ("model.vision_encoder",),
}
"""By backend, the modules whose forward pass is nearly all of its time; a language model's many steps are none."""


def can_compile(use: str) -> bool:
    """Whether a backend takes the option."""
    return use in _MODULES


def check_compile(use: str, value: Any) -> str | None:
    """The option's value for a backend as one of `CHOICES`; None for `false`, and where it is not given.

    Raises:
        InputError: another value, or a backend without such a network.
    """
    if value is None or value is False:
        return None
    chosen = "default" if value is True else value
    if chosen not in CHOICES:
        raise InputError(f"compile is true, false or one of {', '.join(CHOICES)}, not {value!r}")
    if not can_compile(use):
        raise InputError(f"{use!r} cannot be compiled; leave 'compile' out of it (these can: {', '.join(_MODULES)})")
    return str(chosen)


def compile_backend(backend: Any, use: str, how: str) -> None:
    """Has a backend's network compiled when it is first used.

    Raises:
        InputError: there is no compiler on this machine.
    """
    modules = [_find(backend, path) for path in _MODULES[use]]
    device = next(modules[0].parameters()).device
    if how != "aot_eager":
        _check_compiler(device)
    import torch

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _SHAPES)
    torch._dynamo.config.capture_scalar_outputs = True  # the networks check their shapes with numbers
    arguments: dict[str, Any] = {"backend": how} if how == "aot_eager" else {"mode": how}
    graphs = how in ("reduce-overhead", "max-autotune") and device.type == "cuda"
    for module in modules:
        module.compile(**arguments, dynamic=False if graphs else None)
    log.info("%s is compiled (%s) when it is first used", use, how)


def _find(backend: Any, path: str) -> Any:
    found = backend
    for name in path.split("."):
        found = getattr(found, name)
    return found


def _check_compiler(device: Any) -> None:
    """The kernels of a CPU are C++, those of a GPU are Triton's."""
    if device.type == "cuda":
        from importlib.util import find_spec

        if find_spec("triton") is None:
            raise InputError("compile needs the package triton on a GPU: pip install triton, or set compile=false")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as problem:
        raise InputError(
            f"compile needs a C++ compiler on the {device.type}, such as g++: install one, name it in the environment "
            "variable CXX, or set compile=false"
        ) from problem
