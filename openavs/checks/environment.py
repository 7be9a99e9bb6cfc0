"""Checks of Python, packages, extras, codecs, torch, devices, memory and disks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from openavs.checks import CheckResult
from openavs.models.device import read_cgroup, total_memory
from openavs.utils.optional_deps import EXTRAS, Extra
from openavs.utils.text import first_line, pluralize

# Codec name -> its purpose. Every command needs the first ones; the others are for some files only.
REQUIRED_DECODERS = {"h264": "video", "aac": "audio"}
DECODERS = {
    **REQUIRED_DECODERS,
    **dict.fromkeys(("hevc", "vp8", "vp9", "av1", "mpeg4"), "video"),
    **dict.fromkeys(("opus", "mp3", "vorbis", "flac", "pcm_s16le"), "audio"),
}
REQUIRED_ENCODERS = {"libx264": "overlay videos", "aac": "audio of overlay videos"}
ENCODERS = {
    **REQUIRED_ENCODERS,
    "libvpx-vp9": "WebM with transparency",
    "libopus": "audio of WebM",
    "prores_ks": "MOV with transparency",
}
TINY_MEMORY, RECOMMENDED_MEMORY = 2.0, 8.0  # GiB

_NVIDIA = Path("/dev/nvidiactl")
_AV_FIX = "install the wheel, which includes FFmpeg: pip install --force-reinstall --only-binary :all: av"

# ------------------------------------------------------------------------------------------- Python and packages


def check_python() -> CheckResult:
    """Report the interpreter and the version of openavs."""
    from openavs import __version__

    version = platform.python_version()
    facts = {"version": version, "path": sys.executable, "openavs": __version__}
    return CheckResult("python", "ok", f"openavs {__version__} runs on Python {version} ({sys.executable}).", "", facts)


def check_packages() -> CheckResult:
    """Check the installed packages that openavs and transformers require."""
    wrong = [*unmet_requirements("openavs"), *unmet_requirements("transformers")]
    versions = {name: version for name in ("torch", "transformers", "av") if (version := installed_version(name))}
    if not wrong:
        listed = ", ".join(f"{name} {version}" for name, version in versions.items())
        return CheckResult("packages", "ok", f"All required packages are installed: {listed}.", "", versions)
    fix = "pip install " + " ".join(f'"{requirement}"' for requirement, _ in wrong)
    message = f"Packages are missing or of the wrong version: {', '.join(reason for _, reason in wrong)}."
    return CheckResult("packages", "problem", message, fix, versions)


def unmet_requirements(package: str) -> Iterator[tuple[str, str]]:
    """Yield the unmet requirements of an installed package, with reasons."""
    try:
        from packaging.requirements import Requirement

        requirements = [Requirement(text) for text in metadata.requires(package) or ()]
    except ImportError as error:  # of `packaging` itself, or because `package` is not installed
        absent = package if isinstance(error, metadata.PackageNotFoundError) else "packaging"
        if absent != "openavs":  # openavs may run from its sources without being installed
            yield absent, f"{absent} is not installed"
        return
    for needed in requirements:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(needed.name)
        if version is None:
            yield str(needed).partition(";")[0], f"{needed.name} is not installed"
        elif not needed.specifier.contains(version, prereleases=True):
            yield f"{needed.name}{needed.specifier}", f"{needed.name} {version} for {package}'s {needed.specifier}"


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def check_torchvision() -> list[CheckResult]:
    """Import torchvision, if installed: a build for another torch breaks transformers."""
    version = installed_version("torchvision")
    if version is None:
        return []
    facts = {"version": version}
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:
        message = (
            f"torchvision {version} does not fit the installed torch ({first_line(error)}), and transformers fails."
        )
        fix = "pip uninstall torchvision (openavs does not need it), or install the build for this torch"
        return [CheckResult("torchvision", "problem", message, fix, facts)]
    return [CheckResult("torchvision", "ok", f"torchvision {version} fits the installed torch.", "", facts)]


def check_extras() -> list[CheckResult]:
    """Check all extras, without imports."""
    return [check_extra(extra) for extra in EXTRAS.values()]


def check_extra(extra: Extra) -> CheckResult:
    """Check the installed version of an extra's package.

    A version that the tests of this release ran with is accepted whatever its own requirements are.
    """
    version = extra.version()
    facts = {"extra": extra.name, "package": extra.package, "installed": version, "tried": [*extra.tried]}
    fix = extra.command + (f" ({extra.note})" if extra.note else "")
    if version is None:
        return CheckResult("extra", "absent", f"{extra.name} is not installed: {extra.brings}.", fix, facts)
    message = f"{extra.name}: {extra.package} {version} is installed"
    if version in extra.tried:
        return CheckResult("extra", "ok", f"{message}.", "", facts)
    required = _required_version(extra)
    if required and not _fits(required, version):
        return CheckResult("extra", "warning", f"{message}, but openavs needs {required}.", fix, facts)
    wrong = [reason for _, reason in unmet_requirements(extra.package)]
    if wrong:
        return CheckResult("extra", "warning", f"{message} but may not work: {', '.join(wrong[:4])}.", fix, facts)
    if extra.tried:
        message = f"{message}; this release was tested with {', '.join(extra.tried)}."
        return CheckResult(
            "extra", "ok", message, f"if it fails: pip install {extra.package}=={extra.tried[-1]}", facts
        )
    return CheckResult("extra", "ok", f"{message}.", "", facts)


def _required_version(extra: Extra) -> str:
    """The versions that openavs requires (`>=0.27,<0.33`); empty if unknown."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("openavs") or ()]
    except metadata.PackageNotFoundError:
        return ""
    for needed in requirements:
        if needed.name == extra.package and needed.marker is not None and needed.marker.evaluate({"extra": extra.name}):
            return str(needed.specifier)
    return ""


