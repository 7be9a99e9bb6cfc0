"""Python, the packages, memory, processors, disks: what any recipe needs of a machine."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from openavs.checks.finding import CheckResult
from openavs.models.memory import read_cgroup, total_memory

TINY_MEMORY, COMFORT = 2.0, 8.0  # GiB: what the tiny recipe needs, what the others want


def python() -> CheckResult:
    """The interpreter and openavs itself."""
    from openavs import __version__

    version = platform.python_version()
    says = f"openavs {__version__} runs on Python {version} ({sys.executable})."
    return CheckResult("python", "ok", says, facts={"version": version, "path": sys.executable, "openavs": __version__})


def packages() -> CheckResult:
    """Whether what openavs and transformers require is installed, in versions that fit; nothing is imported."""
    wrong = [*misfits("openavs"), *misfits("transformers")]
    versions = {name: version for name in ("torch", "transformers", "av") if (version := installed(name))}
    if not wrong:
        says = ", ".join(f"{name} {version}" for name, version in versions.items())
        return CheckResult("packages", "ok", f"The packages that openavs needs are here: {says}.", facts=versions)
    fix = "pip install " + " ".join(f'"{wanted}"' for wanted, _ in wrong)
    says = f"Packages are missing or do not fit: {', '.join(why for _, why in wrong)}."
    return CheckResult("packages", "problem", says, fix, versions)


def misfits(owner: str) -> Iterator[tuple[str, str]]:
    """What an installed package requires and does not find: the requirement and what is here instead."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(text) for text in metadata.requires(owner) or ()]
    except ImportError as problem:  # `packaging` itself, or the distribution of that name
        absent = owner if isinstance(problem, metadata.PackageNotFoundError) else "packaging"
        if absent != "openavs":  # which may run from its sources without being installed
            yield absent, f"{absent} is not installed"
        return
    for needed in requirements:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = installed(needed.name)
        if version is None:
            yield str(needed).partition(";")[0], f"{needed.name} is not installed"
        elif not needed.specifier.contains(version, prereleases=True):
            yield f"{needed.name}{needed.specifier}", f"{needed.name} {version} for {owner}'s {needed.specifier}"


def installed(package: str) -> str | None:
    """The version of a distribution, or None."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torchvision() -> list[CheckResult]:
    """Whether a torchvision that nobody needs breaks transformers: a build for another torch does, at import."""
    version = installed("torchvision")
    if version is None:
        return []
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as problem:
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        why = f"torchvision {version} does not fit the installed torch ({line})"
        fix = "pip uninstall torchvision (openavs does without it), or install the one made for this torch"
        return [
            CheckResult("torchvision", "problem", f"{why}, and transformers fails with it.", fix, {"version": version})
        ]
    return [
        CheckResult("torchvision", "ok", f"torchvision {version} fits the installed torch.", facts={"version": version})
    ]


def memory() -> CheckResult:
    """The memory this process may use: the machine's, or less where a container sets a limit."""
    total = memory_gib()
    if total is None:
        return CheckResult("memory", "warning", "This system does not say how much memory it has.")
    facts = {"gib": round(total, 1)}
    if total < TINY_MEMORY:
        says = f"There are {total:.1f} GiB of memory, and the tiny recipe needs {TINY_MEMORY:.0f} GiB."
        return CheckResult("memory", "problem", says, "run it on a machine (or in a container) with more memory", facts)
    if total < COMFORT:
        says = f"There are {total:.1f} GiB of memory; the recipes for real videos want {COMFORT:.0f} GiB or more."
        return CheckResult("memory", "warning", says, "use a machine with more memory for them", facts)
    return CheckResult("memory", "ok", f"There are {total:.1f} GiB of memory.", facts=facts)


def memory_gib() -> float | None:
    """GiB of memory, at most the container's limit; None where the system does not say."""
    total = total_memory()
    return None if total is None else total / 2**30


def cores() -> float:
    """How many processors this process may use: its affinity, or less where a container sets a quota."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota, _, period = (read_cgroup("cpu.max") or "").partition(" ")
    return min(count, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else count


def disk(topic: str, folder: Path, purpose: str, least: float, otherwise: str) -> CheckResult:
    """Whether a folder (or its nearest parent that exists) can be written and has `least` GiB free."""
    folder = folder.expanduser().absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free / 2**30
    facts = {"folder": str(folder), "gib_free": round(free, 1)}
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return CheckResult(topic, "warning", f"{folder} cannot be written, which {purpose} needs.", otherwise, facts)
    says = f"{free:.1f} GiB are free for {purpose} in {folder}."
    return (
        CheckResult(topic, "ok", says, facts=facts)
        if free >= least
        else CheckResult(topic, "warning", says, otherwise, facts)
    )
