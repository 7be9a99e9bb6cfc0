"""The extras: installed, absent, or installed in a version that does not work."""

from __future__ import annotations

from importlib import metadata

from openavs.checks.finding import CheckResult
from openavs.checks.machine import misfits
from openavs.utils.optional_deps import EXTRAS, Extra


def extras() -> list[CheckResult]:
    """One finding for each extra; nothing is imported."""
    return [extra_finding(extra) for extra in EXTRAS.values()]


def extra_finding(extra: Extra) -> CheckResult:
    """How one extra stands. A version that the tests were run with is good, whatever its own metadata asks for."""
    version = extra.version()
    facts = {"extra": extra.name, "package": extra.package, "installed": version, "tried": [*extra.tried]}
    note = f" ({extra.note})" if extra.note else ""
    if version is None:
        return CheckResult(
            "extra", "absent", f"{extra.name} is not installed: {extra.brings}.", extra.command + note, facts
        )
    here = f"{extra.name}: {extra.package} {version} is installed"
    if version in extra.tried:
        return CheckResult("extra", "ok", f"{here}.", facts=facts)
    wanted = _required(extra)
    if wanted and not _fits(wanted, version):
        return CheckResult("extra", "warning", f"{here}, and openavs needs {wanted}.", extra.command + note, facts)
    wrong = [why for _, why in misfits(extra.package)]
    if wrong:
        says = f"{here} and may not work: {', '.join(wrong[:4])}."
        return CheckResult("extra", "warning", says, extra.command + note, facts)
    if extra.tried:
        says = f"{here}; the tests of this release ran with {', '.join(extra.tried)}."
        return CheckResult("extra", "ok", says, f"if it fails: pip install {extra.package}=={extra.tried[-1]}", facts)
    return CheckResult("extra", "ok", f"{here}.", facts=facts)


def _required(extra: Extra) -> str:
    """The versions that openavs' own metadata asks for (`>=0.27,<0.33`); empty where it does not say."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(text) for text in metadata.requires("openavs") or ()]
    except metadata.PackageNotFoundError:
        return ""
    for needed in requirements:
        if needed.name == extra.package and needed.marker is not None and needed.marker.evaluate({"extra": extra.name}):
            return str(needed.specifier)
    return ""


def _fits(wanted: str, version: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)