def _fits(specifier: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(specifier).contains(version, prereleases=True)


# -------------------------------------------------------------------------------------------------------- codecs


def check_codecs() -> CheckResult:
    """Check the codecs of the FFmpeg that PyAV was built with."""
    try:
        import av
    except (ImportError, OSError) as error:
        return CheckResult("codecs", "problem", f"PyAV cannot be imported ({first_line(error)}).", _AV_FIX)
    decoders = {name: has_codec(name, "r") for name in DECODERS}
    encoders = {name: has_codec(name, "w") for name in ENCODERS}
    return codec_result(str(av.__version__), str(av.ffmpeg_version_info), decoders, encoders)


def has_codec(name: str, mode: Literal["r", "w"]) -> bool:
    """Return whether FFmpeg can decode (`r`) or encode (`w`) a codec."""
    from av.codec import Codec

    try:
        Codec(name, mode)
    except ValueError:  # the base class of av's UnknownCodecError
        return False
    return True


def codec_result(pyav: str, ffmpeg: str, decoders: dict[str, bool], encoders: dict[str, bool]) -> CheckResult:
    """Return the result for the available codecs; missing required ones are a problem."""
    facts: dict[str, Any] = {"pyav": pyav, "ffmpeg": ffmpeg, "decode": decoders, "encode": encoders}
    base = f"PyAV {pyav} with FFmpeg {ffmpeg}"
    missing = [f"{name} (to read {DECODERS[name]})" for name, available in decoders.items() if not available]
    missing += [f"{name} (to write {ENCODERS[name]})" for name, available in encoders.items() if not available]
    if not missing:
        message = f"{base} reads {', '.join(decoders)} and writes {', '.join(encoders)}."
        return CheckResult("codecs", "ok", message, "", facts)
    usable = all(decoders[name] for name in REQUIRED_DECODERS) and all(encoders[name] for name in REQUIRED_ENCODERS)
    state: Literal["warning", "problem"] = "warning" if usable else "problem"
    return CheckResult("codecs", state, f"{base} lacks {', '.join(missing)}.", _AV_FIX, facts)


# ---------------------------------------------------------------------------------------------- torch and devices


def check_torch() -> list[CheckResult]:
    """Import torch; check the default device, every GPU and the number of threads."""
    try:
        import torch
    except (ImportError, OSError) as error:
        message = f"torch cannot be imported ({first_line(error)})."
        return [CheckResult("torch", "problem", message, "pip install --force-reinstall torch")]
    from openavs.models.device import resolve_device

    cuda = torch.version.cuda
    message = f"torch {torch.__version__} (built {f'for CUDA {cuda}' if cuda else 'without CUDA'}) can be imported."
    results = [CheckResult("torch", "ok", message, "", {"version": str(torch.__version__), "cuda": cuda})]
    chosen = resolve_device("auto", "auto")
    facts = {"device": str(chosen.device), "dtype": str(chosen.dtype).removeprefix("torch.")}
    results.append(CheckResult("device", "ok", chosen.reason, "", facts))
    if torch.cuda.is_available():
        results += [_check_gpu(index) for index in range(torch.cuda.device_count())]
    else:
        results += undetected_gpus(cuda)
    return [*results, check_threads(torch.get_num_threads(), available_cores())]


def _check_gpu(index: int) -> CheckResult:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    facts = {"gib": round(total / 2**30, 1), "gib_free": round(free / 2**30, 1)}
    capability = torch.cuda.get_device_capability(index)
    return gpu_result(index, torch.cuda.get_device_name(index), capability, torch.cuda.get_arch_list(), facts)


def gpu_result(
    index: int, name: str, capability: tuple[int, int], architectures: Sequence[str], memory: dict[str, Any]
) -> CheckResult:
    """Return the check result for a GPU: a warning if torch was not built for it.

    Args:
        index: of the CUDA device.
        name: of the card.
        capability: compute capability, such as (9, 0).
        architectures: that torch was built for, such as `sm_90`.
        memory: `gib` and `gib_free`.
    """
    facts = {"index": index, "name": name, "capability": f"{capability[0]}.{capability[1]}", **memory}
    message = f"GPU {index} is a {name} with {memory['gib_free']} of {memory['gib']} GiB free"
    if not architectures or any(_runs_on(architecture, capability) for architecture in architectures):
        return CheckResult("gpu", "ok", f"{message}.", "", facts)
    message += f", but this build of torch does not support its compute capability {facts['capability']}."
    fix = "install a build of torch made for this GPU (https://pytorch.org/get-started), or add --device cpu"
    return CheckResult("gpu", "warning", message, fix, facts)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a GPU (CUDA C++ Programming Guide, "Compute Capability").

    Binaries (`sm_80`) run on later minor versions of the same major one; PTX (`compute_90`) is compiled for all later.
    """
    family, _, digits = architecture.rstrip("af").partition("_")
    if not digits.isdigit():
        return True  # `gfx942` of ROCm, for example
    major, minor = int(digits[:-1]), int(digits[-1])
    supported = (major, minor) <= capability
    return supported if family == "compute" else supported and major == capability[0]


def undetected_gpus(cuda: str | None) -> list[CheckResult]:
    """Warn about an NVIDIA driver if torch, built for CUDA `cuda`, found no GPU."""
    if not _NVIDIA.exists():
        return []
    if cuda is None:
        message = "An NVIDIA driver is installed, but torch was built without CUDA, so models run on the CPU."
        return [
            CheckResult("gpu", "warning", message, "install a CUDA build of torch: https://pytorch.org/get-started")
        ]
    message = (
        f"An NVIDIA driver is installed, but torch finds no GPU: none is visible, or it is too old for CUDA {cuda}."
    )
    return [CheckResult("gpu", "warning", message, "check nvidia-smi and CUDA_VISIBLE_DEVICES, or update the driver")]


def check_threads(threads: int, cores: float) -> CheckResult:
    """Warn if torch uses more threads than processors, which is slower."""
    facts = {"threads": threads, "cores": round(cores, 2)}
    message = f"torch uses {pluralize(threads, 'thread')} on {pluralize(cores, 'processor')}"
    if threads <= cores + 0.5:
        return CheckResult("threads", "ok", f"{message}.", "", facts)
    fix = f"export OMP_NUM_THREADS={max(1, int(cores))}"
    return CheckResult("threads", "warning", f"{message}, which is slower.", fix, facts)


# ---------------------------------------------------------------------------------------------- memory and disks


def check_memory() -> CheckResult:
    """Check the memory of the machine, or the limit of its container."""
    total = memory_gib()
    if total is None:
        return CheckResult("memory", "warning", "The amount of memory of this system is unknown.")
    facts = {"gib": round(total, 1)}
    message = f"This machine has {total:.1f} GiB of memory"
    if total < TINY_MEMORY:
        message += f"; the tiny recipe needs {TINY_MEMORY:.0f} GiB."
        return CheckResult("memory", "problem", message, "use a machine (or container) with more memory", facts)
    if total < RECOMMENDED_MEMORY:
        message += f"; recipes for real videos need {RECOMMENDED_MEMORY:.0f} GiB or more."
        return CheckResult("memory", "warning", message, "use a machine with more memory for them", facts)
    return CheckResult("memory", "ok", f"{message}.", "", facts)


def memory_gib() -> float | None:
    """Return the memory in GiB, at most the limit of the container; None if unknown."""
    total = total_memory()
    return None if total is None else total / 2**30


def available_cores() -> float:
    """Return the number of usable processors, by affinity and container quota."""
    count = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota, _, period = (read_cgroup("cpu.max") or "").partition(" ")
    return min(count, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else count


def check_disk(topic: str, folder: Path, purpose: str, min_gib: float, fix: str) -> CheckResult:
    """Check that a folder, or its first existing parent, is writable and has space."""
    folder = folder.expanduser().absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    facts = {"folder": str(folder), "gib_free": round(free, 1)}
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return CheckResult(topic, "warning", f"{folder} is not writable, but {purpose} are written there.", fix, facts)
    message = f"{free:.1f} GiB are free for {purpose} in {folder}."
    if free < min_gib:
        return CheckResult(topic, "warning", message, fix, facts)
    return CheckResult(topic, "ok", message, "", facts)
