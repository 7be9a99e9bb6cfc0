"""The cost of importing: no torch, no numpy for `--help`, and under half a second."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "scipy", "av")


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps([m for m in sys.modules if '.' not in m]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import openavs",
        "import openavs.structures.types",
        "import openavs.cli",
        "import openavs; openavs.load_recipe('tiny'); openavs.InputError",
        "from openavs.registry import Registry; Registry('detector').names()",
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert not modules_after(code) & set(HEAVY)


def test_the_package_and_the_command_line_do_not_even_need_numpy() -> None:
    assert "numpy" not in modules_after("import openavs, openavs.cli")


def test_every_public_name_exists() -> None:
    import openavs

    for name in openavs.__all__:
        assert getattr(openavs, name) is not None
    assert set(openavs.__all__) == set(dir(openavs))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = openavs.nonsense


@pytest.mark.skipif("coverage" in sys.modules, reason="the tracer takes CPU time")
def test_help_costs_less_than_half_a_second_of_cpu_time() -> None:
    """CPU time, because the wall clock includes other processes; the best of three."""
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "openavs", "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert "segment" in done.stdout
    assert min(costs) < 0.5
