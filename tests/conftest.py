"""Shared by all tests: no network, few threads, skips with a reason, and the command line as a function."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from openavs.pipeline.pipeline import Pipeline

# Before anything imports torch or the hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small are slower with more threads
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("tests", deadline=None)  # a busy machine must not fail a test
settings.register_profile("mutants", deadline=None, phases=[Phase.explicit, Phase.generate])  # no shrinking
settings.load_profile("tests")

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Handle Ctrl-C: a shell starts background commands with SIGINT ignored, which their child processes inherit."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `timm` without timm and `gpu` without a GPU; torch is imported only if there are the latter."""
    if find_spec("timm") is None:
        for item in items:
            if item.get_closest_marker("timm"):
                item.add_marker(pytest.mark.skip(reason="timm is not installed: make test-timm"))
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Return stdout as JSON."""
        return json.loads(self.out)


@pytest.fixture
def openavs(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Run the command line in this process: `openavs("show", "tiny").out`."""
    from openavs.cli import main

    def run(*args: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    yield run


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Reset the log level that the command line sets, so that later tests see warnings."""
    yield
    logging.getLogger("openavs").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny() -> Pipeline:
    """The embedded models as a pipeline, loaded once."""
    from openavs.config.recipe import load_recipe
    from openavs.pipeline.pipeline import Pipeline

    return Pipeline.from_recipe(load_recipe("tiny"))
