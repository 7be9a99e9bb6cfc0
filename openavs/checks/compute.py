"""torch, the device that models will run on, and its threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openavs.checks.finding import CheckResult
from openavs.checks.machine import cores
from openavs.utils.text import pluralize

_NVIDIA = Path("/dev/nvidiactl")


def compute() -> list[CheckResult]:
    """Imports torch and says what it sees."""
    try:
        import torch
    except (ImportError, OSError) as problem:
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        return [
            CheckResult(
                "torch", "problem", f"torch cannot be imported ({line}).", "pip install --force-reinstall torch"
            )
        ]
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    facts = {"version": str(torch.__version__), "cuda": torch.version.cuda}
    found = [CheckResult("torch", "ok", f"torch {torch.__version__} (built {built}) can be imported.", facts=facts)]
    found.append(_device())
    found += unseen(torch.cuda.is_available(), torch.version.cuda)
    if torch.cuda.is_available():
        found += [_gpu(index) for index in range(torch.cuda.device_count())]
    return [*found, threads(torch.get_num_threads(), cores())]


def _device() -> CheckResult:
    from openavs.models.device import resolve_device

    place = resolve_device("auto", "auto")
    return CheckResult("device", "ok", place.reason, facts={"device": str(place.device), "dtype": _name(place.dtype)})


def _gpu(index: int) -> CheckResult:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    capability = torch.cuda.get_device_capability(index)
    facts = {"gib": round(total / 2**30, 1), "gib_free": round(free / 2**30, 1)}
    return gpu_finding(index, torch.cuda.get_device_name(index), capability, torch.cuda.get_arch_list(), facts)


def gpu_finding(
    index: int, name: str, capability: tuple[int, int], built_for: Sequence[str], facts: dict[str, Any]
) -> CheckResult:
    """Whether torch was built for a GPU: code of one generation runs on the later minor ones of the same major."""
    says = f"GPU {index} is a {name} with {facts['gib_free']} of {facts['gib']} GiB free"
    facts = {"index": index, "name": name, "capability": f"{capability[0]}.{capability[1]}", **facts}
    if not built_for or any(_runs_on(kind, capability) for kind in built_for):
        return CheckResult("gpu", "ok", f"{says}.", facts=facts)
    says += f", but this build of torch has no code for its compute capability {facts['capability']}."
    fix = "install a build of torch made for this GPU (https://pytorch.org/get-started), or add --device cpu"
    return CheckResult("gpu", "warning", says, fix, facts)


def _runs_on(kind: str, capability: tuple[int, int]) -> bool:
    """`sm_80` runs on 8.x from 8.0 on; `compute_90` is compiled anew for whatever is later."""
    family, _, digits = kind.rstrip("af").partition("_")
    if not digits.isdigit():
        return True  # of another maker's naming: not judged
    major, minor = int(digits[:-1]), int(digits[-1])
    later = (major, minor) <= capability
    return later if family == "compute" else later and major == capability[0]


def unseen(seen: bool, built_for: str | None) -> list[CheckResult]:
    """An NVIDIA driver whose GPUs torch does not see."""
    if seen or not _NVIDIA.exists():
        return []
    if built_for is None:
        says = "There is an NVIDIA driver, but this torch is built without CUDA, so models run on the CPU."
        return [CheckResult("gpu", "warning", says, "install a CUDA build of torch: https://pytorch.org/get-started")]
    says = f"There is an NVIDIA driver, but torch sees no GPU: none is given, or it is too old for CUDA {built_for}."
    return [CheckResult("gpu", "warning", says, "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or update the driver")]


def threads(used: int, allowed: float) -> CheckResult:
    """More threads than processors wait for each other."""
    facts = {"threads": used, "cores": round(allowed, 2)}
    says = f"torch uses {pluralize(used, 'thread')} on {pluralize(allowed, 'processor')}"
    if used <= allowed + 0.5:
        return CheckResult("threads", "ok", f"{says}.", facts=facts)
    return CheckResult(
        "threads", "warning", f"{says}, which is slower.", f"export OMP_NUM_THREADS={max(1, int(allowed))}", facts
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
